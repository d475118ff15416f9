"""MIMIC-III, in-hospital mortality: 48 hours of intensive care as the public benchmark has them.

Harutyunyan et al. (2019) turn the credentialed tables of MIMIC-III into hourly rows of 76 columns:
17 variables, the categorical ones one-hot, and a mask for each. The condensation paper keeps 60 of
them (P); the others repeat what another column says.

The benchmark's code keeps its arrays as pickle, a format that can run code, which foveate does not
read. Whoever ran the benchmark makes three ``.npz`` files out of *their own* three in one minute,
in the benchmark's folder and with its Python:

.. code-block:: text

    import pickle, numpy as np
    for part in ("train", "val", "test"):
        with open(f"{part}_raw.p", "rb") as file:
            content = pickle.load(file)
        x, y = content["data"] if part == "test" else content
        np.savez_compressed(f"{part}_raw.npz", x=np.asarray(x, np.float32), y=np.asarray(y))

The values are discretised and normalised by the benchmark; no further normalisation is due (P).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from foveate.datasets.card import DataCard
from foveate.datasets.npz import read_npz
from foveate.errors import FoveateError

__all__ = ["COLUMNS", "MIMIC3IHM", "load"]

COLUMNS = (
    *range(9),
    *(12, 13, 14, 16, 17, 19),
    *range(24, 38),
    *(39, 44, 40, 41),
    *range(49, 76),
)
"""Which of the 76 columns are kept, in this order (P)."""

MAX_BYTES = 1 << 30  # of one array; the largest has 430 MB as float64
_SHAPE = (48, 76)

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class MIMIC3IHM:
    """Series and labels of one split.

    Parameters
    ----------
    root
        Folder of data sets, or the data set's own folder.
    split
        ``train``, ``val`` or ``test``.

    Attributes
    ----------
    x
        ``(N, 48, 60)`` float32, normalised.
    y
        ``(N,)`` int64, 1: died in hospital.

    Raises
    ------
    FoveateError
        The file is missing or damaged, or its arrays have another shape.
    """

    card = DataCard(
        name="MIMIC-III",
        title="MIMIC-III, in-hospital mortality benchmark (2016, 2019)",
        task="hospital mortality from time series",
        licence="PhysioNet Credentialed Health Data License 1.5.0 (as remembered)",
        size="21,156 stays of 48 hours, 76 columns",
        url="https://physionet.org/content/mimiciii/",
        citation=(
            "A. E. W. Johnson et al., MIMIC-III, Scientific Data, 2016; H. Harutyunyan et al., "
            "Multitask learning and benchmarking with clinical time series data, 2019"
        ),
        layout="mimic3-ihm/{train,val,test}_raw.npz (x, y), made from the benchmark's output",
        kinds={"splits": ("train_raw.npz", "val_raw.npz", "test_raw.npz")},
        gated=True,
        folders=("mimic3-ihm", "MIMIC-III"),
        classes=("survived", "died in hospital"),
        splits={"train": "14,698 stays", "val": "3,222 stays", "test": "3,236 stays"},
        loader="foveate.datasets.mimic3_ihm.MIMIC3IHM",
        notes=(
            "the benchmark's pickle files are not read; the module's docstring has the six lines "
            "that turn them into npz"
        ),
    )

    def __init__(self, root: Path | str, split: str = "train") -> None:
        if split not in self.card.splits:
            raise FoveateError(f"MIMIC-III has no split {split!r}; choose train, val or test")
        folder = self.card.find(root).path
        path = (folder or Path(root)) / f"{split}_raw.npz"
        if not path.is_file():
            raise FoveateError(
                f'{path} is not there; {self.card.notes} (python -c "import '
                'foveate.datasets.mimic3_ihm as m; print(m.__doc__)")'
            )
        content = read_npz(path, ("x", "y"), MAX_BYTES)
        x, y = content["x"], content["y"]
        if (
            x.dtype.kind != "f"
            or x.ndim != 3
            or x.shape[1:] != _SHAPE
            or not len(x)
            or y.shape != (len(x),)
            or y.dtype.kind not in "iufb"
            or not set(np.unique(y).tolist()) <= {0, 1}
        ):
            raise FoveateError(
                f"{path} holds x {x.dtype} {x.shape} and y {y.dtype} {y.shape} where floats "
                "(N, 48, 76) and labels 0 or 1 (N,) were expected; make it again"
            )
        self.x: Floats = x[:, :, COLUMNS].astype(np.float32)
        if not np.isfinite(self.x).all():
            raise FoveateError(f"{path} has values that are no finite numbers; make it again")
        self.y: Ints = y.astype(np.int64)

    def __len__(self) -> int:
        return len(self.y)


def load(root: Path | str) -> dict[str, tuple[Floats, Ints]]:
    """Split -> X ``(N, 48, 60)``, y ``(N,)``."""
    parts = {split: MIMIC3IHM(root, split) for split in MIMIC3IHM.card.splits}
    return {split: (part.x, part.y) for split, part in parts.items()}
