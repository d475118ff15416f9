"""Pixel DAG-RNN over whole scenes: exact, without cutting a single patch.

Neighbouring patches share nearly all their pixels. What do they share of the work? The state of the
quadrant's vertex (i, j) at pixel q has seen i rows and j columns of pixels, no more, because walks
begin at a patch's corner. So there are m^2 different states for every pixel of the scene, as many
as a patch has vertices, and each belongs to one patch only: nothing of the recurrence is common to
two patches. What is common is

* ``U_d x(q) + b_d``: once for every pixel and direction instead of m^2 times;
* the patches themselves, n^2 C numbers each, which are never formed: in a block of rows that lie
  one behind the other in memory, vertex (i, j) of *all* patches is one contiguous slice, beginning
  i rows and j pixels further on.

The rest is a matter of the machine. A strip of about 2,000 pixels walks through all m^2 vertices
before the next one does, so that its m + 1 rows of messages stay in the cache; every product is one
``addmm`` into a buffer that is there already. And tanh(x) = 2 s(2x) - 1 with the logistic
function s, which costs PyTorch a tenth of its tanh on a CPU: the factors go into the weights,

    s_h = s(2 (U x + b) - 2 c V 1 + 4 V sum_p s_g(p)),   s_g = s(4 S s_h + 2 a - 2 S 1)

with c predecessors in the full case; one that is missing is s_g = 1/2, that is g = 0. Rounding
apart (about 1e-7 of a state) the scores are those of :class:`foveate.scenes.dag_rnn.PixelDAGRNN`.

:class:`DagRnnMap` is the method as ``foveate map`` uses it: features by what the training pixels
show, a small net (h = 32, n = 9, the desk setting), trained on patches, used on whole blocks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.datasets.scene import Scene, Window
from foveate.datasets.scene_labels import SceneLabels
from foveate.errors import FoveateError
from foveate.scenes.dag_rnn import DAGRNNCell2d, PixelDAGRNN
from foveate.scenes.patch_model import Network, PatchMap, PatchTraining, training_from

__all__ = ["DagRnnMap", "Diverged", "dense_scores", "train_on_patches"]

Floats = npt.NDArray[np.float32]
Hidden = Callable[[Window], npt.NDArray[np.bool_]]
STRIP = 2048  # pixels that walk together
BAND = 1 << 17  # pixels whose U x is kept at once
LEAST_STEPS = 600  # of training: 40 epochs of 15 batches, the setting that was tried


# ------------------------------------------------------------------------------ whole blocks


@torch.no_grad()
def dense_scores(net: PixelDAGRNN, block: Tensor, strip: int = STRIP) -> Tensor:
    """Scores of every pixel of a block, equal to those of its patch (dropout is off).

    Parameters
    ----------
    block
        (h + n - 1, w + n - 1, C): the pixels to label and n // 2 more on every side.
    strip
        Pixels that walk together; about what keeps ``(m + 3) strip h`` numbers in the cache.

    Returns
    -------
    Tensor
        (h, w, K).

    Raises
    ------
    FoveateError
        The block is smaller than a patch or has other channels.
    """
    n = net.patch_size
    if block.ndim != 3 or min(block.shape[:2]) < n or block.shape[2] != net.in_channels:
        raise FoveateError(
            f"this DAG-RNN takes blocks (rows, columns, {net.in_channels}) of at least {n} x {n} "
            f"pixels, got {tuple(block.shape)}"
        )
    if strip < 1:
        raise FoveateError(f"a strip has at least one pixel, got {strip}")
    height, width = block.shape[0] - n + 1, block.shape[1] - n + 1
    scores = block.new_empty(height, width, net.num_classes)
    walks = [_FoldedWalk(cell) for cell in net.directions()]
    rows = max(1, BAND // block.shape[1])
    for top in range(0, height, rows):
        band = block[top : top + rows + n - 1]
        z = torch.cat([walk.last_states(band, n, d, strip) for d, walk in enumerate(walks)], 2)
        scores[top : top + rows] = net.fc2(torch.relu(net.fc1(z)))
    return scores


class _FoldedWalk:
    """One direction with its weights rewritten for the logistic function (tanh) or as they are."""

    def __init__(self, cell: DAGRNNCell2d) -> None:
        U, V, S, a, b = (w.detach().double() for w in (cell.U, cell.V, cell.S, cell.a, cell.b))
        self.eight = cell.neighbours == 8
        self.full = 3 if self.eight else 2
        self.logistic = cell.activation == "tanh"
        self.missing = 0.5 if self.logistic else 0.0  # what stands for g = 0
        if self.logistic:
            b, a = 2 * b - 2 * self.full * V.sum(1), 2 * a - 2 * S.sum(1)
            U, V, S = 2 * U, 4 * V, 4 * S
        kind = cell.U.dtype
        self.U, self.V, self.S = (w.to(kind).T.contiguous() for w in (U, V, S))
        self.a, self.b = a.to(kind), b.to(kind)

    def last_states(self, band: Tensor, n: int, direction: int, strip: int) -> Tensor:
        """(rows + n - 1, W, C) -> states h at the centres (rows, W - n + 1, h)."""
        m, width = n // 2 + 1, band.shape[1]
        height, inside, hidden = band.shape[0] - n + 1, width - n + 1, len(self.a)
        ux = torch.addmm(self.b, band.reshape(-1, band.shape[2]), self.U)
        last = ux.new_empty(height, inside, hidden)
        rows = max(1, min(height, strip // width))
        buffers = ux.new_zeros(m + 3, rows * width, hidden)
        # Walking west is walking east in the mirrored patch; likewise north and south.
        west, north = direction % 2 == 1, direction >= 2
        for top in range(0, height, rows):
            count = min(rows, height - top)
            # The last n - 1 pixels of the last row have no patch; those of other rows are idle.
            length = count * width - (n - 1)
            *ring, total, state = (buffer[:length] for buffer in buffers)
            for t in range(m * m):
                i, j = divmod(t, m)
                start = (top + (n - 1 - i if north else i)) * width + (n - 1 - j if west else j)
                self._collect(ring, t, m, total)
                torch.addmm(ux[start : start + length], total, self.V, out=state)
                self._squash(state)
                if t < m * m - 1:  # nobody hears the last one
                    message = ring[t % (m + 1)]
                    torch.addmm(self.a, state, self.S, out=message)
                    self._squash(message)
            strip_states = buffers[-1, : count * width].view(count, width, hidden)
            last[top : top + count] = strip_states[:, :inside]
        return last.mul_(2).sub_(1) if self.logistic else last

    def _collect(self, ring: list[Tensor], t: int, m: int, total: Tensor) -> None:
        """Sum of the messages to vertex t; the oldest of m + 1 messages is the one above left."""
        i, j = divmod(t, m)
        above, left = ring[(t - m) % (m + 1)], ring[(t - 1) % (m + 1)]
        if i and j:
            torch.add(above, left, out=total)
            if self.eight:
                total.add_(ring[t % (m + 1)])
        elif i or j:
            torch.add(above if i else left, (self.full - 1) * self.missing, out=total)
        else:
            total.fill_(self.full * self.missing)

    def _squash(self, x: Tensor) -> None:
        if self.logistic:
            torch.sigmoid(x, out=x)
        else:
            x.relu_()


# ------------------------------------------------------------------------------ training


class Diverged(FoveateError):  # noqa: N818
    """The loss is no number any more."""


def train_on_patches(
    net: nn.Module,
    patches: Tensor,
    target: Tensor,
    *,
    epochs: int,
    batch: int = 128,
    lr: float = 3e-3,
    weight_decay: float = 1e-4,
    clip: float = 1.0,
    flips: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Train a network from patches to class scores in place: cross-entropy, Adam, cosine decay.

    Parameters
    ----------
    patches, target
        (N, C, n, n) and classes (N,) 0 .. K - 1.
    clip
        Largest global norm of the gradient.
    flips
        Mirror patches at random; off by default, for directions have weights of their own (D).
    seed
        Order of the patches, dropout and flips.
    progress
        Called with (epochs done, epochs).

    Returns
    -------
    list of float
        Mean loss of each epoch. The network is left in evaluation mode with its last weights.

    Raises
    ------
    FoveateError
        No patches, or targets that do not fit them.
    Diverged
        The loss is NaN or infinite.
    """
    if not len(patches) or target.shape != (len(patches),) or epochs < 1 or batch < 1:
        raise FoveateError(
            f"training takes at least one patch, as many targets, one epoch and a batch of one, "
            f"got patches {tuple(patches.shape)}, targets {tuple(target.shape)}, {epochs} and "
            f"{batch}"
        )
    device = next(net.parameters()).device
    patches, target = patches.to(device), target.to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr, weight_decay=weight_decay)
    # Batch statistics of a single patch say nothing: a rest of one is left out of its epoch.
    sizes = [min(batch, len(patches) - start) for start in range(0, len(patches), batch)]
    whole = sum(size for size in sizes if size > 1) or 1
    steps = sum(size > 1 for size in sizes) or 1
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    order = torch.Generator().manual_seed(seed)
    losses = []
    net.train()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for epoch in range(epochs):
            total = 0.0
            for chosen in torch.split(torch.randperm(len(patches), generator=order)[:whole], batch):
                x = patches[chosen.to(device)]
                if flips:
                    for axis in (2, 3):
                        turned = torch.rand(len(x), 1, 1, 1, device=device) < 0.5
                        x = torch.where(turned, x.flip(axis), x)
                loss = F.cross_entropy(net(x), target[chosen.to(device)])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(net.parameters(), clip)
                optimizer.step()
                schedule.step()
                total += float(loss.detach()) * len(chosen)
            losses.append(total / whole)
            if not math.isfinite(losses[-1]):
                raise Diverged(
                    f"the loss became {losses[-1]} in epoch {epoch + 1}; check the scaling of the "
                    f"input or lower the learning rate {lr}"
                )
            if progress is not None:
                progress(epoch + 1, epochs)
    net.eval()
    return losses


