"""Finding recipes and turning ``--set`` texts into settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate import recipes
from foveate.errors import FoveateError


@dataclasses.dataclass(frozen=True)
class Config:
    epochs: int = 8
    lr: float = 1e-3
    mask: bool = True
    name: str = "x"
    grid: Literal["one", "three"] = "three"
    real_data: Path | None = None
    hr: tuple[float, float] = (50.0, 150.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    devices: int = 1


TOY = SimpleNamespace(PRESETS={"smoke": Config(epochs=1), "desk": Config()})


def test_every_module_of_the_room_is_a_recipe_of_the_common_form():
    for name in recipes.names():
        module = recipes.load(name)
        assert {"smoke", "desk", "paper"} <= set(module.PRESETS), name
        assert module.CLAIM.method != module.CLAIM.ablation
        assert module.CLAIM.rule
        assert callable(module.run)
        assert module.__doc__
        desk = module.PRESETS["desk"]
        assert dataclasses.is_dataclass(desk)
        assert desk.__dataclass_params__.frozen
        assert len(desk.seeds) >= 3, "evidence takes three seeds"


def test_unknown_names_are_one_sentence():
    with pytest.raises(FoveateError, match=r"no recipe is named 'nonsense'; there are: .*mar-rppg"):
        recipes.load("nonsense")
    with pytest.raises(FoveateError, match="unknown scale 'huge'; this recipe has smoke, desk"):
        recipes.configure(TOY, "huge")
    with pytest.raises(FoveateError, match="unknown setting 'epoch' in --set; there are: epochs"):
        recipes.configure(TOY, "desk", None, {"epoch": "3"})
    with pytest.raises(FoveateError, match="--seeds is 0"):
        recipes.configure(TOY, "desk", 0)
    with pytest.raises(FoveateError, match="no setting 'nodes'"):
        recipes.configure(TOY, "desk", nodes=2)


def test_texts_become_values_of_the_fields_types():
    config = recipes.configure(
        TOY,
        "smoke",
        5,
        {"lr": "1", "mask": "False", "name": "3", "grid": "one", "real_data": "/x",
         "hr": "[40, 180]"},
        devices=2,
    )  # fmt: skip
    assert config == Config(
        1, 1.0, False, "3", "one", Path("/x"), (40.0, 180.0), (0, 1, 2, 3, 4), 2
    )
    assert isinstance(config.lr, float)
    assert recipes.configure(TOY, "desk", None, {"hr": "40, 180"}).hr == (40.0, 180.0)
    assert recipes.configure(TOY, "desk", None, {"real_data": "none"}).real_data is None


@pytest.mark.parametrize(
    ("key", "text"),
    [("epochs", "2.5"), ("epochs", "many"), ("epochs", "true"), ("lr", "fast"), ("mask", "1"),
     ("grid", "two"), ("hr", "3"), ("hr", "1,2,3"), ("hr", "1,a"), ("hr", '["a"]'),
     ("epochs", ""), ("epochs", "[1]")],
)  # fmt: skip
def test_values_of_the_wrong_type_are_refused(key, text):
    with pytest.raises(FoveateError, match=f"--set {key}="):
        recipes.configure(TOY, "desk", None, {key: text})


@given(key=st.sampled_from([f.name for f in dataclasses.fields(Config)]), text=st.text())
def test_any_text_gives_a_setting_or_one_sentence(key, text):
    config, complaint = None, ""
    try:
        config = recipes.configure(TOY, "desk", None, {key: text})
    except FoveateError as error:
        complaint = str(error)
    assert isinstance(config, Config) != bool(complaint)
    assert "\n" not in complaint.replace(text, "")
