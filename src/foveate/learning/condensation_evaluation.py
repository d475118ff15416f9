"""How good a condensed set is: networks trained on it alone, tested on real rows.

The protocol of the medical-records condensation paper (arXiv 2305.03711 and the authors' code):
several initialisations of every network, Adam on binary cross-entropy, and of all epochs the one
with the best AUC on *real* validation rows (P). That spends the labels of those rows; the strict
form, ``selection="last"``, does not. Test rows choose nothing.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.learning.condensed_set import CondensedSet

__all__ = ["Training", "auc", "evaluate", "seeded", "train_network"]

NetFactory = Callable[[], nn.Module]
Rows = tuple[Tensor, Tensor]  # (N, ...) float, (N,) int
Array = Tensor | npt.NDArray[Any]


@contextmanager
def seeded(seed: int, device: str | torch.device) -> Iterator[None]:
    """Seed torch's global generators for the block; afterwards they are as before."""
    where = torch.device(device)
    cuda = [where.index or 0] if where.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield


@dataclass(frozen=True)
class Training:
    """How the training of one network went.

    Attributes
    ----------
    steps, rows, seconds, val_auc
        At every validation: steps and rows so far, seconds of training (validation not counted),
        AUC on the validation rows, 0 to 1.
    epoch
        Epoch, from 1, whose weights the network ended with.
    """

    steps: list[int]
    rows: list[int]
    seconds: list[float]
    val_auc: list[float]
    epoch: int

    @property
    def best(self) -> float:
        """Highest validation AUC; NaN without one."""
        return max((a for a in self.val_auc if not math.isnan(a)), default=math.nan)

    def first(self, level: float) -> int | None:
        """Index of the first validation with an AUC of at least `level`."""
        return next((k for k, a in enumerate(self.val_auc) if a >= level), None)


def auc(y: Array, logits: Tensor) -> float:
    """Area under the ROC curve, 0 to 1; of several classes the mean of one against the rest.

    NaN when a logit is not finite, as after a training that diverged.
    """
    from sklearn.metrics import roc_auc_score

    labels = np.asarray(y)
    if not logits.isfinite().all():
        return math.nan
    if logits.ndim == 1 or logits.shape[1] == 1:
        if len(np.unique(labels)) != 2:
            raise FoveateError("an AUC needs rows of both classes; give more validation rows")
        return float(roc_auc_score(labels, logits.flatten().numpy()))
    p = logits.double().softmax(1).numpy()
    if len(np.unique(labels)) != p.shape[1]:
        raise FoveateError("an AUC needs rows of every class; give more validation rows")
    return float(roc_auc_score(labels, p, multi_class="ovr"))


@torch.no_grad()
def _logits(net: nn.Module, x: Tensor, device: str | torch.device) -> Tensor:
    net.eval()
    return torch.cat([net(part.to(device)).cpu() for part in torch.split(x, 512)]).float()


