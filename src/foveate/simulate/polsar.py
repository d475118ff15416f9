"""PolSAR scenes with exact labels: fully developed speckle around given coherency matrices.

Speckle makes the Pauli vector of a pixel of class c circular Gaussian, and texture lets the local
power fluctuate. Look l = 1..L of a pixel is

    k_l = sqrt(tau) A_c (g1 + i g2) / sqrt2,    A_c A_c^H = Sigma_c,   g1, g2 ~ N(0, I_3),
    tau ~ Gamma(nu, 1/nu)  (mean 1; tau = 1 for nu = infinity),    T = 1/L sum_l k_l k_l^H.

Without texture L T is complex Wishart with L degrees of freedom, T has rank min(L, 3) and the
equivalent number of looks of T11, mean^2 / variance, is L; with texture 1/ENL = 1/L + 1/nu +
1/(L nu). One look also gives the scattering matrix S itself.

:func:`simulate_wishart_scene` paints regions (nearest of random seed points, ragged borders) with
class matrices measured on a real scene; :func:`semi_simulate` takes the matrix of every pixel of a
real scene as its Sigma: real geography, ideal speckle, and the S that the real product has lost.
Both are SIMULATIONS and say so in the name of the scene and the source of the labels; real speckle
is correlated, real classes are not homogeneous, and a result on either is a simulated result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from foveate.datasets.polarimetry import CHANNELS, clip_eigenvalues, k_to_s2
from foveate.datasets.scene import Scene
from foveate.datasets.scene_labels import SceneLabels
from foveate.errors import FoveateError

__all__ = [
    "CLASS_COVARIANCES",
    "SimulatedPolsar",
    "semi_simulate",
    "simulate_wishart_scene",
    "voronoi_labels",
]

Channels = npt.NDArray[np.float32]
Complex = npt.NDArray[np.complex64]

# Means of T3 over the labelled pixels of AIRSAR San Francisco, L-band; order of CHANNELS (M).
_MEASURED = {
    "bare soil": (0.0204, 0.0268, 0.0033, 0.0030, -0.0002, 0.0008, -0.0009, 0.0028, 0.0011),
    "mountain": (0.1044, 0.0347, 0.0223, -0.0126, 0.0005, 0.0111, -0.0061, -0.0007, -0.0017),
    "water": (0.1169, 0.0070, 0.0026, -0.0179, -0.0033, 0.0085, -0.0083, -0.0009, 0.0016),
    "urban": (0.1058, 0.1595, 0.0478, 0.0074, 0.0020, 0.0156, -0.0054, 0.0435, 0.0066),
    "vegetation": (0.0646, 0.0524, 0.0341, -0.0011, -0.0046, 0.0047, -0.0033, 0.0028, -0.0005),
}
CLASS_COVARIANCES: Mapping[str, Channels] = {
    name: np.array(values, np.float32) for name, values in _MEASURED.items()
}
"""Class name -> nine channels of its mean T3 in the real scene, in the order of codes 1 to 5."""

_COLOURS = dict(
    zip(
        CLASS_COVARIANCES,
        ((0, 255, 255), (255, 255, 0), (0, 0, 255), (255, 0, 0), (0, 255, 0)),
        strict=True,
    )
)
_MAX_PIXELS = 1 << 26
_STRIP = 1 << 18  # pixels drawn at once


@dataclass(frozen=True, eq=False)
class SimulatedPolsar:
    """A simulated scene.

    Attributes
    ----------
    name
        Begins with ``SIMULATION``, or ``SEMI-SIMULATION`` when made from a real scene.
    t3
        ``(H, W, 9)`` float32, channels of the multilook T3.
    s2
        ``(H, W, 2, 2)`` complex64, the scattering matrix of a single look; None for more looks.
    labels
        The true class of every pixel; None for a real scene without labels.
    """

    name: str
    t3: Channels
    s2: Complex | None
    labels: SceneLabels | None

    def scene(self) -> Scene:
        """As a scene that every method of ``foveate map`` reads."""
        return Scene.from_array(self.t3, "polsar", self.name, labels=self.labels)


def voronoi_labels(
    height: int, width: int, classes: int, *, seeds: int = 40, jitter: float = 1.5, seed: int = 0
) -> npt.NDArray[np.uint8]:
    """Label map ``(H, W)`` of codes 1 to `classes`: the class of the nearest of random points.

    Parameters
    ----------
    seeds
        Points; the first `classes` of them have one class each, the others any.
    jitter
        Standard deviation in pixels of the noise that makes borders ragged, 0 for straight ones.

    Raises
    ------
    FoveateError
        Not positive, more classes than points or than 255, or more than 2^26 pixels.
    """
    if not (1 <= classes <= min(seeds, 255) and height >= 1 and width >= 1 and jitter >= 0):
        raise FoveateError(
            f"voronoi_labels expects at least one pixel and 1 to 255 classes with as many seed "
            f"points, got {height} x {width}, {classes} classes, {seeds} points, jitter {jitter}"
        )
    _check_size(height, width)
    rng = np.random.default_rng(seed)
    points = (rng.random((seeds, 2)) * (height, width)).astype(np.float32)
    owner = np.concatenate([np.arange(classes), rng.integers(0, classes, seeds - classes)]) + 1
    place = np.moveaxis(np.indices((height, width), np.float32), 0, -1)
    place = place + np.float32(jitter) * rng.standard_normal(place.shape, np.float32)
    nearest = np.zeros((height, width), np.int64)
    best = np.full((height, width), np.inf, np.float32)
    for number, point in enumerate(points):
        distance = ((place - point) ** 2).sum(-1)
        nearer = distance < best
        nearest[nearer], best[nearer] = number, distance[nearer]
    return owner[nearest].astype(np.uint8)


def simulate_wishart_scene(
    height: int = 256,
    width: int = 256,
    classes: Sequence[str] | Mapping[str, npt.ArrayLike] = tuple(CLASS_COVARIANCES),
    *,
    looks: int = 4,
    texture: float = 4.0,
    label_map: npt.NDArray[Any] | None = None,
    seeds: int = 40,
    jitter: float = 1.5,
    psf: bool = False,
    gradient: float = 0.0,
    seed: int = 0,
) -> SimulatedPolsar:
    """Simulate a labelled scene.

    Parameters
    ----------
    height, width
        Extent in pixels; that of `label_map` when one is given.
    classes
        Names of `CLASS_COVARIANCES`, or name -> nine channels of a positive definite T3. They get
        the codes 1, 2, ... in this order.
    looks
        Averaged looks L. With the default texture and all five classes, 4 looks leave room for
        learned methods: the Wishart classifier with the true matrices reaches an average
        accuracy of 77 % per pixel.
    texture
        Shape nu of the gamma law of the local power; ``math.inf`` for none.
    label_map
        ``(H, W)`` codes 1 to the number of classes, such as a crop of a real map; 0 is drawn as
        class 1 and stays unlabelled. None: :func:`voronoi_labels`.
    seeds, jitter
        As there.
    psf
        Correlate neighbours as an imaging system does: k is averaged over 3x3 pixels before the
        looks are, and scaled so that the power is kept.
    gradient
        a of the factor exp(-a * column) that T is multiplied with, as incidence angle does.
    seed
        Equal arguments give equal scenes.

    Raises
    ------
    FoveateError
        An unknown class, a matrix that is not positive definite, or a setting out of range.
    """
    table = _class_table(classes)
    if label_map is None:
        truth = voronoi_labels(height, width, len(table), seeds=seeds, jitter=jitter, seed=seed)
    else:
        truth = np.asarray(label_map)
        if truth.ndim != 2 or truth.size == 0 or truth.dtype.kind not in "iu":
            raise FoveateError(
                f"label_map expects whole numbers (H, W), got {truth.dtype} {truth.shape}"
            )
        if truth.min() < 0 or truth.max() > len(table):
            raise FoveateError(
                f"label_map has codes {truth.min()} to {truth.max()} where 0 to {len(table)} were "
                "expected, one for each class"
            )
    _check_size(*truth.shape)
    _check_drawing(looks, texture)
    if not math.isfinite(gradient):
        raise FoveateError(f"gradient expects a finite number, got {gradient}")
    factors = np.stack([_factor(channels) for channels in table.values()])
    index = np.maximum(truth.astype(np.int64) - 1, 0)
    rng = np.random.default_rng([seed, 1])  # another stream than the label map's
    power = np.exp(np.float32(-gradient) * np.arange(truth.shape[1], dtype=np.float32))
    t3, k = _draw(factors, index, looks, texture, psf, power, rng)
    name = (
        f"SIMULATION Wishart {truth.shape[0]}x{truth.shape[1]}, {len(table)} classes, "
        f"{looks} looks, texture {texture:g}, seed {seed}"
    )
    labels = SceneLabels.from_map(
        truth,
        names=dict(enumerate(table, 1)),
        colours={
            code: _COLOURS.get(class_name, _colour(code))
            for code, class_name in enumerate(table, 1)
        },
        source=name,
    )
    return SimulatedPolsar(name, t3, None if k is None else k_to_s2(k), labels)


def semi_simulate(
    field: npt.NDArray[Any] | Scene,
    *,
    looks: int = 1,
    texture: float = math.inf,
    floor: float = 1e-3,
    seed: int = 0,
    labels: SceneLabels | None = None,
) -> SimulatedPolsar:
    """Draw ideal speckle around every pixel's own T3 of a real scene.

    Parameters
    ----------
    field
        ``(H, W, 9)`` channels, or a scene, whose labels are then kept.
    looks, texture, seed
        As in :func:`simulate_wishart_scene`. One look, the default, also gives S.
    floor
        Eigenvalues below this share of the trace are raised to it first; half precision and
        single looks make it necessary.

    Raises
    ------
    FoveateError
        Not nine channels, NaN, or a setting out of range.
    """
    if isinstance(field, Scene):
        if field.kind != "polsar":
            raise FoveateError(
                f"semi_simulate needs a PolSAR scene, {field.name} is {field.kind}; "
                "open one with foveate.datasets.polsar"
            )
        origin, labels = field.name, labels or field.labels
        channels = field.read()
    else:
        origin, channels = "array", np.asarray(field)
    if channels.ndim != 3 or channels.shape[-1] != 9 or channels.size == 0:
        raise FoveateError(f"semi_simulate expects channels (H, W, 9), got {channels.shape}")
    _check_size(*channels.shape[:2])
    _check_drawing(looks, texture)
    if not 0 < floor <= 1 / 3:
        raise FoveateError(f"floor expects a share of the trace above 0, up to 1/3, got {floor}")
    rng = np.random.default_rng([seed, 2])
    power = np.ones(channels.shape[1], np.float32)
    t3, k = _draw(channels, None, looks, texture, False, power, rng, floor)
    name = f"SEMI-SIMULATION of {origin}, {looks} looks, texture {texture:g}, seed {seed}"
    if labels is not None:
        labels = SceneLabels(
            *(labels.coordinates, labels.codes, labels.shape, labels.names, labels.colours),
            source=f"{labels.source} (real labels of a semi-simulated scene)",
        )
    return SimulatedPolsar(name, t3, None if k is None else k_to_s2(k), labels)


def _class_table(classes: Sequence[str] | Mapping[str, npt.ArrayLike]) -> dict[str, Channels]:
    if not isinstance(classes, Mapping):
        unknown = [name for name in classes if name not in CLASS_COVARIANCES]
        if unknown or len(set(classes)) != len(classes):
            raise FoveateError(
                f"classes {list(classes)} are not distinct names out of "
                f"{', '.join(CLASS_COVARIANCES)}; give a mapping to use matrices of your own"
            )
        classes = {name: CLASS_COVARIANCES[name] for name in classes}
    table = {name: np.asarray(values, np.float32) for name, values in classes.items()}
    if not 1 <= len(table) <= 255 or any(values.shape != (9,) for values in table.values()):
        raise FoveateError(
            "classes expects 1 to 255 names with the nine channels of T3 each, got "
            f"{ {name: values.shape for name, values in table.items()} }"
        )
    return table


def _check_size(height: int, width: int) -> None:
    if height * width > _MAX_PIXELS:
        raise FoveateError(
            f"{height} x {width} pixels are more than the {_MAX_PIXELS} that are drawn at once; "
            "simulate a smaller scene"
        )


def _check_drawing(looks: int, texture: float) -> None:
    if not 1 <= looks <= 10_000 or not texture > 0:
        raise FoveateError(
            f"looks from 1 to 10000 and texture above 0 (inf for none) were expected, got {looks} "
            f"and {texture}"
        )


def _colour(code: int) -> tuple[int, int, int]:
    """Some colour, far from that of the neighbouring codes."""
    return (code * 97) % 256, (code * 57 + 85) % 256, (code * 151 + 170) % 256


def _factor(channels: npt.NDArray[Any]) -> Complex:
    """Lower Cholesky factors ``(..., 3, 3)`` of positive definite channels ``(..., 9)``.

    Written out, since a scene has a million of them.
    """
    x = np.asarray(channels, np.float64)
    t21, t31, t32 = (x[..., n] - 1j * x[..., n + 1] for n in (3, 5, 7))
    with np.errstate(invalid="ignore", divide="ignore"):
        a = np.sqrt(x[..., 0])
        b, c = t21 / a, t31 / a
        d = np.sqrt(x[..., 1] - np.abs(b) ** 2)
        e = (t32 - c * b.conj()) / d
        f = np.sqrt(x[..., 2] - np.abs(c) ** 2 - np.abs(e) ** 2)
    if not (np.isfinite(f) & (f > 0)).all():
        raise FoveateError(
            "a coherency matrix of the simulation is not positive definite; raise its eigenvalues "
            "with foveate.datasets.polarimetry.clip_eigenvalues"
        )
    factor = np.zeros((*x.shape[:-1], 3, 3), np.complex64)
    factor[..., 0, 0], factor[..., 1, 1], factor[..., 2, 2] = a, d, f
    factor[..., 1, 0], factor[..., 2, 0], factor[..., 2, 1] = b, c, e
    return factor


def _draw(
    source: npt.NDArray[Any],
    index: npt.NDArray[np.int64] | None,
    looks: int,
    texture: float,
    psf: bool,
    power: Channels,
    rng: np.random.Generator,
    floor: float = 0.0,
) -> tuple[Channels, Complex | None]:
    """T3 channels ``(H, W, 9)``, and k ``(H, W, 3)`` when there is but one look.

    `source` holds class factors that `index` chooses from, or the channels of every pixel. Rows
    are drawn strip by strip, with a rim of one pixel around it for `psf`, which sums 3x3
    independent k over 3: that keeps their power, at the edge too.
    """
    height, width = index.shape if index is not None else source.shape[:2]
    root = np.sqrt(power)[None, :, None]
    t3 = np.zeros((height, width, len(CHANNELS)), np.float32)
    k = np.zeros((height, width, 3), np.complex64) if looks == 1 else None
    rim = int(psf)
    if index is not None:
        index = np.pad(index, rim, mode="edge")
    texture_root = np.ones((height + 2 * rim, width + 2 * rim, 1), np.float32)
    if math.isfinite(texture):
        tau = rng.gamma(texture, 1 / texture, texture_root.shape)
        texture_root = np.sqrt(tau).astype(np.float32)
    strip = height if psf else max(1, _STRIP // width)  # neighbouring strips would share a rim
    for top in range(0, height, strip):
        rows = slice(top, min(top + strip, height) + 2 * rim)
        if index is None:
            factor = _factor(clip_eigenvalues(np.asarray(source[rows], np.float32), floor))
        else:
            factor = source[index[rows]]
        inner = slice(top, min(top + strip, height))
        for _ in range(looks):
            parts = rng.standard_normal((*factor.shape[:2], 3, 2), np.float32)
            white = parts.view(np.complex64)[..., 0] / np.float32(np.sqrt(2))
            drawn = (factor @ white[..., None])[..., 0] * texture_root[rows]
            if psf:
                down = drawn[:-2] + drawn[1:-1] + drawn[2:]
                drawn = (down[:, :-2] + down[:, 1:-1] + down[:, 2:]) / np.float32(3)
            drawn *= root
            _add_outer(t3[inner], drawn)
            if k is not None:
                k[inner] = drawn
    t3 /= np.float32(looks)
    return t3, k


def _add_outer(t3: Channels, k: Complex) -> None:
    """Add the channels of k k^H in place."""
    for i in range(3):
        t3[..., i] += k[..., i].real ** 2 + k[..., i].imag ** 2
    for n, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
        product = k[..., i] * k[..., j].conj()
        t3[..., 3 + 2 * n] += product.real
        t3[..., 4 + 2 * n] += product.imag
