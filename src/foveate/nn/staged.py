"""Networks in stages: what comes out of each, and the rest of the way from there.

Distillation asks a network ``T`` two things at a place ``l``::

    head_l(x)    the feature F_l there
    tail_l(F)    what the network would have answered, had the feature been F

    T = tail_l o head_l                    where T is a sequence of stages
    T(x) = tail_l(head_l(x), x)            where something runs past l

Two classes answer both. :class:`StagedModel` is a sequence, made by naming the children of a
network, and its tail costs the later stages only. :class:`HookedModel` takes any network: its tail
runs the network on its input again and puts ``F`` in the place of what one module gives. Both leave
the network as it is, share its weights, and let gradients pass.

:func:`layer_outputs` gives the outputs of some modules of a network that is left as it is.
:class:`SmallVGG` is a net without skips: a student that is built otherwise than its teacher.

>>> from foveate.nn.resnet import resnet20
>>> net, x = resnet20(), torch.zeros(2, 3, 32, 32)
>>> stages = [("conv1", "bn1", "relu", "maxpool", "layer1"), ("layer2",), ("layer3",)]
>>> teacher = StagedModel.from_children(net, [*stages, ("avgpool", nn.Flatten(), "fc")], x)
>>> teacher.names
('layer1', 'layer2', 'layer3', 'fc')
>>> teacher.head(x, "layer2").shape
torch.Size([2, 32, 16, 16])
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError

__all__ = ["HookedModel", "SmallVGG", "StagedModel", "in_eval_mode", "layer_outputs"]


@contextlib.contextmanager
def in_eval_mode(*models: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; afterwards every module has its own mode back."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def layer_outputs(model: nn.Module, x: Tensor, names: Sequence[str]) -> tuple[Any, list[Tensor]]:
    """What a model returns, and what some of its modules gave in the same forward.

    Parameters
    ----------
    model
        Any network.
    x
        Its input.
    names
        Paths of modules as in ``model.named_modules()``, in the order wanted.

    Returns
    -------
    tuple
        The model's output and one tensor per name: copies, so that an in-place operation behind
        a module cannot change them. Gradients pass through them.

    Raises
    ------
    FoveateError
        A path is not in the model, or its module gives no tensor or does not run exactly once.
    """
    return _hooked(model, x, names, None, None)


def _hooked(
    model: nn.Module, x: Tensor, names: Sequence[str], place: str | None, feature: Tensor | None
) -> tuple[Any, list[Tensor]]:
    """One forward in which `feature` takes the place of what the module at `place` gives."""
    modules = dict(model.named_modules())
    watched = [*names, *([] if place is None else [place])]
    for name in watched:
        if name not in modules or not name:
            known = [child for child, _ in model.named_children()]
            raise FoveateError(
                f"{type(model).__name__} has no module {name!r}; its children are "
                f"{', '.join(known) or 'none'}, deeper ones are written like 'layer1.0'"
            )
    seen: dict[str, Tensor] = {}

    def hook_for(name: str) -> Any:
        def hook(module: nn.Module, inputs: object, output: object) -> Tensor | None:
            if not isinstance(output, Tensor):
                raise FoveateError(
                    f"module {name!r} gives a {type(output).__name__}, expected a tensor; name "
                    "another module"
                )
            if name in seen:
                raise FoveateError(
                    f"module {name!r} runs more than once in a forward, so its output is not one "
                    "place of the network; name a module that runs once"
                )
            if name != place or feature is None:
                seen[name] = output.clone()
                return None
            if feature.shape != output.shape:
                raise FoveateError(
                    f"module {name!r} gives {tuple(output.shape)} where a feature of "
                    f"{tuple(feature.shape)} was to take its place; the shapes must be equal"
                )
            seen[name] = feature
            return feature.clone()

        return hook

    handles = [
        modules[name].register_forward_hook(hook_for(name)) for name in dict.fromkeys(watched)
    ]
    try:
        output = model(x)
    finally:
        for handle in handles:
            handle.remove()
    for name in watched:
        if name not in seen:
            raise FoveateError(f"module {name!r} was not run in this forward; name another module")
    return output, [seen[name] for name in names]


class HookedModel(nn.Module):
    """Any network, asked for features and continued from them by forward hooks.

    Parameters
    ----------
    network
        Not copied, not changed.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        """What the network returns."""
        return self.network(x)

    def outputs(self, x: Tensor, names: Sequence[str]) -> tuple[Any, list[Tensor]]:
        """The network's output and those of the modules called `names` (:func:`layer_outputs`)."""
        return layer_outputs(self.network, x, names)

    def tail(
        self, feature: Tensor, start: str, x: Tensor, names: Sequence[str] = ()
    ) -> tuple[Any, list[Tensor]]:
        """Continue from `feature` as the output of the module `start`.

        Parameters
        ----------
        feature
            Of the shape that the module gives for `x`.
        x
            Input of the whole network: what runs past `start` sees it.
        names
            Modules whose outputs to give as well.

        Raises
        ------
        FoveateError
            As :func:`layer_outputs`, or `feature` has another shape.
        """
        return _hooked(self.network, x, names, start, feature)


