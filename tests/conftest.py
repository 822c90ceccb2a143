"""Shared fixtures: the reference model and a copy of it that a test may damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "benchmarks" / "reference-10m"


@pytest.fixture(scope="session")
def reference() -> Path:
    """The embedded reference model's folder; do not write into it."""
    return REFERENCE


@pytest.fixture
def checkpoint_copy(tmp_path: Path) -> Path:
    """A copy of the reference model in a folder of its own."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(REFERENCE, folder)
    return folder
