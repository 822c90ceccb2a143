"""A small model with many tensors, and the file that an undisturbed run makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

import ewq_gguf
from tests.pipeline.odd_model import write_odd_model


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_odd_model(tmp_path_factory.mktemp("odd") / "odd.gguf")


@pytest.fixture(scope="session")
def whole(odd: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("whole") / "m.gguf"
    ewq_gguf.convert(odd, out, ewq_gguf.Decision(type="Q4_0"))
    return out.read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the output goes, with nothing else in it."""
    made = tmp_path / "out"
    made.mkdir()
    return made
