"""Classifiers that see one pixel: the yardsticks that every method with context must beat.

All three look at standardised bands, or at the T3 features of a PolSAR scene
(`foveate.scenes.scaling.SceneFeatures`), and know nothing of the neighbourhood.

*Linear discriminant, shrunk* (`LdaMap`): one covariance for all classes, pulled towards a sphere,

    S' = (1 - a) S + a tr(S)/F I,   S = sum_k sum_{i in k} (x_i - m_k)(x_i - m_k)' / N
    p(k | x) ~ p_k exp( m_k' S'^-1 x - m_k' S'^-1 m_k / 2 )

with a after Ledoit & Wolf (2004), and p_k the share of k among the training pixels. This is a
posterior as it stands, of normal classes of one shape.

*Support vector machine* (`SvmMap`): radial kernel exp(-g |x - s|^2), g = 1 / (F var), C = 100, one
against one. Its scores are no probabilities; they become such by ``softmax(t f(x))`` with f
scikit-learn's one-against-rest form of the votes and one temperature t, chosen on pixels held out
in three folds of the training pixels (least log loss). Held-out pixels are neighbours of training
pixels, so where a new place differs, it is surer than it should be.

*Random forest* (`ForestMap`): 200 trees; a probability is the mean over the trees of the class
shares in the leaf. Restored models are grown again from the training pixels that are kept: the
same trees, as long as scikit-learn grows them alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax, softmax
from sklearn.covariance import ledoit_wolf
from sklearn.ensemble import RandomForestClassifier
from sklearn.svm import SVC

from foveate.datasets.scene import Scene, Window
from foveate.datasets.scene_labels import SceneLabels
from foveate.errors import FoveateError
from foveate.scenes.map_model import check_labels
from foveate.scenes.patches import read_patches
from foveate.scenes.scaling import SceneFeatures
from foveate.scenes.splits import draw_per_class

__all__ = ["ForestMap", "LdaMap", "SvmMap"]

Arrays = dict[str, npt.NDArray[Any]]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Classifier = TypeVar("Classifier", bound="_PixelMap")

_ROWS = 8192  # pixels whose kernel values are held at once
_FOLDS = 3
_TEMPERATURES = np.geomspace(0.1, 30, 60)


class _PixelMap(ABC):
    """A `MapModel` (see `foveate.scenes.map_model`) that sees one pixel."""

    margin = 0
    stride = 1

    def __init__(self, most_per_class: int | None) -> None:
        if most_per_class is not None and most_per_class < 1:
            raise FoveateError(
                f"{type(self).__name__} expects most_per_class of at least 1, or None for all "
                f"pixels, got {most_per_class}"
            )
        self.most_per_class = most_per_class
        self.classes: tuple[int, ...] = ()
        self._features: SceneFeatures | None = None
        self._arrays: Arrays = {}

    @abstractmethod
    def _learn(self, features: Floats, target: npt.NDArray[np.int64], seed: int) -> Arrays:
        """From features (N, F) and positions of the classes (N,) to what has to be kept."""

    @abstractmethod
    def _shares(self, features: Floats) -> npt.NDArray[np.floating[Any]]:
        """(N, F) -> (N, K)."""

    def fit(
        self: Classifier,
        scene: Scene,
        labels: SceneLabels,
        *,
        seed: int = 0,
        hidden: Callable[[Window], npt.NDArray[np.bool_]] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Classifier:
        """Learn from the labelled pixels, at most `most_per_class` of each class.

        `hidden` is not looked at: only labelled pixels are read.

        Raises
        ------
        FoveateError
            Labels of another scene, or fewer than two classes.
        """
        check_labels(scene, labels)
        if self.most_per_class is not None:
            every = np.arange(len(labels))
            labels = labels.subset(draw_per_class(labels, every, self.most_per_class, seed))
        pixels = read_patches(scene, labels.coordinates, 1)[:, :, 0, 0]
        self.classes = labels.classes
        self._features = SceneFeatures(scene.kind).fit(pixels)
        target = np.searchsorted(self.classes, labels.codes).astype(np.int64)
        if progress is not None:
            progress(0, 1)
        self._arrays = self._learn(self._features.transform(pixels), target, seed)
        if progress is not None:
            progress(1, 1)
        return self

    def probabilities(self, block: Floats) -> Floats:
        """(h, w, C) -> (h, w, K) float32."""
        if self._features is None:
            raise FoveateError(f"{type(self).__name__} is not fitted; call fit first")
        features = self._features.transform(block).reshape(-1, self._features.channels)
        parts = [
            self._shares(features[start : start + _ROWS])
            for start in range(0, len(features), _ROWS)
        ]
        shares = np.concatenate(parts).astype(np.float32)
        return shares.reshape(*block.shape[:2], len(self.classes))

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """What was learned: arrays, and facts that JSON can hold."""
        if self._features is None:
            raise FoveateError(f"{type(self).__name__} is not fitted; there is nothing to keep")
        kept = {f"features.{name}": array for name, array in self._features.to_arrays().items()}
        kept |= {f"model.{name}": np.ascontiguousarray(a) for name, a in self._arrays.items()}
        facts = {"kind": self._features.kind, "classes": list(self.classes)}
        return kept, {**facts, "most_per_class": self.most_per_class, **self._facts()}

    def _facts(self) -> dict[str, Any]:
        return {}

    @classmethod
    def restore(
        cls: type[Classifier],
        arrays: Mapping[str, npt.NDArray[Any]],
        facts: Mapping[str, Any],
    ) -> Classifier:
        """The inverse of `state`."""
        try:
            known = {"kind", "classes"}
            made = cls(**{name: value for name, value in facts.items() if name not in known})
            made.classes = tuple(int(code) for code in facts["classes"])
            kind = str(facts["kind"])
        except (KeyError, TypeError, ValueError) as error:
            raise FoveateError(
                f"the kept {cls.__name__} is damaged: {error}; fit it again"
            ) from error
        held: dict[str, Arrays] = {"features": {}, "model": {}}
        for key, array in arrays.items():
            part, _, name = key.partition(".")
            held.setdefault(part, {})[name] = np.asarray(array)
        made._features = SceneFeatures.from_arrays(held["features"], kind)
        made._arrays = held["model"]
        made._check(made._features.channels, len(made.classes))
        return made

    @abstractmethod
    def _check(self, features: int, classes: int) -> None:
        """Say what is wrong with arrays that were read back."""

    def _expect(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Every array is there, finite and of its shape."""
        for name, shape in shapes.items():
            array = self._arrays.get(name)
            if array is None or array.shape != shape or not np.isfinite(array).all():
                found = "nothing" if array is None else f"{array.shape}"
                raise FoveateError(
                    f"the kept {type(self).__name__} is damaged: {name} should be finite numbers "
                    f"of shape {shape}, found {found}; fit it again"
                )


