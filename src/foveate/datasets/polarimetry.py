"""Polarimetric algebra: from the scattering matrix to the coherency matrix and its features.

A fully polarimetric radar measures, per pixel, the complex scattering matrix

    S = [[S_HH, S_HV], [S_VH, S_VV]],       S_HV = S_VH when sender and receiver are one antenna.

The same three numbers as a vector, lexicographic and Pauli:

    k_L = (S_HH, sqrt2 S_HV, S_VV)^T,       k_P = (S_HH + S_VV, S_HH - S_VV, 2 S_HV)^T / sqrt2.

Averaging over looks gives C3 = <k_L k_L^H> (covariance) and T3 = <k_P k_P^H> (coherency), both
Hermitian and positive semidefinite, joined by T3 = A C3 A^H with the unitary

    A = 1/sqrt2 [[1, 0, 1], [1, 0, -1], [0, sqrt2, 0]].

Their common trace is the span |S_HH|^2 + 2 |S_HV|^2 + |S_VV|^2. T11 answers to odd bounces (bare
surface), T22 to double bounces (walls), T33 to volumes (crowns): hence the Pauli picture.

Two forms are used. *Matrices* are ``(..., 3, 3)`` complex64; *channels* are the nine real numbers
of T3 in the order `CHANNELS`, ``(..., 9)`` float32, half the size, and what a
:class:`foveate.datasets.scene.Scene` of kind ``polsar`` reads.

Sources: definitions as in Lee & Pottier, Polarimetric Radar Imaging (2009); decompositions from
Freeman & Durden, IEEE TGRS 36(3), 1998, and Yamaguchi, Yajima & Yamada, IEEE GRSL 3(3), 2006, both
as remembered and checked against their own forward models.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from foveate.datasets.scene import POLSAR_BANDS
from foveate.errors import FoveateError

__all__ = [
    "CHANNELS",
    "PF22_NAMES",
    "boxcar",
    "c3_to_t3",
    "clip_eigenvalues",
    "eigenvalues_reach",
    "freeman_durden",
    "k_to_s2",
    "pauli_rgb",
    "pf22",
    "s2_to_k",
    "span",
    "t3_channels",
    "t3_features",
    "t3_from_k",
    "t3_matrix",
    "t3_to_c3",
    "yamaguchi4",
]

Channels = npt.NDArray[np.float32]
Matrices = npt.NDArray[np.complex64]
Picture = npt.NDArray[np.uint8]

CHANNELS = POLSAR_BANDS
"""Order of the nine real channels; also PolSARpro's file names without ``.bin``."""

PF22_NAMES = (
    *("|T11|", "|T12|", "|T13|", "|T22|", "|T23|", "|T33|"),
    *("|C11|", "|C12|", "|C13|", "|C22|", "|C23|", "|C33|"),
    *("pauli odd", "pauli even", "pauli volume"),
    *("freeman surface", "freeman double", "freeman volume"),
    *("yamaguchi surface", "yamaguchi double", "yamaguchi volume", "yamaguchi helix"),
)

_TINY = np.float32(1e-30)  # keeps log and division finite; AIRSAR's darkest pixels lie near 1e-4
_UPPER = ((0, 1), (0, 2), (1, 2))
_A = np.array([[1, 0, 1], [1, 0, -1], [0, np.sqrt(2), 0]]) / np.sqrt(2)


def s2_to_k(s2: npt.NDArray[Any]) -> Matrices:
    """Pauli vector ``(..., 3)`` of scattering matrices ``(..., 2, 2)`` (HH, HV; VH, VV).

    HV and VH are averaged, which lowers the noise of the cross-polarised channel.

    Raises
    ------
    FoveateError
        The last two axes are not 2 by 2, or a number is not finite.
    """
    s2 = _checked(s2, (2, 2), "scattering matrices")
    hh, vv = s2[..., 0, 0], s2[..., 1, 1]
    k = np.stack([hh + vv, hh - vv, s2[..., 0, 1] + s2[..., 1, 0]], -1) / np.sqrt(2)
    return np.asarray(k, np.complex64)


