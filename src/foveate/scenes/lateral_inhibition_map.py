"""Lateral inhibition as ``foveate map`` uses it: a dilated network for pictures seen from above.

:class:`~foveate.scenes.lateral_inhibition.TinyDilated` is trained on crops around labelled pixels,
where all other pixels are void, and labels whole tiles at once. Two things let any cut into tiles
give the same map: the pyramid has no branch that pools the whole picture, so a decision depends on
`radius` pixels around it and no more; and tiles begin at multiples of the network's stride, with a
margin of that radius rounded up to the stride, so every cell of the network covers the same pixels
however the scene is cut. What the network pads with zeros lies outside the margin's reach.

Classes are drawn equally often, however many labels each has (D).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.datasets.scene import Scene, Window
from foveate.datasets.scene_labels import SceneLabels
from foveate.errors import FoveateError
from foveate.nn.lateral_inhibition import inhibition_report, no_decay_groups, project_after_step
from foveate.scenes.lateral_inhibition import TinyDilated
from foveate.scenes.map_model import check_labels
from foveate.scenes.patches import read_patches
from foveate.scenes.scaling import SceneFeatures

__all__ = ["LateralInhibitionMap"]

Floats = npt.NDArray[np.float32]
Hidden = Callable[[Window], npt.NDArray[np.bool_]]

_VOID = -1


class LateralInhibitionMap:
    """A `MapModel`: dilated convolutions with lateral inhibition, on the CPU.

    Parameters
    ----------
    steps, batch, side
        Length of the training, crops in a step, and their side (a multiple of 4, at least 16).
    lr, weight_decay
        Of AdamW; the rate falls as (1 - step / steps)^0.9, w does not decay.
    inhibited
        False trains the same network without inhibition.

    Attributes
    ----------
    classes
        Codes in the order of the last axis of `probabilities`; empty before `fit`.
    module
        The network, None before `fit`.
    """

    stride = 4

    def __init__(
        self,
        steps: int = 500,
        batch: int = 8,
        side: int = 64,
        lr: float = 2e-3,
        weight_decay: float = 1e-4,
        inhibited: bool = True,
    ) -> None:
        if steps < 1 or batch < 2 or side < 16 or side % self.stride or not lr > 0:
            raise FoveateError(
                "LateralInhibitionMap expects at least one step, two crops in a batch, a side that "
                f"is a multiple of 4 from 16 on, and lr above 0, got {steps=}, {batch=}, {side=}, "
                f"{lr=}"
            )
        self.steps, self.batch, self.side = steps, batch, side
        self.lr, self.weight_decay, self.inhibited = lr, weight_decay, inhibited
        self.classes: tuple[int, ...] = ()
        self.module: TinyDilated | None = None
        self._features: SceneFeatures | None = None
        with torch.random.fork_rng(devices=[]):  # only to be measured
            self._radius = self._network(1, 1).radius

    @property
    def margin(self) -> int:
        """Pixels of context to every side that one decision sees."""
        return -(-self._radius // self.stride) * self.stride

    def _network(self, channels: int, classes: int) -> TinyDilated:
        return TinyDilated(classes, channels, self.inhibited, image_pooling=False)

    def fit(
        self,
        scene: Scene,
        labels: SceneLabels,
        *,
        seed: int = 0,
        hidden: Hidden | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> LateralInhibitionMap:
        """Learn from labelled pixels.

        Parameters
        ----------
        scene, labels
            The scene and its training labels; unlabelled pixels are context.
        seed
            Draws weights and crops; the generators of the process are left as they are.
        hidden
            True where inputs must not be seen in training: they become the mean.
        progress
            Told the steps done and all steps.

        Raises
        ------
        FoveateError
            Labels of another scene, fewer than two classes, or a loss that is not finite.
        """
        check_labels(scene, labels)
        pixels = read_patches(scene, labels.coordinates, 1)[:, :, 0, 0]
        features = SceneFeatures(scene.kind).fit(pixels)
        classes = labels.classes
        members = [labels.coordinates[labels.codes == code] for code in classes]
        rng = np.random.default_rng(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = self._network(features.channels, len(classes))
            optimizer = torch.optim.AdamW(no_decay_groups(net, self.weight_decay), self.lr)
            handle = project_after_step(optimizer, net)
            schedule = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: (1 - min(step, self.steps - 1) / self.steps) ** 0.9
            )
            net.train()
            for step in range(1, self.steps + 1):
                x, y = self._crops(scene, labels, features, members, hidden, rng)
                loss = F.cross_entropy(net(x), y, ignore_index=_VOID)
                if not math.isfinite(float(loss.detach())):
                    raise FoveateError(
                        f"the loss became {float(loss.detach())} in step {step}; use a smaller "
                        f"learning rate than {self.lr}"
                    )
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                if progress is not None:
                    progress(step, self.steps)
            handle.remove()
        self.classes, self.module, self._features = classes, net.eval(), features
        return self

    def _crops(
        self,
        scene: Scene,
        labels: SceneLabels,
        features: SceneFeatures,
        members: list[npt.NDArray[np.int32]],
        hidden: Hidden | None,
        rng: np.random.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Crops (B, F, side, side), each with a labelled pixel in it, and classes; others void."""
        side = self.side
        x = np.zeros((self.batch, side, side, features.channels), np.float32)
        y = np.full((self.batch, side, side), _VOID, np.int64)
        for k in range(self.batch):
            here = members[int(rng.integers(len(members)))]
            pixel = here[int(rng.integers(len(here)))]
            top, left = (
                min(max(0, int(p) - int(rng.integers(side))), max(0, extent - side))
                for p, extent in zip(pixel, (scene.height, scene.width), strict=True)
            )
            window = Window(top, left, side, side)
            # A scene that is smaller than a crop is mirrored; labels are not.
            height, width = min(side, scene.height - top), min(side, scene.width - left)
            inside = Window(top, left, height, width)
            seen = features.transform(scene.read_padded(window))
            known = np.zeros((side, side), np.bool_)
            known[:height, :width] = True
            if hidden is not None:
                known[:height, :width] &= ~hidden(inside)
                seen[~known] = 0  # what lies beyond the edge may mirror a hidden pixel
            codes = labels.to_map(inside)
            part = np.searchsorted(labels.classes, codes)
            target = y[k, :height, :width]
            target[codes > 0] = part[codes > 0]
            target[~known[:height, :width]] = _VOID
            for axis in (0, 1):
                if rng.random() < 0.5:
                    seen, y[k] = np.flip(seen, axis), np.flip(y[k], axis).copy()
            x[k] = seen
        return torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(y)

    @torch.no_grad()
    def probabilities(self, block: Floats) -> Floats:
        """(h + 2 margin, w + 2 margin, C) as the scene has them -> (h, w, K) float32.

        Raises
        ------
        FoveateError
            Before `fit`, or a block that is too small or of other channels.
        """
        net, features = self._fitted()
        margin = self.margin
        if block.ndim != 3 or min(block.shape[:2]) <= 2 * margin:
            raise FoveateError(
                f"LateralInhibitionMap expects blocks (h + {2 * margin}, w + {2 * margin}, C), "
                f"got {block.shape}"
            )
        height, width = block.shape[:2]
        x = torch.from_numpy(features.transform(block)).permute(2, 0, 1)[None]
        x = F.pad(x, (0, -width % self.stride, 0, -height % self.stride))
        shares = net(x)[0].softmax(0).permute(1, 2, 0)
        result: Floats = shares[margin : height - margin, margin : width - margin].numpy()
        return np.ascontiguousarray(result)

    def learned(self) -> str:
        """What became of w, in one line; "no inhibition" for the plain network."""
        net, _ = self._fitted()
        return str(inhibition_report(net)) if self.inhibited else "no inhibition"

    def state(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """What was learned: arrays, and facts that JSON can hold."""
        net, features = self._fitted()
        arrays = {f"features.{name}": array for name, array in features.to_arrays().items()}
        for name, tensor in net.state_dict().items():
            arrays[f"network.{name}"] = tensor.detach().contiguous().numpy().copy()
        settings = {
            "steps": self.steps,
            "batch": self.batch,
            "side": self.side,
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "inhibited": self.inhibited,
        }
        return arrays, {
            "kind": features.kind,
            "classes": list(self.classes),
            "settings": settings,
        }

    @classmethod
    def restore(
        cls, arrays: Mapping[str, npt.NDArray[Any]], facts: Mapping[str, Any]
    ) -> LateralInhibitionMap:
        """The inverse of `state`.

        Raises
        ------
        FoveateError
            Arrays or facts are missing or do not fit each other.
        """
        parts: dict[str, dict[str, npt.NDArray[Any]]] = {"features": {}, "network": {}}
        for key, array in arrays.items():
            part, _, name = key.partition(".")
            parts.setdefault(part, {})[name] = np.asarray(array)
        try:
            made = cls(**facts["settings"])
            made.classes = tuple(int(code) for code in facts["classes"])
            features = SceneFeatures.from_arrays(parts["features"], str(facts["kind"]))
            with torch.random.fork_rng(devices=[]):
                net = made._network(features.channels, len(made.classes))
            weights = {k: torch.from_numpy(np.array(a)) for k, a in parts["network"].items()}
            if not all(bool(torch.isfinite(weight).all()) for weight in weights.values()):
                raise ValueError("some weights are NaN or infinite")
            net.load_state_dict(weights)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise FoveateError(
                f"the kept LateralInhibitionMap is damaged: {reason}; fit it again"
            ) from error
        made.module, made._features = net.eval(), features
        return made

    def _fitted(self) -> tuple[TinyDilated, SceneFeatures]:
        if self.module is None or self._features is None:
            raise FoveateError("LateralInhibitionMap is not fitted; call fit first")
        return self.module, self._features
