"""Dataset condensation by distribution matching: thousands of private rows become a handful.

A condensed set is a few synthetic rows per class on which anyone trains a network to nearly the
score of training on the originals. Medical-records condensation (arXiv 2305.03711) learns it by
matching means in the output of networks that are never trained (after Zhao & Bilen, WACV 2023):

    L(S) = sum_c || mean_{x in B_c} f(x) - mean_{s in S_c} f(s) ||^2

with B_c up to 256 random real rows of class c, S_c *all* synthetic rows of class c, and f a network
of a random architecture with random weights, **a new one in every iteration**. Each f tells one
small moment; the thousands of them shape S. By default f(x) is the final sigmoid score, not the
layer before it (P). Two things in f's train() mode matter (P): dropout is live, and batch
normalisation uses the statistics of the real and of the synthetic batch, each its own.

Only S is optimised, by one Adam over the whole tensor. It keeps the full shape of a row and starts
from N(0, 1). Its labels are balanced by construction. The loss is tiny and not monotone, for every
iteration has another network: never stop early on it.

Every random number follows from (seed, iteration), so a run that is stopped and resumed ends in
the same bits, and two runs that differ in one real row differ in nothing else.

The parts beside the method, all of which can be had from here too: sets and files in
`foveate.learning.condensed_set`, training and testing in `condensation_evaluation`, choices of
real rows to compare with in `coresets`.

>>> pool = series_pool(("TCN-a", "LSTM-a", "ViT-a"), features=44)  # doctest: +SKIP
>>> method = DistributionMatching(list(pool.values()), 10, (48, 44), seed=0)  # doctest: +SKIP
>>> few = method.fit(x, y)  # doctest: +SKIP
>>> evaluate(few, pool, val=(x_val, y_val), test=(x_test, y_test))  # doctest: +SKIP
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import secrets
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.files import write_whole
from foveate.learning.condensation_evaluation import (
    Training,
    auc,
    evaluate,
    seeded,
    train_network,
)
from foveate.learning.condensed_set import CondensedSet, Normalizer, as_json, read_tensors
from foveate.learning.coresets import kmeans_rows, random_rows
from foveate.learning.privacy import GaussianRelease

__all__ = [
    "CondensedSet",
    "ConvNet",
    "DistributionMatching",
    "Normalizer",
    "Training",
    "auc",
    "evaluate",
    "image_pool",
    "kmeans_rows",
    "random_rows",
    "train_network",
]

NetFactory = Callable[[], nn.Module]
Ints = npt.NDArray[np.int64]
Progress = Callable[[str, int, int], None]
Array = Tensor | npt.NDArray[Any]

_CHECKPOINT = "foveate condensation checkpoint 1"


@dataclass(frozen=True)
class DistributionMatching:
    """Condense labelled rows by matching class means in the output of random networks.

    Parameters
    ----------
    nets
        Functions that make a network with new weights from torch's global generator; one is
        picked uniformly in every iteration. ``(B, *shape)`` -> logits ``(B, K)`` or ``(B,)``.
    ipc
        Synthetic rows per class.
    shape
        Of one row: ``(T, F)``, ``(C, H, W)``, ...
    lr, iterations, real_batch
        Adam's rate; steps; real rows per class and step. The published values (P).
    match
        ``output``: sigmoid scores (P). ``embedding``: what the network's method ``embed`` gives.
    init
        ``noise``: N(0, 1). ``real``: copies of random real rows, never for a set to be shared.
    seed
        None draws one, which is noted in the result.
    release
        Noise on every class mean, with (epsilon, delta) in the result; see `GaussianRelease`. The
        seed is then a secret: leave it None, and keep checkpoints, which hold it, to yourself.
    device
        Where to compute.
    """

    nets: Sequence[NetFactory]
    ipc: int
    shape: tuple[int, ...]
    lr: float = 1e-3
    iterations: int = 24_000
    real_batch: int = 256
    match: Literal["output", "embedding"] = "output"
    init: Literal["noise", "real"] = "noise"
    seed: int | None = None
    release: GaussianRelease | None = None
    device: str | torch.device = "cpu"

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))  # a list, as from JSON, does as well
        if isinstance(self.nets, Mapping):
            raise FoveateError("nets is a sequence of functions; of a dict give list(d.values())")
        if not self.nets or min(self.ipc, self.iterations, self.real_batch) < 1 or not self.lr > 0:
            raise FoveateError(
                "DistributionMatching expects at least one net, and ipc, iterations, real_batch "
                f"and lr above 0, got {len(self.nets)} nets, {self.ipc}, {self.iterations}, "
                f"{self.real_batch} and {self.lr}"
            )
        if not self.shape or min(self.shape) < 1 or (self.seed is not None and self.seed < 0):
            raise FoveateError(
                f"expected the shape of one row and a seed of at least 0, got {self.shape} and "
                f"{self.seed}"
            )
        if self.match not in ("output", "embedding") or self.init not in ("noise", "real"):
            raise FoveateError(
                "match is 'output' or 'embedding' and init 'noise' or 'real', got "
                f"{self.match!r} and {self.init!r}"
            )
        if self.release is not None and (self.match, self.init) != ("output", "noise"):
            raise FoveateError(
                "a noisy release needs match='output', whose scores are bounded, and init='noise'"
            )

    def fit(
        self,
        X: Array,
        y: Array,
        progress: Progress | None = None,
        checkpoint: Path | None = None,
        *,
        normalizer: Normalizer | None = None,
        meta: Mapping[str, Any] | None = None,
        leave_out: int | None = None,
        checkpoint_every: float = 5.0,
    ) -> CondensedSet:
        """Condense rows ``(N, *shape)``, normalised, with labels 0 .. C-1, ``(N,)``.

        Parameters
        ----------
        progress
            Called after every iteration with (what, done, total); may raise to interrupt.
        checkpoint
            File for S, Adam's state, seed and iteration. Where it exists the run goes on from
            there, to the same bits as one that was never stopped; more `iterations` than before
            lengthen a finished run.
        normalizer, meta
            Kept in the result; `normalizer` is not applied to `X`.
        leave_out
            Condense without this row, all random numbers being equal.
        checkpoint_every
            Seconds between checkpoints; 0: every iteration.

        Raises
        ------
        FoveateError
            Rows or labels that do not fit, a checkpoint of another run, or S is no longer finite.
        """
        x, members = self._members(X, y)
        if leave_out is not None and not 0 <= leave_out < len(x):
            raise FoveateError(f"leave_out is a row from 0 to {len(x) - 1}, got {leave_out}")
        self._enough(members, leave_out)
        as_json(dict(meta or {}))  # complain now, not when the work is done
        pool, formal = self._pool(), self._formal(members)
        run = ""
        if checkpoint is not None:
            run = self._fingerprint(x, members, pool, leave_out)
        s, adam, seed, start = self._start(x, members, checkpoint, run, leave_out)
        x = x.to(self.device)
        saved = time.monotonic()
        for iteration in range(start, self.iterations):
            loss = self._loss(s, x, members, seed, iteration, leave_out)
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            last = iteration + 1 == self.iterations
            if last or time.monotonic() - saved >= checkpoint_every:
                if not s.isfinite().all():
                    raise FoveateError(
                        f"the synthetic rows are no longer finite after iteration {iteration + 1}; "
                        f"take a smaller lr than {self.lr}"
                    )
                if checkpoint is not None:
                    _save_checkpoint(checkpoint, s, adam, seed, iteration + 1, run)
                saved = time.monotonic()
            if progress is not None:
                progress("condensing", iteration + 1, self.iterations)
        labels = torch.arange(len(members)).repeat_interleave(self.ipc)
        provenance = {
            "method": "distribution matching",
            "ipc": self.ipc,
            "classes": len(members),
            "rows": len(x) - (leave_out is not None),
            # Whoever knows the seed can take the noise off again.
            "seed": seed if self.release is None else None,
            "iterations": self.iterations,
            "lr": self.lr,
            "real_batch": self.real_batch,
            "match": self.match,
            "init": self.init,
            "pool": [type(net).__name__ for net in pool],
            "privacy": formal,
        }
        return CondensedSet(s.detach().cpu(), labels, normalizer, {**(meta or {}), **provenance})

    # ------------------------------------------------------------------ one iteration

    def _loss(
        self,
        s: Tensor,
        x: Tensor,
        members: list[Ints],
        seed: int,
        iteration: int,
        leave_out: int | None,
    ) -> Tensor:
        """The loss of one iteration; all randomness comes from (seed, iteration)."""
        words = np.random.SeedSequence([seed, 1, iteration])
        state = words.generate_state(1 + 2 * len(members), np.uint64)
        with seeded(int(state[0]), self.device):
            # First the network, then the real batch.
            make = self.nets[int(torch.randint(len(self.nets), ()))]
            net = make().to(self.device).train().requires_grad_(False)
        rng = np.random.default_rng([seed, 2, iteration])
        loss = s.new_zeros(())
        for label, synthetic in enumerate(torch.split(s, self.ipc)):
            rows, count = self._draw(members[label], rng, leave_out)
            with torch.no_grad(), seeded(int(state[1 + 2 * label]), self.device):
                real = self._sum(net, x[torch.from_numpy(rows)]) / count
            if self.release is not None:
                size = self.release.noise_multiplier * math.sqrt(real.numel()) / count
                noise = torch.from_numpy(rng.normal(0.0, size, real.numel()))
                real = real + noise.to(real)
            with seeded(int(state[2 + 2 * label]), self.device):
                ours = self._sum(net, synthetic) / self.ipc
            loss = loss + (real - ours).square().sum()
        return loss

    def _sum(self, net: nn.Module, rows: Tensor) -> Tensor:
        """Sum over rows of what is matched, ``(K,)``; zeros for no rows."""
        if not len(rows):
            return self._sum(net, rows.new_zeros(2, *self.shape)) * 0
        matched: Any = net.embed if self.match == "embedding" else net
        out: Tensor = matched(rows)
        out = out if self.match == "embedding" else out.sigmoid()
        return out.reshape(len(rows), -1).sum(0)

    def _draw(
        self, members: Ints, rng: np.random.Generator, leave_out: int | None
    ) -> tuple[Ints, int]:
        """Rows of one class for one iteration, and what their sum is divided by."""
        size = min(self.real_batch, len(members))
        if self.release is not None:  # Poisson sampling; the divisor does not depend on the draw
            rows = members[rng.random(len(members)) < size / len(members)]
            return rows[rows != leave_out], size
        order = rng.permutation(members)
        rows, spare = order[:size], order[size : size + 1]
        if leave_out is None or leave_out not in rows:
            return rows, size
        # The next row takes its place; where there is none the last one does. So all other rows
        # keep their places, and with them their dropout masks.
        substitute = spare[0] if len(spare) else rows[-1]
        rows = np.where(rows == leave_out, substitute, rows)
        rows = rows if len(spare) else rows[:-1]
        return rows, len(rows)

    # ------------------------------------------------------------------ beginning

    def _members(self, X: Array, y: Array) -> tuple[Tensor, list[Ints]]:
        """Checked rows and the indices of every class."""
        x, labels = torch.as_tensor(X), torch.as_tensor(y)
        if x.shape[1:] != self.shape or labels.shape != (len(x),):
            raise FoveateError(
                f"expected rows (N, {', '.join(map(str, self.shape))}) and labels (N,), got "
                f"{tuple(x.shape)} and {tuple(labels.shape)}"
            )
        if labels.is_floating_point() or labels.is_complex():
            raise FoveateError(f"labels are integers from 0 on, got {labels.dtype}")
        x = x.detach().to(torch.float32)
        if not x.isfinite().all():
            at = int((~x.flatten(1).isfinite().all(1)).nonzero()[0, 0])
            raise FoveateError(f"row {at} has numbers that are not finite; impute them first")
        found = torch.unique(labels)
        if len(found) < 2 or found.tolist() != list(range(len(found))):
            raise FoveateError(
                f"expected labels 0 .. C-1 of at least two classes, found {found[:10].tolist()}"
            )
        classes = labels.long().cpu().numpy()
        members = [np.flatnonzero(classes == c).astype(np.int64) for c in range(len(found))]
        return x, members

    def _enough(self, members: list[Ints], leave_out: int | None) -> None:
        """Raise FoveateError where a class is too small."""
        if min(map(len, members)) < 2:
            raise FoveateError("a class has 1 rows, fewer than 2; give more rows")
        smallest = min(int((m != leave_out).sum()) for m in members)
        if self.init == "real" and smallest < self.ipc:
            raise FoveateError(
                f"a class has {smallest} rows to start from, fewer than {self.ipc}; give more rows "
                "or a smaller ipc"
            )

    def _pool(self) -> list[nn.Module]:
        """One network of each kind, checked for what the settings need."""
        with seeded(0, "cpu"):
            pool = [make() for make in self.nets]
        for net in pool:
            name = type(net).__name__
            if self.match == "embedding" and not callable(getattr(net, "embed", None)):
                raise FoveateError(f"match='embedding' needs a method embed, which {name} lacks")
            coupled = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())
            if self.release is not None and coupled:
                raise FoveateError(
                    f"{name} has batch normalisation, which couples rows and breaks the bound of a "
                    "noisy release; take a form with GroupNorm"
                )
        return pool

    def _fingerprint(
        self, x: Tensor, members: list[Ints], pool: list[nn.Module], leave_out: int | None
    ) -> str:
        """Hash of all that the bits of a run depend on, but for seed and length."""
        settings = [self.ipc, self.shape, self.lr, self.real_batch, self.match, self.init]
        settings += [repr(self.release), leave_out, [repr(net) for net in pool]]
        settings += [len(m) for m in members]  # where one class ends: the bytes below do not say
        digest = hashlib.sha256(repr(settings).encode())
        for array in (x.contiguous().cpu().numpy(), *members):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def _start(
        self,
        x: Tensor,
        members: list[Ints],
        checkpoint: Path | None,
        run: str,
        leave_out: int | None,
    ) -> tuple[Tensor, torch.optim.Adam, int, int]:
        """S, its optimiser, the seed and the first iteration: new, or where a run stopped."""
        if checkpoint is not None and checkpoint.is_file():
            kept, header = read_tensors(checkpoint, _CHECKPOINT, "a checkpoint")
            seed, start = header.get("seed"), header.get("iteration")
            if (
                header.get("run") != run
                or not isinstance(seed, int)
                or not isinstance(start, int)
                or self.seed not in (None, seed)
                or not 0 < start <= self.iterations
                or {name: t.shape for name, t in kept.items()}
                != dict.fromkeys(
                    ("s", "exp_avg", "exp_avg_sq"), (len(members) * self.ipc, *self.shape)
                )
            ):
                raise FoveateError(
                    f"{checkpoint} belongs to a run with other data, settings, seed or more "
                    "iterations; remove it or name another checkpoint"
                )
            s = kept["s"].to(self.device).requires_grad_()
            adam = torch.optim.Adam([s], lr=self.lr)
            adam.state[s] = {
                "step": torch.tensor(float(start)),
                "exp_avg": kept["exp_avg"].to(self.device),
                "exp_avg_sq": kept["exp_avg_sq"].to(self.device),
            }
            return s, adam, seed, start
        seed = secrets.randbits(128) if self.seed is None else self.seed
        if self.init == "real":
            warnings.warn(
                "init='real' starts from copies of real rows: such a set is not for sharing",
                stacklevel=3,
            )
            rng = np.random.default_rng([seed, 0])
            # Drawn of all rows, so that without one of them the others keep their places.
            drawn = [rng.permutation(m) for m in members]
            rows = [order[order != leave_out][: self.ipc] for order in drawn]
            s = x[torch.from_numpy(np.concatenate(rows))].clone()
        else:
            generator = torch.Generator()
            words = np.random.SeedSequence([seed, 0]).generate_state(1, np.uint64)
            generator.manual_seed(int(words[0]))
            s = torch.randn(len(members) * self.ipc, *self.shape, generator=generator)
        s = s.to(self.device).requires_grad_()
        return s, torch.optim.Adam([s], lr=self.lr), seed, 0

    def _formal(self, members: list[Ints]) -> dict[str, Any] | None:
        """What the accountant says; None where no noise was added."""
        if self.release is None:
            return None
        rate = max(min(self.real_batch, len(m)) / len(m) for m in members)
        return {
            "epsilon": self.release.epsilon(rate, self.iterations),
            "delta": self.release.delta,
            "noise_multiplier": self.release.noise_multiplier,
            "sampling_rate": rate,
            "steps": self.iterations,
            "neighbours": "one row more or less",
            "assumes": "class counts and normaliser are public",
        }


def _save_checkpoint(
    path: Path, s: Tensor, adam: torch.optim.Adam, seed: int, iteration: int, run: str
) -> None:
    state = adam.state[s]
    tensors = {"s": s.detach(), "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
    header = {"format": _CHECKPOINT, "seed": seed, "iteration": iteration, "run": run}
    with write_whole(path) as temporary:
        save_file(
            {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
            temporary,
            {"foveate": json.dumps(header)},
        )
    path.chmod(0o600)  # it holds the seed, and with it the noise of a release


# ---------------------------------------------------------------------------- pictures


class ConvNet(nn.Module):
    """The net of distribution matching on pictures (Zhao & Bilen): conv, norm, ReLU, pool, thrice.

    ``(B, C, H, W)`` -> logits ``(B, K)``. Instance normalisation does not couple rows.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int, depth: int) -> None:
        super().__init__()
        if min(width, depth, classes) < 1 or min(shape) < 1 or min(shape[1:]) < 2**depth:
            raise FoveateError(
                f"ConvNet of depth {depth} expects pictures (C, H, W) of at least {2**depth} "
                f"pixels a side, got {shape}"
            )
        layers: list[nn.Module] = []
        for index in range(depth):
            layers += [
                nn.Conv2d(width if index else shape[0], width, 3, padding=1),
                nn.GroupNorm(width, width),  # one group per channel: instance normalisation
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Linear(width * (shape[1] >> depth) * (shape[2] >> depth), classes)

    def embed(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, D)``."""
        return self.body(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.head(self.embed(x))  # type: ignore[no-any-return]


def image_pool(
    shape: tuple[int, int, int],
    classes: int,
    widths: Sequence[int] = (128,),
    depths: Sequence[int] = (3,),
) -> dict[str, NetFactory]:
    """Name -> function that makes a `ConvNet`, for every width and depth.

    Two classes have one logit, as a yes-no label.
    """
    outputs = 1 if classes == 2 else classes
    pool: dict[str, NetFactory] = {}
    for width in widths:
        for depth in depths:
            with torch.device("meta"):
                ConvNet(shape, outputs, width, depth)  # complain now
            pool[f"ConvNet-{width}x{depth}"] = functools.partial(
                ConvNet, shape, outputs, width, depth
            )
    return pool
