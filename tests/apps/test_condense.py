"""`foveate condense` from end to end on small series and pictures."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from foveate.apps import condense_trials
from foveate.apps.condense import CondenseResult, CondenseSettings, condense
from foveate.apps.condense_trials import Plan, Trials, choose_nets, privacy_signs
from foveate.datasets.series import OwnRows, own_rows, read_own_rows
from foveate.errors import FoveateError
from foveate.learning.condensation import CondensedSet, DistributionMatching
from foveate.report.condense import result_lines, write_condense_page

FILES = ["condensed.safetensors", "report.html", "summary.json"]
TINY = Plan(
    iterations=6, inits=1, epochs=2, eval_lr=1e-3, full_epochs=1, val_rows=50, members=40,
    power_rows=10, power_epochs=2, left_out=1, left_out_iterations=2,
)  # fmt: skip

# The command line, and the tiny plan where it is asked for.
DRIVER = """
import json, os
from foveate import cli
from foveate.apps import condense as app
from foveate.apps.condense_trials import Plan
if "TINY" in os.environ:
    plan = Plan(**json.loads(os.environ["TINY"]))
    app.CondenseSettings.plan = lambda self, rows: plan
if "SECONDS_BETWEEN" in os.environ:
    made = app.CondenseSettings.__init__
    seconds = float(os.environ["SECONDS_BETWEEN"])
    app.CondenseSettings.__init__ = lambda self, **said: made(
        self, **{"checkpoint_seconds": seconds, **said}
    )