def k_to_s2(k: npt.NDArray[Any]) -> Matrices:
    """Symmetric scattering matrices ``(..., 2, 2)`` of Pauli vectors ``(..., 3)``.

    Raises
    ------
    FoveateError
        The last axis is not 3, or a number is not finite.
    """
    k = _checked(k, (3,), "Pauli vectors") / np.sqrt(2)
    s2 = np.empty((*k.shape[:-1], 2, 2), np.complex64)
    s2[..., 0, 0], s2[..., 1, 1] = k[..., 0] + k[..., 1], k[..., 0] - k[..., 1]
    s2[..., 0, 1] = s2[..., 1, 0] = k[..., 2]
    return s2


def t3_from_k(k: npt.NDArray[Any], looks: int | tuple[int, int] = 1) -> Matrices:
    """Coherency matrices T = <k k^H> of Pauli vectors.

    Parameters
    ----------
    k
        ``(..., 3)``; ``(H, W, 3)`` when `looks` is more than 1.
    looks
        Rows, or rows and columns, averaged into one pixel; an incomplete rest at the lower and
        right edge is dropped.

    Returns
    -------
    ndarray
        ``(..., 3, 3)``, or ``(H // rows, W // columns, 3, 3)``.

    Raises
    ------
    FoveateError
        Another shape, fewer pixels than looks, or a number that is not finite.
    """
    k = _checked(k, (3,), "Pauli vectors")
    matrices = k[..., :, None] * k[..., None, :].conj()
    rows, columns = (looks, 1) if isinstance(looks, int) else looks
    if (rows, columns) != (1, 1):
        if k.ndim != 3 or rows < 1 or columns < 1 or rows > k.shape[0] or columns > k.shape[1]:
            raise FoveateError(
                f"t3_from_k with looks {(rows, columns)} expects Pauli vectors (H, W, 3) of at "
                f"least as many rows and columns, got {k.shape}; take fewer looks"
            )
        height, width = k.shape[0] // rows, k.shape[1] // columns
        cut = matrices[: height * rows, : width * columns]
        matrices = cut.reshape(height, rows, width, columns, 3, 3).mean((1, 3))
    return np.asarray(matrices, np.complex64)


def c3_to_t3(c3: npt.NDArray[Any]) -> Matrices:
    """Coherency from covariance, T = A C A^H, ``(..., 3, 3)`` both; keeps trace and eigenvalues."""
    return np.asarray(_A @ _checked(c3, (3, 3), "covariance matrices") @ _A.T, np.complex64)


def t3_to_c3(t3: npt.NDArray[Any]) -> Matrices:
    """Covariance from coherency, C = A^H T A, ``(..., 3, 3)`` both."""
    return np.asarray(_A.T @ _checked(t3, (3, 3), "coherency matrices") @ _A, np.complex64)


def t3_matrix(channels: npt.NDArray[Any]) -> Matrices:
    """Hermitian matrices ``(..., 3, 3)`` complex64 of channels ``(..., 9)``, exactly.

    Raises
    ------
    FoveateError
        The last axis is not 9, or a number is not finite.
    """
    channels = _real(channels)
    matrices = np.empty((*channels.shape[:-1], 3, 3), np.complex64)
    for i in range(3):
        matrices[..., i, i] = channels[..., i]
    for n, (i, j) in enumerate(_UPPER):
        value = channels[..., 3 + 2 * n] + 1j * channels[..., 4 + 2 * n]
        matrices[..., i, j], matrices[..., j, i] = value, value.conj()
    return matrices


def t3_channels(t3: npt.NDArray[Any]) -> Channels:
    """Channels ``(..., 9)`` float32 of matrices ``(..., 3, 3)``: the upper triangle is taken.

    Raises
    ------
    FoveateError
        The last two axes are not 3 by 3, or a number is not finite.
    """
    t3 = _checked(t3, (3, 3), "coherency matrices")
    channels = np.empty((*t3.shape[:-2], 9), np.float32)
    for i in range(3):
        channels[..., i] = t3[..., i, i].real
    for n, (i, j) in enumerate(_UPPER):
        channels[..., 3 + 2 * n], channels[..., 4 + 2 * n] = t3[..., i, j].real, t3[..., i, j].imag
    return channels


