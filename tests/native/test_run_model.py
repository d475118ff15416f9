"""The C++ example: it compiles without a warning, and classifies as Python does."""

from __future__ import annotations

import concurrent.futures
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from foveate.engine import compile as compile_network
from foveate.quantization.surgery import calibrate, quantize

NATIVE = Path(__file__).resolve().parent.parent.parent / "native"
COMPILER = shutil.which("g++")
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.25, 0.5)

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ here")


def compiler(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    words = [str(COMPILER), "-std=c++20", f"-I{NATIVE}", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)


def test_compiles_without_a_warning() -> None:
    done = compiler(
        "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", "-fsyntax-only",
        NATIVE / "examples" / "run_model.cpp",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with the plain kernels, not optimised: for its answers, not for its speed."""
    folder = tmp_path_factory.mktemp("build")
    sources = [NATIVE / "examples" / "run_model.cpp"]
    sources += [p for p in NATIVE.glob("*.cpp") if not re.match(r"binding|kernels_avx", p.name)]
    flags = ("-O0", "-ffp-contract=off", "-pthread", "-c")

    def build(source: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
        target = folder / f"{source.stem}.o"
        return target, compiler(*flags, source, "-o", target)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        built = list(pool.map(build, sources))
    for _, done in built:
        assert done.returncode == 0, done.stderr
    linked = compiler(*(target for target, _ in built), "-pthread", "-o", folder / "run_model")
    assert linked.returncode == 0, linked.stderr
    return folder / "run_model"


def write_ppm(path: Path, picture: np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]) -> None:
    height, width, _ = picture.shape
    path.write_bytes(b"P6\n# a comment\n%d %d\n255\n" % (width, height) + picture.tobytes())


def test_gives_the_scores_that_python_gives(program: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2),
        nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 7),
    )  # fmt: skip
    x = torch.randn(32, 3, 6, 9)
    net(x)
    quantize(net, 2, 2, keep=("first", "last"))
    calibrate(net, [x])
    packed = compile_network(net.eval(), x[:1])
    packed.save(tmp_path / "net.fvt")
    pictures = np.random.default_rng(0).integers(0, 256, (3, 6, 9, 3), np.uint8)
    words: list[str | Path] = [tmp_path / "net.fvt"]
    for i, picture in enumerate(pictures):
        write_ppm(tmp_path / f"{i}.ppm", picture)
        words.append(tmp_path / f"{i}.ppm")
    for name, values in (("--mean", MEAN), ("--std", STD)):
        words += [name, ",".join(map(str, values))]
    done = subprocess.run(
        [program, *words, "--threads", "2"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (MEAN, STD))
    given = (pictures.transpose(0, 3, 1, 2).astype(np.float32) / 255 - mean) / std
    wanted = packed.run(given.astype(np.float32))
    lines = done.stdout.splitlines()
    for line, scores in zip(lines, wanted, strict=False):
        said = [(int(k), float(v)) for k, v in re.findall(r"(\d+) \((-?[\d.]+)\)", line)]
        order = np.argsort(-scores, kind="stable")[:5]
        assert [k for k, _ in said] == order.tolist()
        assert [v for _, v in said] == pytest.approx(scores[order].tolist(), abs=6e-4)
    assert re.fullmatch(r"[\d.]+ ms a picture, 2 thread\(s\)", lines[-1])


def test_bad_input_is_one_sentence(program: Path, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    compile_network(net, torch.zeros(1, 3, 6, 9)).save(tmp_path / "net.fvt")
    (tmp_path / "junk").write_bytes(b"junk")
    write_ppm(tmp_path / "large.ppm", np.zeros((7, 9, 3), np.uint8))
    write_ppm(tmp_path / "right.ppm", np.zeros((6, 9, 3), np.uint8))
    whole = (tmp_path / "right.ppm").read_bytes()
    (tmp_path / "short.ppm").write_bytes(whole[:-1])
    for words, sentence in (
        (["net.fvt"], "usage"),
        (["net.fvt", "junk"], "junk is no binary PPM"),
        (["net.fvt", "large.ppm"], "large.ppm is 9x7 with 3 channel"),
        (["net.fvt", "short.ppm"], "short.ppm ends too early"),
        (["junk", "right.ppm"], "run_model: "),
        (["net.fvt", "right.ppm", "--speed", "1"], "no option --speed"),
        (["net.fvt", "right.ppm", "--mean"], "--mean wants a value"),
    ):
        done = subprocess.run(
            [program, *words], capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path
        )
        assert done.returncode == 2
        assert sentence in done.stderr
        assert done.stdout == ""
