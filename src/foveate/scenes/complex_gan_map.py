"""CV-GAN as a method of ``foveate map``: a PolSAR scene from a handful of labels.

The labelled patches, and patches of pixels without a label drawn from the rest of the scene, train
the two nets of `foveate.scenes.complex_gan`; the discriminator's first K outputs then label every
pixel by the patch around it,

    P(c | patch) = exp(l_c) / sum_{j <= K} exp(l_j)       (the output "generated" is left out).

The patch has an even side n (D: 16). Its pixel sits at row and column n/2, so the patch of pixel
(r, c) covers rows r - n/2 .. r + n/2 - 1, and a decision looks n/2 pixels around itself.

Pixels that the caller hides (test blocks) are no labelled pixels already; here neither a pixel
without label nor any pixel of its patch is taken from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from foveate.datasets.scene import Scene, Window
from foveate.datasets.scene_labels import SceneLabels
from foveate.errors import FoveateError
from foveate.scenes.complex_gan import (
    ComplexDiscriminator,
    ComplexGenerator,
    fit_ssgan,
)
from foveate.scenes.map_model import check_labels
from foveate.scenes.patches import read_patches

__all__ = [
    "CoherencyScaling",
    "ComplexGanMap",
    "class_probabilities",
    "draw_unlabelled",
    "pixels_at",
    "positive_semidefinite_share",
    "scaled_patches",
]

Hidden = Callable[[Window], npt.NDArray[np.bool_]]

_BATCH = 512  # patches that go through the net at once; always as many, so that sums are the same
_LARGEST = {"patch": 256, "noise": 4096, "window": 1000, "width": 4096, "layers": 8}


CHANNELS = ("T11", "T22", "T33", "T12", "T13", "T23")  # complex; the order everywhere here


@dataclass(frozen=True)
class CoherencyScaling:
    """Squeezes four to five decades of T into what a tanh can give, and keeps the phase (D).

    ``z = T / |T| * min(1, log1p(|T| / c) / s)``, per complex channel; T = 0 becomes 0. `c` is the
    median of |T|, `s` the 99.5th percentile of ``log1p(|T| / c)``, both of pixels that may be used
    for training.

    Attributes
    ----------
    c, s
        ``(6,)`` float32, positive, in the order T11 T22 T33 T12 T13 T23.
    """

    c: npt.NDArray[np.float32]
    s: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        for value in (self.c, self.s):
            if value.shape != (6,) or not (np.isfinite(value).all() and (value > 0).all()):
                raise FoveateError(
                    "the scaling of a coherency matrix is 6 positive numbers c and 6 of s, one per "
                    f"channel {', '.join(CHANNELS)}; got {self.c} and {self.s}"
                )

    @classmethod
    def fit(cls, pixels: npt.NDArray[np.float32]) -> CoherencyScaling:
        """Medians and percentiles of ``(..., 9)`` real T3 channels.

        Raises
        ------
        FoveateError
            No pixels, not 9 channels, or a number that is not finite.
        """
        size = np.abs(_six(pixels).reshape(-1, 6))
        if not len(size):
            raise FoveateError("no pixels to fit the scaling to; give at least one")
        c = np.median(size, axis=0)
        # A channel that is zero almost everywhere has no median to speak of.
        c = np.where(c > 0, c, size.mean(axis=0))
        c = np.where(c > 0, c, 1.0)
        s = np.percentile(np.log1p(size / c), 99.5, axis=0)
        s = np.where(s > 0, s, 1.0)
        return cls(c.astype(np.float32), s.astype(np.float32))

    def __call__(self, channels: npt.NDArray[np.float32]) -> npt.NDArray[np.complex64]:
        """``(..., 9)`` real T3 channels -> ``(..., 6)`` complex64 of modulus <= 1."""
        t = _six(channels)
        size = np.abs(t)
        squeezed = np.minimum(np.log1p(size / self.c) / self.s, 1.0)
        factor = np.divide(squeezed, size, out=np.zeros_like(size), where=size > 0)
        return (t * factor).astype(np.complex64)

    def invert(self, z: npt.NDArray[np.complex64]) -> npt.NDArray[np.complex64]:
        """``(..., 6)`` squeezed -> T; what was clipped at modulus 1 comes back as the clip."""
        size = np.abs(z)
        full = self.c * np.expm1(size * self.s)
        factor = np.divide(full, size, out=np.zeros_like(full), where=size > 0)
        return (z * factor).astype(np.complex64)


def _six(channels: npt.NDArray[np.float32]) -> npt.NDArray[np.complex64]:
    """9 real channels (T11 T22 T33 T12_real T12_imag ...) as 6 complex ones."""
    if channels.ndim < 1 or channels.shape[-1] != 9:
        raise FoveateError(
            "expected the 9 real channels of T3 (T11 T22 T33 T12_real T12_imag T13_real T13_imag "
            f"T23_real T23_imag) along the last axis, got shape {channels.shape}"
        )
    if not np.isfinite(channels).all():
        raise FoveateError("the T3 channels hold NaN or infinity; mask or fill these pixels first")
    t = np.empty((*channels.shape[:-1], 6), np.complex64)
    t[..., :3] = channels[..., :3]
    t[..., 3:] = channels[..., 3::2] + 1j * channels[..., 4::2]
    return t


class ComplexGanMap:
    """Semi-supervised complex-valued GAN that labels every pixel of a PolSAR scene.

    Parameters
    ----------
    patch
        Even side of a patch in pixels.
    widths
        Complex channels of the discriminator's layers, each of which halves the patch.
    generator_widths, noise
        Complex channels of the generator's layers, and of its noise.
    steps, batch
        Steps of both nets; patches of each kind (labelled, unlabelled, generated) in a step.
    unlabelled
        Pixels without label that are drawn; 0: none, labelled patches are all.
    lr, feature_matching, window
        As in `fit_ssgan` and `ComplexBatchNorm2d`.

    Notes
    -----
    The defaults are small nets of 60,000 real parameters together; ``patch=32, widths=(32, 64,
    128), generator_widths=(128, 64, 32), noise=64, steps=5000, batch=64`` is the size that we take
    for the paper's, which does not state it (D).
    """

    stride = 1

    def __init__(
        self,
        patch: int = 16,
        widths: Sequence[int] = (12, 24),
        generator_widths: Sequence[int] = (24, 12),
        noise: int = 32,
        steps: int = 600,
        batch: int = 32,
        unlabelled: int = 5000,
        lr: float = 5e-4,
        feature_matching: float = 1.0,
        window: int = 10,
    ) -> None:
        if patch % 2 or min(steps, batch) < 1 or unlabelled < 0:
            raise FoveateError(
                f"ComplexGanMap expects an even patch, steps and batch of at least 1 and no "
                f"negative number of unlabelled pixels, got {patch}, {steps}, {batch} and "
                f"{unlabelled}"
            )
        layers = (tuple(widths), tuple(generator_widths))
        sizes = {"patch": [patch], "noise": [noise], "window": [window]}
        sizes |= {"width": [*layers[0], *layers[1]], "layers": [len(part) for part in layers]}
        for name, values in sizes.items():
            if not all(1 <= value <= _LARGEST[name] for value in values):
                raise FoveateError(
                    f"ComplexGanMap expects {name} from 1 to {_LARGEST[name]}, got {values}"
                )
        self.patch, self.widths, self.generator_widths = patch, *layers
        self.noise, self.steps, self.batch = noise, steps, batch
        self.unlabelled, self.lr = unlabelled, lr
        self.feature_matching, self.window = feature_matching, window
        self._classes: tuple[int, ...] = ()
        self._scaling: CoherencyScaling | None = None
        self._nets: tuple[ComplexDiscriminator, ComplexGenerator] | None = None

    @property
    def margin(self) -> int:
        """Pixels of context on every side of one decision."""
        return self.patch // 2

    @property
    def classes(self) -> tuple[int, ...]:
        """Class codes in the order of the last axis of `probabilities`."""
        return self._classes

    def fit(
        self,
        scene: Scene,
        labels: SceneLabels,
        *,
        seed: int,
        hidden: Hidden | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> ComplexGanMap:
        """Train on the labelled pixels and on others of the scene.

        Parameters
        ----------
        scene
            PolSAR scene (9 channels of T3).
        labels
            Training pixels only.
        seed
            Draws pixels, first weights, batches, noise.
        hidden
            window -> ``(h, w)``, True where the input must not be used.
        progress
            Called with (steps done, steps).

        Raises
        ------
        FoveateError
            Not a PolSAR scene, labels of another size, fewer than two classes, or no pixel is far
            enough from all hidden ones.
        """
        if scene.kind != "polsar":
            raise FoveateError(
                f"the complex GAN needs a PolSAR scene, {scene.name} is {scene.kind}; choose "
                "another method"
            )
        check_labels(scene, labels)
        rng = np.random.default_rng(seed)
        # More pixels than the steps can draw are not read; every class keeps one.
        order = rng.permutation(len(labels))
        each = order[np.unique(labels.codes[order], return_index=True)[1]]
        chosen = np.union1d(order[: self.steps * self.batch], each)
        places, codes = labels.coordinates[chosen], labels.codes[chosen]
        self._classes = labels.classes
        target = torch.from_numpy(np.searchsorted(self._classes, codes).astype(np.int64))
        others = np.zeros((0, 2), np.int64)
        if self.unlabelled:
            others = draw_unlabelled(scene, self.unlabelled, self.margin, seed, hidden)
        pixels = np.concatenate([pixels_at(scene, places), pixels_at(scene, others)])
        self._scaling = CoherencyScaling.fit(pixels)
        labelled = scaled_patches(scene, places, self.patch, self._scaling)
        unlabelled = (
            scaled_patches(scene, others, self.patch, self._scaling) if self.unlabelled else None
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            discriminator, generator = self._nets = self._make(len(self._classes))
        fit_ssgan(
            discriminator,
            generator,
            labelled,
            target,
            unlabelled,
            steps=self.steps,
            batch=self.batch,
            lr=self.lr,
            feature_matching=self.feature_matching,
            seed=seed,
            progress=progress,
        )
        return self

    def _make(self, classes: int) -> tuple[ComplexDiscriminator, ComplexGenerator]:
        return (
            ComplexDiscriminator(classes, self.patch, self.widths, window=self.window),
            ComplexGenerator(self.patch, self.noise, self.generator_widths, window=self.window),
        )

    def probabilities(self, block: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """``(h, w, K)`` float32 of a block ``(h + 2 margin, w + 2 margin, 9)``.

        Raises
        ------
        FoveateError
            Nothing has been fitted, or the block is too small or not of 9 channels.
        """
        if self._nets is None or self._scaling is None:
            raise FoveateError("this ComplexGanMap has not been trained; call fit or restore first")
        height, width = (side - 2 * self.margin for side in block.shape[:2])
        if block.ndim != 3 or min(height, width) < 1:
            raise FoveateError(
                f"expected a block (h + {2 * self.margin}, w + {2 * self.margin}, 9), got "
                f"{block.shape}"
            )
        scaled = np.ascontiguousarray(self._scaling(block).transpose(2, 0, 1))
        side = (self.patch, self.patch)
        windows = np.lib.stride_tricks.sliding_window_view(scaled, side, axis=(1, 2))
        count = height * width
        found = np.empty((count, len(self._classes)), np.float32)
        for first in range(0, count, _BATCH):
            # The last batch is filled up with its last pixel.
            at = np.minimum(np.arange(first, first + _BATCH), count - 1)
            patches = windows[:, at // width, at % width].swapaxes(0, 1)
            given = class_probabilities(
                self._nets[0], torch.from_numpy(np.ascontiguousarray(patches)), len(self._classes)
            )
            found[first : first + _BATCH] = given[: count - first].numpy()
        return found.reshape(height, width, -1)

    def generate(self, count: int, seed: int) -> npt.NDArray[np.complex64]:
        """Generated coherency patches ``(count, n, n, 6)``: T11 T22 T33 T12 T13 T23, unscaled."""
        if self._nets is None or self._scaling is None:
            raise FoveateError("this ComplexGanMap has not been trained; call fit or restore first")
        generator = self._nets[1]
        with torch.no_grad():
            fake = generator(generator.noise(count, torch.Generator().manual_seed(seed)))
        return self._scaling.invert(fake.permute(0, 2, 3, 1).numpy())

    def state(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Arrays and facts from which `restore` makes an equal model."""
        if self._nets is None or self._scaling is None:
            raise FoveateError("this ComplexGanMap has not been trained; call fit or restore first")
        arrays: dict[str, npt.NDArray[Any]] = {
            "classes": np.array(self._classes, np.int64),
            "scaling.c": self._scaling.c,
            "scaling.s": self._scaling.s,
        }
        for name, net in zip(("discriminator", "generator"), self._nets, strict=True):
            for key, value in net.state_dict().items():
                arrays[f"{name}.{key}"] = value.detach().cpu().numpy().copy()
        facts = {
            name: getattr(self, name)
            for name in ("patch", "noise", "steps", "batch", "unlabelled", "lr", "window")
        }
        facts |= {
            "feature_matching": self.feature_matching,
            "widths": list(self.widths),
            "generator_widths": list(self.generator_widths),
        }
        return arrays, facts

    @classmethod
    def restore(
        cls, arrays: Mapping[str, npt.NDArray[Any]], facts: Mapping[str, Any]
    ) -> ComplexGanMap:
        """The counterpart of `state`.

        Raises
        ------
        FoveateError
            Arrays or facts are missing or do not fit each other.
        """
        try:
            model = cls(**facts)
            codes = arrays["classes"]
            if codes.ndim != 1 or not 2 <= len(codes) <= np.iinfo(np.int16).max:
                raise FoveateError(f"{codes.shape} is no list of classes")
            model._classes = tuple(int(code) for code in codes)
            model._scaling = CoherencyScaling(
                np.asarray(arrays["scaling.c"], np.float32),
                np.asarray(arrays["scaling.s"], np.float32),
            )
            model._nets = model._make(len(codes))
            for name, net in zip(("discriminator.", "generator."), model._nets, strict=True):
                weights = {
                    key.removeprefix(name): torch.from_numpy(np.array(value))
                    for key, value in arrays.items()
                    if key.startswith(name)
                }
                if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
                    raise FoveateError(f"weights of the {name[:-1]} are NaN or infinite")
                net.load_state_dict(weights)
                net.eval()
        except (KeyError, TypeError, ValueError, RuntimeError, FoveateError) as error:
            first = str(error).strip().partition("\n")[0]
            raise FoveateError(
                f"this saved complex GAN cannot be used ({first}); train it again"
            ) from error
        return model