class StagedModel(nn.Module):
    """A sequence of named stages; a stage may be anything that takes what the last one gives.

    Parameters
    ----------
    stages
        Pairs of name and module, in the order in which they run.

    Attributes
    ----------
    names
        Of the stages.
    stages
        The modules themselves, not copies.
    """

    def __init__(self, stages: Iterable[tuple[str, nn.Module]]) -> None:
        super().__init__()
        pairs = list(stages)
        self.names: tuple[str, ...] = tuple(name for name, _ in pairs)
        self.stages = nn.ModuleList([stage for _, stage in pairs])
        if len(pairs) < 2 or len(set(self.names)) < len(pairs):
            raise FoveateError(
                f"StagedModel expects at least two stages with names of their own, got {self.names}"
            )

    @classmethod
    def from_children(
        cls, network: nn.Module, stages: Sequence[Sequence[str | nn.Module]], example: Tensor
    ) -> StagedModel:
        """Cut a network by the names of its children.

        Parameters
        ----------
        network
            Any network that runs the named children one after the other. Not copied.
        stages
            For each stage what runs in it: paths of modules as in ``named_modules()``, and
            modules for what the network does without one (``nn.Flatten()``). A stage is called
            by the last path in it.
        example
            A small input ``(B, ...)``; stages and network must answer it alike in eval mode.

        Raises
        ------
        FoveateError
            A path is unknown, or the stages give something else than the network: then it is no
            such sequence, and :class:`HookedModel` is the way.
        """
        named = dict(network.named_modules())
        pairs = []
        for number, stage in enumerate(stages):
            if isinstance(stage, str):
                raise FoveateError(f"stage {number} is a text; write a tuple, ({stage!r},)")
            paths = [part for part in stage if isinstance(part, str)]
            for path in paths:
                if path not in named or not path:
                    raise FoveateError(
                        f"{type(network).__name__} has no module {path!r} for stage {number}; "
                        f"its children are {', '.join(n for n, _ in network.named_children())}"
                    )
            parts = [named[part] if isinstance(part, str) else part for part in stage]
            if not parts:
                raise FoveateError(f"stage {number} is empty; name at least one module for it")
            pairs.append((paths[-1] if paths else str(number), nn.Sequential(*parts)))
        model = cls(pairs)
        with torch.no_grad(), in_eval_mode(network, model):
            expected = network(example.clone())
            if isinstance(expected, Tensor) and not expected.isfinite().all():
                raise FoveateError(
                    f"{type(network).__name__} answers the example with numbers that are not "
                    "finite; give an example of ordinary size"
                )
            try:
                found = model(example.clone())
                same = found.shape == expected.shape and torch.allclose(found, expected, 1e-4, 1e-5)
            except (RuntimeError, AttributeError, TypeError, NotImplementedError):
                same = False  # shapes or types that do not fit one another
        if not same:
            raise FoveateError(
                f"the stages {', '.join(model.names)}, one after the other, do not answer the "
                f"example as {type(network).__name__} does; name every child in the order in which "
                "it runs, with nn.Flatten() where the network flattens, or use HookedModel, which "
                "needs no sequence"
            )
        return model

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise FoveateError(f"there is no stage {name!r}; there are {', '.join(self.names)}")
        return self.names.index(name)

    def _walk(
        self, h: Tensor, first: int, last: int, names: Sequence[str]
    ) -> tuple[Tensor, list[Tensor]]:
        kept: dict[str, Tensor] = {}
        for index in range(first, last):
            h = self.stages[index](h)
            if self.names[index] in names:
                kept[self.names[index]] = h.clone()  # a later stage may begin with one in place
        for name in names:
            if name not in kept:
                raise FoveateError(
                    f"stage {name!r} is not among those that run here: "
                    f"{', '.join(self.names[first:last]) or 'none'}"
                )
        return h, [kept[name] for name in names]

    def forward(self, x: Tensor) -> Tensor:
        """Output of the last stage."""
        return self._walk(x, 0, len(self.names), ())[0]

    def head(self, x: Tensor, end: str) -> Tensor:
        """Output of the stage `end` for the input `x`; what comes later is not run."""
        return self._walk(x, 0, self._index(end) + 1, ())[0]

    def outputs(self, x: Tensor, names: Sequence[str]) -> tuple[Tensor, list[Tensor]]:
        """Output of the last stage, and copies of those of the stages called `names`."""
        return self._walk(x, 0, len(self.names), names)

    def tail(
        self, feature: Tensor, start: str, x: Tensor | None = None, names: Sequence[str] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Continue from `feature` as the output of the stage `start`; as `HookedModel.tail`.

        `feature` is not changed by in-place operations of later stages; `x` is not needed.
        """
        return self._walk(feature.clone(), self._index(start) + 1, len(self.names), names)


class SmallVGG(nn.Module):
    """Four 3x3 convolutions without skips: two in ``layer1``, one in ``layer2`` and ``layer3``.

    Every convolution with BN and ReLU; 2x2 max-pooling before the third and the fourth (Simonyan &
    Zisserman, ICLR 2015, at its smallest); global average, classifier. Stages have the widths and
    sizes of a three-stage CIFAR ResNet, without its skips.

    Parameters
    ----------
    widths
        Of the three stages.
    classes, in_channels
        Number of outputs and of input channels.

    Notes
    -----
    ``forward``: ``(B, in_channels, H, W)`` float with H, W >= 4 -> logits ``(B, classes)``.
    `stage_names` names the stages for hooks.
    """

    def __init__(
        self, widths: Sequence[int] = (4, 8, 16), classes: int = 10, in_channels: int = 3
    ) -> None:
        super().__init__()
        if len(widths) != 3 or min(*widths, classes, in_channels) < 1:
            raise FoveateError(
                "SmallVGG expects three widths and at least one class and one input channel, got "
                f"widths={tuple(widths)}, {classes=}, {in_channels=}"
            )
        first, second, third = widths
        self.stage_names: tuple[str, ...] = ("layer1", "layer2", "layer3")
        self.layer1 = nn.Sequential(
            *_conv_bn_relu(in_channels, first), *_conv_bn_relu(first, first)
        )
        self.layer2 = nn.Sequential(nn.MaxPool2d(2), *_conv_bn_relu(first, second))
        self.layer3 = nn.Sequential(nn.MaxPool2d(2), *_conv_bn_relu(second, third))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(third, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.fc(torch.flatten(self.avgpool(x), 1))
        return x


def _conv_bn_relu(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, 3, 1, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]
