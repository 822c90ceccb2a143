from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ewq_gguf.errors import EvaluationError
from ewq_gguf.evaluation.gguf_check import check_gguf


def test_a_whole_file_is_summarized(model: Path, coarse: Path) -> None:
    plain, quantized = check_gguf(model), check_gguf(coarse)
    assert plain.architecture == quantized.architecture == "llama"
    assert not plain.quantized
    assert quantized.quantized
    assert plain.n_tensors == quantized.n_tensors == 21
    assert plain.n_bytes == model.stat().st_size


def test_the_tokenizer_is_recognized(model: Path, coarse: Path, make_model: Callable[..., Path]) -> None:
    assert check_gguf(model).tokenizer == check_gguf(coarse).tokenizer
    assert check_gguf(model).tokenizer != check_gguf(make_model(extra_tokens=8)).tokenizer


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "has 0 bytes"),
        (b"GGUF", "has 4 bytes"),
        (b"PK\x03\x04" + bytes(64), "starts with"),
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0) + bytes(8), "version 9"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(8), "little-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0) + bytes(8), "truncated or damaged"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 60), "truncated or damaged"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 77), "unknown metadata type"),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, 1 << 40),
            "unusable metadata array",
        ),
    ],
)
def test_what_is_no_gguf_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(EvaluationError, match=words):
        check_gguf(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="does not exist"):
        check_gguf(tmp_path / "nowhere.gguf")
    with pytest.raises(EvaluationError, match="is a folder"):
        check_gguf(tmp_path)


def test_a_file_cut_in_its_weights_names_the_tensor(model: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model.read_bytes()[:-1000])
    with pytest.raises(EvaluationError, match=r"truncated: tensor output.weight ends at byte"):
        check_gguf(cut)


@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cut=st.floats(0, 0.999))
def test_every_cut_is_noticed(model: Path, tmp_path: Path, cut: float) -> None:
    data = model.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(data[: int(len(data) * cut)])
    with pytest.raises(EvaluationError):
        check_gguf(path)


@hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.integers(0, 12000), value=st.integers(0, 255))
def test_a_damaged_header_never_escapes_as_another_error(
    model: Path, tmp_path: Path, at: int, value: int
) -> None:
    data = bytearray(model.read_bytes()[:20000])
    data[at] = value
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data)
    with pytest.raises(EvaluationError):
        check_gguf(path)
