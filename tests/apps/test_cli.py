"""The command line as a first-time user meets it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import foveate
from foveate.apps import doctor
from foveate.cli import main
from foveate.errors import FoveateError


def run(capsys, *words: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of a command, in this process."""
    code = 0
    try:
        main(list(words))
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_help_names_every_command_and_imports_nothing_heavy():
    heavy = ("torch", "cv2", "mediapipe", "av", "polars", "scipy", "plotly", "sklearn")
    code = (
        "import sys; from foveate.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', [m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    for command in ("watch", "recipes", "run", "evidence", "data", "models", "doctor", "bench"):
        assert command in done.stdout
    assert "HEAVY []" in done.stdout


def test_importing_the_package_is_light_and_its_names_resolve():
    code = "import sys, foveate; print([m for m in ('torch', 'cv2', 'av') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
    for name in foveate.__all__:
        assert getattr(foveate, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = foveate.nonsense


def test_version(capsys):
    code, out, _ = run(capsys, "--version")
    assert code == 0
    assert out.strip() == foveate.__version__


def test_an_unknown_command_and_a_missing_argument_are_one_sentence(capsys):
    for words in (["wacth", "x.mp4"], ["run"], ["watch"], ["models", "fetch", "nonsense"],
                  ["run", "nonsense"], ["data", "nonsense"], ["run", "mar-rppg", "--scale", "x"],
                  ["run", "mar-rppg", "--set", "epochs"], ["bench", "watch", "--seconds", "1"],
                  ["evidence", "/nowhere/at/all"]):  # fmt: skip
        code, out, err = run(capsys, *words)
        assert code == 2, words
        assert out == ""
        lines = err.strip().splitlines()
        assert lines[0].startswith("foveate: "), words
        assert len(lines) == 2, (words, err)


def test_debug_shows_the_traceback():
    with pytest.raises(FoveateError):
        main(["data", "nonsense", "--debug"])


def test_recipes_lists_claims(capsys):
    code, out, _ = run(capsys, "recipes")
    assert code == 0
    assert "mar-rppg" in out
    assert "smoke" in out


def test_data_and_models_list_what_is_known(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("FOVEATE_DATA", str(tmp_path))
    code, out, _ = run(capsys, "data")
    assert code == 0
    assert all(name in out for name in ("UBFC-rPPG", "PURE", "MMPD"))
    code, out, _ = run(capsys, "data", "pure")
    assert code == 0
    assert "SS-TT" in out.replace("\n", "")
    code, out, _ = run(capsys, "models")
    assert code == 0
    assert "face_landmarker" in out


def test_doctor_finds_this_machine_whole_and_a_broken_one_broken(capsys, monkeypatch, tmp_path):
    code, out, _ = run(capsys, "doctor")
    assert code == 0, out
    monkeypatch.setenv("FOVEATE_DATA", str(tmp_path / "file" / "data"))
    (tmp_path / "file").write_text("")
    code, out, _ = run(capsys, "doctor")
    assert code == 1
    assert "broken" in out
    states = {check["what"]: check["state"] for check in doctor.examine()}
    assert states["data folder"] == "broken"
    assert states["native engine"] == "ok"


def test_evidence_prints_the_table(capsys, tmp_path):
    from foveate.report.evidence import Claim, Evidence, Result

    claim = Claim("a beats b", "mae", "lower", "a", "b", "rule")
    Evidence(
        recipe="toy", claim=claim, verdict="inconclusive", arms={"a": "x", "b": "y"},
        results=[Result("a", 0, {"mae": 1.0}), Result("b", 0, {"mae": 2.0})],
        data="dice", simulated=True, scale="smoke", config={},
    ).write(tmp_path)  # fmt: skip
    code, out, _ = run(capsys, "evidence", str(tmp_path))
    assert code == 0
    assert "inconclusive" in out
    code, out, _ = run(capsys, "evidence", str(tmp_path), "--markdown")
    assert "| a | 1 |" in out
    assert json.loads((tmp_path / "toy.json").read_text())["recipe"] == "toy"