def train_network(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int,
    lr: float,
    val: Rows | None = None,
    batch: int = 64,
    seed: int = 0,
    validate_every: int | None = None,
    selection: Literal["best_val", "last"] = "best_val",
    device: str | torch.device = "cpu",
) -> Training:
    """Train `net` in place with Adam on rows ``(N, ...)`` and labels ``(N,)``; ends in eval mode.

    The reference's evaluation (P): binary cross-entropy (with one logit; else cross-entropy),
    shuffled batches, no weights, no weight decay. A last batch of a single row is left out, for
    batch normalisation has no statistics of it; all of them are single with ``batch=1``.

    Parameters
    ----------
    val
        Rows and labels for the AUC after every epoch.
    validate_every
        Steps between further validations, for the curve only: epochs alone are chosen from.
    selection
        ``best_val``: the weights after the epoch with the best validation AUC, the first if equal.
        That spends the labels of `val`. ``last``: the last epoch's.
    """
    if selection not in ("best_val", "last") or min(epochs, batch) < 1 or not lr > 0:
        raise FoveateError(
            "train_network expects selection 'best_val' or 'last' and epochs, batch and lr above "
            f"0, got {selection!r}, {epochs}, {batch} and {lr}"
        )
    if selection == "best_val" and val is None:
        raise FoveateError("selection='best_val' needs validation rows; give val or take 'last'")
    if not len(x) or y.shape != (len(x),):
        raise FoveateError(
            f"expected rows (N, ...) and labels (N,), got {tuple(x.shape)}, {tuple(y.shape)}"
        )
    x, y, net = x.to(device), y.to(device), net.to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr)
    order = torch.Generator().manual_seed(seed)
    steps: list[int] = []
    rows: list[int] = []
    seconds: list[float] = []
    curve: list[float] = []
    best, chosen, kept = -math.inf, epochs, None
    step = seen = 0
    spent = 0.0
    with seeded(seed, device):
        for epoch in range(1, epochs + 1):
            parts = [
                part
                for part in torch.split(torch.randperm(len(x), generator=order), batch)
                if len(part) > 1 or 1 in (len(x), batch)
            ]
            for index, part in enumerate(parts, 1):
                began = time.perf_counter()
                net.train()
                z, wanted = net(x[part]), y[part]
                if z.ndim == 1 or z.shape[1] == 1:
                    z = z.flatten()
                    loss = F.binary_cross_entropy_with_logits(z, wanted.to(z.dtype))
                else:
                    loss = F.cross_entropy(z, wanted.long())
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                spent += time.perf_counter() - began
                step, seen = step + 1, seen + len(part)
                ends = index == len(parts)
                if val is None or not (ends or (validate_every and step % validate_every == 0)):
                    continue
                value = auc(val[1], _logits(net, val[0], device))
                steps.append(step)
                rows.append(seen)
                seconds.append(spent)
                curve.append(value)
                if ends and selection == "best_val" and value > best:
                    best, chosen, kept = value, epoch, copy.deepcopy(net.state_dict())
    if kept is not None:
        net.load_state_dict(kept)
    net.eval()
    return Training(steps, rows, seconds, curve, chosen)


def evaluate(
    cset: CondensedSet,
    nets: Mapping[str, NetFactory] | Sequence[NetFactory],
    val: Rows,
    test: Rows,
    epochs: int = 30,
    lr: float = 5e-4,
    n_init: int = 5,
    selection: Literal["best_val", "last"] = "best_val",
    batch: int = 64,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> pl.DataFrame:
    """Train networks on a condensed set only and test them on real rows.

    With ``best_val`` the real validation rows choose the epoch, so more than the condensed rows is
    used; ``last`` is the strict form.

    Returns
    -------
    polars.DataFrame
        One row per net and initialisation: ``net, init, auc, accuracy, val_auc, epoch``; scores
        from 0 to 1, `accuracy` at the threshold 0.5. The paper reports mean and population
        standard deviation of `auc` over `init`.
    """
    named = nets if isinstance(nets, Mapping) else {str(k): make for k, make in enumerate(nets)}
    if not named or n_init < 1:
        raise FoveateError("evaluate expects at least one net and one initialisation")
    val, test = (_as_rows(*rows) for rows in (val, test))
    table = []
    for name, make in named.items():
        for init in range(n_init):
            with seeded(1000 * seed + init, "cpu"):
                net = make()
            training = train_network(
                net, cset.x, cset.y, epochs=epochs, lr=lr, val=val, batch=batch,
                seed=1000 * seed + init, selection=selection, device=device,
            )  # fmt: skip
            z = _logits(net, test[0], device)
            said = (z.flatten() > 0).long() if z.ndim == 1 or z.shape[1] == 1 else z.argmax(1)
            table.append(
                {
                    "net": name if isinstance(nets, Mapping) else type(net).__name__,
                    "init": init,
                    "auc": auc(test[1], z),
                    "accuracy": float((said == test[1]).float().mean()),
                    "val_auc": training.best if selection == "best_val" else training.val_auc[-1],
                    "epoch": training.epoch,
                }
            )
    return pl.DataFrame(table)


def _as_rows(x: Array, y: Array) -> Rows:
    rows, labels = torch.as_tensor(x).float(), torch.as_tensor(y).long()
    if rows.ndim < 2 or labels.shape != (len(rows),) or not len(rows):
        raise FoveateError(
            f"expected rows (N, ...) and labels (N,), got {tuple(rows.shape)} and "
            f"{tuple(labels.shape)}"
        )
    if not rows.isfinite().all():
        at = int((~rows.flatten(1).isfinite().all(1)).nonzero()[0, 0])
        raise FoveateError(f"row {at} has numbers that are not finite; impute them first")
    return rows, labels
