"""Residual networks: ResNet-18/34/50 and the CIFAR forms, with the names that weights go by.

A residual block adds what it computes to what it was given (He et al., CVPR 2016,
arXiv 1512.03385)::

    basic        y = relu( x + BN(conv3(relu(BN(conv3(x))))) )
    bottleneck   y = relu( x + BN(conv1(relu(BN(conv3(relu(BN(conv1(x)))))))) )

with ``x`` replaced by ``BN(conv1(x))`` where the block changes the width or halves the picture.
The bottleneck has its stride in the 3x3 convolution ("v1.5", as nearly all published weights).
The CIFAR forms of the paper (its section 4.2) have a 3x3 stem, no pooling, and 6n+2 layers in
three stages of n basic blocks; its shortcuts are free of parameters (`shortcut="pad"`).

Parameter names are torchvision's, so that a torchvision state dict loads strictly.
:func:`load_state` also reads safetensors files and the names of Hugging Face transformers.

>>> net = resnet18(classes=10, stem="cifar")
>>> sum(p.numel() for p in net.parameters())
11173962
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.errors import FoveateError

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "PadShortcut",
    "ResNet",
    "load_state",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet50",
    "resnet56",
]

Stem = Literal["imagenet", "cifar"]
Shortcut = Literal["conv", "pad"]


class PadShortcut(nn.Module):
    """Shortcut without parameters: every `stride`-th pixel, zeros for the channels that are new.

    Option A of He et al. (section 3.3). ``(B, C, H, W) -> (B, C + new, ceil(H/s), ceil(W/s))``.
    """

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.new_channels))


def _shortcut(in_channels: int, out_channels: int, stride: int, kind: Shortcut) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if kind == "pad":
        return PadShortcut(out_channels - in_channels, stride)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions of one width; the first has the stride.

    ``(B, in_channels, H, W) -> (B, width, ceil(H/stride), ceil(W/stride))``, non-negative.
    """

    expansion: ClassVar[int] = 1

    def __init__(
        self, in_channels: int, width: int, stride: int = 1, shortcut: Shortcut = "conv"
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride, shortcut)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        z: Tensor = self.relu2(y + self.downsample(x))
        return z


