"""Face videos with a contact pulse: UBFC-rPPG, PURE and MMPD, read as their owners hand them out.

A sample is a clip and the blood volume pulse (BVP) of a finger sensor at the very times of its
frames. Camera and sensor run on different clocks (30 and 60 Hz, say), so the label ``p`` sampled
at times ``u_j`` is interpolated linearly to every frame time ``t_k`` and, for training, z-scored::

    b_k = p_j + (p_{j+1} - p_j) (t_k - u_j) / (u_{j+1} - u_j),   u_j <= t_k < u_{j+1}
    b  <- (b - mean b) / std b

Frames that the label does not cover are left out: a label held constant would teach a wrong pulse.
The true heart rate of a clip is *not* the oximeter's own number but what the caller's estimator
finds in ``b`` (:meth:`PulseClip.heart_rate`), so that prediction and label pass the same
procedure and the same band.

A minute of such video takes gigabytes. Labels are read when a clip is asked for, pictures only
when they are used: one at a time by iterating, all at once by ``clip.frames``.

Splits never share a subject, and a subject's split depends on its number alone, so that two
people with different parts of a data set agree on it. The papers' own partitions are seldom
written down; the defaults here are the customary sizes, as remembered from the literature.

Layouts and conventions: methods/mar-rppg.md, "Data, metrics, published results"; the notes that
come with each data set.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from foveate.datasets.card import DataCard
from foveate.datasets.matlab import mat_headers, mat_word, read_mat
from foveate.errors import FoveateError
from foveate.streams.frame import Frame

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["MMPD", "PURE", "PulseClip", "PulseDataset", "UBFCrPPG"]

MAX_LABEL_BYTES = 64 << 20  # a minute of labels is below 1 MB in every layout
MAX_CLIP_BYTES = 4 << 30  # one clip decoded as a whole
MAX_PICTURE_PIXELS = 1 << 26
MAX_CLIP_FRAMES = 1 << 20  # ten hours
MMPD_FPS = 30.0

Signal = npt.NDArray[np.float64]
Picture = npt.NDArray[np.uint8]
Meta = dict[str, "str | int | bool"]


class FrameSource(Protocol):
    """Pictures of one clip in order, each ``(H, W, 3)`` uint8 RGB; can be iterated repeatedly."""

    def __iter__(self) -> Iterator[Picture]: ...


@dataclass(frozen=True)
class PulseClip:
    """One clip and the pulse that was measured while it was taken.

    Attributes
    ----------
    source
        Where the pictures come from; read anew at every iteration.
    bvp
        ``(T,)`` float32, blood volume pulse at the frame times; zero mean and unit standard
        deviation unless the data set was opened with ``zscore=False`` (sensor units then).
    fps
        Mean frame rate in Hz, from the frame times.
    times_s
        ``(T,)`` float64, seconds since the first frame, not necessarily uniform.
    meta
        ``dataset``, ``subject``, ``path`` and the data set's own conditions.
    """

    source: FrameSource
    bvp: npt.NDArray[np.float32]
    fps: float
    times_s: Signal
    meta: Meta

    def __len__(self) -> int:
        return int(self.bvp.shape[0])

    def __iter__(self) -> Iterator[Frame]:
        """Frames one at a time; memory does not grow with the clip.

        Raises
        ------
        FoveateError
            A picture cannot be decoded, changes its size, or is missing at the end.
        """
        shape: tuple[int, ...] | None = None
        count = 0
        for index, image in zip(range(len(self)), self.source, strict=False):
            if shape is not None and image.shape != shape:
                raise FoveateError(
                    f"frame {index} of {self.meta['path']} is {image.shape[1]}x{image.shape[0]} "
                    f"after frames of {shape[1]}x{shape[0]}; copy the clip again"
                )
            shape = image.shape
            count = index + 1
            yield Frame(image, float(self.times_s[index]), index)
        if count < len(self):
            raise FoveateError(
                f"{self.meta['path']} ends after {count} frames where the label has {len(self)}; "
                "copy the clip again"
            )

    @property
    def frames(self) -> Picture:
        """All pictures, ``(T, H, W, 3)`` uint8 RGB; decoded at each access, not kept.

        Raises
        ------
        FoveateError
            As for iterating, or the clip would take more than 4 GiB.
        """
        whole: Picture | None = None
        for frame in self:
            if whole is None:
                size = len(self) * frame.image.size
                if size > MAX_CLIP_BYTES:
                    raise FoveateError(
                        f"{self.meta['path']} would take {size / 2**30:.1f} GiB as one array; "
                        "iterate over the clip instead"
                    )
                whole = np.empty((len(self), *frame.image.shape), dtype=np.uint8)
            whole[frame.index] = frame.image
        assert whole is not None  # noqa: S101 (a clip has at least two frames)
        return whole

    def heart_rate(self, estimate: Callable[[npt.NDArray[np.float32], float], float]) -> float:
        """Heart rate in bpm that `estimate` finds in the label.

        Parameters
        ----------
        estimate
            ``(waveform (N,) float32 on a uniform grid, rate in Hz) -> bpm``; pass the function
            that is used on predictions, with the same band.
        """
        grid = np.arange(len(self)) / self.fps
        uniform = np.interp(grid, self.times_s, self.bvp).astype(np.float32)
        return float(estimate(uniform, self.fps))


@dataclass(frozen=True)
class _Item:
    """A clip that was found but not opened."""

    subject: int | str
    clip: int
    path: Path
    label: Path


class PulseDataset(ABC):
    """Map-style data set of :class:`PulseClip`; works with ``torch.utils.data`` as it is.

    Parameters
    ----------
    root
        The data set's folder in the official layout (``card.layout``).
    split
        A key of ``card.splits``, or None for every clip.
    transform
        Applied to each :class:`PulseClip` by indexing; turn it into tensors here if a
        ``DataLoader`` is to collate it.
    zscore
        Standardise the label of each clip.

    Attributes
    ----------
    skipped
        One sentence per folder or file that looked like a clip and could not be one.

    Raises
    ------
    FoveateError
        `split` is unknown, or there is no clip of it below `root`.
    """

    card: ClassVar[DataCard]

    def __init__(
        self,
        root: Path | str,
        split: str | None = None,
        transform: Callable[[PulseClip], Any] | None = None,
        *,
        zscore: bool = True,
    ) -> None:
        self.root = Path(root)
        self.split = split
        self.transform = transform
        self.zscore = zscore
        if split is not None and split not in self.card.splits:
            raise FoveateError(
                f"{self.card.name} has no split {split!r}; choose one of "
                f"{', '.join(self.card.splits)} or none for all clips"
            )
        skipped: list[str] = []
        found = self._scan(self.root, skipped)
        self.skipped = tuple(skipped)
        self._items = sorted(
            (item for item in found if split is None or self.split_of(item.subject) == split),
            key=lambda item: (isinstance(item.subject, str), item.subject, item.clip),
        )
        if not self._items:
            which = f"no clip of the split {split!r}" if found else "no clip"
            raise FoveateError(
                f"{which} of {self.card.title} is below {self.root}; "
                f"expected {self.card.layout}; see {self.card.url}"
            )

    @staticmethod
    @abstractmethod
    def split_of(subject: int | str) -> str | None:
        """Split to which a subject belongs, None for one that belongs to no split."""

    @abstractmethod
    def _scan(self, root: Path, skipped: list[str]) -> list[_Item]:
        """Find the clips below `root` without opening them."""

    @abstractmethod
    def _open(self, item: _Item) -> tuple[FrameSource, Signal, Signal, Meta]:
        """Pictures, their times in seconds ``(T,)``, BVP at these times ``(T,)``, conditions."""

    @property
    def subjects(self) -> tuple[int | str, ...]:
        """Subjects present in this split, in order."""
        return tuple(dict.fromkeys(item.subject for item in self._items))

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        clip = self.clip(index)
        return clip if self.transform is None else self.transform(clip)

    def clip(self, index: int) -> PulseClip:
        """Clip `index` before any transform.

        Raises
        ------
        FoveateError
            Its label file is damaged; the message names file and place.
        """
        item = self._items[index]
        source, times_s, bvp, conditions = self._open(item)
        duration = float(times_s[-1] - times_s[0]) if len(times_s) > 1 else 0.0
        if duration <= 0:
            raise FoveateError(f"{item.label} covers no two frames of {item.path}; copy both again")
        spread = float(bvp.std())
        if not spread > 1e-9 * max(1.0, float(np.abs(bvp).max())):
            raise FoveateError(
                f"the pulse in {item.label} is constant (sensor off); leave the clip out"
            )
        if self.zscore:
            bvp = (bvp - bvp.mean()) / spread
        return PulseClip(
            source=source,
            bvp=bvp.astype(np.float32),
            fps=(len(times_s) - 1) / duration,
            times_s=times_s - times_s[0],
            meta={
                "dataset": self.card.name,
                "subject": item.subject,
                "path": str(item.path),
                **conditions,
            },
        )

    def frames(self, index: int) -> Iterator[Frame]:
        """Frames of clip `index` one at a time, with their times; bounded memory."""
        return iter(self.clip(index))

    def plot(self, index: int) -> go.Figure:
        """First picture of clip `index` beside its pulse, as a plotly figure.

        A picture whose owner forbids publication (``meta["may_be_shown"]`` is False) is left out.
        """
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        clip = self.clip(index)
        shown = bool(clip.meta.get("may_be_shown", True))
        figure = make_subplots(
            rows=1,
            cols=2,
            column_widths=[0.3, 0.7],
            subplot_titles=("first frame" if shown else "face may not be shown", "contact pulse"),
        )
        if shown:
            first = next(iter(clip)).image
            step = max(1, max(first.shape[:2]) // 240)
            figure.add_trace(go.Image(z=first[::step, ::step]), row=1, col=1)
        figure.add_trace(go.Scatter(x=clip.times_s, y=clip.bvp, name="BVP"), row=1, col=2)
        figure.update_xaxes(title_text="time (s)", row=1, col=2)
        figure.update_yaxes(title_text="BVP (z-score)" if self.zscore else "BVP", row=1, col=2)
        figure.update_layout(title=f"{self.card.title}: subject {clip.meta['subject']}")
        return figure


# --------------------------------------------------------------------------------- UBFC-rPPG


class UBFCrPPG(PulseDataset):
    """UBFC-rPPG (Bobbia et al. 2017): people before a webcam, uncompressed video.

    DATASET_2 (42 subjects, playing a game) has one label value per frame with the time at which
    the frame was taken; that time is used, since the container only knows a nominal rate.
    DATASET_1 (8 recordings) has a label of about 60 Hz on its own times; there a frame's time is
    its number times the container's frame duration, which is all that an AVI file holds.
    Recordings of DATASET_1 belong to no split: whether they show people of DATASET_2 is not said.

    ``meta``: ``part`` (1 or 2), ``may_be_shown`` (the owners forbid showing subjects 21 and 27).
    """

    card = DataCard(
        name="UBFC-rPPG",
        title="UBFC-rPPG (2017)",
        task="pulse from face video",
        licence="on request, for academic research (as remembered)",
        size="42 + 8 clips of about 1 min, 640x480, about 30 fps, uncompressed: some 70 GB",
        url="https://sites.google.com/view/ybenezeth/ubfcrppg",
        citation=(
            "S. Bobbia, R. Macwan, Y. Benezeth, A. Mansouri, J. Dubois, Unsupervised skin tissue "
            "segmentation for remote photoplethysmography, Pattern Recognition Letters, 2017"
        ),
        gated=True,
        folders=("UBFC-rPPG", "UBFC"),
        layout=(
            "[DATASET_2/]subjectK/vid.avi + ground_truth.txt (3 lines: PPG, heart rate, seconds); "
            "[DATASET_1/]NAME/vid*.avi + gtdump.xmp (CSV: ms, heart rate, SpO2, PPG)"
        ),
        kinds={
            "videos": ("*/vid*.avi", "*/*/vid*.avi"),
            "labels": (
                *("*/ground_truth.txt", "*/*/ground_truth.txt"),
                *("*/gtdump.xmp", "*/*/gtdump.xmp"),
            ),
        },
        splits={
            "train": "DATASET_2, subjects up to 37 (30 of the 42)",
            "test": "DATASET_2, subjects from 38 on (12 of the 42)",
        },
        loader="foveate.datasets.rppg.UBFCrPPG",
        notes="faces of subjects 21 and 27 of DATASET_2 must not be published or presented",
    )
    NOT_TO_BE_SHOWN: ClassVar[frozenset[int]] = frozenset({21, 27})

    @staticmethod
    def split_of(subject: int | str) -> str | None:
        """30 of the 42 official numbers lie at 37 or below, 12 above; DATASET_1 has names."""
        if isinstance(subject, str):
            return None
        return "train" if subject <= 37 else "test"

    def _scan(self, root: Path, skipped: list[str]) -> list[_Item]:
        found: dict[int | str, _Item] = {}
        for name in ("ground_truth.txt", "gtdump.xmp"):
            for label in sorted({*root.glob(f"*/{name}"), *root.glob(f"*/*/{name}")}):
                folder = label.parent
                videos = sorted(folder.glob("vid*.avi"))
                number = re.fullmatch(r"subject([0-9]{1,6})", folder.name, re.IGNORECASE)
                subject: int | str = folder.name
                if name == "ground_truth.txt":
                    if number is None:
                        skipped.append(f"{folder} is not called subject and a number")
                        continue
                    subject = int(number[1])
                if len(videos) != 1:
                    skipped.append(f"{folder} has {len(videos)} videos where one was expected")
                elif subject in found:
                    skipped.append(f"{folder} repeats subject {subject}")
                else:
                    found[subject] = _Item(subject, 0, videos[0], label)
        return list(found.values())

    def _open(self, item: _Item) -> tuple[FrameSource, Signal, Signal, Meta]:
        from foveate.streams.video import VideoStream

        with VideoStream(item.path) as stream:
            fps, count = float(stream.info.fps), int(stream.info.frames or 0)
        if isinstance(item.subject, int):
            times_s, bvp = _ubfc_lines(item.label)
            if count and abs(count - len(bvp)) > max(1.0, fps):
                raise FoveateError(
                    f"{item.path} has {count} frames but {item.label} has {len(bvp)} values; "
                    "copy both again from the archive"
                )
            kept = min(count or len(bvp), len(bvp))
            shown = item.subject not in self.NOT_TO_BE_SHOWN
            source = _Video(item.path, 0)
            return source, times_s[:kept], bvp[:kept], {"part": 2, "may_be_shown": shown}
        if not (count > 0 and math.isfinite(fps) and fps > 0):
            raise FoveateError(f"{item.path} does not tell its frame count and rate; copy it again")
        label_s, label = _ubfc_rows(item.label)
        first, times_s, bvp = _at_frames(item.label, label_s, label, np.arange(count) / fps)
        return _Video(item.path, first), times_s, bvp, {"part": 1, "may_be_shown": True}


@dataclass(frozen=True)
class _Video:
    """Pictures of a video file from frame `first` on."""

    path: Path
    first: int

    def __iter__(self) -> Iterator[Picture]:
        from foveate.streams.video import VideoStream

        with VideoStream(self.path) as stream:
            for expected, frame in enumerate(stream):
                if frame.index != expected:
                    raise FoveateError(
                        f"frame {expected} of {self.path} cannot be decoded; copy the file again"
                    )
                if frame.index >= self.first:
                    yield frame.image


def _ubfc_lines(path: Path) -> tuple[Signal, Signal]:
    """Times and PPG of a ``ground_truth.txt``: three lines of one value per frame."""
    lines = _text(path).rstrip().split("\n")
    if len(lines) != 3:
        raise FoveateError(
            f"{path} has {len(lines)} lines where 3 were expected (PPG, heart rate, time); "
            "copy it again from the archive"
        )
    ppg, _rate, times_s = (
        _numbers(path, number, line.split()) for number, line in enumerate(lines, 1)
    )
    if len(times_s) != len(ppg):
        raise FoveateError(
            f"line 3 of {path} has {len(times_s)} times for {len(ppg)} pulse values in line 1; "
            "copy it again from the archive"
        )
    _check_order(path, times_s, "line 3, value")
    return times_s, ppg


def _ubfc_rows(path: Path) -> tuple[Signal, Signal]:
    """Times in seconds and PPG of a ``gtdump.xmp``: CSV rows of ms, heart rate, SpO2, PPG."""
    rows = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        values = _numbers(path, number, line.split(","))
        if len(values) != 4:
            raise FoveateError(
                f"line {number} of {path} has {len(values)} columns where 4 were expected "
                "(ms, heart rate, SpO2, PPG); copy it again from the archive"
            )
        rows.append(values)
    table = np.array(rows).reshape(-1, 4)
    _check_order(path, table[:, 0], "row")
    return table[:, 0] / 1000.0, table[:, 3]


# -------------------------------------------------------------------------------------- PURE


class PURE(PulseDataset):
    """PURE (Stricker et al. 2014): ten people, six head motions, pictures with time stamps.

    Pictures are named by the nanosecond at which they were taken; the pulse has 60 Hz stamps of
    the same clock and is interpolated to them. The JSON file is taken from inside the sequence's
    folder or from beside it, the pictures from the folder or its namesake within.

    ``meta``: ``setup`` (1..6) and ``condition`` in words.
    """

    SETUPS: ClassVar[dict[int, str]] = {
        1: "steady",
        2: "talking",
        3: "slow translation",
        4: "fast translation",
        5: "small rotation",
        6: "medium rotation",
    }
    card = DataCard(
        name="PURE",
        title="PURE pulse rate detection dataset (2014)",
        task="pulse from face video",
        licence="on request, for academic research (as remembered)",
        size="10 subjects x 6 setups, 59-60 clips of 1 min, 640x480 PNG, 30 fps",
        url=(
            "https://www.tu-ilmenau.de/universitaet/fakultaeten/"
            "fakultaet-informatik-und-automatisierung/profil/institute-und-fachgebiete/"
            "institut-fuer-technische-informatik-und-ingenieurinformatik/"
            "fachgebiet-neuroinformatik-und-kognitive-robotik/data-sets-code/"
            "pulse-rate-detection-dataset-pure"
        ),
        citation=(
            "R. Stricker, S. Müller, H.-M. Gross, Non-contact Video-based Pulse Rate Measurement "
            "on a Mobile Service Robot, RO-MAN 2014"
        ),
        gated=True,
        folders=("PURE",),
        layout="SS-TT/[SS-TT/]Image<nanoseconds>.png and [SS-TT/]SS-TT.json",
        kinds={
            "sequences": ("[0-9][0-9]-[0-9][0-9]",),
            "labels": (
                "[0-9][0-9]-[0-9][0-9].json",
                "[0-9][0-9]-[0-9][0-9]/[0-9][0-9]-[0-9][0-9].json",
            ),
        },
        classes=tuple(SETUPS.values()),
        splits={"train": "subjects 1-6", "test": "subjects 7-10"},
        loader="foveate.datasets.rppg.PURE",
    )

    @staticmethod
    def split_of(subject: int | str) -> str | None:
        """Six of the ten subjects train, four test."""
        return "train" if int(subject) <= 6 else "test"

    def _scan(self, root: Path, skipped: list[str]) -> list[_Item]:
        found = []
        for folder in sorted(root.glob("[0-9][0-9]-[0-9][0-9]")):
            if not folder.is_dir():
                continue
            subject, setup = (int(part) for part in folder.name.split("-"))
            labels = [
                path
                for path in (
                    folder / f"{folder.name}.json",
                    folder.with_name(f"{folder.name}.json"),
                )
                if path.is_file()
            ]
            if setup not in self.SETUPS:
                skipped.append(f"{folder} names setup {setup}, known are 01 to 06")
            elif not labels:
                skipped.append(f"{folder} has no {folder.name}.json inside or beside it")
            else:
                inner = folder / folder.name
                found.append(_Item(subject, setup, inner if inner.is_dir() else folder, labels[0]))
        return found

    def _open(self, item: _Item) -> tuple[FrameSource, Signal, Signal, Meta]:
        named = [
            (path, re.fullmatch(r"Image([0-9]{1,18}|1[0-9]{18})\.png", path.name))
            for path in item.path.glob("Image*.png")
        ]
        stamped = sorted((int(match[1]), path) for path, match in named if match)
        if len(stamped) < 2:
            raise FoveateError(
                f"{item.path} has {len(stamped)} pictures called Image<nanoseconds>.png; "
                "unpack the sequence again"
            )
        label_ns, label = _pure_json(item.label)
        # Nanoseconds since 1970 exceed the 53 bits of a float: subtract before converting.
        origin = stamped[0][0]
        label_s = (label_ns - origin) / 1e9
        image_s = (np.array([stamp for stamp, _ in stamped], dtype=np.int64) - origin) / 1e9
        first, times_s, bvp = _at_frames(item.label, label_s, label, image_s)
        paths = tuple(path for _, path in stamped[first : first + len(bvp)])
        return (
            _Pictures(paths),
            times_s,
            bvp,
            {
                "setup": item.clip,
                "condition": self.SETUPS[item.clip],
            },
        )


@dataclass(frozen=True)
class _Pictures:
    """Pictures of a folder of PNG files."""

    paths: tuple[Path, ...]

    def __iter__(self) -> Iterator[Picture]:
        import cv2

        for path in self.paths:
            try:
                with path.open("rb") as file:
                    head = file.read(24)
                    width, height = (int.from_bytes(head[at : at + 4], "big") for at in (16, 20))
                    if not head.startswith(b"\x89PNG\r\n\x1a\n") or len(head) < 24:
                        raise ValueError("it is not a PNG file")
                    if not 0 < width * height <= MAX_PICTURE_PIXELS:
                        raise ValueError(f"it claims {width}x{height} pixels")
                    data = head + file.read(8 * MAX_PICTURE_PIXELS)
                picture = None
                if data.endswith(b"IEND\xaeB`\x82"):  # a cut file would decode to a grey rest
                    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
                if picture is None:
                    raise ValueError("it is cut short or damaged")
            except (OSError, ValueError, cv2.error) as error:
                raise FoveateError(
                    f"cannot read the picture {path}: {error}; unpack the sequence again"
                ) from error
            yield np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _pure_json(path: Path) -> tuple[npt.NDArray[np.int64], Signal]:
    """Time stamps in nanoseconds and waveform of a sequence, in order of time."""
    try:
        content = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise FoveateError(
            f"line {error.lineno} of {path} is not JSON ({error.msg}); unpack the sequence again"
        ) from error
    except (RecursionError, ValueError) as error:
        raise FoveateError(f"{path} is not JSON ({error}); unpack the sequence again") from error
    entries = content.get("/FullPackage") if isinstance(content, dict) else None
    if not isinstance(entries, list) or len(entries) < 2:
        raise FoveateError(
            f"{path} has no list '/FullPackage' of at least two readings; unpack the sequence again"
        )
    pairs: list[tuple[int, float]] = []
    for number, entry in enumerate(entries):
        stamp = entry.get("Timestamp") if isinstance(entry, dict) else None
        value = entry.get("Value") if isinstance(entry, dict) else None
        wave = value.get("waveform") if isinstance(value, dict) else None
        if (
            isinstance(stamp, bool)
            or not isinstance(stamp, int)
            or not 0 <= stamp < 2**62
            or isinstance(wave, bool)
            or not isinstance(wave, (int, float))
            or not abs(wave) < 1e12
        ):
            raise FoveateError(
                f"reading {number} of '/FullPackage' in {path} has no Timestamp in nanoseconds "
                "with a finite Value.waveform; unpack the sequence again"
            )
        pairs.append((stamp, float(wave)))
    pairs.sort(key=lambda pair: pair[0])
    return (
        np.array([stamp for stamp, _ in pairs], dtype=np.int64),
        np.array([wave for _, wave in pairs], dtype=np.float64),
    )


# -------------------------------------------------------------------------------------- MMPD


class MMPD(PulseDataset):
    """MMPD (Tang et al. 2023): phone video, four lights, four motions, skin types 3 to 6.

    One MATLAB file per clip (its reduced edition mini-MMPD has the same layout). MATLAB stores
    the whole video as one column-major variable in which a picture's pixels lie scattered, so
    iterating keeps one clip of floats in memory; it is converted picture by picture. Neither
    frames nor label carry times: 30 fps are taken and the label is stretched over the clip.

    ``meta``: ``light``, ``motion`` (the old label "Watching Videos" is given as "Walking"),
    ``skin_type`` (Fitzpatrick 3..6), ``gender``, ``exercise``, ``glasses``, ``hair_cover``,
    ``makeup``.
    """

    LIGHTS: ClassVar[tuple[str, ...]] = ("LED-low", "LED-high", "Incandescent", "Nature")
    MOTIONS: ClassVar[tuple[str, ...]] = (
        *("Stationary", "Stationary (after exercise)", "Rotation", "Talking", "Walking"),
    )
    card = DataCard(
        name="MMPD",
        title="MMPD: Multi-Domain Mobile Video Physiology Dataset (2023)",
        task="pulse from face video",
        licence="on request, for academic research (as remembered)",
        size="33 subjects x 20 clips of 1 min, 320x240 (mini: 80x60), 30 fps",
        url="https://github.com/McJackTang/MMPD_rPPG_dataset",
        citation=(
            "J. Tang, K. Chen, Y. Wang, Y. Shi, S. Patel, D. McDuff, X. Liu, MMPD: Multi-Domain "
            "Mobile Video Physiology Dataset, EMBC 2023"
        ),
        gated=True,
        folders=("MMPD", "mini-MMPD"),
        layout="subjectK/pK_0.mat ... pK_19.mat (video, GT_ppg, light, motion, skin_color, ...)",
        kinds={"clips": ("subject*/p*_*.mat",)},
        classes=MOTIONS,
        splits={"train": "subjects 1-23", "val": "subjects 24-26", "test": "subjects 27-33"},
        loader="foveate.datasets.rppg.MMPD",
    )

    @staticmethod
    def split_of(subject: int | str) -> str | None:
        """7:1:2 of 33 subjects, by number."""
        number = int(subject)
        return "train" if number <= 23 else "val" if number <= 26 else "test"

    def _scan(self, root: Path, skipped: list[str]) -> list[_Item]:
        found = []
        for path in sorted(root.glob("subject*/p*_*.mat")):
            name = f"{path.parent.name}/{path.name}"
            parts = re.fullmatch(r"subject([0-9]{1,6})/p([0-9]{1,6})_([0-9]{1,6})\.mat", name)
            if parts is None or int(parts[1]) != int(parts[2]):
                skipped.append(f"{path} is not called subjectK/pK_N.mat with one K")
            else:
                found.append(_Item(int(parts[1]), int(parts[3]), path, path))
        return found

    def _open(self, item: _Item) -> tuple[FrameSource, Signal, Signal, Meta]:
        path = item.path
        (count, *_), _ = _mat_video(path)
        fields = (
            *("GT_ppg", "light", "motion", "exercise", "skin_color"),
            *("gender", "glasser", "hair_cover", "makeup"),
        )
        content = read_mat(path, fields, MAX_LABEL_BYTES)
        ppg = np.asarray(content["GT_ppg"])
        if ppg.dtype.kind not in "iuf" or ppg.size < 2 or not np.isfinite(ppg).all():
            raise FoveateError(
                f"GT_ppg in {path} is not a row of finite numbers; copy the file again"
            )
        motion = mat_word(path, content, "motion", (*self.MOTIONS, "Watching Videos"))
        meta: Meta = {
            "light": mat_word(path, content, "light", self.LIGHTS),
            "motion": "Walking" if motion == "Watching Videos" else motion,
            "skin_type": int(mat_word(path, content, "skin_color", ("3", "4", "5", "6"))),
            "gender": mat_word(path, content, "gender", ("male", "female")),
        }
        for field, key in (
            ("exercise", "exercise"),
            ("glasser", "glasses"),
            ("hair_cover", "hair_cover"),
            ("makeup", "makeup"),
        ):
            meta[key] = mat_word(path, content, field, ("True", "False")) == "True"
        label = ppg.astype(np.float64).reshape(-1)
        bvp = np.interp(np.linspace(0, 1, count), np.linspace(0, 1, label.size), label)
        return _MatVideo(path), np.arange(count) / MMPD_FPS, bvp, meta


@dataclass(frozen=True)
class _MatVideo:
    """Pictures of the variable ``video`` of a MATLAB file."""

    path: Path

    def __iter__(self) -> Iterator[Picture]:
        shape, _ = _mat_video(self.path)
        video = read_mat(self.path, ("video",), 2 * MAX_CLIP_BYTES)["video"]
        if video.shape != shape:
            raise FoveateError(f"video in {self.path} is not what its header says; copy it again")
        for index in range(shape[0]):
            picture = video[index]
            low, high = float(picture.min()), float(picture.max())
            if not (low >= -1e-3 and high <= 1 + 1e-3):  # also catches NaN
                raise FoveateError(
                    f"frame {index} of video in {self.path} has values from {low:.3g} to "
                    f"{high:.3g} where 0 to 1 was expected; copy the file again"
                )
            yield np.clip(np.rint(picture * 255), 0, 255).astype(np.uint8)


def _mat_video(path: Path) -> tuple[tuple[int, ...], str]:
    """Shape ``(T, H, W, 3)`` and MATLAB class of ``video``, from the headers alone."""
    headers = mat_headers(path)
    shape, kind = headers.get("video", ((), ""))
    usable = len(shape) == 4 and min(shape) > 0 and shape[3] == 3 and shape[0] <= MAX_CLIP_FRAMES
    if kind not in ("double", "single") or not usable:
        raise FoveateError(
            f"{path} has no variable video of floats and shape (T, H, W, 3) "
            f"(found {kind or 'none'} {shape}); copy the file again"
        )
    size = math.prod(shape) * (8 if kind == "double" else 4)
    if size > MAX_CLIP_BYTES:
        raise FoveateError(
            f"video in {path} claims {size / 2**30:.1f} GiB {shape} where a minute of 320x240 "
            "was expected; copy the file again"
        )
    return shape, kind


def _text(path: Path) -> str:
    """Whole text of a label file, after a look at its size."""
    try:
        size = path.stat().st_size
        if size > MAX_LABEL_BYTES:
            raise FoveateError(
                f"{path} has {size} bytes where a label of at most {MAX_LABEL_BYTES} was expected; "
                "copy it again from the archive"
            )
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FoveateError(
            f"cannot read {path} as text ({error}); copy it again from the archive"
        ) from error


def _numbers(path: Path, line: int, words: list[str]) -> Signal:
    """Finite numbers of one line, or a sentence that says which word is none."""
    values = np.empty(len(words))
    for position, word in enumerate(words):
        try:
            values[position] = float(word)
        except ValueError:
            values[position] = math.nan
        if not math.isfinite(values[position]):
            raise FoveateError(
                f"line {line} of {path}, value {position + 1}: {word.strip()[:40]!r} is not a "
                "finite number; copy it again from the archive"
            )
    return values


def _check_order(path: Path, times: Signal, where: str) -> None:
    """Time must not run backwards."""
    back = np.flatnonzero(np.diff(times) < 0)
    if back.size:
        raise FoveateError(
            f"time runs backwards in {path} at {where} {int(back[0]) + 2}; "
            "copy it again from the archive"
        )


def _at_frames(
    path: Path, label_s: Signal, label: Signal, frame_s: Signal
) -> tuple[int, Signal, Signal]:
    """Interpolate a label to frame times.

    Returns
    -------
    first, times_s, bvp
        Number of the first frame that the label covers, times ``(T,)`` of the covered frames,
        label at these times ``(T,)``. A frame at most one frame period outside the label's
        span counts as covered (two clocks never start at the same instant).
    """
    slack = float(np.median(np.diff(frame_s))) if frame_s.size > 1 else 0.0
    inside = np.zeros(frame_s.size, dtype=bool)
    if label_s.size:
        inside = (frame_s >= label_s[0] - slack) & (frame_s <= label_s[-1] + slack)
    covered = np.flatnonzero(inside)
    if covered.size < 2:
        raise FoveateError(
            f"the label {path} covers no two frames of its clip; they belong to different "
            "recordings, unpack both again"
        )
    times_s = frame_s[covered]
    return int(covered[0]), times_s, np.interp(times_s, label_s, label)
