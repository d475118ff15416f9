"""Label every pixel of a PolSAR scene with the polarimetric convolutional network.

`PcnMap` trains `foveate.scenes.polarimetric_network` from a handful of labelled pixels and then
labels scenes of any size. A tile is drawn around a labelled pixel, which lies anywhere in it; the
loss is the cross-entropy over the labelled pixels of the batch, and nothing else:

    loss = - sum over labelled p of log softmax(logits)[p, y_p]  /  number of labelled p

Pixels that must not be seen (the test blocks of a split) are set to 0 at the *input*: to hide only
their labels would let the net read them as context.

Input scaling (decided here, the paper says nothing), from the pixels that may be seen:

    T3   z_ij = T_ij / sqrt(m_i m_j),  m_i the median of T_ii;  then z / |z| log(1 + |z|)
    S    z = S / rms(|S|), real and imaginary part cut to [-10, 10]

Both keep every sign and phase (S: up to the cut), so the coding sees the same quadrants.

*Multilooked* scenes have no S any more. They come with T3, the nine real channels of a ``polsar``
`Scene`, and what is coded then is T3 (k = 3), not S: the report of a run must say so. A scene with
the eight channels `SCATTERING_BANDS` is single-look S (k = 2), as published.

A map does not depend on how the scene is cut: a tile is read with `margin` pixels of context, more
than a decision can see; tiles start at multiples of 4, where the two poolings' cells do; and
BatchNorm uses its running statistics. What is left is the last bit of float32 sums.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.datasets.scene import POLSAR_BANDS, Scene, Window
from foveate.datasets.scene_labels import SceneLabels
from foveate.errors import FoveateError
from foveate.scenes.map_model import check_labels
from foveate.scenes.polarimetric_network import (
    DESK_STEM,
    DESK_WIDTHS,
    UNIT,
    Norm,
    Paths,
    PolarimetricConvNet,
    context,
)

__all__ = [
    "SCATTERING_BANDS",
    "DivergedError",
    "PcnMap",
    "PcnSettings",
    "PolarimetricScaling",
    "scattering_channels",
    "sparse_cross_entropy",
]

SCATTERING_BANDS = tuple(
    f"{pq}_{part}" for pq in ("HH", "HV", "VH", "VV") for part in ("real", "imag")
)
CLIP = 10.0  # of scaled S
WHOLE = 1 << 22  # a scene of at most so many pixels is scaled by all of them
SAMPLED_TILES = 256  # and a larger one by so many tiles

Hidden = Callable[[Window], npt.NDArray[np.bool_]]
Array = npt.NDArray[np.float32]


class DivergedError(FoveateError):
    """Training came to a loss that is not finite."""


def scattering_channels(s: npt.NDArray[np.complexfloating[Any, Any]]) -> Array:
    """S ``(H, W, 2, 2)`` complex as the channels ``(H, W, 8)`` of `SCATTERING_BANDS`."""
    s = np.asarray(s)
    if s.ndim != 4 or s.shape[2:] != (2, 2) or s.dtype.kind != "c":
        raise FoveateError(
            f"scattering matrices are complex (H, W, 2, 2), got {s.dtype} of shape {s.shape}"
        )
    flat = s.reshape(*s.shape[:2], 4).astype(np.complex64)
    return np.ascontiguousarray(flat).view(np.float32)


@dataclass(frozen=True)
class PolarimetricScaling:
    """Turns a scene's real channels into scaled complex matrices.

    Attributes
    ----------
    k
        2: S, 3: T3.
    scale
        k = 3: medians of T11, T22, T33. k = 2: one number, the RMS of |S|.
    """

    k: int
    scale: tuple[float, ...]

    @classmethod
    def fit(cls, pixels: Array, k: int) -> PolarimetricScaling:
        """Scale of pixels ``(N, 9)`` (k = 3) or ``(N, 8)`` (k = 2).

        Raises
        ------
        FoveateError
            No pixel, or a scale that is 0.
        """
        channels = {2: 8, 3: 9}.get(k)
        if channels is None or pixels.ndim != 2 or pixels.shape[1] != channels or not len(pixels):
            raise FoveateError(
                "the scale of PolSAR input needs pixels (N, 9) of T3 or (N, 8) of S, at least one; "
                f"got {pixels.shape} with k={k}"
            )
        if k == 3:
            scale = tuple(float(m) for m in np.median(pixels[:, :3], axis=0))
        else:
            scale = (float(np.sqrt(np.square(pixels, dtype=np.float64).sum() / (4 * len(pixels)))),)
        if not all(np.isfinite(scale)) or min(scale) <= 0:
            raise FoveateError(
                f"the scale of the scene's channels is {scale}, expected positive numbers: most "
                "pixels that may be seen are empty; mask them or give another scene"
            )
        return cls(k, scale)

    def __call__(self, channels: Tensor) -> Tensor:
        """``(..., 9 or 8)`` float -> complex ``(..., k, k)``; zeros stay zeros."""
        if self.k == 2:
            z = (channels / self.scale[0]).clamp(-CLIP, CLIP)
            return torch.view_as_complex(z.reshape(*z.shape[:-1], 2, 2, 2).contiguous())
        t11, t22, t33, *pairs = (channels[..., c] for c in range(9))
        zero = torch.zeros_like(t11)
        t12, t13, t23 = (torch.complex(*pairs[at : at + 2]) for at in (0, 2, 4))
        d11, d22, d33 = (torch.complex(t, zero) for t in (t11, t22, t33))
        rows = ((d11, t12, t13), (t12.conj(), d22, t23), (t13.conj(), t23.conj(), d33))
        m = torch.stack([torch.stack(row, -1) for row in rows], -2)
        root = torch.tensor(self.scale, device=m.device).sqrt()
        m = m / (root[:, None] * root)
        size = m.abs()
        return m * (size.log1p() / size.clamp_min(torch.finfo(size.dtype).tiny))


@dataclass(frozen=True)
class PcnSettings:
    """Network and training; the defaults are those of the desk.

    Attributes
    ----------
    paths, widths, stem, fuse_channels, kernel, norm
        As in `PolarimetricConvNet`.
    tile
        Side of a training tile, a multiple of 4; cut to the scene where that is smaller.
    batch, steps
        Tiles of a step; steps. The weights of the last step are kept.
    optimizer, lr
        ``adam``, or ``sgd`` with momentum 0.9 (the paper's, lr 0.01); cosine to 0 in both.
    """

    paths: Paths = "both"
    widths: tuple[int, ...] = DESK_WIDTHS
    stem: tuple[int, int] = DESK_STEM
    fuse_channels: int = 16
    kernel: int = 3
    norm: Norm = "batch"
    tile: int = 64
    batch: int = 8
    steps: int = 400
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = 2e-3

    def __post_init__(self) -> None:
        if self.tile < UNIT or self.tile % UNIT or min(self.batch, self.steps) < 1:
            raise FoveateError(
                f"PcnSettings expects a tile that is a multiple of {UNIT} and at least one tile "
                f"and step, got tile={self.tile}, batch={self.batch}, steps={self.steps}"
            )
        if self.optimizer not in ("adam", "sgd") or not 0 < self.lr < float("inf"):
            raise FoveateError(
                f"PcnSettings expects adam or sgd and a positive lr, got {self.optimizer!r} and "
                f"{self.lr}"
            )


class PcnMap:
    """A `MapModel`: the polarimetric convolutional network on sparse labels.

    Parameters
    ----------
    settings
        Network and training.
    device
        Where torch computes.

    Attributes
    ----------
    margin, stride
        Context of a tile on every side; tiles start at multiples of 4.
    classes
        Codes, in the order of the probabilities; empty before `fit`.
    k
        2 or 3, what was coded: S or T3; 0 before `fit`.
    """

    stride = UNIT

    def __init__(
        self, settings: PcnSettings | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.settings = settings or PcnSettings()
        self.device = torch.device(device)
        self.margin: int = context(self.settings.kernel, self.settings.paths)
        self.classes: tuple[int, ...] = ()
        self.k = 0
        self._net: PolarimetricConvNet | None = None
        self._scaling: PolarimetricScaling | None = None
        self._extent = (0, 0)

    @property
    def net(self) -> PolarimetricConvNet:
        """The trained network; FoveateError before `fit`."""
        if self._net is None:
            raise FoveateError("this PcnMap is not trained; call fit(scene, labels, seed=0) first")
        return self._net

    # ------------------------------------------------------------------------ training

    def fit(
        self,
        scene: Scene,
        labels: SceneLabels,
        *,
        seed: int,
        hidden: Hidden | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> PcnMap:
        """Train on tiles around the labelled pixels.

        Parameters
        ----------
        scene
            A ``polsar`` scene (T3), or one with the bands `SCATTERING_BANDS` (S).
        labels
            The training pixels and no others.
        seed
            Decides first weights and tiles.
        hidden
            Window inside the scene -> ``(h, w)`` bool, True where input and labels must not be
            used; their input is 0. None: all may be seen.
        progress
            Told (steps done, steps).

        Raises
        ------
        FoveateError
            Fewer than two classes, labels of another scene, nothing visible, or (`DivergedError`) a
            loss that is not finite.
        """
        s = self.settings
        k = _matrix_size(scene)
        check_labels(scene, labels)
        if hidden is not None and len(labels):
            labels = labels.subset(~_hidden_at(hidden, labels))
        if len(labels.classes) < 2:
            raise FoveateError(
                f"PcnMap needs labels of at least two classes outside the hidden part, got "
                f"{len(labels.classes)} in {len(labels)} pixels; label more pixels there"
            )
        height, width = (min(s.tile, side // UNIT * UNIT) for side in scene.shape[:2])
        if min(height, width) < UNIT:
            raise FoveateError(f"the scene {scene.name} is smaller than {UNIT} x {UNIT} pixels")
        rng = np.random.default_rng(seed)
        scaling = PolarimetricScaling.fit(_visible_pixels(scene, hidden, s.tile), k)
        net = self._network(len(labels.classes), k, seed).to(self.device).train()
        optimizer: torch.optim.Optimizer
        if s.optimizer == "adam":
            optimizer = torch.optim.Adam(net.parameters(), s.lr)
        else:
            optimizer = torch.optim.SGD(net.parameters(), s.lr, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, s.steps)
        index_of = np.full(max(labels.classes) + 1, -1, np.int64)
        index_of[list(labels.classes)] = np.arange(len(labels.classes))
        for step in range(s.steps):
            tiles, targets = [], []
            for _ in range(s.batch):
                window = _tile_around(labels, scene, height, width, rng)
                seen = _seen(scene, window, hidden)
                tiles.append(scene.read(window) * seen[..., None])
                targets.append(np.where(seen, index_of[labels.to_map(window)], -1))
            m = scaling(torch.from_numpy(np.stack(tiles)).to(self.device))
            y = torch.from_numpy(np.stack(targets)).to(self.device)
            loss = sparse_cross_entropy(net(m), y)
            if not bool(torch.isfinite(loss)):
                raise DivergedError(
                    f"training PCN came to the loss {loss.item()} at step {step + 1}; lower lr="
                    f"{s.lr:g}"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if progress is not None:
                progress(step + 1, s.steps)
        self._net, self._scaling, self.k = net.eval(), scaling, k
        self.classes, self._extent = labels.classes, (scene.height, scene.width)
        return self

    def _network(self, classes: int, k: int, seed: int) -> PolarimetricConvNet:
        s = self.settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return PolarimetricConvNet(
                classes,
                k,
                s.widths,
                s.fuse_channels,
                stem=s.stem,
                kernel=s.kernel,
                norm=s.norm,
                paths=s.paths,
            )

    # ----------------------------------------------------------------------- inference

    @torch.no_grad()
    def probabilities(self, block: Array) -> Array:
        """Class probabilities of a tile that was read with its margin.

        Parameters
        ----------
        block
            ``(h + 2 margin, w + 2 margin, C)``; its first row and column lie at multiples of 4 of
            the scene.

        Returns
        -------
        numpy.ndarray
            ``(h, w, K)`` float32, sums of 1, in the order of `classes`.

        Raises
        ------
        FoveateError
            Not trained, another number of channels, no pixel inside the margin, or pixels that
            are not finite; with group norm, a block that is not the whole scene.
        """
        net, scaling, margin, channels = self.net, self._scaling, self.margin, {2: 8, 3: 9}[self.k]
        assert scaling is not None  # noqa: S101  # it comes with the net
        block = np.asarray(block, np.float32)
        if block.ndim != 3 or block.shape[2] != channels or min(block.shape[:2]) <= 2 * margin:
            raise FoveateError(
                f"PcnMap expects blocks (h + {2 * margin}, w + {2 * margin}, {channels}) with h, w "
                f">= 1, got {block.shape}"
            )
        height, width = (side - 2 * margin for side in block.shape[:2])
        # predict_map rounds up to whole cells
        whole_scene = all(
            side in (extent, extent + -extent % UNIT)
            for side, extent in zip((height, width), self._extent, strict=True)
        )
        if self.settings.norm == "group" and not whole_scene:
            raise FoveateError(
                f"with group norm a map depends on how it is cut: predict the whole scene of "
                f"{self._extent} in one tile, not {(height, width)}, or train with norm='batch'"
            )
        if not np.isfinite(block).all():
            raise FoveateError("PcnMap: the block holds NaN or infinity; fill or mask such pixels")
        whole = torch.from_numpy(block).to(self.device)
        # The last tile may end anywhere. What is added lies behind the margin: nobody sees it.
        bottom, right = (-side % UNIT for side in block.shape[:2])
        m = scaling(F.pad(whole, (0, 0, 0, right, 0, bottom)))
        logits = net(m[None])[0, :, margin : margin + height, margin : margin + width]
        shares: Array = logits.softmax(0).permute(1, 2, 0).contiguous().cpu().numpy()
        return shares

    # ------------------------------------------------------------------------- keeping

    def state(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Weights and facts, to be written by safetensors and JSON."""
        arrays = {name: value.cpu().numpy() for name, value in self.net.state_dict().items()}
        assert self._scaling is not None  # noqa: S101  # it comes with the net
        facts = {
            "settings": dataclasses.asdict(self.settings),
            "classes": list(self.classes),
            "k": self.k,
            "scale": list(self._scaling.scale),
            "extent": list(self._extent),
        }
        return arrays, facts

    @classmethod
    def restore(
        cls,
        arrays: Mapping[str, npt.NDArray[Any]],
        facts: Mapping[str, Any],
        device: torch.device | str = "cpu",
    ) -> PcnMap:
        """The model that `state` describes.

        Raises
        ------
        FoveateError
            A fact or a weight is missing or of another shape.
        """
        try:
            raw = dict(facts["settings"])
            raw.update(widths=tuple(raw["widths"]), stem=tuple(raw["stem"]))
            model = cls(PcnSettings(**raw), device)
            k, scale = int(facts["k"]), tuple(float(value) for value in facts["scale"])
            classes = tuple(int(code) for code in facts["classes"])
            height, width = (int(side) for side in facts["extent"])
            if len(scale) != {2: 1, 3: 3}[k] or not all(np.isfinite(scale)) or min(scale) <= 0:
                raise ValueError(f"scale {scale} of k={k}")
            if sorted(set(classes)) != list(classes) or min(classes) < 1:
                raise ValueError(f"classes {classes}")
            net = model._network(len(classes), k, 0)
            weights = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
            if not all(bool(torch.isfinite(w).all()) for w in weights.values()):
                raise ValueError("a weight is not finite")
            net.load_state_dict(weights)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise FoveateError(
                f"this is not the state of a PcnMap ({error}); train the model anew"
            ) from error
        model._net, model._scaling = net.to(model.device).eval(), PolarimetricScaling(k, scale)
        model.classes, model.k, model._extent = classes, k, (height, width)
        return model


def sparse_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over labelled pixels; 0, with a gradient of 0, where there are none.

    Parameters
    ----------
    logits
        ``(B, K, H, W)``.
    labels
        ``(B, H, W)`` int64 from 0; -1: not labelled.
    """
    if not bool((labels >= 0).any()):
        return logits.sum() * 0
    return F.cross_entropy(logits, labels, ignore_index=-1)


def _matrix_size(scene: Scene) -> int:
    if scene.band_names == SCATTERING_BANDS:
        return 2
    if scene.band_names == POLSAR_BANDS:
        return 3
    raise FoveateError(
        f"PcnMap needs a PolSAR scene: the nine channels of T3, or the eight of S "
        f"({' '.join(SCATTERING_BANDS)}); {scene.name} is {scene.kind} with {scene.channels} bands"
    )


def _hidden_at(hidden: Hidden, labels: SceneLabels) -> npt.NDArray[np.bool_]:
    """Which labelled pixels are hidden, row by row."""
    found = np.zeros(len(labels), np.bool_)
    rows = labels.coordinates[:, 0]
    for row in np.unique(rows):
        first, last = np.searchsorted(rows, [row, row + 1])
        line = hidden(Window(int(row), 0, 1, labels.shape[1]))[0]
        found[first:last] = line[labels.coordinates[first:last, 1]]
    return found


def _seen(scene: Scene, window: Window, hidden: Hidden | None) -> npt.NDArray[np.bool_]:
    seen = scene.read_valid(window)
    return seen if hidden is None else seen & ~hidden(window)


def _tile_around(
    labels: SceneLabels, scene: Scene, height: int, width: int, rng: np.random.Generator
) -> Window:
    """A window inside the scene that holds a labelled pixel, which may lie anywhere in it."""
    row, column = (int(at) for at in labels.coordinates[rng.integers(len(labels))])
    top, left = row - int(rng.integers(height)), column - int(rng.integers(width))
    return Window(
        min(max(top, 0), scene.height - height),
        min(max(left, 0), scene.width - width),
        height,
        width,
    )


def _visible_pixels(scene: Scene, hidden: Hidden | None, tile: int) -> Array:
    """Pixels ``(N, C)`` that may be seen: all of a moderate scene, else those of some tiles."""
    if scene.height * scene.width <= WHOLE:
        windows = [scene.whole]
    else:
        height, width = min(tile, scene.height), min(tile, scene.width)
        side = int(SAMPLED_TILES**0.5)
        rows = np.unique(np.linspace(0, scene.height - height, side).astype(int))
        columns = np.unique(np.linspace(0, scene.width - width, side).astype(int))
        windows = [Window(int(r), int(c), height, width) for r in rows for c in columns]
    return np.concatenate([scene.read(w)[_seen(scene, w, hidden)] for w in windows])
