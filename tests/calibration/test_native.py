"""The guard in front of ggml's structures."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from ewq_gguf.calibration import native
from ewq_gguf.calibration.native import NodeReader
from ewq_gguf.errors import EvaluationError
from ewq_gguf.ggml import find_library


def test_the_installed_library_passes() -> None:
    """It refuses by an exception, see below; here it must not."""
    assert NodeReader(find_library("ggml-base")) is not None


@pytest.mark.parametrize("changed", ["op", "src", "name", "ne"])
def test_another_layout_is_refused(monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    """Eight more bytes before any field, as a newer llama.cpp might have them, must be noticed."""
    fields = list(native._Node._fields_)
    place = [name for name, _ in fields].index(changed)
    fields.insert(place, ("novelty", ctypes.c_int64))

    class Drifted(ctypes.Structure):
        _fields_ = tuple(fields)

    monkeypatch.setattr(native, "_Node", Drifted)
    with pytest.raises(EvaluationError, match="llama-cpp-python"):
        NodeReader(find_library("ggml-base"))


def test_a_foreign_library_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "libggml-base.so"
    path.write_bytes(b"no library")
    with pytest.raises(EvaluationError, match=re.escape(str(path))):
        NodeReader(path)