def span(channels: npt.NDArray[Any]) -> Channels:
    """Total power T11 + T22 + T33, ``(...)`` float32, of channels ``(..., 9)``."""
    total: Channels = _real(channels)[..., :3].sum(-1)
    return total


def eigenvalues_reach(channels: npt.NDArray[Any], floor: float) -> npt.NDArray[np.bool_]:
    """Whether every eigenvalue exceeds `floor` times the trace, ``(...)`` bool, without computing
    any: T - floor * trace * I must be positive definite, that is, have positive leading minors.

    Pixels without power have only zeros and count as reaching a negative floor.
    """
    x = _real(channels).astype(np.float64)
    trace = x[..., :3].sum(-1)
    scaled = x / np.where(trace > 0, trace, 1)[..., None]
    a, b, c = np.moveaxis(scaled[..., :3] - floor * (trace > 0)[..., None], -1, 0)
    re12, im12, re13, im13, re23, im23 = np.moveaxis(scaled[..., 3:], -1, 0)
    t12, t13, t23 = re12 + 1j * im12, re13 + 1j * im13, re23 + 1j * im23
    minor = a * b - np.abs(t12) ** 2
    determinant = a * b * c + 2 * (t12 * t23 * t13.conj()).real
    determinant -= a * np.abs(t23) ** 2 + b * np.abs(t13) ** 2 + c * np.abs(t12) ** 2
    positive = (a > 0) & (minor > 0) & (determinant > 0) & (trace > 0)
    if floor < 0:
        positive |= ~x.any(-1)
    result: npt.NDArray[np.bool_] = positive
    return result


def clip_eigenvalues(channels: npt.NDArray[Any], floor: float = 1e-3) -> Channels:
    """Channels ``(..., 9)`` whose eigenvalues are at least `floor` times the trace.

    Needed wherever a Cholesky factor or log determinant of a *pixel* is taken: a single look has
    rank 1, and half precision can make a small eigenvalue negative. Only pixels that fall short
    change; a pixel without power becomes a multiple of the identity of span 3e-30.
    """
    channels = _real(channels).copy()
    short = ~eigenvalues_reach(channels, floor)
    if short.any():
        values, vectors = np.linalg.eigh(t3_matrix(channels[short]).astype(np.complex128))
        least = floor * np.maximum(values.sum(-1, keepdims=True), 0)
        values = np.maximum(values, np.maximum(least, float(_TINY)))
        mended = (vectors * values[..., None, :]) @ vectors.conj().swapaxes(-1, -2)
        channels[short] = t3_channels(mended)
    return channels


def boxcar(
    channels: npt.NDArray[Any], size: int, edge: Literal["mirror", "valid"] = "mirror"
) -> Channels:
    """Mean over squares of `size` by `size` pixels: more looks for less resolution.

    Parameters
    ----------
    channels
        ``(H, W, C)``.
    size
        Odd, at least 1.
    edge
        ``mirror`` keeps the shape and mirrors at the edge without repeating it (numpy's
        ``reflect``); ``valid`` returns ``(H - size + 1, W - size + 1, C)``.

    Returns
    -------
    ndarray
        float32. Every pixel is summed in the same order wherever it lies, so that a scene cut
        into tiles gives the same bits as the whole.

    Raises
    ------
    FoveateError
        Not ``(H, W, C)``, even size, or ``valid`` on a picture smaller than the square.
    """
    x = np.asarray(channels, np.float32)
    margin = size // 2
    if x.ndim != 3 or 0 in x.shape or size < 1 or size % 2 == 0:
        raise FoveateError(
            f"boxcar expects a picture (H, W, C) and an odd size, got {x.shape} and {size}"
        )
    if edge == "mirror":
        for axis in (0, 1):  # numpy repeats the reflection where the picture is the smaller
            wide = [(margin, margin) if axis == a else (0, 0) for a in range(3)]
            x = np.pad(x, wide, mode="reflect" if x.shape[axis] > 1 else "edge")
    height, width = x.shape[0] - size + 1, x.shape[1] - size + 1
    if height < 1 or width < 1:
        raise FoveateError(f"boxcar of size {size} has no room in a picture of {x.shape[:2]}")
    down = x[:height].copy()
    for shift in range(1, size):
        down += x[shift : shift + height]
    mean = down[:, :width].copy()
    for shift in range(1, size):
        mean += down[:, shift : shift + width]
    mean /= np.float32(size * size)
    return np.asarray(mean)


