"""The contest of ``foveate shrink``: who is how accurate, how fast, how large, and who to take.

The float network in PyTorch, the same in ONNX Runtime (float and int8), and the packed networks are
measured on the same pictures and take turns in one run. The table is a list of plain dictionaries,
as ``summary.json`` holds it:

    name, what, bits      float, ort-fp32, ort-int8, w2a2 ...; in words; [weights, activations]
    accuracy, points      0 to 1 on the held-out pictures; difference from float in points
    ms                    {"1": ..., "<threads>": ...} for one picture
    times_float, times_int8   how many times as fast as PyTorch and as ONNX Runtime int8
    bytes, packed_bytes   of the file; what its weights take at least
    energy_uj             an estimate
    file, checked         of packed networks: its name, and the comparison with PyTorch
    pareto                nobody is faster and more accurate
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from foveate.apps.shrink_training import Feed, Width
from foveate.apps.torch_threads import torch_threads
from foveate.datasets.own_pictures import OwnPictures
from foveate.engine import PackedModel, export_onnx
from foveate.engine.energy import EnergyEstimate, energy_estimate
from foveate.engine.onnx_runtime import OnnxNetwork, onnx_runtime_version, write_int8
from foveate.engine.turns import take_turns
from foveate.errors import FoveateError

__all__ = ["Contest", "Peer", "run_packed", "share_right", "verdict"]

_TIED = 1.03  # times closer than this are called equal
_SOUND = 0.999  # share of predictions that must be those of PyTorch

Row = dict[str, Any]


@dataclass(frozen=True)
class Peer:
    """An ONNX file, its size and its accuracy."""

    file: Path
    bytes: int
    accuracy: float


def share_right(
    answers: Iterable[npt.NDArray[np.floating]], labels: npt.NDArray[np.int64]
) -> float:
    """Share of pictures whose largest number is that of the label."""
    said = np.concatenate([answer.argmax(1) for answer in answers])
    return float((said == labels).mean())


def run_packed(packed: PackedModel, x: Tensor, threads: int) -> npt.NDArray[np.float32]:
    """What a packed network with one output answers."""
    answer = packed.run(x.cpu().numpy(), threads=threads)
    if isinstance(answer, list):
        raise FoveateError("the network returns several tensors; expected one number per class")
    return answer


@dataclass(frozen=True)
class Contest:
    """What all contenders are measured with.

    Attributes
    ----------
    network
        The float network, on the CPU in eval mode.
    pictures, feed
        Only the held-out part is measured on.
    calibration
        Training pictures that int8 ranges come from.
    threads
        Of the second column of times.
    rounds
        Turns of every contender.
    """

    network: nn.Module
    pictures: OwnPictures
    feed: Feed
    calibration: npt.NDArray[np.uint8]
    threads: int
    rounds: int

    def peers(self, scratch: Path, notes: list[str]) -> dict[str, Peer]:
        """ONNX Runtime in float and in int8; what is missing is said in `notes`."""
        if onnx_runtime_version() is None:
            notes.append(
                "ONNX Runtime is not installed, so its rows are missing: "
                "pip install 'foveate[onnx]'"
            )
            return {}
        example, images = self.feed(self.pictures.train[:1]), self.calibration
        float_file, int8_file = scratch / "fp32.onnx", scratch / "int8.onnx"
        found: dict[str, Peer] = {}
        try:
            export_onnx(self.network, example, float_file)
            found["ort-fp32"] = self.peer(float_file)
            write_int8(float_file, int8_file, (x.numpy() for x in self.feed.batches(images, 32)))
            found["ort-int8"] = self.peer(int8_file)
        except FoveateError as error:
            notes.append(f"a row of ONNX Runtime is missing: {error}")
        return found

    def peer(self, file: Path) -> Peer:
        """Size and accuracy of an ONNX file."""
        session = OnnxNetwork(file, self.threads)
        answers = (session.run(x.numpy()) for x in self.feed.batches(self.pictures.held_out))
        accuracy = share_right(answers, self.pictures.held_out_labels)
        return Peer(file, file.stat().st_size, accuracy)

    def times(
        self, packed: Mapping[Width, PackedModel], peers: Mapping[str, Peer]
    ) -> dict[int, dict[str, float]]:
        """Seconds for one picture by number of threads and contender."""
        picture = self.feed(self.pictures.held_out[:1])
        array = picture.numpy()
        fast = picture.contiguous(memory_format=torch.channels_last)
        network = copy.deepcopy(self.network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

        def float_torch() -> object:
            with torch.inference_mode():
                return network(fast)

        def engine(model: PackedModel, threads: int) -> Callable[[], object]:
            return lambda: model.run(array, threads=threads)

        def session(file: Path, threads: int) -> Callable[[], object]:
            loaded = OnnxNetwork(file, threads)
            return lambda: loaded.run(array)

        found = {}
        for threads in sorted({1, self.threads}):
            contenders: dict[str, Callable[[], object]] = {"float": float_torch}
            contenders |= {name: session(peer.file, threads) for name, peer in peers.items()}
            contenders |= {width.name: engine(model, threads) for width, model in packed.items()}
            with torch_threads(threads):
                found[threads] = take_turns(contenders, self.rounds, threads)
        return found

    def rows(
        self,
        accuracy: float,
        packed_float: PackedModel,
        cards: Mapping[Width, Mapping[str, Any]],
        packed: Mapping[Width, PackedModel],
        peers: Mapping[str, Peer],
        times: Mapping[int, Mapping[str, float]],
    ) -> list[Row]:
        """The table; the float network is its first row."""
        size = 4 * sum(p.numel() for p in self.network.parameters())
        rows = [
            _row("float", "PyTorch float32", None, accuracy, size, energy_estimate(packed_float))
        ]
        for name, what, bits in (
            ("ort-fp32", "ONNX Runtime float32", None),
            ("ort-int8", "ONNX Runtime int8", 8),
        ):
            if name in peers:
                peer, energy = peers[name], energy_estimate(packed_float, bits)
                rows.append(_row(name, what, bits, peer.accuracy, peer.bytes, energy))
        for width, card in cards.items():
            bits_text = (
                f"{width.weights}-bit" if width[0] == width[1] else f"{width[0]}x{width[1]}-bit"
            )
            rows.append(
                {
                    **_row(
                        width.name,
                        f"foveate {bits_text}",
                        list(width),
                        card["accuracy"],
                        card["bytes"],
                        energy_estimate(packed[width]),
                    ),
                    "file": card["file"],
                    "packed_bytes": card["packed_bytes"],
                    "checked": card["checked"],
                }
            )
        for row in rows:
            row["ms"] = {str(n): round(1e3 * found[row["name"]], 5) for n, found in times.items()}
            row["points"] = round(100 * (row["accuracy"] - accuracy), 3) + 0.0  # no minus zero
            row["times_float"] = round(times[1]["float"] / times[1][row["name"]], 3)
            row["times_int8"] = (
                round(times[1]["ort-int8"] / times[1][row["name"]], 3)
                if "ort-int8" in times[1]
                else None
            )
        for row in rows:
            row["pareto"] = not any(_beats(other, row) for other in rows)
        return rows


def _row(
    name: str, what: str, bits: object, accuracy: float, size: int, energy: EnergyEstimate
) -> Row:
    return {
        "name": name,
        "what": what,
        "bits": bits,
        "accuracy": round(accuracy, 6),
        "bytes": size,
        "packed_bytes": None,
        "energy_uj": round(energy.total_uj, 4),
        "file": None,
        "checked": None,
    }


def _beats(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether one contender is at least as accurate and as fast as another, and better in one."""
    faster, more = one["ms"]["1"] - other["ms"]["1"], other["accuracy"] - one["accuracy"]
    return bool(faster <= 0 and more <= 0 and (faster < 0 or more < 0))


