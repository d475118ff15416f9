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

>>> pool = series_pool(("TCN-a", "LSTM-a", "ViT-a"), features=44)  # doctest: +SKIP
>>> method = DistributionMatching(list(pool.values()), 10, (48, 44), seed=0)  # doctest: +SKIP
>>> few = method.fit(x, y)  # doctest: +SKIP
>>> evaluate(few, pool, val=(x_val, y_val), test=(x_test, y_test))  # doctest: +SKIP
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import math
import secrets
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from foveate.errors import FoveateError
from foveate.files import write_whole
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
Rows = tuple[Tensor, Tensor]  # (N, ...) float, (N,) int
Ints = npt.NDArray[np.int64]
Progress = Callable[[str, int, int], None]
Array = Tensor | npt.NDArray[Any]

_FORMAT = "foveate condensed set 1"
_CHECKPOINT = "foveate condensation checkpoint 1"
_MAX_FILE = 1 << 30  # bytes of a condensed set or checkpoint


# ---------------------------------------------------------------------------- what comes out


@dataclass(frozen=True, eq=False)
class Normalizer:
    """z-score and back: ``(x - mean) / (std + eps)``, then clipped to [-clip, clip] if set.

    `mean` and `std` broadcast with one row: ``(F,)`` for series ``(T, F)``, ``(C, 1, 1)`` for
    pictures ``(C, H, W)``.
    """

    mean: Tensor
    std: Tensor
    eps: float = 1e-9
    clip: float | None = None

    @classmethod
    def fit(cls, x: Array, feature_axis: int = -1, clip: float | None = None) -> Normalizer:
        """Statistics per feature over rows and everything else: of the *training* rows, mind.

        Parameters
        ----------
        x
            ``(N, ...)``.
        feature_axis
            -1 for series ``(N, T, F)``, 1 for pictures ``(N, C, H, W)``.
        """
        rows = torch.as_tensor(x).double()
        if rows.ndim < 2 or not rows.numel() or not rows.isfinite().all():
            raise FoveateError(
                f"Normalizer.fit expects finite rows (N, ...), at least one, got {tuple(x.shape)}"
            )
        axis = feature_axis % rows.ndim
        if axis == 0:
            raise FoveateError("Normalizer.fit: axis 0 counts the rows, it is no feature axis")
        others = [a for a in range(rows.ndim) if a != axis]
        std, mean = torch.std_mean(rows, others, correction=0)
        shape = (-1, *(1,) * (rows.ndim - 1 - axis))
        return cls(mean.float().reshape(shape), std.float().reshape(shape), clip=clip)

    def __call__(self, x: Array) -> Tensor:
        """Normalise ``(N, ...)``."""
        z = (torch.as_tensor(x).float() - self.mean) / (self.std + self.eps)
        return z if self.clip is None else z.clamp(-self.clip, self.clip)

    def inverse(self, z: Tensor) -> Tensor:
        """Back to the units of the data (what was clipped stays clipped)."""
        return z * (self.std + self.eps) + self.mean