def pauli_rgb(
    channels: npt.NDArray[Any],
    scale: Literal["amplitude", "decibel"] = "amplitude",
    percentiles: tuple[float, float] = (1.0, 99.0),
) -> Picture:
    """Pauli picture ``(H, W, 3)`` uint8: red T22 (double), green T33 (volume), blue T11 (surface).

    Each colour is the square root, or 10 log10, of its power, stretched between two percentiles.
    """
    low, high = percentiles
    if not 0 <= low < high <= 100:
        raise FoveateError(
            f"pauli_rgb expects percentiles 0 <= low < high <= 100, got {low}, {high}"
        )
    power = np.maximum(_real(channels)[..., [1, 2, 0]], 0)
    if power.ndim != 3 or power.size == 0:
        raise FoveateError(f"pauli_rgb expects channels (H, W, 9), got {np.shape(channels)}")
    if scale == "decibel":
        power = 10 * np.log10(np.maximum(power, _TINY))
    elif scale == "amplitude":
        power = np.sqrt(power)
    else:
        raise FoveateError(f"pauli_rgb has no scale {scale!r}; choose amplitude or decibel")
    bottom, top = np.percentile(power, [low, high], axis=(0, 1))
    stretched = (power - bottom) / np.maximum(top - bottom, _TINY)
    return np.asarray(np.round(255 * np.clip(stretched, 0, 1)), np.uint8)


def t3_features(channels: npt.NDArray[Any]) -> Channels:
    """Nine real features ``(..., 9)`` in the order of `CHANNELS`: ln T_ii, T_ij / sqrt(T_ii T_jj).

    The quotients are complex correlations, of modulus at most 1 where T is positive semidefinite;
    powers lose their heavy tail by the logarithm.
    """
    x = _real(channels)
    power = np.maximum(x[..., :3], _TINY)
    features = np.empty_like(x)
    features[..., :3] = np.log(power)
    root = np.sqrt(power)
    for n, (i, j) in enumerate(_UPPER):
        pair = slice(3 + 2 * n, 5 + 2 * n)
        features[..., pair] = x[..., pair] / (root[..., i] * root[..., j])[..., None]
    return features


def freeman_durden(channels: npt.NDArray[Any]) -> Channels:
    """Three powers ``(..., 3)``: surface, double bounce, volume; their sum is the span.

    Model: T = Pv diag(2, 1, 1) / 4 + two rank-1 matrices in the plane of T11, T22. So
    Pv = 4 T33, and with S = T11 - Pv/2, D = T22 - Pv/4, q = |T12|^2 the stronger of S and D keeps
    all of the correlation: S >= D gives (S + q/S, D - q/S), else (S - q/D, D + q/D). This is the
    published rule (sign of Re<HH VV*> after the volume is taken off) written for T3.

    Where noise breaks the model, no power is made or lost (D): volume is at most the span, and a
    negative ground power becomes 0 with the other taking all that is left.
    """
    x = _real(channels)
    total = np.maximum(span(x), 0)
    volume = np.clip(4 * x[..., 2], 0, total)
    surface, double = _ground(
        x[..., 0] - volume / 2, x[..., 1] - volume / 4, x[..., 3], x[..., 4], total - volume
    )
    return np.stack([surface, double, volume], -1)