# ------------------------------------------------------------------------------ foveate map


class DagRnnMap(PatchMap):
    """Pixel DAG-RNN as a method of ``foveate map``: small, of the desk's setting, whole blocks.

    Parameters
    ----------
    hidden, neighbours, fc_hidden, dropout
        As in :class:`foveate.scenes.dag_rnn.PixelDAGRNN` (the paper: 128, 8, 128 (D), 0.4).
    training
        By default patches of 9 (the paper: 13), 30 principal components, 40 epochs, weight decay
        1e-4. Components are those of hyperspectral scenes; PolSAR and RGB keep their channels.
    least_steps
        With few labels there are more epochs, until this number of steps (D).
    """

    def __init__(
        self,
        hidden: int = 32,
        neighbours: int = 8,
        fc_hidden: int = 64,
        dropout: float = 0.4,
        training: PatchTraining | None = None,
        *,
        least_steps: int = LEAST_STEPS,
    ) -> None:
        training = training or PatchTraining(size=9, components=30, weight_decay=1e-4)
        super().__init__(
            lambda channels, classes: PixelDAGRNN(
                channels, classes, hidden, training.size, neighbours, dropout, fc_hidden=fc_hidden
            ),
            training,
        )
        self.network(1, 1)  # says now what makes no sense
        if least_steps < 0:
            raise FoveateError(f"least_steps is at least 0, got {least_steps}")
        self.components = training.components
        self.facts = {
            "hidden": hidden,
            "neighbours": neighbours,
            "fc_hidden": fc_hidden,
            "dropout": dropout,
            "least_steps": least_steps,
        }

    def fit(
        self,
        scene: Scene,
        labels: SceneLabels,
        *,
        seed: int = 0,
        hidden: Hidden | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> DagRnnMap:
        """As `PatchMap.fit`; `progress` is told the epochs done and all epochs."""
        components = self.components if scene.kind == "hyperspectral" else None
        self.training = dataclasses.replace(self.training, components=components)
        return super().fit(scene, labels, seed=seed, hidden=hidden, progress=progress)

    def probabilities(self, block: Floats) -> Floats:
        """(h + 2 margin, w + 2 margin, C) as the scene has them -> (h, w, K) float32.

        Raises
        ------
        FoveateError
            Before `fit`, or a block that is too small or of other channels.
        """
        net, features = self._fitted()
        seen = torch.from_numpy(features.transform(block))
        scores = dense_scores(cast(PixelDAGRNN, net), seen)
        result: Floats = scores.softmax(-1).numpy()
        return result

    def state(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """What was learned: arrays, and facts that JSON can hold."""
        arrays, facts = super().state()
        return arrays, {**facts, "settings": dict(self.facts)}

    @classmethod
    def restore(
        cls,
        arrays: Mapping[str, npt.NDArray[Any]],
        facts: Mapping[str, Any],
        *,
        network: Network | None = None,
    ) -> DagRnnMap:
        """The inverse of `state`; `network` is not looked at.

        Raises
        ------
        FoveateError
            Arrays or facts are missing or do not fit each other.
        """
        try:
            made = cls(**facts["settings"], training=training_from(facts))
        except (KeyError, TypeError, ValueError) as error:
            raise FoveateError(
                f"the kept {cls.__name__} is damaged: {error}; fit it again"
            ) from error
        made.load_state(arrays, facts)
        return made

    def _train(
        self,
        module: nn.Module,
        patches: Tensor,
        target: Tensor,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        setting = self.training
        steps = math.ceil(len(patches) / setting.batch)
        train_on_patches(
            module,
            patches,
            target,
            epochs=max(setting.epochs, math.ceil(self.facts["least_steps"] / steps)),
            batch=setting.batch,
            lr=setting.lr,
            weight_decay=setting.weight_decay,
            flips=setting.flips,
            seed=torch.initial_seed(),  # that of `fit`
            progress=progress,
        )
