"""The Wishart classifier: the maximum-likelihood labeller of PolSAR pixels.

An average of L looks of fully developed speckle follows a complex Wishart law around the class's
coherency matrix Sigma_c. Its log-likelihood, less what is the same for all classes, is -L times

    d(T, c) = ln |Sigma_c| + tr(Sigma_c^{-1} T)            (Lee, Grunes & Kwok 1994)

so the label is the class of least d: looks need not be known, priors are taken as equal. Sigma_c
is the mean of T over the training pixels of c. For Hermitian matrices the trace is a weighted sum
of the nine real channels of T, which makes d *linear* in the pixel:

    tr(P T) = sum_i P_ii T_ii + 2 sum_{i<j} (Re P_ij Re T_ij + Im P_ij Im T_ij).

:class:`WishartClassifier` is this in scikit-learn's style; :class:`WishartMap` labels scenes with
it, after a boxcar average. It is the baseline that a learned PolSAR method has to beat.

>>> made = simulate_wishart_scene(seed=0)  # doctest: +SKIP
>>> model = WishartMap(5).fit(made.scene(), made.labels)  # doctest: +SKIP
>>> codes, confidence = predict_map(model, made.scene())  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin

from foveate.datasets.polarimetry import boxcar
from foveate.datasets.scene import Scene, Window
from foveate.errors import FoveateError
from foveate.scenes.map_model import check_labels

if TYPE_CHECKING:
    from foveate.datasets.scene_labels import SceneLabels

__all__ = ["WishartClassifier", "WishartMap"]

FEW_PIXELS = 30  # below it a class mean may be near singular and is regularised

Float64 = npt.NDArray[np.float64]


class WishartClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Maximum-likelihood classifier of coherency matrices under the complex Wishart law.

    Parameters
    ----------
    looks
        Scales the distances into probabilities, ``softmax(-looks * d)``; labels do not depend on
        it. 1, the default, is cautious (D): neighbouring looks of real data are correlated.

    Attributes
    ----------
    classes_
        ``(K,)`` class codes, sorted.
    sigma_
        ``(K, 3, 3)`` complex128 class means, regularised by 1e-6 tr/3 I where a class had fewer
        than 30 pixels.
    counts_
        ``(K,)`` training pixels of each class.
    """

    def __init__(self, looks: float = 1.0) -> None:
        self.looks = looks

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> WishartClassifier:
        """Take the mean of T over the pixels of each class.

        Parameters
        ----------
        X
            ``(N, 9)`` channels of T3 (`foveate.datasets.polarimetry.CHANNELS`).
        y
            ``(N,)`` class codes.

        Raises
        ------
        FoveateError
            Another shape, NaN, fewer than two classes, or a class whose mean is not positive
            definite.
        """
        pixels = _pixels(X)
        codes = np.asarray(y)
        if codes.shape != pixels.shape[:1] or not len(codes):
            raise FoveateError(
                f"WishartClassifier.fit expects as many codes as pixels, got {codes.shape} for "
                f"{pixels.shape}"
            )
        classes, index, counts = np.unique(codes, return_inverse=True, return_counts=True)
        sums = np.stack(
            [np.bincount(index, channel, len(classes)) for channel in pixels.T.astype(np.float64)],
            axis=1,
        )
        return self.set_means(classes, sums / counts[:, None], counts)

    def set_means(
        self, classes: npt.ArrayLike, means: npt.ArrayLike, counts: npt.ArrayLike
    ) -> WishartClassifier:
        """Fit from class means ``(K, 9)`` (sums over a scene too large for memory, published ones).

        `counts` ``(K,)`` say how many pixels each is the mean of.
        """
        self.classes_: npt.NDArray[Any] = np.asarray(classes)
        self.means_: Float64 = np.asarray(means, np.float64)
        self.counts_: npt.NDArray[np.int64] = np.asarray(counts, np.int64)
        if (
            self.classes_.ndim != 1
            or len(self.classes_) < 2
            or self.means_.shape != (len(self.classes_), 9)
            or self.counts_.shape != self.classes_.shape
            or not np.isfinite(self.means_).all()
        ):
            raise FoveateError(
                "the Wishart classifier needs finite means (K, 9) of at least two classes, got "
                f"{self.means_.shape} for the classes {self.classes_.tolist()}; label a second "
                "class"
            )
        self.sigma_ = _matrices(self.means_)
        trace = np.einsum("kii->k", self.sigma_).real
        few = self.counts_ < FEW_PIXELS
        self.sigma_ += (few * 1e-6 * trace / 3)[:, None, None] * np.eye(3)
        for code, sigma in zip(self.classes_, self.sigma_, strict=True):
            if np.linalg.eigvalsh(sigma)[0] <= 0:
                raise FoveateError(
                    f"the mean coherency matrix of class {code} is not positive definite; label "
                    "more pixels of it, or average looks first"
                )
        self.offset_: Float64 = np.linalg.slogdet(self.sigma_)[1]
        inverse = np.linalg.inv(self.sigma_)
        weights = np.empty((len(self.classes_), 9))
        for i in range(3):
            weights[:, i] = inverse[:, i, i].real
        for n, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
            weights[:, 3 + 2 * n] = 2 * inverse[:, i, j].real
            weights[:, 4 + 2 * n] = 2 * inverse[:, i, j].imag
        self.weights_: Float64 = weights
        self.n_features_in_ = 9
        return self

    def distances(self, X: npt.ArrayLike) -> Float64:
        """Wishart distance d of pixels ``(..., 9)`` to each class, ``(..., K)`` float64.

        The nine terms are added in one order for every pixel, so a pixel's distance does not
        depend on which others are asked for beside it.
        """
        if not hasattr(self, "weights_"):
            raise FoveateError("the Wishart classifier has no class means yet; call fit first")
        pixels = _pixels(X)
        distance = np.broadcast_to(self.offset_, (*pixels.shape[:-1], len(self.offset_))).copy()
        for channel in range(9):
            distance += pixels[..., channel, None] * self.weights_[:, channel]
        return np.asarray(distance)

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[Any]:
        """Class of least distance, ``(N,)``; the first of equal ones."""
        nearest = self.distances(X).argmin(-1)
        return np.asarray(self.classes_[nearest])

    def predict_proba(self, X: npt.ArrayLike) -> Float64:
        """``softmax(-looks * d)``, ``(N, K)``, classes in the order of `classes_`."""
        score = -float(self.looks) * self.distances(X)
        score -= score.max(-1, keepdims=True)
        np.exp(score, out=score)
        return np.asarray(score / score.sum(-1, keepdims=True))