@dataclass(eq=False)
class CondensedSet:
    """A few synthetic rows, their labels, and where they come from.

    Attributes
    ----------
    x, y
        ``(M, *row)`` float32 and ``(M,)`` int64; rows of one class stand together.
    normalizer
        Makes clinical units of `x` again; None when `x` is in the data's own units.
    meta
        Provenance: method, data set, rows per class, seed, iterations, pool, privacy. JSON only.
    """

    x: Tensor
    y: Tensor
    normalizer: Normalizer | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.x.ndim < 2 or self.y.shape != (len(self.x),) or not len(self.x):
            raise FoveateError(
                "a CondensedSet is x (M, ...) and y (M,) with at least one row, got "
                f"{tuple(self.x.shape)} and {tuple(self.y.shape)}"
            )

    def __len__(self) -> int:
        return len(self.y)

    def to_dataset(self) -> TensorDataset:
        """For a ``torch.utils.data.DataLoader``: items (x float32, y int64)."""
        return TensorDataset(self.x, self.y)

    def denormalize(self) -> Tensor:
        """`x` in the units of the data, ``(M, *row)``."""
        return self.x if self.normalizer is None else self.normalizer.inverse(self.x)

    def save(self, path: Path | str) -> Path:
        """Write one safetensors file, whole or not at all."""
        path = Path(path)
        tensors = {"x": self.x.contiguous(), "y": self.y.contiguous()}
        header: dict[str, Any] = {"format": _FORMAT, "meta": self.meta}
        if self.normalizer is not None:
            tensors |= {"mean": self.normalizer.mean, "std": self.normalizer.std}
            header |= {"eps": self.normalizer.eps, "clip": self.normalizer.clip}
        try:
            text = json.dumps(header, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise FoveateError(f"CondensedSet.meta must be plain JSON: {error}") from error
        with write_whole(path) as temporary:
            save_file(tensors, temporary, {"foveate": text})
        return path

    @classmethod
    def load(cls, path: Path | str) -> CondensedSet:
        """Read what `save` wrote.

        Raises
        ------
        FoveateError
            The file is missing, damaged, too large or something else.
        """
        tensors, header = _read_safetensors(Path(path), _FORMAT, "a condensed set")
        try:
            x, y, meta = tensors["x"], tensors["y"], header["meta"]
            if (
                x.dtype != torch.float32
                or y.dtype != torch.int64
                or not isinstance(meta, dict)
                or not x.isfinite().all()
                or (len(y) and int(y.min()) < 0)
            ):
                raise ValueError("x is no finite float32, y no int64 from 0, or meta no object")
            normalizer = None
            if "mean" in tensors:
                clip = header["clip"]
                normalizer = Normalizer(
                    tensors["mean"],
                    tensors["std"],
                    float(header["eps"]),
                    None if clip is None else float(clip),
                )
                if normalizer.inverse(x[:1]).shape != x[:1].shape:
                    raise ValueError("mean and std do not fit the rows")
            return cls(x, y, normalizer, meta)
        except (KeyError, ValueError, TypeError, RuntimeError, FoveateError) as error:
            raise FoveateError(
                f"{path} is no condensed set that can be used ({error}); condense again"
            ) from error


def _read_safetensors(path: Path, kind: str, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        if path.stat().st_size > _MAX_FILE:
            raise ValueError(f"it has more than {_MAX_FILE} bytes")
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("foveate", "{}"))
            if not isinstance(header, dict) or header.get("format") != kind:
                raise ValueError(f"it is not {what} of this version")
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise FoveateError(
            f"cannot read {path} as {what} ({error}); make it again or name another file"
        ) from error


# ---------------------------------------------------------------------------- the method


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
        with _global_generator(int(state[0]), self.device):
            # First the network, then the real batch.
            make = self.nets[int(torch.randint(len(self.nets), ()))]
            net = make().to(self.device).train().requires_grad_(False)
        rng = np.random.default_rng([seed, 2, iteration])
        loss = s.new_zeros(())
        for label, synthetic in enumerate(torch.split(s, self.ipc)):
            rows, count = self._draw(members[label], rng, leave_out)
            with torch.no_grad(), _global_generator(int(state[1 + 2 * label]), self.device):
                real = self._sum(net, x[torch.from_numpy(rows)]) / count
            if self.release is not None:
                size = self.release.noise_multiplier * math.sqrt(real.numel()) / count
                noise = torch.from_numpy(rng.normal(0.0, size, real.numel()))
                real = real + noise.to(real)
            with _global_generator(int(state[2 + 2 * label]), self.device):
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
        smallest = min(map(len, members))
        if smallest < 2 or (self.init == "real" and smallest < self.ipc):
            raise FoveateError(
                f"a class has {smallest} rows, fewer than "
                f"{max(2, self.ipc if self.init == 'real' else 2)}; give more rows or a smaller ipc"
            )
        return x, members

    def _pool(self) -> list[nn.Module]:
        """One network of each kind, checked for what the settings need."""
        with _global_generator(0, "cpu"):
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
            kept, header = _read_safetensors(checkpoint, _CHECKPOINT, "a checkpoint")
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
            rows = [rng.permutation(m[m != leave_out])[: self.ipc] for m in members]
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


@contextmanager
def _global_generator(seed: int, device: str | torch.device) -> Iterator[None]:
    """Seed torch's global generators for the block; afterwards they are as before."""
    where = torch.device(device)
    cuda = [where.index or 0] if where.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield


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


# ---------------------------------------------------------------------------- evaluation


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
    batch normalisation has no statistics of it.

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
    with _global_generator(seed, device):
        for epoch in range(1, epochs + 1):
            parts = [
                part
                for part in torch.split(torch.randperm(len(x), generator=order), batch)
                if len(part) > 1 or len(x) == 1
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
            with _global_generator(1000 * seed + init, "cpu"):
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
    return rows, labels


# ---------------------------------------------------------------------------- coresets


def _per_class(y: Array, ipc: int) -> list[Ints]:
    labels = np.asarray(y)
    members = [np.flatnonzero(labels == c).astype(np.int64) for c in np.unique(labels)]
    if ipc < 1 or not members or min(map(len, members)) < ipc:
        raise FoveateError(
            f"expected at least {max(ipc, 1)} rows of every class, got "
            f"{[len(m) for m in members]}; give more rows or a smaller ipc"
        )
    return members


def random_rows(y: Array, ipc: int, seed: int = 0) -> Ints:
    """Indices of `ipc` random rows of every class, class by class."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(m)[:ipc] for m in _per_class(y, ipc)])


def kmeans_rows(X: Array, y: Array, ipc: int, seed: int = 0) -> Ints:
    """Indices of the real rows nearest to the `ipc` k-means centroids of every class.

    A row that two centroids ask for goes to the first; the other gets the next nearest.
    """
    from sklearn.cluster import KMeans

    flat = np.asarray(X, np.float32).reshape(len(X), -1)
    chosen: list[int] = []
    for members in _per_class(y, ipc):
        found = KMeans(ipc, n_init=1, random_state=seed).fit(flat[members])
        for distance in found.transform(flat[members]).T:
            free = (int(m) for m in members[np.argsort(distance)] if m not in chosen)
            chosen.append(next(free))
    return np.array(chosen, np.int64)


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
