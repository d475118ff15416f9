"""What is compiled for AVX stays in its file.

A function that several files define inline is in the program once, and the linker chooses whose
copy. One that a kernel file compiled with AVX-512 could so be called on a processor without it.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
COMPILER, NM = shutil.which("g++"), shutil.which("nm")

pytestmark = [
    pytest.mark.skipif(COMPILER is None or NM is None, reason="no g++ or nm here"),
    pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="not x86-64"),
]


@pytest.mark.parametrize("name", ["kernels_avx2", "kernels_avx512"])
def test_kernel_files_export_their_table_and_nothing_else(name: str, tmp_path: Path) -> None:
    build = (ROOT / "CMakeLists.txt").read_text("utf-8")
    avx2 = re.search(r"set\(AVX2 ([^)]*)\)", build)
    avx512 = re.search(r"set\(AVX512 \$\{AVX2\} ([^)]*)\)", build)
    assert avx2 is not None
    assert avx512 is not None
    flags = avx2[1].split() + (avx512[1].split() if name == "kernels_avx512" else [])
    target = tmp_path / "kernels.o"
    source = ROOT / "native" / f"{name}.cpp"
    words = [
        str(COMPILER),
        "-std=c++20",
        "-O2",
        "-w",
        "-DFOVEATE_X86",
        *flags,
        "-c",
        str(source),
        "-o",
        str(target),
    ]
    subprocess.run(words, check=True, timeout=300)
    shown = subprocess.run(
        [str(NM), "-C", "--defined-only", "--extern-only", str(target)],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    names = [line.split(maxsplit=2)[1:] for line in shown.stdout.splitlines()]
    table = "kAvx2" if name == "kernels_avx2" else "kAvx512"
    assert [text for _, text in names] == [f"foveate::{table}"]
    assert all(kind not in "WVu" for kind, _ in names)