def yamaguchi4(channels: npt.NDArray[Any]) -> Channels:
    """Four powers ``(..., 4)``: surface, double bounce, volume, helix; their sum is the span.

    The helix takes Pc = 2 |Im T23|. Volume is diag(2, 1, 1) / 4, or, where VV is below HH by
    more than 2 dB (above it: T12 changes sign), [[15, 5, 0], [5, 7, 0], [0, 0, 8]] / 30; Pv
    follows from T33 = Pv/4 + Pc/2 or 8 Pv/30 + Pc/2, and the ground as in :func:`freeman_durden`.
    Pc is dropped where it would make Pv negative; powers are limited as there (D).
    """
    x = _real(channels)
    total = np.maximum(span(x), 0)
    hh = (x[..., 0] + x[..., 1]) / 2 + x[..., 3]
    vv = (x[..., 0] + x[..., 1]) / 2 - x[..., 3]
    ratio = np.float32(10**0.2)  # 2 dB
    lean = np.where(vv * ratio < hh, 1, np.where(vv > hh * ratio, -1, 0)).astype(np.float32)
    helix = 2 * np.abs(x[..., 8])
    helix = np.where(x[..., 2] < helix / 2, 0, np.minimum(helix, total))
    share = np.asarray(np.where(lean == 0, 1 / 4, 8 / 30), np.float32)  # of the volume, in T33
    without_helix = total - helix
    volume = np.clip((x[..., 2] - helix / 2) / share, 0, without_helix)
    surface, double = _ground(
        x[..., 0] - volume / 2,
        x[..., 1] - volume * (0.5 - share) - helix / 2,
        x[..., 3] - lean * volume / 6,
        x[..., 4],
        without_helix - volume,
    )
    return np.stack([surface, double, volume, helix], -1)


def _ground(
    surface: npt.NDArray[Any],
    double: npt.NDArray[Any],
    real: npt.NDArray[Any],
    imag: npt.NDArray[Any],
    rest: npt.NDArray[Any],
) -> tuple[Channels, Channels]:
    """Split what volume (and helix) left over; both are at least 0 and sum to `rest`."""
    larger = np.maximum(surface, double)
    usable = larger > _TINY
    moved = np.where(usable, (real**2 + imag**2) / np.where(usable, larger, 1), 0)
    first = np.where(surface >= double, surface + moved, surface - moved)
    first = np.clip(first, 0, rest)
    return first, rest - first


def pf22(channels: npt.NDArray[Any]) -> Channels:
    """The 22 classical features ``(..., 22)``, order `PF22_NAMES`, a common hand-made baseline.

    Moduli of the upper triangles of T3 (6) and C3 (6), Pauli amplitudes sqrt(T_ii) (3), Freeman-
    Durden (3) and Yamaguchi powers (4). The list is published (as PF22); that the Pauli part
    means amplitudes is our reading (D), since the powers are in the first six already.
    """
    x = _real(channels)
    t3 = t3_matrix(x)
    upper = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    moduli = [np.abs(m[..., i, j]) for m in (t3, t3_to_c3(t3)) for i, j in upper]
    amplitude = np.sqrt(np.maximum(x[..., :3], 0))
    features = np.concatenate(
        [np.stack(moduli, -1), amplitude, freeman_durden(x), yamaguchi4(x)], -1
    )
    return np.asarray(features, np.float32)


def _checked(array: npt.NDArray[Any], last: tuple[int, ...], what: str) -> npt.NDArray[Any]:
    array = np.asarray(array)
    if array.dtype.kind not in "fc" or array.shape[-len(last) :] != last:
        shape = ", ".join(map(str, last))
        raise FoveateError(
            f"{what} (..., {shape}) of complex numbers were expected, got {array.shape} of "
            f"{array.dtype}"
        )
    if not np.isfinite(array).all():
        raise FoveateError(f"{what} hold NaN or infinity; mask or fill these pixels first")
    return array


def _real(array: npt.NDArray[Any]) -> Channels:
    array = np.asarray(array)
    if array.dtype.kind != "f" or array.shape[-1:] != (9,):
        raise FoveateError(
            "the nine real channels of T3 (..., 9) were expected, got "
            f"{array.shape} of {array.dtype}; convert matrices with t3_channels"
        )
    if not np.isfinite(array).all():
        raise FoveateError("T3 channels hold NaN or infinity; mask or fill these pixels first")
    return array.astype(np.float32, copy=False)
