"""EREA: local experts that read the pulse and show where they read it.

A *reconstruction* of the backbone of MAR-rPPG (Zhao et al., CVPR 2024 Workshops, arXiv
2407.06653): the paper's own code was not found, so this follows its abstract and the network that
it builds on, REA (Yue, Shi & Ding, TPAMI 2023, arXiv 2210.15401).

A face is lit, moved and hidden part by part, so an n x n grid of experts k, each with its own
weights, reads one part of the feature map F each, and a gate decides at every time t how much each
is worth:

    r_k(t)     = w_k . mean_ij F_k(:, t, i, j) + b_k       what expert k reads
    g(t)       = softmax_k( gate(F)(t) )                   how much it counts
    y          = Conv1d( sum_k g_k r_k )                   the waveform
    A(t, i, j) = g_k(t) sum_c w_kc F_kc(t, i, j)           the attention, on the place of patch k

A is the class-activation map of the waveform head itself, not a saliency map beside it: averaged
over each patch and summed over the patches, with the biases added, it *is* the waveform before the
last convolution. w is detached inside A, so that a loss on A moves the features, not the head.

The network sees normalised differences of frames, ``D_t = (I_{t+1} - I_t) / (I_{t+1} + I_t)``,
which cancel the colour of the skin and the light, and so it gives the *derivative* of the pulse;
`waveform` adds it up again.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from scipy.ndimage import median_filter
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.faces.pulse import detrend
from foveate.files import write_whole

__all__ = [
    "DESK",
    "EREA",
    "PAPER",
    "EREAConfig",
    "Experts",
    "Reading",
    "attention_share",
    "crop_faces",
    "diff_label",
    "diffnorm",
    "face_boxes",
    "load",
    "neg_pearson",
    "pass_starts",
    "save",
    "waveform",
]


@dataclasses.dataclass(frozen=True)
class EREAConfig:
    """Sizes of the network; written into the weight file.

    Attributes
    ----------
    stem
        Channels after the first convolution, which halves height and width.
    stages
        Channels of the residual blocks; the last one is the width of every expert.
    grid
        The feature map is cut into ``grid x grid`` patches, one expert each.
    temporal_pool
        Frames averaged after the stem (1 = none).
    frames, size, fps
        What the network was trained on: frames of one pass, edge of the square crop in pixels,
        frames per second.
    """

    stem: int = 8
    stages: tuple[int, ...] = (16, 16)
    grid: int = 3
    temporal_pool: int = 2
    frames: int = 128
    size: int = 36
    fps: float = 30.0

    def __post_init__(self) -> None:
        # A weight file is untrusted: bound what it can make us allocate.
        sound = (
            1 <= self.stem <= 512
            and 1 <= len(self.stages) <= 8
            and all(1 <= width <= 512 for width in self.stages)
            and 1 <= self.grid <= 8
            and self.temporal_pool in (1, 2, 4)
            and 8 <= self.frames <= 1024
            and 8 <= self.size <= 512
            and 1 <= self.fps <= 1000
        )
        if not sound:
            raise FoveateError(f"an EREA network cannot have these sizes: {self}")
        if self.frames % self.temporal_pool or math.ceil(self.size / 2) % self.grid:
            raise FoveateError(
                f"EREA with {self.grid} x {self.grid} experts needs crops whose half can be cut "
                f"into {self.grid} and clips divisible by {self.temporal_pool} frames, "
                f"got {self.size} pixels and {self.frames} frames"
            )


DESK = EREAConfig()
"""Trains on two CPU cores: 175 k parameters, 1.1 GMAC for 128 frames of 36 x 36."""

PAPER = EREAConfig(stem=64, stages=(64, 128, 128, 64), temporal_pool=1, frames=160, size=96)
"""For a GPU: 160 frames of 96 x 96, the encoder of REA behind a stem of stride 2 (our decision)."""


class BasicBlock3D(nn.Module):
    """Two 3x3x3 convolutions around a skip, as in ResNet-10 (Hara et al., 2018)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm3d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv3d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm3d(outputs),
        )
        self.skip: nn.Module = nn.Identity()
        if inputs != outputs:
            self.skip = nn.Sequential(
                nn.Conv3d(inputs, outputs, 1, bias=False), nn.BatchNorm3d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


class RegionAttention(nn.Module):
    """REA's attention block, for K experts at once: ``U(x) * m + x`` with one mask m per clip.

    ``U = Conv3d(x)``; ``m = sigmoid(Conv2d(ReLU(Conv2d(mean over time of U))))`` is shared by all
    channels of an expert and all frames. Groups keep the experts apart.
    """

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.experts, hidden = experts, max(width // 2, 1)
        every = width * experts
        self.transform = nn.Conv3d(every, every, 3, padding=1, groups=experts)
        self.mask = nn.Sequential(
            nn.Conv2d(every, hidden * experts, 3, padding=1, groups=experts),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden * experts, experts, 3, padding=1, groups=experts),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        u = self.transform(x)
        mask = self.mask(u.mean(2)).repeat_interleave(x.shape[1] // self.experts, 1)
        attended: Tensor = u * mask.unsqueeze(2) + x
        return attended


class Experts(NamedTuple):
    """What the experts said, at the pooled frame rate T' (`EREA.experts`).

    Attributes
    ----------
    waves
        ``(B, K, T')``: the waveform read by each of the K experts.
    gates
        ``(B, K, T')``: how much each counts, sums to 1 over K.
    maps
        ``(B, K, T', h/n, w/n)``: class-activation map of each expert on its own patch, ungated.
    """

    waves: Tensor
    gates: Tensor
    maps: Tensor

    def gate_entropy(self) -> Tensor:
        """``(B,)`` mean entropy of the gate, nats: 0 one expert decides, log K all count alike."""
        return -(self.gates * self.gates.clamp_min(1e-12).log()).sum(1).mean(-1)


class EREA(nn.Module):
    """Clip to waveform and attention: ``(B, 3, T, H, W) -> (B, T), (B, T, h, w)``.

    Input is `diffnorm` of a face crop, output is the standardised derivative of the blood volume
    pulse in arbitrary units. ``h, w`` are half of ``H, W``.
    """

    def __init__(self, config: EREAConfig = DESK) -> None:
        super().__init__()
        self.config = config
        self.count = config.grid**2
        widths = (config.stem, *config.stages)
        self.width = widths[-1]
        self.stem = nn.Sequential(
            nn.Conv3d(3, config.stem, (1, 5, 5), (1, 2, 2), (0, 2, 2), bias=False),
            nn.BatchNorm3d(config.stem),
            nn.ReLU(inplace=True),
            nn.AvgPool3d((config.temporal_pool, 1, 1)),
        )
        self.encoder = nn.Sequential(*(BasicBlock3D(a, b) for a, b in itertools.pairwise(widths)))
        # The experts lie side by side in the channel axis and convolution groups keep them apart:
        # K networks with weights of their own, run as one.
        every = self.width * self.count
        self.specialise = nn.Sequential(
            nn.Conv3d(every, every, 3, padding=1, groups=self.count),
            nn.ReLU(inplace=True),
            RegionAttention(self.width, self.count),
        )
        bound = 1 / math.sqrt(self.width)  # as nn.Linear
        self.head_weight = nn.Parameter(torch.empty(self.count, self.width).uniform_(-bound, bound))
        self.head_bias = nn.Parameter(torch.zeros(self.count))
        self.gate_features = nn.Sequential(
            nn.Conv3d(self.width, self.width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv3d(self.width, self.width, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.gate = nn.Conv1d(self.width, self.count, 3, padding=1)
        self.fuse = nn.Conv1d(1, 1, 3, padding=1)

    def experts(self, clip: Tensor) -> Experts:
        """Run everything up to the fusion: waveform, gate and map of each expert."""
        n, pool = self.config.grid, self.config.temporal_pool
        if clip.ndim != 5 or clip.shape[1] != 3:
            raise FoveateError(f"EREA expects a clip (B, 3, T, H, W), got {tuple(clip.shape)}")
        if clip.shape[2] % pool or any(math.ceil(edge / 2) % n for edge in clip.shape[3:]):
            raise FoveateError(
                f"EREA with {n} x {n} experts expects T divisible by {pool} and H/2, W/2 divisible "
                f"by {n}, got (B, 3, T, H, W) = {tuple(clip.shape)}"
            )
        features = self.encoder(self.stem(clip))
        batch, channels, time, h, w = features.shape
        patches = (
            features.view(batch, channels, time, n, h // n, n, w // n)
            .permute(0, 3, 5, 1, 2, 4, 6)
            .reshape(batch, self.count * channels, time, h // n, w // n)
        )
        own = self.specialise(patches).view(batch, self.count, channels, time, h // n, w // n)
        waves = torch.einsum("bkct,kc->bkt", own.mean((-2, -1)), self.head_weight)
        waves = waves + self.head_bias[:, None]
        maps = torch.einsum("bkctij,kc->bktij", own, self.head_weight.detach())
        gates = self.gate(self.gate_features(features).mean((-2, -1))).softmax(1)
        return Experts(waves, gates, maps)

    def forward(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Waveform ``(B, T)`` and the gated maps stitched together, ``(B, T, h, w)``."""
        waves, gates, maps = self.experts(clip)
        n, pool = self.config.grid, self.config.temporal_pool
        fused = (gates * waves).sum(1, keepdim=True)
        if pool > 1:
            fused = F.interpolate(fused, scale_factor=pool, mode="linear")
        gated = gates[..., None, None] * maps
        batch, _, time, h, w = gated.shape
        attention = (
            gated.view(batch, n, n, time, h, w)
            .permute(0, 3, 1, 4, 2, 5)
            .reshape(batch, time, n * h, n * w)
        )
        return self.fuse(fused).squeeze(1), attention.repeat_interleave(pool, 1)


def diffnorm(clip: Tensor) -> Tensor:
    """Normalised frame difference: ``(I_{t+1} - I_t) / (I_{t+1} + I_t + 1e-7)``, unit deviation.

    Parameters
    ----------
    clip
        ``(B, 3, T, H, W)``, uint8 or float, any positive scale.

    Returns
    -------
    Tensor
        Float, same shape, divided by its deviation over each clip; the last frame is zero.
        (DeepPhys, Chen & McDuff, ECCV 2018; in the form of the rPPG-Toolbox.)
    """
    image = clip if clip.is_floating_point() else clip.float()
    now, then = image[:, :, :-1], image[:, :, 1:]
    step = F.pad((then - now) / (then + now + 1e-7), (0, 0, 0, 0, 0, 1))
    return step / step.std((1, 2, 3, 4), keepdim=True).clamp_min(1e-7)


def diff_label(bvp: Tensor) -> Tensor:
    """Difference of the label ``(B, T)``, of unit deviation; the last value is zero."""
    step = F.pad(bvp.diff(dim=-1), (0, 1))
    return step / step.std(-1, keepdim=True).clamp_min(1e-7)


def neg_pearson(prediction: Tensor, target: Tensor) -> Tensor:
    """``1 - corr(y, s)``, mean over the batch, in [0, 2] (PhysNet, Yu et al., BMVC 2019).

    Equal to the loss of PhysNet,
    ``1 - (T sum ys - sum y sum s) / sqrt((T sum y^2 - (sum y)^2)(T sum s^2 - (sum s)^2) + 1e-8)``,
    computed on centred signals, which float32 resolves better.

    Parameters
    ----------
    prediction, target
        ``(B, T)``; scale and offset of either do not matter.
    """
    if prediction.shape != target.shape or prediction.ndim != 2:
        raise FoveateError(
            f"neg_pearson expects two (B, T), got {tuple(prediction.shape)}, {tuple(target.shape)}"
        )
    y = prediction - prediction.mean(-1, keepdim=True)
    s = target - target.mean(-1, keepdim=True)
    length = prediction.shape[-1]
    spread = length**2 * y.pow(2).sum(-1) * s.pow(2).sum(-1)
    return (1 - length * (y * s).sum(-1) / (spread + 1e-8).sqrt()).mean()


def pass_starts(frames: int, length: int) -> list[int]:
    """First frames of the fewest evenly spread passes that overlap by at least a quarter."""
    if frames < length:
        raise FoveateError(
            f"the clip has {frames} frames, this network reads passes of {length}: "
            "give a longer video"
        )
    steps = math.ceil((frames - length) / (0.75 * length))
    return [round(start) for start in np.linspace(0, frames - length, steps + 1)]


def face_boxes(
    landmarks: npt.NDArray[np.floating], enlarge: float = 1.2, over: int = 15
) -> npt.NDArray[np.float64]:
    """Square crop of a face in every frame: the hull of its landmarks, enlarged, without jitter.

    Parameters
    ----------
    landmarks
        ``(T, N, 2 or more)`` pixels; a frame without a face is NaN and takes its neighbours' box.
    enlarge
        Edge of the square over the longer edge of the hull.
    over
        Frames of the median filter: a box that trembles would write its own rhythm into the crop.

    Returns
    -------
    ndarray
        ``(T, 3)``: centre x, centre y, edge, in pixels.
    """
    found = np.isfinite(landmarks).all((1, 2))
    if not found.any():
        raise FoveateError("no face was found in any frame: give a video in which one is visible")
    points = landmarks[found, :, :2].astype(np.float64)
    low, high = points.min(1), points.max(1)
    seen = np.column_stack(((low + high) / 2, enlarge * (high - low).max(1)))
    frames = np.arange(len(landmarks))
    boxes = np.stack([np.interp(frames, frames[found], column) for column in seen.T], -1)
    return np.asarray(median_filter(boxes, (over, 1), mode="nearest"), np.float64)


def crop_faces(
    frames: Iterable[npt.NDArray[np.uint8]], boxes: npt.NDArray[np.float64], size: int
) -> npt.NDArray[np.float32]:
    """Cut the boxes out and average their area down: ``(T, size, size, 3)`` float32, 0 to 255.

    Floating point, because averaged pixels hold the pulse below one step of 8 bits; outside the
    picture its edge is repeated.
    """
    crops = np.empty((len(boxes), size, size, 3), np.float32)
    for crop, frame, (x, y, edge) in zip(crops, frames, boxes, strict=True):
        side = max(round(edge), 1)
        cut = cv2.getRectSubPix(frame, (side, side), (float(x), float(y)))
        shrink = cv2.INTER_AREA if side >= size else cv2.INTER_LINEAR
        crop[:] = cv2.resize(cut.astype(np.float32), (size, size), interpolation=shrink)
    return crops


class Reading(NamedTuple):
    """Pulse of whole clips and where it was read (`waveform`).

    Attributes
    ----------
    bvp
        ``(B, T)`` float64, zero mean, arbitrary units, systole up.
    energy
        ``(B, P, h, w)`` float32: variance over time of the attention map in each of P passes.
        A map of a waveform swings with the pulse, so its size is in its variance, not its mean.
    starts
        First frame of each pass.
    """

    bvp: npt.NDArray[np.float64]
    energy: npt.NDArray[np.float32]
    starts: list[int]


@torch.no_grad()
def waveform(net: EREA, clips: npt.NDArray[np.uint8 | np.float32], batch: int = 8) -> Reading:
    """Read the pulse of clips of any length, in passes of ``net.config.frames``.

    The passes are standardised, joined by Hann-weighted overlap-add and summed up over time,
    because the network gives the derivative of the pulse; slow drift is removed (`detrend`).

    Parameters
    ----------
    net
        Left in evaluation mode.
    clips
        ``(B, T, H, W, 3)`` face crops at ``net.config.fps``, uint8, or float of the same range.

    Raises
    ------
    FoveateError
        Wrong shape, or fewer frames than one pass.
    """
    if clips.ndim != 5 or clips.shape[-1] != 3:
        raise FoveateError(f"waveform expects clips (B, T, H, W, 3), got {tuple(clips.shape)}")
    net.eval()
    device = net.head_weight.device
    length, (count, frames) = net.config.frames, clips.shape[:2]
    starts = pass_starts(frames, length)
    window = np.hanning(length + 2)[1:-1]  # without its zeros: every frame gets some weight
    total, weight = np.zeros((count, frames)), np.zeros(frames)
    energy = []
    for start in starts:
        waves, energies = [], []
        for first in range(0, count, batch):
            # A copy: the clips may be a read-only file in memory.
            part = torch.from_numpy(np.array(clips[first : first + batch, start : start + length]))
            wave, attention = net(diffnorm(part.to(device).permute(0, 4, 1, 2, 3)))
            waves.append(wave.double().cpu().numpy())
            energies.append(attention.var(1).float().cpu().numpy())
        steps = np.concatenate(waves)
        steps = steps - steps.mean(-1, keepdims=True)
        steps /= steps.std(-1, keepdims=True) + 1e-12
        total[:, start : start + length] += window * steps
        weight[start : start + length] += window
        energy.append(np.concatenate(energies))
    # Step t leads from frame t to t + 1: the pulse of a frame is the sum of the steps before it.
    # Each pass has an offset of its own, which the sum over time turns into slow drift.
    steps = total / weight
    bvp = detrend((np.cumsum(steps, -1) - steps).T, lam=100 * (net.config.fps / 30) ** 2).T
    return Reading(bvp - bvp.mean(-1, keepdims=True), np.stack(energy, 1), starts)


def attention_share(
    energy: npt.NDArray[np.floating], skin: npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """Share of the attention that lies on skin: ``sum_skin var_t A / sum_all var_t A``.

    Parameters
    ----------
    energy
        ``(B, ..., h, w)`` from `waveform`.
    skin
        ``(B, ..., h, w)`` fraction of each cell that is skin, in [0, 1].

    Returns
    -------
    ndarray
        ``(B,)`` in [0, 1]; NaN where the attention does not move at all.
    """
    if energy.shape != skin.shape:
        raise FoveateError(f"energy {energy.shape} and skin {skin.shape} must be of one shape")
    axes = tuple(range(1, energy.ndim))
    total: npt.NDArray[np.float64] = energy.sum(axes, dtype=np.float64)
    on_skin = (energy * skin).sum(axes, dtype=np.float64)
    share: npt.NDArray[np.float64] = np.full(len(total), np.nan)
    np.divide(on_skin, total, out=share, where=total > 0)
    return share


def save(net: EREA, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write weights and config as one safetensors file, whole or not at all."""
    config = json.dumps(dataclasses.asdict(net.config))
    state = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    with write_whole(path) as temporary:
        safetensors.torch.save_file(state, temporary, {**(metadata or {}), "erea": config})


def load(path: Path) -> EREA:
    """Read a network written by `save`, ready for inference.

    Raises
    ------
    FoveateError
        Not a safetensors file, not an EREA network, or tensors that do not fit its config.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            fields = json.loads((file.metadata() or {})["erea"])
            fields["stages"] = tuple(fields["stages"])
            net = EREA(EREAConfig(**fields))
            expected = {name: list(value.shape) for name, value in net.state_dict().items()}
            found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            if found != expected:
                wrong = sorted(
                    name
                    for name in expected.keys() | found.keys()
                    if expected.get(name) != found.get(name)
                )
                raise FoveateError(f"{path}: tensor {wrong[0]} does not fit the sizes in the file")
            net.load_state_dict({name: file.get_tensor(name) for name in expected})
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise FoveateError(
            f"{path} is not a readable EREA weight file ({error}); expected one written by "
            "`foveate run mar-rppg`"
        ) from error
    return net.eval()