class LdaMap(_PixelMap):
    """Linear discriminant with a shrunk covariance.

    Parameters
    ----------
    shrinkage
        a, from 0 (the covariance of the pixels) to 1 (a sphere); None: after Ledoit & Wolf.
    equal_priors
        Every class as probable as any other, instead of as frequent as in the training pixels.
    most_per_class
        Training pixels of a class, drawn at random; None: all.
    """

    def __init__(
        self,
        shrinkage: float | None = None,
        equal_priors: bool = False,
        most_per_class: int | None = None,
    ) -> None:
        super().__init__(most_per_class)
        if shrinkage is not None and not 0 <= shrinkage <= 1:
            raise FoveateError(f"LdaMap expects a shrinkage from 0 to 1, got {shrinkage}")
        self.shrinkage, self.equal_priors = shrinkage, equal_priors

    def _learn(self, features: Floats, target: npt.NDArray[np.int64], seed: int) -> Arrays:
        x = features.astype(np.float64)
        counts = np.bincount(target)
        means = np.stack([x[target == k].mean(0) for k in range(counts.size)])
        apart = x - means[target]
        if self.shrinkage is None:
            covariance = ledoit_wolf(apart, assume_centered=True)[0]
        else:
            covariance = (1 - self.shrinkage) * (apart.T @ apart) / len(x)
            sphere = self.shrinkage * (apart**2).sum() / apart.size
            covariance.flat[:: covariance.shape[0] + 1] += sphere
        if not covariance.any():  # one pixel of each class: the nearest mean decides
            covariance = np.eye(x.shape[1])
        # the pseudo-inverse: without shrinkage S has no inverse when pixels are few
        weights = np.linalg.pinv(covariance, hermitian=True) @ means.T
        priors = np.ones(counts.size) if self.equal_priors else counts
        intercept = np.log(priors / priors.sum()) - 0.5 * (means.T * weights).sum(0)
        return {"weights": weights, "intercept": intercept}

    def _shares(self, features: Floats) -> Doubles:
        scores = features.astype(np.float64) @ self._arrays["weights"] + self._arrays["intercept"]
        shares: Doubles = softmax(scores, axis=1)
        return shares

    def _facts(self) -> dict[str, Any]:
        return {"shrinkage": self.shrinkage, "equal_priors": self.equal_priors}

    def _check(self, features: int, classes: int) -> None:
        self._expect({"weights": (features, classes), "intercept": (classes,)})