cli.main()
"""


def series(
    count: int = 120, classes: int = 2, steps: int = 8, width: int = 3, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """AR(1) series in odd units; later steps of the first feature say the class."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % classes
    x = np.empty((count, steps, width))
    state = rng.normal(size=(count, width))
    for step in range(steps):
        x[:, step] = state
        state = 0.6 * state + 0.8 * rng.normal(size=state.shape)
    x[:, steps // 2 :, 0] += 3.0 * y[:, None]
    return (50 + 7 * x).astype(np.float32), y


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardly any work."""
    monkeypatch.setattr(CondenseSettings, "plan", lambda self, rows: TINY)


def go(out: Path, rows: OwnRows | None = None, **options: Any) -> CondenseResult:
    given: dict[str, Any] = {"nets": "lstm", "per_class": 3, "privacy": False}
    return condense(rows or own_rows(*series()), out, **(given | options))


def command(folder: Path, *words: str, **variables: str) -> subprocess.Popen[str]:
    (folder / "driver.py").write_text(DRIVER)
    return subprocess.Popen(
        [sys.executable, "driver.py", "condense", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
    )  # fmt: skip


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ------------------------------------------------------------------------------ the whole way


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The command as a person types it: a file of 200 series, three features, a real plan."""
    folder = tmp_path_factory.mktemp("typed")
    x, y = series(200)
    np.savez(folder / "few.npz", x=x, y=np.where(y == 1, "sick", "well"),
             features=np.array(["pulse", "lactate", "age"]))  # fmt: skip
    words = "few.npz --quick --nets lstm,rnn --iterations 150 --out result"
    process = command(folder, *words.split())
    said, complained = process.communicate(timeout=300)
    assert process.returncode == 0, complained
    return said, folder / "result"


def test_the_command_leaves_exactly_these_files(typed):
    said, out = typed
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert "report.html" in said
    assert re.search(r"condensed rows +20 rows +AUC \d", said)


def test_the_set_is_balanced_and_carries_the_normaliser_of_the_training_rows(typed):
    out = typed[1]
    few = CondensedSet.load(out / "condensed.safetensors")
    assert few.x.shape == (20, 8, 3)
    assert few.y.tolist() == [0] * 10 + [1] * 10
    assert few.meta["class_names"] == ["sick", "well"]  # in order of the sorted labels
    assert few.meta["features"] == ["pulse", "lactate", "age"]
    rows = read_own_rows(out.parent / "few.npz")
    x = rows.train[0].astype(np.float64)
    np.testing.assert_allclose(few.normalizer.mean, x.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(few.normalizer.std, x.std((0, 1)), rtol=1e-6)
    plain = load_file(out / "condensed.safetensors")  # what the page says for those without foveate
    assert sorted(plain) == ["mean", "std", "x", "y"]


def test_the_set_is_good_for_something_and_the_table_is_the_mean_of_its_trials(typed):
    summary = json.loads((typed[1] / "summary.json").read_text())
    assert [arm["name"] for arm in summary["arms"]] == ["condensed", "random", "kmeans", "all"]
    assert [net["name"] for net in summary["nets"] if net["pool"]] == ["LSTM", "RNN"]
    assert [net["name"] for net in summary["nets"] if not net["pool"]] == ["TCN", "ViT"]
    for arm in summary["arms"]:
        means = []
        for net in arm["nets"].values():
            assert net["scores"] == [trial["auc"] for trial in net["trials"]]
            means.append(sum(net["scores"]) / len(net["scores"]))
        assert arm["mean"] == pytest.approx(sum(means) / len(means))
    by_name = {arm["name"]: arm for arm in summary["arms"]}
    assert by_name["all"]["rows"] == 128  # of 100 rows a class 20 test, 16 validation, 64 training
    assert by_name["condensed"]["mean"] > 0.7
    assert by_name["random"]["rows"] == by_name["kmeans"]["rows"] == 20


def test_the_file_to_share_tells_nothing_of_the_folder_and_has_no_hash_of_the_rows(typed):
    out = typed[1]
    rows = read_own_rows(out.parent / "few.npz")
    text = (out / "condensed.safetensors").read_bytes()
    assert rows.digest().encode() not in text
    assert json.loads((out / "summary.json").read_text())["made_from"].encode() not in text
    assert str(out.parent).encode() not in text
    assert not re.search(rb"[0-9a-f]{32}", text)


# ------------------------------------------------------------------------------ stop and go on


def wait_for(process: subprocess.Popen[str], folder: Path, pattern: str) -> None:
    end = time.monotonic() + 120
    while not list(folder.glob(f"result/unfinished/{pattern}")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.005)


def test_killed_twice_it_ends_in_the_same_bits_and_repeats_nothing(tmp_path, monkeypatch):
    x, y = series()
    np.savez(tmp_path / "rows.npz", x=x, y=y)
    plan = dataclasses.replace(TINY, iterations=200)
    words = ["rows.npz", "--nets", "lstm", "--per-class", "3", "--threads", "1", "--out", "result"]
    variables = {"TINY": json.dumps(dataclasses.asdict(plan)), "SECONDS_BETWEEN": "0"}
    for pattern in ("condensing-*.safetensors", "trials-*.json"):
        process = command(tmp_path, *words, **variables)
        wait_for(process, tmp_path, pattern)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "result" / "summary.json").exists()
        if pattern.startswith("condensing"):
            assert not (tmp_path / "result" / "condensed.safetensors").exists()
    monkeypatch.setattr(CondenseSettings, "plan", lambda self, rows: plan)
    whole = go(tmp_path / "whole", read_own_rows(tmp_path / "rows.npz"), privacy=True)
    before = digest(tmp_path / "result" / "condensed.safetensors")
    (ledger,) = (tmp_path / "result" / "unfinished").glob("trials-*.json")
    known = [name for name in json.loads(ledger.read_text()) if "/" in name]
    done: list[str] = []
    trial = Trials.trial
    monkeypatch.setattr(
        Trials, "trial",
        lambda self, arm, net, few, init, attacked:
            done.append(f"{arm}/{net}/{init}") or trial(self, arm, net, few, init, attacked),
    )  # fmt: skip
    result = go(tmp_path / "result", read_own_rows(tmp_path / "rows.npz"), privacy=True)
    assert known
    assert not set(known) & set(done)
    assert digest(result.file) == before == digest(whole.file)
    different = {"seconds"}
    assert {k: v for k, v in result.summary.items() if k not in different} == {
        k: v for k, v in whole.summary.items() if k not in different
    }
    assert sorted(path.name for path in result.folder.iterdir()) == FILES  # nothing is left over


@pytest.mark.usefixtures("tiny")
def test_interrupted_between_writing_the_set_and_noting_it(tmp_path, monkeypatch):
    from foveate.apps import condense as app

    def dies(path: Path, content: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(app, "write_json", dies)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "a")
    assert (tmp_path / "a" / "condensed.safetensors").is_file()
    assert digest(go(tmp_path / "a").file) == digest(go(tmp_path / "b").file)


@pytest.mark.usefixtures("tiny")
def test_a_finished_run_is_taken_as_it_is_and_never_replaced_unasked(tmp_path, monkeypatch):
    first = go(tmp_path)
    kept = digest(first.file)
    fit = DistributionMatching.fit

    def only_with_a_row_less(self: DistributionMatching, *rows: Any, **options: Any) -> Any:
        assert "checkpoint" not in options, "condensed again"
        return fit(self, *rows, **options)

    monkeypatch.setattr(DistributionMatching, "fit", only_with_a_row_less)
    assert go(tmp_path).reused
    # the same set with other measurements: not condensed again
    assert go(tmp_path, privacy=True).summary["privacy"] is not None
    assert digest(first.file) == kept
    for other in ({"per_class": 4}, {"seed": 1}, {"rows": own_rows(*series(seed=5))}):
        with pytest.raises(FoveateError, match="made from other data or with other settings"):
            go(tmp_path, **other)
    monkeypatch.undo()
    monkeypatch.setattr(CondenseSettings, "plan", lambda self, rows: TINY)
    assert len(go(tmp_path, per_class=4, force=True).condensed) == 8


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", FILES)
def test_files_of_others_stay(tmp_path, name):
    path = tmp_path / name
    if name.endswith("safetensors"):
        save_file({"x": torch.zeros(1)}, path)
    else:
        path.write_text("{}")
    before = digest(path)
    for force in (False, True):
        with pytest.raises(FoveateError, match="not a result of foveate condense"):
            go(tmp_path, force=force)
    assert digest(path) == before
    assert [p.name for p in tmp_path.iterdir()] == [name]


# ------------------------------------------------------------------------------ what is honest


@pytest.mark.usefixtures("tiny")
def test_validation_and_test_rows_have_no_part_in_the_set(tmp_path):
    rows = own_rows(*series())
    other = dataclasses.replace(
        rows,
        val=(rows.val[0] * 3 + 1, rows.val[1]),
        test=(rows.test[0][::-1] * 2, rows.test[1][::-1].copy()),
    )
    ours, theirs = go(tmp_path / "a", rows), go(tmp_path / "b", other)
    assert digest(ours.file) == digest(theirs.file)


def near(p: float, control: float) -> dict[str, Any]:
    return {"p_value": p, "control_p": control, "passed": p > 0.05}


@pytest.mark.parametrize(
    ("proximity", "ours", "power", "error", "signs"),
    [
        (near(0.5, 0.001), 0.51, 0.9, 0.01, ("none", "none")),
        (near(0.01, 0.001), 0.51, 0.9, 0.01, ("sign", "none")),
        (near(0.5, 0.4), 0.51, 0.9, 0.01, ("unclear", "none")),  # the control saw nothing
        (near(0.5, 0.001), 0.56, 0.9, 0.01, ("none", "sign")),
        (near(0.5, 0.001), 0.44, 0.9, 0.01, ("none", "sign")),  # turned round it is as good
        (near(0.5, 0.001), 0.51, 0.55, 0.01, ("none", "unclear")),  # it succeeds nowhere
        (near(0.5, 0.001), 0.56, 0.9, 0.05, ("none", "unclear")),  # too few rows to say
        (near(0.5, 0.001), 0.56, 0.5, 0.01, ("none", "sign")),  # what is found is found
    ],
)
def test_what_a_privacy_item_may_say(proximity, ours, power, error, signs):
    found = privacy_signs(
        {
            "proximity": proximity,
            "attacks": {
                "condensed": {"auc": ours, "auc_error": error},
                "power": {"auc": power, "auc_error": error},
            },
            "formal": None,
        }
    )
    assert (found["proximity"], found["attack"]) == signs
    assert (found["one_row_less"], found["formal"]) == ("number", "none claimed")


def test_copies_of_real_rows_are_a_sign(tmp_path):
    """A 'set' that is training rows must be caught by the proximity item, and noise must not."""
    rows = own_rows(*series(400, width=6))
    nets = choose_nets(("lstm",), rows)
    trials = Trials(rows, nets, dataclasses.replace(TINY, members=200), 10, 0, "best_val", "cpu")
    copies = trials.drawn(5)
    # only rows that are compared with can be found
    trials.inside = np.union1d(trials.inside[: -len(copies)], copies)
    stolen = trials.proximity(CondensedSet(trials.train[0][copies], trials.train[1][copies]))
    assert not stolen["passed"]
    fresh = torch.randn(20, 8, 6, generator=torch.Generator().manual_seed(0))
    assert trials.proximity(CondensedSet(fresh, trials.train[1][copies]))["passed"]


@pytest.mark.usefixtures("tiny")
def test_copied_starts_are_said_to_be_not_for_sharing(tmp_path):
    result = go(tmp_path, init="real")
    page = result.folder.joinpath("report.html").read_text()
    assert "Not for sharing" in page
    assert any("not for sharing" in note for note in result.summary["notes"])
    assert result.condensed.meta["init"] == "real"


@pytest.mark.usefixtures("tiny")
def test_a_formal_guarantee_only_with_noise_and_confirmed(tmp_path):
    with pytest.raises(FoveateError, match="--public-statistics"):
        go(tmp_path, noise=2.0)
    pytest.importorskip("dp_accounting")
    result = go(tmp_path, privacy=True, noise=2.0, public_statistics=True, nets="lstm,tcn")
    formal = result.summary["privacy"]["formal"]
    assert formal["epsilon"] > 0
    assert formal["delta"] == pytest.approx(0.1 / sum(result.summary["data"]["counts"]["train"]))
    few = result.condensed
    assert few.meta["seed"] is None  # whoever knows the seed can take the noise off again
    assert few.meta["privacy"] == formal
    assert "Differential privacy" in (tmp_path / "report.html").read_text()


# ------------------------------------------------------------------------------ other rows


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(("steps", "width"), [(1, 3), (6, 1), (1, 1)])
def test_a_single_step_or_feature_will_do(tmp_path, steps, width):
    result = go(tmp_path, own_rows(*series(steps=max(2, steps), width=width, seed=3))
                if steps > 1 else own_rows(series(width=width)[0][:, -1:], series()[1]),
                nets="lstm,tcn,vit")  # fmt: skip
    assert result.condensed.x.shape == (6, steps, width)
    names = [net["name"] for net in result.summary["nets"]]
    assert ("ViT" in names) == (width > 1)
    assert ("a transformer sees nothing" in " ".join(result.summary["notes"])) == (width == 1)


@pytest.mark.usefixtures("tiny")
def test_more_than_two_classes_are_scored_by_accuracy(tmp_path):
    result = go(tmp_path, own_rows(*series(150, classes=3)))
    assert result.summary["metric"] == "accuracy"
    assert result.condensed.y.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    arm = result.summary["arms"][0]["nets"]["LSTM"]
    assert arm["scores"] == [trial["accuracy"] for trial in arm["trials"]]
    assert "accuracy" in "\n".join(result_lines(result.summary))


@pytest.mark.usefixtures("tiny")
def test_pictures(tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    pixels = (rng.integers(0, 90, (90, 8, 8)) + 80 * y[:, None, None]).astype(np.uint8)
    np.savez(tmp_path / "pictures.npz", x=pixels, y=y)
    result = condense(tmp_path / "pictures.npz", tmp_path / "out", per_class=2, privacy=True)
    assert result.condensed.x.shape == (6, 1, 8, 8)
    assert [net["name"] for net in result.summary["nets"]] == [
        "ConvNet-32x3", "MLP", "LSTM over lines",
    ]  # fmt: skip
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == 3 * (1 + 2)
    assert result.condensed.meta["match"] == "embedding"


# ------------------------------------------------------------------------------ bad input


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"per_class": 0}, "--per-class is 0"),
        ({"per_class": 39}, "class '0' has 38 training rows .* fewer than --per-class 39"),
        ({"nets": "gru"}, "--nets has 'gru'; there are tcn, lstm, vit, rnn"),
        ({"nets": "lstm,,tcn"}, "empty name"),
        ({"init": "zeros"}, "--init is 'zeros'; there are: noise, real"),
        ({"lr": -1.0}, "--lr is -1"),
        ({"iterations": 0}, "--iterations is 0"),
        ({"noise": 1.0, "public_statistics": True, "init": "real"}, "exclude each other"),
        ({"colour": "red"}, "unknown option for condense"),
        ({"rows": own_rows(*series(width=1)), "nets": "vit"}, "add lstm or tcn"),
    ],
)
def test_options_that_make_no_sense(tmp_path, options, words):
    with pytest.raises(FoveateError, match=words) as caught:
        go(tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_bad_rows_end_the_command_with_one_sentence_and_code_2(tmp_path):
    x, y = series()
    x[5, 2, 1] = np.nan
    np.savez(tmp_path / "holes.npz", x=x, y=y)
    process = command(tmp_path, "holes.npz", "--out", "result")
    said, complained = process.communicate(timeout=120)
    assert process.returncode == 2
    assert said == ""
    assert "Traceback" not in complained
    assert "row 5, step 2, feature 1" in complained
    assert complained.count("foveate:") == 1
    assert not (tmp_path / "result").exists()


def test_a_training_that_diverges_is_shown_as_a_gap(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(condense_trials, "auc", lambda y, z: float("nan"))
    result = go(tmp_path)
    assert result.score("condensed") is None
    assert "–" in (tmp_path / "report.html").read_text()


@pytest.mark.usefixtures("tiny")
def test_names_from_the_data_cannot_run_on_the_page(tmp_path):
    x, y = series()
    evil = "</script><script>window.hacked=1</script><img src=x onerror=alert(1)>"
    rows = own_rows(x, y, classes=(evil, "b"), features=(evil, "q", "r"), source=evil)
    result = go(tmp_path / "a", rows, privacy=True)
    page = (result.folder / "report.html").read_text()
    assert "<script>window.hacked" not in page
    assert "<img src=x" not in page
    write_condense_page(tmp_path / "again.html", result.summary)
    assert (tmp_path / "again.html").read_text() == page
