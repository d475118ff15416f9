"""A data set's card: what it is, whose it is, what it looks like on disk, and whether it is here.

foveate ships no data set. A card says all that a person needs to decide whether they may use one
and where to get it (licence, official source, citation), and the layout that the loader expects,
which is always the one of the official archive. ``card.find(root)`` tells what of it is present.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from foveate.errors import FoveateError
from foveate.files import sha256_of

__all__ = ["DataCard", "Presence"]


@dataclass(frozen=True)
class Presence:
    """What of a data set is on disk.

    Attributes
    ----------
    path
        Folder in which it, or the largest part of it, was found; None when nothing was.
    counts
        Number of files of each kind that the card counts, zero included.
    """

    path: Path | None
    counts: Mapping[str, int]

    @property
    def present(self) -> bool:
        """Whether at least one file of every counted kind is there."""
        return all(self.counts.values())

    def __str__(self) -> str:
        if self.path is None:
            return "absent"
        counted = ", ".join(f"{what}: {count}" for what, count in self.counts.items())
        return counted if self.present else f"incomplete ({counted})"


@dataclass(frozen=True)
class DataCard:
    """One data set.

    Attributes
    ----------
    name
        Short identifier, also the folder's usual name below the data root.
    title
        Name and year in words.
    task
        What its labels are for.
    licence
        Terms as the source states them; "as remembered" where that was not re-read.
    size
        Extent in words (subjects, clips, bytes).
    url
        Official source, or the public place of the copy that is described.
    citation
        Paper to cite.
    layout
        Expected files below the data set's folder.
    kinds
        What is counted -> glob patterns of fixed depth, relative to the folder.
    gated
        True when the owner hands it out on request only.
    folders
        Folder names looked for below the data root; ``name`` when empty. The root itself is
        looked at last, so that ``find`` also takes the data set's own folder.
    classes
        Label values in words.
    splits
        Split name -> which samples, in words.
    sha256
        Hash of single files, relative to the folder.
    loader
        Dotted name of the class that reads it, None when there is none yet.
    notes
        Conditions that a user must know before showing or using it.
    elsewhere
        Folders of data sets in which a package of the system puts it.
    """

    name: str
    title: str
    task: str
    licence: str
    size: str
    url: str
    citation: str
    layout: str
    kinds: Mapping[str, tuple[str, ...]]
    gated: bool = False
    folders: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    splits: Mapping[str, str] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    loader: str | None = None
    notes: str = ""
    elsewhere: tuple[Path, ...] = ()

    def locate(self, root: Path | str) -> Path | None:
        """`root`, or else the folder `elsewhere`, below which all of it is found; None: nowhere."""
        places = (Path(root), *self.elsewhere)
        return next((place for place in places if self.find(place).present), None)

    def find(self, root: Path | str) -> Presence:
        """Look for the data set below `root` (the folder of data sets, or its own folder)."""
        root = Path(root)
        best = Presence(None, dict.fromkeys(self.kinds, 0))
        for folder in [root / name for name in self.folders or (self.name,)] + [root]:
            counts = {
                what: len({path for pattern in patterns for path in folder.glob(pattern)})
                for what, patterns in self.kinds.items()
            }
            kinds_found = sum(count > 0 for count in counts.values())
            if kinds_found > sum(count > 0 for count in best.counts.values()):
                best = Presence(folder, counts)
        return best

    def verify(self, root: Path | str) -> Path:
        """Compare every file that has a hash on this card; the folder when all agree.

        Raises
        ------
        FoveateError
            The data set is absent, or a file's hash is another.
        """
        found = self.find(root)
        folder = found.path
        if folder is None or not found.present:
            raise FoveateError(
                f"the data set {self.name} below {root} is {found}; "
                f"get it from {self.url} and lay it out as: {self.layout}"
            )
        for relative, expected in self.sha256.items():
            try:
                digest = sha256_of(folder / relative)
            except OSError as error:
                raise FoveateError(
                    f"cannot read {folder / relative}: {error.strerror or error}; copy it again"
                ) from error
            if digest != expected:
                raise FoveateError(
                    f"{folder / relative} has sha256 {digest} where {expected} was expected; "
                    f"get it anew from {self.url}"
                )
        return folder
