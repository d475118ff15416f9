"""What condensation gives: a few synthetic rows in one file, and the way back to clinical units.

A set is one safetensors file: rows, labels, normaliser and, as JSON, where they come from. No
pickle: whoever is handed such a file reads numbers, and runs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import TensorDataset

from foveate.errors import FoveateError
from foveate.files import write_whole

__all__ = ["CondensedSet", "Normalizer", "as_json", "read_tensors"]

Array = Tensor | npt.NDArray[Any]

_FORMAT = "foveate condensed set 1"
_MAX_FILE = 1 << 30  # bytes of a condensed set or checkpoint


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
        tensors = {"x": self.x.float(), "y": self.y.long()}
        header: dict[str, Any] = {"format": _FORMAT, "meta": self.meta}
        if self.normalizer is not None:
            tensors |= {"mean": self.normalizer.mean, "std": self.normalizer.std}
            header |= {"eps": self.normalizer.eps, "clip": self.normalizer.clip}
        # Copies, for safetensors refuses views and tensors that share memory.
        tensors = {
            name: torch.clone(tensor.detach().cpu(), memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise FoveateError(f"{name} of a CondensedSet is not finite; nothing was written")
        text = as_json(header)
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
        tensors, header = read_tensors(Path(path), _FORMAT, "a condensed set")
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
                back = normalizer.inverse(x[:1])
                if back.shape != x[:1].shape or not back.isfinite().all():
                    raise ValueError("mean and std do not fit the rows")
            return cls(x, y, normalizer, meta)
        except (KeyError, ValueError, TypeError, RuntimeError, FoveateError) as error:
            raise FoveateError(
                f"{path} is no condensed set that can be used ({error}); condense again"
            ) from error


def as_json(content: Mapping[str, Any]) -> str:
    """Text of what a set says of itself; FoveateError where it is no plain JSON."""
    try:
        return json.dumps(content, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise FoveateError(f"CondensedSet.meta must be plain JSON: {error}") from error


def read_tensors(path: Path, kind: str, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a safetensors file whose header says that it is of this `kind`."""
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
