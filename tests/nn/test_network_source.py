"""Networks by name: factories, checkpoints, and what a file must not be able to do."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from foveate.errors import FoveateError
from foveate.nn.network_source import load_network, save_checkpoint, state_digest
from foveate.nn.resnet import resnet20
from foveate.nn.small_cnn import MBNMini

NETS = """
import torch
from torch import nn

def plain():
    return nn.Sequential(nn.Linear(3, 2))

def broken():
    raise ValueError("out of luck")

ready = nn.Linear(2, 2)
answer = 42
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a module in it that is on no path."""
    (tmp_path / "mynets.py").write_text(NETS)
    (tmp_path / "stumbles.py").write_text("import no_such_package_at_all\n")
    (tmp_path / "fails.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    for name in ("mynets", "stumbles", "fails"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_a_module_in_the_current_folder_is_found_and_the_path_left_alone(here):
    before = list(sys.path)
    named = load_network("mynets:plain")
    assert isinstance(named.module[0], torch.nn.Linear)
    assert named.name == "plain"
    assert not named.module.training
    assert sys.path == before


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_weights_are_filled_in(here, suffix):
    torch.manual_seed(5)
    net = resnet20()
    path = here / f"w.{suffix}"
    if suffix == "pt":
        torch.save(net.state_dict(), path)
    else:
        safetensors.torch.save_file(net.state_dict(), path)
    named = load_network("foveate.nn.resnet:resnet20", path)
    assert state_digest(named.module) == state_digest(net)
    assert named.weights == f"w.{suffix}"
    assert state_digest(load_network("foveate.nn.resnet:resnet20").module) != state_digest(net)


def test_the_callers_random_numbers_go_on_as_if_nothing_happened(here):
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    load_network("foveate.nn.resnet:resnet20")
    assert torch.equal(torch.rand(3), wanted)


def test_a_digest_tells_names_shapes_types_and_values_apart():
    def holding(name: str, value: torch.Tensor) -> torch.nn.Module:
        module = torch.nn.Module()
        module.register_buffer(name, value)
        return module

    one = torch.arange(4.0)
    others = [("b", one), ("a", one.reshape(2, 2)), ("a", one.double()), ("a", one + 1)]
    first = state_digest(holding("a", one))
    assert first == state_digest(holding("a", one.clone()))
    assert len({first, *(state_digest(holding(*other)) for other in others)}) == 5


def test_a_checkpoint_brings_its_own_network(tmp_path):
    torch.manual_seed(2)
    net = MBNMini(classes=7)
    path = tmp_path / "mini.safetensors"
    save_checkpoint(
        path, net, "foveate.nn.small_cnn:MBNMini", {"classes": 7}, mean=[0.3], std=[0.5]
    )
    named = load_network(path)
    assert (named.name, named.mean, named.std) == ("mini", (0.3,), (0.5,))
    assert state_digest(named.module) == state_digest(net)
    with pytest.raises(FoveateError, match=r"has the shape|has .* weights where"):
        save_checkpoint(tmp_path / "no.safetensors", net, "foveate.nn.small_cnn:MBNMini", {})
    assert not (tmp_path / "no.safetensors").exists()


def forged(path: Path, facts: Any) -> Path:
    """A checkpoint whose metadata says something else."""
    state = resnet20().state_dict()
    text = facts if isinstance(facts, str) else json.dumps(facts)
    safetensors.torch.save_file(state, path, {"foveate": text})
    return path


HARMFUL = [
    "os:abort",
    "subprocess:Popen",
    "foveate.files:writable_dir",
    "foveate.nn.model_files:fetch",
    "foveate.nn.network_source:load_network",
    "foveate.nn.network_source:save_checkpoint",
    "foveate.nn.resnet:load_state",
    "foveate.nn.resnet:Path",
    "foveate.nn.resnet:re",
    "foveate.nn.resnet:nn",
    "foveate.nn.:x",
    "foveate.nn.resnet.os:abort",
    "foveate.nn.no_such:x",
    "foveate.nn.resnet:no_such",
    "nonsense",
]


@pytest.mark.parametrize("factory", HARMFUL)
def test_a_file_can_name_networks_of_this_room_only(tmp_path, factory):
    path = forged(tmp_path / "f.safetensors", {"factory": factory, "arguments": {}})
    with pytest.raises(FoveateError):
        load_network(path)


def test_a_file_cannot_ask_for_more_memory_than_it_fills(tmp_path):
    huge = {"factory": "foveate.nn.resnet:resnet18", "arguments": {"classes": 65000}}
    with pytest.raises(FoveateError, match=r"has 2.*weights where .* has 44,"):
        load_network(forged(tmp_path / "a.safetensors", huge))
    wider = {"factory": "foveate.nn.resnet:resnet20", "arguments": {"classes": 1 << 40}}
    with pytest.raises(FoveateError, match="unlikely sizes"):
        load_network(forged(tmp_path / "b.safetensors", wider))


@pytest.mark.parametrize(
    "facts",
    ["{", "3", "[]", {"arguments": {}}, {"factory": "foveate.nn.resnet:resnet20"},
     {"factory": "foveate.nn.resnet:resnet20", "arguments": {}, "mean": "x"}],
)  # fmt: skip
def test_damaged_metadata_is_an_error(tmp_path, facts):
    with pytest.raises(FoveateError, match=r"cannot read .* as a checkpoint"):
        load_network(forged(tmp_path / "a.safetensors", facts))


def test_plain_weights_say_how_to_use_them(tmp_path):
    safetensors.torch.save_file(resnet20().state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(FoveateError, match=r"which network.*--weights w.safetensors"):
        load_network(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("mynets:nothing", "mynets has no 'nothing'"),
        ("mynets:plan", "did you mean plain"),
        ("mynets:broken", "mynets:broken failed with ValueError: out of luck"),
        ("mynets:ready", "mynets:ready is a Linear; expected a function"),
        ("mynets:answer", "mynets:answer is a int"),
        ("stumbles:x", "importing stumbles failed: No module named 'no_such_package_at_all'"),
        ("fails:x", "importing fails failed with ZeroDivisionError"),
        ("no.such.place:x", "there is no module 'no'"),
        ("foveate.nope:x", "there is no module 'foveate.nope'"),
        ("foveate.nn.resnet:ResNet", "cannot be called without arguments .*'block'"),
        ("mynets:plain()", "names no network"),
        ("__import__('os'):x", "names no network"),
        ("weights.pt", "names no network"),
        ("gone.safetensors", "no weights at gone.safetensors"),
    ],
)
def test_what_is_refused(here, name, sentence):
    with pytest.raises(FoveateError, match=sentence):
        load_network(name)


def test_a_module_or_function_that_exits_is_refused_as_one_that_fails(here):
    Path("leaves.py").write_text("import sys\nsys.exit('usage: leaves')\n")
    Path("quits.py").write_text("def net():\n    raise SystemExit(0)\n")
    with pytest.raises(FoveateError, match="importing leaves failed with SystemExit: usage"):
        load_network("leaves:net")
    with pytest.raises(FoveateError, match="quits:net failed with SystemExit: 0"):
        load_network("quits:net")