class WishartMap:
    """The Wishart classifier as a method of ``foveate map``.

    Parameters
    ----------
    window
        Odd side of the boxcar that T is averaged over, in training and in use; 1 turns it off.
        Keep a guard of ``window // 2`` pixels between training and test pixels.
    looks
        As in :class:`WishartClassifier`.

    Notes
    -----
    There is nothing random in it: `fit` gives the same numbers for every seed.
    """

    stride = 1

    def __init__(self, window: int = 5, looks: float = 1.0) -> None:
        if window < 1 or window % 2 == 0 or not looks > 0:
            raise FoveateError(
                f"WishartMap expects an odd window and looks above 0, got {window} and {looks}"
            )
        self.window, self.looks = window, looks
        self.classifier = WishartClassifier(looks)

    @property
    def margin(self) -> int:
        """Pixels of context on every side of one decision."""
        return self.window // 2

    @property
    def classes(self) -> tuple[int, ...]:
        """Class codes in the order of the last axis of `probabilities`."""
        return tuple(int(code) for code in self.classifier.classes_)

    def fit(
        self,
        scene: Scene,
        labels: SceneLabels,
        *,
        seed: int = 0,
        hidden: Callable[[Window], npt.NDArray[np.bool_]] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> WishartMap:
        """Average T over the labelled pixels of each class, strip by strip.

        `hidden` is not looked at: the guard of the split keeps hidden pixels out of the boxcar.

        Raises
        ------
        FoveateError
            The scene is not polarimetric or of another size, or fewer than two classes.
        """
        if scene.kind != "polsar" or scene.channels != 9:
            raise FoveateError(
                f"the Wishart classifier needs a PolSAR scene of 9 channels, {scene.name} is "
                f"{scene.kind} with {scene.channels}; choose another method"
            )
        check_labels(scene, labels)
        classes = np.array(labels.classes, np.int64)
        sums, counts = np.zeros((len(classes), 9)), np.zeros(len(classes), np.int64)
        rows, columns = labels.coordinates.T
        index = np.searchsorted(classes, labels.codes)
        strip = max(1, (1 << 22) // (scene.width * 9))
        done = 0
        for top in range(0, scene.height, strip):
            first, last = np.searchsorted(rows, [top, top + strip])
            if first < last:
                # Only the rows and columns that hold labels are read.
                up, down = int(rows[first]), int(rows[last - 1]) + 1
                left = int(columns[first:last].min())
                right = int(columns[first:last].max()) + 1
                m = self.margin
                block = scene.read_padded(
                    Window(up - m, left - m, down - up + 2 * m, right - left + 2 * m)
                )
                mean = boxcar(block, self.window, "valid")
                picked = mean[rows[first:last] - up, columns[first:last] - left]
                np.add.at(sums, index[first:last], picked.astype(np.float64))
                counts += np.bincount(index[first:last], minlength=len(classes))
                done += int(last - first)
                if progress is not None:
                    progress(done, len(labels))
        self.classifier = WishartClassifier(self.looks).set_means(
            classes, sums / np.maximum(counts, 1)[:, None], counts
        )
        return self

    def probabilities(self, block: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """``(h, w, K)`` float32 of a block ``(h + 2 margin, w + 2 margin, 9)``."""
        mean = boxcar(block, self.window, "valid")
        return self.classifier.predict_proba(mean).astype(np.float32)

    def state(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Arrays and facts from which `restore` makes an equal one."""
        fitted = self.classifier
        arrays = {"classes": fitted.classes_, "means": fitted.means_, "counts": fitted.counts_}
        return arrays, {"window": self.window, "looks": self.looks}

    @classmethod
    def restore(
        cls, arrays: Mapping[str, npt.NDArray[Any]], facts: Mapping[str, Any]
    ) -> WishartMap:
        """The counterpart of `state`."""
        model = cls(int(facts["window"]), float(facts["looks"]))
        model.classifier.set_means(arrays["classes"], arrays["means"], arrays["counts"])
        return model


def _pixels(array: npt.ArrayLike) -> npt.NDArray[Any]:
    pixels = np.asarray(array)
    if pixels.dtype.kind != "f" or pixels.ndim < 1 or pixels.shape[-1] != 9:
        raise FoveateError(
            "the Wishart classifier expects the nine real channels of T3 (..., 9), got "
            f"{pixels.shape} of {pixels.dtype}; convert matrices with t3_channels"
        )
    if not np.isfinite(pixels).all():
        raise FoveateError("the pixels hold NaN or infinity; mask or fill them first")
    return pixels


def _matrices(means: Float64) -> npt.NDArray[np.complex128]:
    """Hermitian ``(K, 3, 3)`` of means ``(K, 9)`` in double precision."""
    sigma = np.zeros((len(means), 3, 3), np.complex128)
    for i in range(3):
        sigma[:, i, i] = means[:, i]
    for n, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
        sigma[:, i, j] = means[:, 3 + 2 * n] + 1j * means[:, 4 + 2 * n]
        sigma[:, j, i] = sigma[:, i, j].conj()
    return sigma
