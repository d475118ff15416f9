"""Simulated clips as a data set: numbered, split by person, made when asked for and kept on disk.

>>> from foveate.simulate.face_dataset import SimDataset
>>> data = SimDataset("rppg", split="test", count=20, preset="sim-B")   # doctest: +SKIP
>>> clip = data[3]; data.target(clip).shape                            # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_args, overload

import numpy as np
import numpy.typing as npt

from foveate.errors import FoveateError
from foveate.files import data_dir, write_whole
from foveate.simulate.faces import PRESETS, SPLITS, VERSION, FaceSim, SimClip, SimLabels
from foveate.simulate.scripts import EMOTIONS

__all__ = ["SimDataset", "Task", "load_clip", "save_clip"]

Task = Literal["rppg", "au", "landmarks", "identity", "gaze", "emotion"]

TAKES = 4  # recordings of each person in the identity task


def save_clip(clip: SimClip, path: Path) -> None:
    """Write a clip as ``.npz`` without pickled objects."""
    arrays: dict[str, Any] = {f"label_{name}": value for name, value in clip.labels.items()}
    with write_whole(path) as temporary:
        np.savez(
            temporary,
            frames=clip.frames,
            times=clip.times,
            config=np.array(json.dumps(clip.config)),
            **arrays,
        )


def load_clip(path: Path) -> SimClip:
    """Read what `save_clip` wrote.

    Raises
    ------
    FoveateError
        The file is missing, damaged or not a clip.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            labels: dict[str, Any] = {}
            for name in stored.files:
                if name.startswith("label_"):
                    value = stored[name]
                    labels[name[6:]] = value.item() if value.ndim == 0 else value
            config = json.loads(str(stored["config"]))
            if set(labels) != set(SimLabels.__annotations__):
                raise ValueError("labels are missing")
            return SimClip(stored["frames"], stored["times"], cast(SimLabels, labels), config)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise FoveateError(f"{path} is not a simulated clip ({error}); delete it") from error


class SimDataset(Sequence[SimClip]):
    """Simulated clips for one task.

    Parameters
    ----------
    task
        What varies, and what `target` returns: ``rppg`` (rate 45-150 bpm; BVP (T,)), ``au`` and
        ``landmarks`` (everything moves; (T, 13) and (T, 68, 2)), ``identity`` (four takes of each
        person; number), ``gaze`` ((T, 2) degrees), ``emotion`` (index into `EMOTIONS`).
    split
        ``train``, ``val`` or ``test``: other people in each.
    count
        Number of clips.
    preset
        ``sim-A``, ``sim-B`` or ``sim-C``.
    cache
        Keep made clips below ``FOVEATE_DATA/cache/simulate``.
    changes
        Arguments of `FaceSim.clip` that replace those of preset and task.
    """

    is_simulation: ClassVar[bool] = True

    def __init__(
        self,
        task: Task,
        split: str = "train",
        count: int = 100,
        *,
        preset: str = "sim-A",
        size: int = 64,
        fps: float = 30,
        seconds: float = 2.0,
        seed: int = 0,
        cache: bool = True,
        **changes: Any,
    ) -> None:
        if task not in get_args(Task):
            raise FoveateError(f"task {task!r} is not known; choose from {get_args(Task)}")
        if split not in SPLITS:
            raise FoveateError(f"split {split!r} is not known; choose from {tuple(SPLITS)}")
        if preset not in PRESETS:
            raise FoveateError(f"preset {preset!r} is not known; choose from {tuple(PRESETS)}")
        people = SPLITS[split]
        room = len(people) * (TAKES if task == "identity" else 1)
        if not 1 <= count <= room:
            raise FoveateError(f"{count} clips of {split} are not possible; give 1 to {room}")
        self.task, self.split, self.preset = task, split, preset
        self._count = count
        self.seconds, self.cache, self.changes = seconds, cache, changes
        self.sim = FaceSim(size, fps, seed)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> SimClip: ...
    @overload
    def __getitem__(self, index: slice) -> list[SimClip]: ...
    def __getitem__(self, index: int | slice) -> SimClip | list[SimClip]:
        """Make clip `index`, or read it back."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(index)
        settings = self.settings(index % self._count)
        if not self.cache:
            return self.sim.clip(**settings)
        path = data_dir() / "cache" / "simulate" / f"{self.key(settings)}.npz"
        if path.exists():
            try:
                return load_clip(path)
            except FoveateError:
                path.unlink(missing_ok=True)  # damaged: make it again
        clip = self.sim.clip(**settings)
        save_clip(clip, path)
        return clip

    def settings(self, index: int) -> dict[str, Any]:
        """Arguments of `FaceSim.clip` for clip `index`."""
        people = SPLITS[self.split]
        rng = np.random.default_rng([self.sim.seed, people.start, index])
        person, take = divmod(index, TAKES) if self.task == "identity" else (index, 0)
        settings: dict[str, Any] = {
            "identity": people[person],
            "take": take,
            "seconds": self.seconds,
            "hr": round(float(rng.uniform(45, 150)), 2),
        }
        settings |= PRESETS[self.preset]
        if self.task in ("au", "landmarks", "identity"):
            settings |= {"aus": "random", "light": "random"}
        if self.task in ("landmarks", "identity", "gaze"):
            settings |= {"motion": "moving"}
        if self.task == "emotion":
            settings |= {"emotion": list(EMOTIONS)[int(rng.integers(len(EMOTIONS)))]}
        if self.task != "rppg":
            settings.pop("melanin", None)  # light skin serves the pulse only
        return settings | self.changes

    def key(self, settings: dict[str, Any]) -> str:
        """Name of a clip in the cache: hash of version, simulator and settings."""
        sim = {"size": self.sim.size, "fps": self.sim.fps, "seed": self.sim.seed}
        # repr of the frozen dataclasses names every field.
        text = json.dumps([VERSION, sim, settings], sort_keys=True, default=repr)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def target(self, clip: SimClip) -> npt.NDArray[Any]:
        """The label of this task, an array."""
        if self.task == "emotion":
            return np.array(list(EMOTIONS).index(clip.labels["emotion"]))
        name = {"rppg": "bvp"}.get(self.task, self.task)
        return np.asarray(cast(dict[str, Any], clip.labels)[name])
