"""Pixels brought to a common scale, by what was seen of the training pixels only.

*Standardising*: every band b becomes ``(x_b - m_b) / max(s_b, floor)`` with mean m and standard
deviation s of the pixels it was fitted on. Bands of a sensor that are nearly dead have s close to
0, and what little they vary elsewhere would become huge; hence the floor.

*Whitened principal components*: with the covariance ``S = V diag(l) V'`` of those pixels,
``z_k = v_k' (x - m) / sqrt(l_k)`` for the k largest l. Uncorrelated, variance 1.

`SceneFeatures` is what the classifiers of pixels and patches look at: of a PolSAR scene the
logarithms and correlations of T3 (`foveate.datasets.polarimetry.t3_features`), of other scenes the
bands; standardised, and where asked for as principal components.

Fitted on the whole scene, either would have seen the test pixels; both take pixels, not scenes, so
that what they saw is always named in the call. The channel is the last axis. All three raise
`FoveateError` for pixels that are no list (N, C), not finite or of other bands than were fitted,
and when used before `fit`.

>>> scaler = BandScaler().fit(scene_pixels[train])  # doctest: +SKIP
>>> scaled = scaler.transform(cube)  # (H, W, C) -> (H, W, C)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from foveate.errors import FoveateError

__all__ = ["BandScaler", "PcaFeatures", "SceneFeatures"]

Pixels = npt.NDArray[np.floating[Any]]
Floats = npt.NDArray[np.float64]
Arrays = dict[str, npt.NDArray[Any]]


class BandScaler:
    """Standardises every band by mean and deviation of the pixels it was fitted on.

    Parameters
    ----------
    floor
        Smallest deviation to divide by, in the unit of the pixels. None: a thousandth of the
        median deviation of the bands, or 1 where that is 0 (D).
    """

    def __init__(self, floor: float | None = None) -> None:
        if floor is not None and not 0 < floor < np.inf:
            raise FoveateError(f"BandScaler expects a finite floor above 0, got {floor}")
        self.floor = floor
        self.mean: Floats | None = None
        self.scale: Floats | None = None

    def fit(self, pixels: npt.ArrayLike) -> BandScaler:
        """Learn from pixels (N, C)."""
        checked = _checked_pixels(pixels, "BandScaler", 1)
        deviation = checked.std(0)
        floor = self.floor or float(np.median(deviation)) / 1000 or 1.0
        self.mean, self.scale = checked.mean(0), np.maximum(deviation, floor)
        return self

    def transform(self, pixels: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """(..., C) -> (..., C) float32."""
        if self.mean is None or self.scale is None:
            raise FoveateError("BandScaler is not fitted; call fit with training pixels first")
        values = _same_bands(pixels, self.mean.size, "BandScaler")
        # the mean is taken off in float64: a band far from 0 would lose its last digits
        return ((values - self.mean) / self.scale).astype(np.float32)

    def to_arrays(self) -> Arrays:
        """What was learned, as arrays that safetensors can hold."""
        if self.mean is None or self.scale is None:
            raise FoveateError("BandScaler is not fitted; there is nothing to keep")
        return {"mean": self.mean.copy(), "scale": self.scale.copy()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> BandScaler:
        """The inverse of `to_arrays`."""
        mean, scale = _taken(arrays, ("mean", "scale"), "BandScaler")
        if mean.ndim != 1 or mean.shape != scale.shape or not (scale > 0).all():
            raise FoveateError(
                "the arrays of a BandScaler must be two lists of one length, scale above 0, got "
                f"{mean.shape} and {scale.shape}"
            )
        made = cls()
        made.mean, made.scale = mean, scale
        return made


class PcaFeatures:
    """Whitened principal components of the pixels it was fitted on.

    Parameters
    ----------
    components
        Number of components, below the number of pixels and at most the number of bands.
    fewer
        Where the pixels span fewer directions, take those and change `components`, instead of
        refusing.
    """

    def __init__(self, components: int, fewer: bool = False) -> None:
        if components < 1:
            raise FoveateError(f"PcaFeatures expects at least one component, got {components}")
        self.components, self.fewer = components, fewer
        self.mean: Floats | None = None
        self.matrix: Floats | None = None

    def fit(self, pixels: npt.ArrayLike) -> PcaFeatures:
        """Learn from pixels (N, C). A direction's sign: its largest entry is positive."""
        checked = _checked_pixels(pixels, "PcaFeatures", 2)
        mean = checked.mean(0)
        apart = checked - mean
        values, vectors = np.linalg.eigh(apart.T @ apart / (len(checked) - 1))
        values, vectors = values[::-1], vectors[:, ::-1]
        # rounding leaves tiny values where there are no directions
        most = (
            min(int((values > 1e-10 * values[0]).sum()), len(checked) - 1) if values[0] > 0 else 0
        )
        wanted = min(self.components, most) if self.fewer else self.components
        if not 1 <= wanted <= most:
            raise FoveateError(
                f"{checked.shape[0]} pixels of {checked.shape[1]} bands span {most} directions; "
                f"{self.components} principal components cannot be taken"
            )
        self.components = wanted
        values, vectors = values[:wanted], vectors[:, :wanted]
        largest = np.abs(vectors).argmax(0)
        vectors = vectors * np.sign(vectors[largest, np.arange(wanted)])
        self.mean, self.matrix = mean, vectors / np.sqrt(values)
        return self

    def transform(self, pixels: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """(..., C) -> (..., components) float32."""
        if self.mean is None or self.matrix is None:
            raise FoveateError("PcaFeatures is not fitted; call fit with training pixels first")
        values = _same_bands(pixels, self.mean.size, "PcaFeatures")
        return ((values - self.mean) @ self.matrix).astype(np.float32)

    def to_arrays(self) -> Arrays:
        """What was learned, as arrays that safetensors can hold."""
        if self.mean is None or self.matrix is None:
            raise FoveateError("PcaFeatures is not fitted; there is nothing to keep")
        return {"mean": self.mean.copy(), "matrix": np.ascontiguousarray(self.matrix)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> PcaFeatures:
        """The inverse of `to_arrays`."""
        mean, matrix = _taken(arrays, ("mean", "matrix"), "PcaFeatures")
        if mean.ndim != 1 or matrix.ndim != 2 or matrix.shape[0] != mean.size or not matrix.size:
            raise FoveateError(
                "the arrays of PcaFeatures must be a mean (C,) and a matrix (C, components), got "
                f"{mean.shape} and {matrix.shape}"
            )
        made = cls(matrix.shape[1])
        made.mean, made.matrix = mean, matrix
        return made


class SceneFeatures:
    """What a classifier looks at in a pixel: T3 features of PolSAR, standardised, perhaps PCA.

    Parameters
    ----------
    kind
        Kind of the scene; ``polsar`` pixels (nine channels of T3) become `t3_features` first.
    components
        Principal components, whitened; None: the standardised bands themselves. Where the
        training pixels allow fewer, as many as they allow.
    """

    def __init__(self, kind: str, components: int | None = None) -> None:
        if components is not None and components < 1:
            raise FoveateError(f"SceneFeatures expects at least one component, got {components}")
        self.kind, self.components = kind, components
        self.scaler = BandScaler()
        self.pca: PcaFeatures | None = None

    @property
    def channels(self) -> int:
        """Number of features of a pixel."""
        if self.scaler.mean is None:
            raise FoveateError("SceneFeatures is not fitted; call fit with training pixels first")
        return self.scaler.mean.size if self.pca is None else self.pca.components

    def fit(self, pixels: npt.ArrayLike) -> SceneFeatures:
        """Learn from training pixels (N, C)."""
        values = self._raw(np.asarray(pixels))
        scaled = self.scaler.fit(values).transform(values)
        if self.components is not None:
            self.pca = PcaFeatures(self.components, fewer=True).fit(scaled)
        return self

    def transform(self, pixels: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """(..., C) -> (..., F) float32."""
        scaled = self.scaler.transform(self._raw(np.asarray(pixels)))
        return scaled if self.pca is None else self.pca.transform(scaled)

    def to_arrays(self) -> Arrays:
        """What was learned, as arrays that safetensors can hold."""
        parts = {"scaler": self.scaler.to_arrays()}
        if self.pca is not None:
            parts["pca"] = self.pca.to_arrays()
        return {f"{part}.{name}": a for part, held in parts.items() for name, a in held.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], kind: str) -> SceneFeatures:
        """The inverse of `to_arrays`."""
        made = cls(kind)
        parts: dict[str, Arrays] = {"scaler": {}, "pca": {}}
        for key, array in arrays.items():
            part, _, name = key.partition(".")
            parts.setdefault(part, {})[name] = array
        made.scaler = BandScaler.from_arrays(parts["scaler"])
        if parts["pca"]:
            made.pca = PcaFeatures.from_arrays(parts["pca"])
            made.components = made.pca.components
        return made

    def _raw(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self.kind != "polsar":
            return pixels
        from foveate.datasets.polarimetry import t3_features

        return t3_features(pixels)


def _checked_pixels(pixels: npt.ArrayLike, who: str, least: int) -> Floats:
    values = np.asarray(pixels)
    if values.ndim != 2 or values.shape[0] < least or not values.shape[1]:
        raise FoveateError(
            f"{who} expects pixels (N, C), at least {least} of them, got {values.shape}"
        )
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise FoveateError(f"{who} expects finite pixels; some are NaN or infinite")
    return values


def _same_bands(pixels: npt.ArrayLike, bands: int, who: str) -> npt.NDArray[Any]:
    values = np.asarray(pixels)
    if values.ndim < 1 or values.shape[-1] != bands:
        raise FoveateError(f"{who} was fitted on {bands} bands, got an array of {values.shape}")
    return values


def _taken(
    arrays: Mapping[str, npt.NDArray[Any]], names: tuple[str, ...], who: str
) -> list[Floats]:
    missing = [name for name in names if name not in arrays]
    if missing:
        raise FoveateError(f"the kept {who} lacks {', '.join(missing)}; fit it again")
    taken = [np.asarray(arrays[name], np.float64) for name in names]
    if not all(np.isfinite(array).all() for array in taken):
        raise FoveateError(f"the kept {who} holds NaN or infinite numbers; fit it again")
    return taken
