"""Coswara: breathing sounds as spectrograms, and whether the person has COVID-19.

Sharma et al. (2020). The condensation paper uses an existing division into six arrays,
``X_train.npy`` to ``y_test.npy`` in a folder ``covid/breath``: 96 frames of 64 spectral bands (P).
How the spectrograms were computed is not known, so foveate reads the arrays and does not make them
from sound. They are not normalised; the paper z-scores them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foveate.datasets.card import DataCard
from foveate.errors import FoveateError

__all__ = ["Coswara", "load"]

MAX_BYTES = 1 << 30  # of one array
_SHAPE = (96, 64)

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Coswara:
    """Spectrograms and labels of one split.

    Parameters
    ----------
    root
        Folder of data sets, the data set's own folder, or the one that holds the six arrays.
    split
        ``train``, ``val`` or ``test``.

    Attributes
    ----------
    x
        ``(N, 96, 64)`` float32.
    y
        ``(N,)`` int64, 1: COVID-19.

    Raises
    ------
    FoveateError
        A file is missing or damaged, or its array has another shape.
    """

    card = DataCard(
        name="coswara",
        title="Coswara, breathing (2020)",
        task="COVID-19 from breathing sounds",
        licence="CC BY 4.0 (as remembered)",
        size="1,368 spectrograms, 96 frames x 64 bands",
        url="https://github.com/iiscleap/Coswara-Data",
        citation="N. Sharma et al., Coswara, Interspeech 2020",
        layout="coswara/covid/breath/{X,y}_{train,val,test}.npy",
        kinds={
            "spectrograms": ("covid/breath/X_*.npy", "X_*.npy"),
            "labels": ("covid/breath/y_*.npy", "y_*.npy"),
        },
        folders=("coswara", "Coswara"),
        classes=("healthy", "COVID-19"),
        splits={"train": "987", "val": "175", "test": "206"},
        loader="foveate.datasets.coswara.Coswara",
    )

    def __init__(self, root: Path | str, split: str = "train") -> None:
        if split not in self.card.splits:
            raise FoveateError(f"coswara has no split {split!r}; choose train, val or test")
        folder = self.card.find(root).path
        if folder is None:
            raise FoveateError(
                f"{self.card.title} is not below {root}; expected {self.card.layout}; see "
                f"{self.card.url}"
            )
        if (folder / "covid" / "breath").is_dir():
            folder = folder / "covid" / "breath"
        paths = folder / f"X_{split}.npy", folder / f"y_{split}.npy"
        x, y = (_read(path) for path in paths)
        x, y = _squeezed(x), _squeezed(y)
        if x.ndim != 3 or x.shape[1:] != _SHAPE or not len(x) or x.dtype.kind != "f":
            raise FoveateError(
                f"{paths[0]} holds {x.dtype} {x.shape} where floats (N, 96, 64) were expected; "
                "copy it again"
            )
        if (
            y.shape != (len(x),)
            or y.dtype.kind not in "iufb"
            or not set(np.unique(y).tolist()) <= {0, 1}
        ):
            raise FoveateError(
                f"{paths[1]} holds {y.dtype} {y.shape} where {len(x)} labels of 0 or 1 were "
                "expected; copy it again"
            )
        self.x: Floats = x.astype(np.float32)
        if not np.isfinite(self.x).all():
            raise FoveateError(f"{paths[0]} has values that are no finite numbers; copy it again")
        self.y: Ints = y.astype(np.int64)

    def __len__(self) -> int:
        return len(self.y)


def load(root: Path | str) -> dict[str, tuple[Floats, Ints]]:
    """Split -> X ``(N, 96, 64)``, y ``(N,)``."""
    parts = {split: Coswara(root, split) for split in Coswara.card.splits}
    return {split: (part.x, part.y) for split, part in parts.items()}


def _squeezed(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Without axes of length 1, but for the first."""
    return array.reshape(array.shape[:1] + tuple(n for n in array.shape[1:] if n > 1))


def _read(path: Path) -> npt.NDArray[Any]:
    """One ``.npy`` file, mapped first: a header that promises more than the file has is refused."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes, at most {MAX_BYTES} expected")
        mapped = np.lib.format.open_memmap(path, mode="r")
        if not mapped.ndim:
            raise ValueError("it is no array")
        return np.array(mapped)
    # A damaged header goes through Python's tokenizer and parser: what they raise is many things.
    except Exception as error:
        raise FoveateError(f"cannot read {path} ({error}); copy it again") from error
