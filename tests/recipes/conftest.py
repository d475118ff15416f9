"""Data that a package of the system installed, or that it did not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from foveate.datasets.images import FashionMNIST


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Lets Debian's package lie in another folder."""

    def put(folder: Path) -> None:
        card = dataclasses.replace(FashionMNIST.card, elsewhere=(folder,))
        monkeypatch.setattr(FashionMNIST, "card", card)

    return put


@pytest.fixture(autouse=True)
def nothing_installed(
    installed: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What the machine has installed must not change a test."""
    installed(tmp_path_factory.getbasetemp() / "nothing")