class SvmMap(_PixelMap):
    """Support vector machine with a radial kernel, one against one.

    Parameters
    ----------
    penalty
        C of the machine.
    most_per_class
        Training pixels of a class, drawn at random; None: all. Time grows with their square.
    """

    def __init__(self, penalty: float = 100.0, most_per_class: int | None = 1000) -> None:
        super().__init__(most_per_class)
        if not 0 < penalty < np.inf:
            raise FoveateError(f"SvmMap expects a finite penalty above 0, got {penalty}")
        self.penalty = penalty

    def _learn(self, features: Floats, target: npt.NDArray[np.int64], seed: int) -> Arrays:
        learned = self._machine(features, target)
        learned["temperature"] = np.array([self._temperature(features, target, seed)])
        return learned

    def _machine(self, features: Floats, target: npt.NDArray[np.int64]) -> Arrays:
        """Support vectors, their weight in every pair of classes, intercepts and gamma."""
        x = features.astype(np.float64)
        gamma = 1 / (x.shape[1] * (x.var() or 1.0))  # scikit-learn's "scale"
        machine = SVC(C=self.penalty, gamma=gamma).fit(x, target)
        sizes = machine.n_support_
        ends = np.cumsum(sizes)
        starts = ends - sizes
        classes, pairs = len(sizes), []
        for i in range(classes):
            for j in range(i + 1, classes):
                # libsvm keeps, for a vector of class i, its weight against j in row j - 1 or j
                weight = np.zeros(len(machine.support_))
                weight[starts[i] : ends[i]] = machine.dual_coef_[j - 1, starts[i] : ends[i]]
                weight[starts[j] : ends[j]] = machine.dual_coef_[i, starts[j] : ends[j]]
                pairs.append(weight)
        # of two classes scikit-learn turns the sign, so that above 0 means the second
        sign = -1.0 if classes == 2 else 1.0
        return {
            "vectors": machine.support_vectors_.astype(np.float64),
            "weights": sign * np.stack(pairs, 1),
            "intercept": sign * machine.intercept_.astype(np.float64),
            "gamma": np.array([gamma]),
        }

    def _temperature(self, features: Floats, target: npt.NDArray[np.int64], seed: int) -> float:
        rng = np.random.default_rng((seed, 1))
        fold = np.full(target.size, -1)  # classes with fewer pixels than folds are never held out
        for k in range(len(self.classes)):
            members = rng.permutation(np.flatnonzero(target == k))
            if members.size >= _FOLDS:
                fold[members] = np.arange(members.size) % _FOLDS
        losses = np.zeros(_TEMPERATURES.size)
        for held in range(_FOLDS):
            out = fold == held
            if not out.any():
                return 1.0
            learned = self._machine(features[~out], target[~out])
            scores = self._scores(features[out], learned)
            for index, t in enumerate(_TEMPERATURES):
                picked = log_softmax(t * scores, axis=1)[np.arange(out.sum()), target[out]]
                losses[index] -= picked.sum()
        return float(_TEMPERATURES[losses.argmin()])

    def _scores(self, features: Floats, learned: Arrays) -> Doubles:
        """One against one, then a score per class: votes, and the sum of the margins below 1/3."""
        x, vectors = features.astype(np.float64), learned["vectors"]
        apart = (x**2).sum(1)[:, None] - 2 * x @ vectors.T + (vectors**2).sum(1)
        kernel = np.exp(-learned["gamma"] * np.maximum(apart, 0))
        pairs = kernel @ learned["weights"] + learned["intercept"]
        classes = len(self.classes)
        votes, margins = np.zeros((2, len(x), classes))
        column = 0
        for i in range(classes):
            for j in range(i + 1, classes):
                pair = pairs[:, column]
                votes[:, i] += pair >= 0
                votes[:, j] += pair < 0
                margins[:, i] += pair
                margins[:, j] -= pair
                column += 1
        scores: Doubles = votes + margins / (3 * (np.abs(margins) + 1))
        return scores

    def _shares(self, features: Floats) -> Doubles:
        scores = self._scores(features, self._arrays)
        shares: Doubles = softmax(self._arrays["temperature"] * scores, axis=1)
        return shares

    def _facts(self) -> dict[str, Any]:
        return {"penalty": self.penalty}

    def _check(self, features: int, classes: int) -> None:
        vectors = self._arrays.get("vectors", np.zeros((0, 0)))
        count, pairs = vectors.shape[0], classes * (classes - 1) // 2
        self._expect(
            {
                "vectors": (count, features),
                "weights": (count, pairs),
                "intercept": (pairs,),
                "gamma": (1,),
                "temperature": (1,),
            }
        )


