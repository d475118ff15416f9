"""A net that classifies patches, made a method that maps scenes.

`PatchMap` puts any ``nn.Module`` that maps patches ``(B, F, n, n)`` to logits ``(B, K)`` of the
centre pixel behind the interface of `foveate.scenes.map_model.MapModel`. The features of a pixel
(`SceneFeatures`: standardised bands, T3 features of PolSAR, or whitened principal components) are
fitted on the labelled training pixels and on nothing else. The loss is cross-entropy, the rate of
Adam falls along a half cosine,

    lr_t = lr (1 + cos(pi t / T)) / 2 ,   t = 0 .. T - 1 ,

and the weights of the last step are kept: nothing is chosen on validation data.

`SmallPatchCnn` is the plain yardstick for nets with context: a 1 x 1 convolution that mixes bands,
two 3 x 3 convolutions, the mean over the patch.

>>> net = lambda channels, classes: MyNet(channels, classes)  # doctest: +SKIP
>>> model = PatchMap(net, PatchTraining(size=9, components=30))  # doctest: +SKIP
>>> model.fit(scene, labels.subset(split.train), seed=0)  # doctest: +SKIP
>>> codes, confidence = predict_map(model, scene)  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.datasets.scene import Scene, Window
from foveate.datasets.scene_labels import SceneLabels
from foveate.errors import FoveateError
from foveate.scenes.map_model import check_labels
from foveate.scenes.patches import read_patches
from foveate.scenes.scaling import SceneFeatures
from foveate.scenes.splits import draw_per_class

__all__ = ["PatchCnnMap", "PatchMap", "PatchTraining", "SmallPatchCnn"]

Model = TypeVar("Model", bound="PatchMap")
Network = Callable[[int, int], nn.Module]

_AT_ONCE = 2048  # patches whose features are computed together
_MOST_BYTES = 1 << 32
_MOST_WIDTH = 4096


@dataclass(frozen=True)
class PatchTraining:
    """How a net of patches is trained.

    Attributes
    ----------
    size
        Side n of a patch, odd; an even one has its pixel at n // 2.
    components
        Principal components, whitened; None: the standardised bands.
    epochs, batch, lr, weight_decay
        Of Adam; batches of at least 2, decay is added to the gradient.
    least_steps
        With few labels there are more epochs, until this number of steps (D).
    flips
        Turn and mirror every batch at random (the eight symmetries of a square): land cover has no
        upright. Not for what depends on the direction of look.
    most_per_class
        Training pixels of a class, drawn at random; None: all.
    """

    size: int = 9
    components: int | None = None
    epochs: int = 40
    batch: int = 128
    lr: float = 3e-3
    weight_decay: float = 0.0
    least_steps: int = 300
    flips: bool = False
    most_per_class: int | None = 2000

    def __post_init__(self) -> None:
        counts = (self.size, self.epochs, self.batch - 1, self.components, self.most_per_class)
        if any(count is not None and count < 1 for count in counts):
            raise FoveateError(
                "PatchTraining expects size, epochs, components and most_per_class of at least 1 "
                f"and batches of at least 2, got {self.size}, {self.epochs}, {self.components}, "
                f"{self.most_per_class} and {self.batch}"
            )
        floor = min(self.weight_decay, self.least_steps)
        if not (0 < self.lr < math.inf and floor >= 0 and self.weight_decay < math.inf):
            raise FoveateError(
                "PatchTraining expects a finite lr above 0, and weight_decay and least_steps that "
                f"are not negative, got {self.lr}, {self.weight_decay} and {self.least_steps}"
            )


class SmallPatchCnn(nn.Module):
    """Patches (B, F, n, n) to logits (B, K); any n.

    Parameters
    ----------
    channels, classes
        F and K.
    width
        Channels of the convolutions.
    dropout
        Before the last layer.
    """

    def __init__(self, channels: int, classes: int, width: int = 32, dropout: float = 0.3) -> None:
        super().__init__()
        if min(channels, classes, width) < 1 or width > _MOST_WIDTH or not 0 <= dropout < 1:
            raise FoveateError(
                "SmallPatchCnn expects at least one channel, class and unit of width (at most "
                f"{_MOST_WIDTH}) and a dropout below 1, got {channels}, {classes}, {width} and "
                f"{dropout}"
            )
        self.mix = nn.Conv2d(channels, width, 1, bias=False)
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(width, classes)

    def forward(self, patches: Tensor) -> Tensor:  # noqa: D102
        features = patches
        for layer, norm in zip((self.mix, self.first, self.second), self.norms, strict=True):
            features = F.relu(norm(layer(features)))
        logits: Tensor = self.last(self.dropout(features.mean((2, 3))))
        return logits


class PatchMap:
    """A `MapModel` around a net of patches. Runs on the CPU.

    Parameters
    ----------
    network
        ``(channels, classes) -> nn.Module`` from patches (B, channels, n, n) to logits
        (B, classes). It is called under the seed of `fit`.
    training
        How it is trained.

    Notes
    -----
    A method with settings of its own derives from this class, adds them to the facts of `state`
    and builds itself from them in `restore`, which then calls `load_state`.
    """

    stride = 1

    def __init__(self, network: Network, training: PatchTraining | None = None) -> None:
        self.network, self.training = network, training or PatchTraining()
        self.classes: tuple[int, ...] = ()
        self.module: nn.Module | None = None
        self._features: SceneFeatures | None = None

    @property
    def margin(self) -> int:
        """Pixels of context to every side that one decision sees."""
        return self.training.size // 2

    def fit(
        self: Model,
        scene: Scene,
        labels: SceneLabels,
        *,
        seed: int = 0,
        hidden: Callable[[Window], npt.NDArray[np.bool_]] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Model:
        """Learn from the labelled pixels.

        Parameters
        ----------
        scene, labels
            The scene and its training labels; patches also see unlabelled pixels as context.
        seed
            Draws pixels, weights and batches; the generators of the process are left as they are.
        hidden
            Not looked at: the guard of the split keeps test pixels out of training patches.
        progress
            Told the steps done and all steps.

        Raises
        ------
        FoveateError
            Labels of another scene, fewer than two classes, patches that do not fit into memory,
            or a loss that is not finite.
        """
        check_labels(scene, labels)
        setting = self.training
        if setting.most_per_class is not None:
            every = np.arange(len(labels))
            labels = labels.subset(draw_per_class(labels, every, setting.most_per_class, seed))
        pixels = read_patches(scene, labels.coordinates, 1)[:, :, 0, 0]
        features = SceneFeatures(scene.kind, setting.components).fit(pixels)
        classes = labels.classes
        patches = self._patches(scene, labels, features)
        target = torch.from_numpy(np.searchsorted(classes, labels.codes).astype(np.int64))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self.network(features.channels, len(classes))
            self._train(module, patches, target, progress)
        self.classes, self.module, self._features = classes, module.eval(), features
        return self

    @torch.no_grad()
    def probabilities(self, block: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(h + 2 margin, w + 2 margin, C) -> (h, w, K) float32."""
        module, features = self._fitted()
        size, margin = self.training.size, self.margin
        if block.ndim != 3 or min(block.shape[:2]) <= 2 * margin:
            raise FoveateError(
                f"{type(self).__name__} expects blocks (h + {2 * margin}, w + {2 * margin}, C), "
                f"got {block.shape}"
            )
        height, width = (side - 2 * margin for side in block.shape[:2])
        seen = features.transform(block)
        windows = np.lib.stride_tricks.sliding_window_view(seen, (size, size), axis=(0, 1))
        shares = np.empty((height * width, len(self.classes)), np.float32)
        for start in range(0, len(shares), _AT_ONCE):
            stop = min(start + _AT_ONCE, len(shares))
            rows, columns = np.divmod(np.arange(start, stop), width)
            logits = module(torch.from_numpy(np.ascontiguousarray(windows[rows, columns])))
            shares[start:stop] = logits.softmax(1).numpy()
        return shares.reshape(height, width, len(self.classes))

    def state(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """What was learned: arrays, and facts that JSON can hold."""
        module, features = self._fitted()
        arrays = {f"features.{name}": array for name, array in features.to_arrays().items()}
        for name, tensor in module.state_dict().items():
            arrays[f"network.{name}"] = tensor.detach().contiguous().numpy().copy()
        facts = {
            "kind": features.kind,
            "classes": list(self.classes),
            "training": dataclasses.asdict(self.training),
        }
        return arrays, facts

    @classmethod
    def restore(
        cls: type[Model],
        arrays: Mapping[str, npt.NDArray[Any]],
        facts: Mapping[str, Any],
        *,
        network: Network | None = None,
    ) -> Model:
        """The inverse of `state`; `network` as it was given to the class."""
        if network is None:
            raise FoveateError(f"{cls.__name__}.restore expects the network that was trained")
        made = cls(network, training_from(facts))
        made.load_state(arrays, facts)
        return made

    def load_state(self, arrays: Mapping[str, npt.NDArray[Any]], facts: Mapping[str, Any]) -> None:
        """Take arrays and facts of `state`, of a model with the same network and training.

        Raises
        ------
        FoveateError
            They are damaged or belong to another network.
        """
        parts: dict[str, dict[str, npt.NDArray[Any]]] = {"features": {}, "network": {}}
        for key, array in arrays.items():
            part, _, name = key.partition(".")
            parts.setdefault(part, {})[name] = np.asarray(array)
        try:
            classes = tuple(int(code) for code in facts["classes"])
            features = SceneFeatures.from_arrays(parts["features"], str(facts["kind"]))
            with torch.random.fork_rng(devices=[]):
                module = self.network(features.channels, len(classes))
            weights = {
                name: torch.from_numpy(np.array(array)) for name, array in parts["network"].items()
            }
            if not all(bool(torch.isfinite(weight).all()) for weight in weights.values()):
                raise ValueError("some weights are NaN or infinite")
            module.load_state_dict(weights)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise FoveateError(
                f"the kept {type(self).__name__} is damaged or of another network: {reason}; fit "
                "it again"
            ) from error
        self.classes, self.module, self._features = classes, module.eval(), features

    def _fitted(self) -> tuple[nn.Module, SceneFeatures]:
        if self.module is None or self._features is None:
            raise FoveateError(f"{type(self).__name__} is not fitted; call fit first")
        return self.module, self._features

    def _patches(self, scene: Scene, labels: SceneLabels, features: SceneFeatures) -> Tensor:
        """Features of the training patches (N, F, n, n)."""
        size = self.training.size
        shape = (len(labels), features.channels, size, size)
        if 4 * math.prod(shape) > _MOST_BYTES:
            raise FoveateError(
                f"{shape[0]} training patches of {size} x {size} with {shape[1]} features take "
                f"{4 * math.prod(shape) / 2**30:.0f} GiB; use fewer labels of each class "
                "(most_per_class) or principal components"
            )
        patches = np.empty(shape, np.float32)
        for start in range(0, len(labels), _AT_ONCE):
            at = labels.coordinates[start : start + _AT_ONCE]
            raw = read_patches(scene, at, size, even=True)
            seen = features.transform(np.moveaxis(raw, 1, -1))
            patches[start : start + _AT_ONCE] = np.moveaxis(seen, -1, 1)
        return torch.from_numpy(patches)

    def _train(
        self,
        module: nn.Module,
        patches: Tensor,
        target: Tensor,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        setting = self.training
        count = len(target)
        # batch statistics of a single patch say nothing: a rest of one is left out of its epoch
        starts = [s for s in range(0, count, setting.batch) if count - s > 1]
        epochs = max(setting.epochs, math.ceil(setting.least_steps / len(starts)))
        steps, done = epochs * len(starts), 0
        optimizer = torch.optim.Adam(
            module.parameters(), lr=setting.lr, weight_decay=setting.weight_decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        module.train()
        for _ in range(epochs):
            order = torch.randperm(count)
            for start in starts:
                batch = order[start : start + setting.batch]
                x = patches[batch]
                loss = F.cross_entropy(module(_turned(x) if setting.flips else x), target[batch])
                if not torch.isfinite(loss):
                    raise FoveateError(
                        f"the loss of {type(self).__name__} is {loss.item()} at step {done}; use a "
                        f"smaller learning rate than {setting.lr}"
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                done += 1
                if progress is not None:
                    progress(done, steps)


class PatchCnnMap(PatchMap):
    """`PatchMap` around `SmallPatchCnn`.

    Parameters
    ----------
    width, dropout
        Of `SmallPatchCnn`.
    training
        By default 30 principal components and patches of 9.
    """

    def __init__(
        self, width: int = 32, dropout: float = 0.3, training: PatchTraining | None = None
    ) -> None:
        super().__init__(
            lambda channels, classes: SmallPatchCnn(channels, classes, width, dropout),
            training or PatchTraining(components=30),
        )
        self.width, self.dropout = width, dropout

    def state(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """What was learned: arrays, and facts that JSON can hold."""
        arrays, facts = super().state()
        return arrays, {**facts, "width": self.width, "dropout": self.dropout}

    @classmethod
    def restore(
        cls,
        arrays: Mapping[str, npt.NDArray[Any]],
        facts: Mapping[str, Any],
        *,
        network: Network | None = None,
    ) -> PatchCnnMap:
        """The inverse of `state`; `network` is not looked at."""
        try:
            made = cls(int(facts["width"]), float(facts["dropout"]), training_from(facts))
        except (KeyError, TypeError, ValueError) as error:
            raise FoveateError(
                f"the kept {cls.__name__} is damaged: {error}; fit it again"
            ) from error
        made.load_state(arrays, facts)
        return made


def training_from(facts: Mapping[str, Any]) -> PatchTraining:
    """The training that `PatchMap.state` kept.

    Raises
    ------
    FoveateError
        It is not there, or has other parts.
    """
    try:
        return PatchTraining(**facts["training"])
    except (KeyError, TypeError) as error:
        raise FoveateError(f"the kept training is damaged: {error}; fit the model again") from error


def _turned(patches: Tensor) -> Tensor:
    """One of the eight symmetries of a square, drawn for the whole batch.

    Drawn per batch and not per patch: as good over an epoch, and no patch has to be moved alone.
    """
    turns, mirrored = divmod(int(torch.randint(8, ())), 2)
    turned = torch.rot90(patches, turns, (2, 3))
    return turned.flip(3) if mirrored else turned