def pixels_at(scene: Scene, places: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float32]:
    """Channels ``(N, C)`` of single pixels."""
    if not len(places):
        return np.zeros((0, scene.channels), np.float32)
    return read_patches(scene, places, 1)[:, :, 0, 0]


def scaled_patches(
    scene: Scene,
    places: npt.NDArray[np.integer[Any]],
    patch: int,
    scaling: CoherencyScaling,
) -> Tensor:
    """Complex patches ``(N, 6, n, n)`` around pixels, n even, the pixel at row and column n/2."""
    if not len(places):
        raise FoveateError("no pixels to cut patches around; give at least one")
    parts = []
    for some in np.array_split(places, -(-len(places) // 1024)):
        channels = read_patches(scene, some, patch, even=True).transpose(0, 2, 3, 1)
        parts.append(torch.from_numpy(scaling(channels).transpose(0, 3, 1, 2).copy()))
    return torch.cat(parts)


def draw_unlabelled(
    scene: Scene, count: int, reach: int, seed: int, hidden: Hidden | None = None
) -> npt.NDArray[np.int64]:
    """Random pixels ``(<= count, 2)`` of which nothing within `reach` is hidden.

    Labels are not asked for: a pixel may have one. No pixel comes twice; pixels without data
    (`Scene.read_valid`) do not come. Fewer than `count` come where the scene has no more.

    Parameters
    ----------
    reach
        Chebyshev distance to hidden pixels that a pixel must exceed; half a patch.

    Raises
    ------
    FoveateError
        No pixel is left.
    """
    height, width = scene.height, scene.width
    rng = np.random.default_rng((seed, 1))
    total = height * width
    # A scene may be too large to be shuffled; of a large one few of the pixels are wanted.
    tries = rng.permutation(total) if total <= 1 << 22 else rng.integers(0, total, 64 * count)
    places: list[tuple[int, int]] = []
    seen: set[int] = set()
    for flat in tries.tolist():
        if len(places) == count:
            break
        if flat in seen:
            continue
        seen.add(flat)
        row, column = divmod(flat, width)
        top, left = max(0, row - reach), max(0, column - reach)
        bottom, right = min(height, row + reach + 1), min(width, column + reach + 1)
        if hidden is not None and hidden(Window(top, left, bottom - top, right - left)).any():
            continue
        if scene.valid is not None and not scene.read_valid(Window(row, column, 1, 1))[0, 0]:
            continue
        places.append((row, column))
    if not places:
        raise FoveateError(
            f"no pixel of {scene.name} is more than {reach} pixels away from all hidden ones; use "
            "smaller patches or larger blocks"
        )
    return np.array(places, np.int64)


def positive_semidefinite_share(t: npt.NDArray[np.complex64], tolerance: float = 1e-6) -> float:
    """Share of matrices, ``(..., 6)`` upper triangles, whose least eigenvalue is not negative.

    The imaginary part of the diagonal, which a generator makes as well, is left out. `tolerance`
    is relative to the trace's absolute value.
    """
    flat = t.reshape(-1, 6).astype(np.complex128)
    if not len(flat):
        raise FoveateError("no matrices to look at; give at least one")
    matrix = np.zeros((len(flat), 3, 3), np.complex128)
    for k in range(3):
        matrix[:, k, k] = flat[:, k].real
    for value, (i, j) in zip(flat.T[3:], ((0, 1), (0, 2), (1, 2)), strict=True):
        matrix[:, i, j], matrix[:, j, i] = value, value.conj()
    least = np.linalg.eigvalsh(matrix)[:, 0]
    trace = np.abs(flat[:, :3].real.sum(1))
    return float((least >= -tolerance * trace).mean())


@torch.no_grad()
def class_probabilities(net: nn.Module, patches: Tensor, classes: int, batch: int = 512) -> Tensor:
    """Softmax over the first `classes` outputs, ``(N, classes)`` float32 on the CPU (P).

    The net is used in eval mode and left in it.
    """
    device = next(net.parameters()).device
    net.eval()
    found = [
        torch.softmax(net(part.to(device))[:, :classes], 1).cpu()
        for part in torch.split(patches, batch)
    ]
    return torch.cat(found) if found else torch.empty(0, classes)