class Bottleneck(nn.Module):
    """1x1 to `width`, 3x3 with the stride, 1x1 to four times `width`.

    ``(B, in_channels, H, W) -> (B, 4 width, ceil(H/stride), ceil(W/stride))``, non-negative.
    """

    expansion: ClassVar[int] = 4

    def __init__(
        self, in_channels: int, width: int, stride: int = 1, shortcut: Shortcut = "conv"
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = _shortcut(in_channels, 4 * width, stride, shortcut)
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        z: Tensor = self.relu3(y + self.downsample(x))
        return z


class ResNet(nn.Module):
    """Stem, stages ``layer1 ... layerN`` of residual blocks, global average, classifier ``fc``.

    Parameters
    ----------
    block
        :class:`BasicBlock` or :class:`Bottleneck`.
    blocks
        Blocks of each stage; every stage but the first halves height and width.
    widths
        Width of each stage.
    classes
        Number of outputs.
    in_channels
        Channels of the input.
    stem
        ``imagenet``: 7x7 convolution of stride 2, BN, ReLU, 3x3 max-pooling of stride 2 (a
        quarter of the input's height and width); ``cifar``: 3x3 convolution of stride 1, BN, ReLU.
    shortcut
        ``conv``: 1x1 convolution and BN where a block changes the shape; ``pad``: the paper's
        parameter-free form for CIFAR.

    Notes
    -----
    ``forward``: ``(B, in_channels, H, W)`` float -> logits ``(B, classes)``. `stage_names` and
    `block_names` name stages and blocks in order, for ``get_submodule`` and forward hooks.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        blocks: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512),
        classes: int = 1000,
        in_channels: int = 3,
        stem: Stem = "imagenet",
        shortcut: Shortcut = "conv",
    ) -> None:
        super().__init__()
        if len(blocks) != len(widths) or not blocks or min(*blocks, *widths, classes) < 1:
            raise FoveateError(
                "ResNet expects one width and at least one block for each stage and at least one "
                f"class, got blocks={tuple(blocks)}, widths={tuple(widths)}, {classes=}"
            )
        if stem not in ("imagenet", "cifar") or shortcut not in ("conv", "pad"):
            raise FoveateError(
                "ResNet expects stem 'imagenet' or 'cifar' and shortcut 'conv' or 'pad', "
                f"got {stem!r} and {shortcut!r}"
            )
        if shortcut == "pad" and list(widths) != sorted(widths):
            raise FoveateError(
                f"shortcut 'pad' can only add channels, got widths={tuple(widths)}; use 'conv'"
            )
        large = stem == "imagenet"
        self.conv1 = nn.Conv2d(
            in_channels, widths[0], *((7, 2, 3) if large else (3, 1, 1)), bias=False
        )
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        self.stage_names: tuple[str, ...] = tuple(f"layer{i + 1}" for i in range(len(blocks)))
        self.block_names: tuple[str, ...] = tuple(
            f"{stage}.{index}"
            for stage, count in zip(self.stage_names, blocks, strict=True)
            for index in range(count)
        )
        channels = widths[0]
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), 1):
            layers = []
            for index in range(count):
                stride = 2 if stage > 1 and index == 0 else 1
                layers.append(block(channels, width, stride, shortcut))
                channels = width * block.expansion
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in self.stage_names:
            x = self.get_submodule(stage)(x)
        x = self.fc(torch.flatten(self.avgpool(x), 1))
        return x


def resnet18(classes: int = 1000, stem: Stem = "imagenet") -> ResNet:
    """ResNet-18: (2, 2, 2, 2) basic blocks, 11,689,512 parameters for 1000 classes."""
    return ResNet(BasicBlock, (2, 2, 2, 2), classes=classes, stem=stem)


def resnet34(classes: int = 1000, stem: Stem = "imagenet") -> ResNet:
    """ResNet-34: (3, 4, 6, 3) basic blocks, 21,797,672 parameters for 1000 classes."""
    return ResNet(BasicBlock, (3, 4, 6, 3), classes=classes, stem=stem)


def resnet50(classes: int = 1000, stem: Stem = "imagenet") -> ResNet:
    """ResNet-50 v1.5: (3, 4, 6, 3) bottlenecks, 25,557,032 parameters for 1000 classes."""
    return ResNet(Bottleneck, (3, 4, 6, 3), classes=classes, stem=stem)


def resnet20(classes: int = 10, shortcut: Shortcut = "conv") -> ResNet:
    """ResNet-20 for CIFAR: 0.27 M parameters, 40.8 M multiply-adds at 32x32."""
    return _cifar(3, classes, shortcut)


def resnet32(classes: int = 10, shortcut: Shortcut = "conv") -> ResNet:
    """ResNet-32 for CIFAR: 0.46 M parameters."""
    return _cifar(5, classes, shortcut)


def resnet56(classes: int = 10, shortcut: Shortcut = "conv") -> ResNet:
    """ResNet-56 for CIFAR: 0.85 M parameters."""
    return _cifar(9, classes, shortcut)


def _cifar(n: int, classes: int, shortcut: Shortcut) -> ResNet:
    """6n + 2 layers: stem, three stages of n basic blocks, classifier."""
    return ResNet(
        BasicBlock, (n, n, n), (16, 32, 64), classes=classes, stem="cifar", shortcut=shortcut
    )


# ------------------------------------------------------------------------------ weights


_HF_PARTS = {"convolution": "conv", "normalization": "bn"}
_HF_STEM = re.compile(r"(?:resnet\.)?embedder\.embedder\.(convolution|normalization)\.(\w+)")
_HF_BLOCK = re.compile(
    r"(?:resnet\.)?encoder\.stages\.(\d{1,4})\.layers\.(\d{1,4})\."
    r"(?:layer\.(\d{1,4})|shortcut)\.(convolution|normalization)\.(\w+)"
)
_HF_HEAD = re.compile(r"classifier\.1\.(weight|bias)")


def load_state(model: nn.Module, source: Path | str | Mapping[str, Tensor]) -> None:
    """Fill `model` with published weights; all of it or, on any disagreement, nothing.

    Parameters
    ----------
    model
        Any module; names of Hugging Face transformers are translated to those of :class:`ResNet`.
    source
        A state dict, a ``.safetensors`` file, or a file written by ``torch.save`` (opened with
        ``weights_only=True``, which runs no code of the file). Counters
        ``num_batches_tracked`` may be missing, as in old files.

    Raises
    ------
    FoveateError
        The file cannot be read, or a name, shape or type differs; the sentence says the first
        key that does not fit.

    Notes
    -----
    A transformers model made with ``downsample_in_bottleneck=True`` has its stride elsewhere;
    its state dict looks the same and loads, but computes other numbers here.
    """
    if isinstance(source, (str, Path)):
        where, state = str(source), _read_state(Path(source))
    else:
        where, state = "the state dict", dict(source)
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise FoveateError(
                f"{where} holds {key!r} of type {type(value).__name__} where names with tensors "
                "were expected; give the state dict itself"
            )
    if any(".stages." in key and _HF_BLOCK.fullmatch(key) for key in state):
        state = _from_transformers(where, state)
    own = model.state_dict()
    for key, value in state.items():
        if key not in own:
            raise FoveateError(
                f"{where} has {key!r}, which {type(model).__name__} does not; "
                "build the model that the weights belong to"
            )
        if value.shape != own[key].shape:
            raise FoveateError(
                f"{key!r} in {where} has the shape {tuple(value.shape)} where "
                f"{type(model).__name__} has {tuple(own[key].shape)}; build the model with the "
                "sizes and the number of classes of the weights"
            )
        if value.is_floating_point() != own[key].is_floating_point() or value.is_complex():
            raise FoveateError(
                f"{key!r} in {where} is of type {value.dtype} where "
                f"{own[key].dtype} was expected; convert the weights first"
            )
    for key in own:
        if key not in state and not key.endswith("num_batches_tracked"):
            raise FoveateError(
                f"{where} has no {key!r}, which {type(model).__name__} needs; "
                "build the model that the weights belong to"
            )
    model.load_state_dict(state, strict=False)  # strict above, but for the counters


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            import safetensors.torch

            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise whatever their parsers stumble on
        reason = str(error).strip().split("\n")[0]
        if type(error).__name__ == "UnpicklingError":  # torch advises to open it all the same
            reason = "it is damaged, or holds more than tensors and could run code"
        raise FoveateError(
            f"cannot read weights from {path}: {reason}; expected a safetensors file or a state "
            "dict saved by torch"
        ) from error
    if not isinstance(state, dict):
        raise FoveateError(
            f"{path} holds a {type(state).__name__} where a state dict was expected; "
            "save model.state_dict()"
        )
    return state


def _from_transformers(where: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of ``ResNetForImageClassification`` (or ``ResNetModel``) -> torchvision's.

    The rule: stage s, layer l, convolution k -> ``layer{s+1}.{l}.conv{k+1}`` and ``bn{k+1}``,
    shortcut -> ``downsample.0`` and ``downsample.1``, embedder -> ``conv1`` and ``bn1``,
    classifier -> ``fc``.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        if match := _HF_STEM.fullmatch(key):
            name = f"{_HF_PARTS[match[1]]}1.{match[2]}"
        elif match := _HF_BLOCK.fullmatch(key):
            stage, layer, number, part, leaf = match.groups()
            block = f"layer{int(stage) + 1}.{layer}"
            if number is None:
                name = f"{block}.downsample.{list(_HF_PARTS).index(part)}.{leaf}"
            else:
                name = f"{block}.{_HF_PARTS[part]}{int(number) + 1}.{leaf}"
        elif match := _HF_HEAD.fullmatch(key):
            name = f"fc.{match[1]}"
        else:
            raise FoveateError(
                f"{where} has {key!r}, which is no name of a ResNet of Hugging Face transformers; "
                "give weights of ResNetForImageClassification"
            )
        renamed[name] = value
    return renamed