class ForestMap(_PixelMap):
    """Random forest.

    Parameters
    ----------
    trees
        Number of trees.
    most_per_class
        Training pixels of a class, drawn at random; None: all.
    """

    def __init__(self, trees: int = 200, most_per_class: int | None = 5000) -> None:
        super().__init__(most_per_class)
        if trees < 1:
            raise FoveateError(f"ForestMap expects at least one tree, got {trees}")
        self.trees = trees
        self._forest: RandomForestClassifier | None = None

    def _learn(self, features: Floats, target: npt.NDArray[np.int64], seed: int) -> Arrays:
        self._forest = RandomForestClassifier(self.trees, random_state=seed).fit(features, target)
        return {"pixels": features, "target": target, "seed": np.array([seed], np.int64)}

    def _shares(self, features: Floats) -> Doubles:
        if self._forest is None:
            raise FoveateError("ForestMap is not fitted; call fit first")
        shares: Doubles = self._forest.predict_proba(features)
        return shares

    def _facts(self) -> dict[str, Any]:
        return {"trees": self.trees}

    def _check(self, features: int, classes: int) -> None:
        count = self._arrays.get("pixels", np.zeros((0, 0))).shape[0]
        self._expect({"pixels": (count, features), "target": (count,), "seed": (1,)})
        target = self._arrays["target"]
        if set(np.unique(target).tolist()) != set(range(classes)):
            raise FoveateError("the kept ForestMap is damaged: a class has no pixel; fit it again")
        self._learn(self._arrays["pixels"], target, int(self._arrays["seed"][0]))