def verdict(rows: Sequence[Mapping[str, Any]], tolerance: float) -> dict[str, Any]:
    """Which file to take: the fastest that is close enough; of equally fast ones the smallest."""
    own = [row for row in rows if row["file"]]
    sound = [row for row in own if row["checked"]["same"] >= _SOUND * row["checked"]["pictures"]]
    near = [row for row in sound if row["points"] >= -tolerance]
    odd = [row["name"] for row in own if row not in sound]
    left_out = (
        f"; {', '.join(odd)} left out, where the engine answers otherwise than PyTorch in more "
        f"than {1 - _SOUND:.1%} of the pictures"
        if odd
        else ""
    )
    if not near:
        best = max(own, key=lambda row: row["accuracy"])
        reason = (
            f"no width stays within {tolerance:g} points of the float network; the nearest is "
            f"{best['name']}: train longer (--epochs), on more pictures, or keep more layers "
            "(--keep)"
        )
        return {
            "file": None,
            "row": None,
            "nearest": best["name"],
            "tolerance": tolerance,
            "reason": reason + left_out,
        }
    fastest = min(row["ms"]["1"] for row in near)
    tied = [row for row in near if row["ms"]["1"] <= _TIED * fastest]
    best = min(tied, key=lambda row: row["bytes"])
    reason = f"the fastest file within {tolerance:g} points of the float network"
    if len(tied) > 1:
        reason += ", and the smallest of those that are as fast"
    return {
        "file": best["file"],
        "row": best["name"],
        "nearest": best["name"],
        "tolerance": tolerance,
        "reason": reason + left_out,
    }
