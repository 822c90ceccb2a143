"""Special values from end to end: a model that holds them is converted and verified, or refused by tensor and row."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from ewq_gguf.api import analyze, convert
from ewq_gguf.decision import Decision
from ewq_gguf.errors import CheckpointError, EwqError, PlanError, QuantizationError
from ewq_gguf.ggml import GGMLType, ggml
from ewq_gguf.pipeline.gguf_source import open_gguf
from ewq_gguf.pipeline.source import load_model
from ewq_gguf.pipeline.verify import verify
from tests.attacks import ggufs

WIDTH = 256
MATRIX, VECTOR, SCALAR, EMPTY = (
    "blk.0.ffn_up.weight",
    "blk.0.attn_norm.weight",
    "blk.0.scale.weight",
    "blk.1.ffn_up.weight",
)


def written(
    path: Path, *tensors: tuple[str, np.ndarray], kind: GGMLType = GGMLType.F32, row: int | None = None
) -> Path:
    """A GGUF file of those arrays, each stored as it is; `row` is the length of rows that are given as bytes."""
    table, data = [], b""
    for name, array in tensors:
        shape = list(array.shape)
        if row is not None:
            shape[-1] = row
        table.append(ggufs.tensor(name, shape[::-1], len(data), int(kind)))
        data += array.tobytes()
        data += bytes(-len(data) % 32)
    path.write_bytes(ggufs.gguf(ggufs._LLAMA, table, data))
    return path


def random(rows: int, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, width)).astype(np.float32)


@pytest.mark.parametrize(
    "decision", [Decision(), Decision(type="Q4_K_M"), Decision(type="bf16"), Decision(method="fastewq")]
)
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_model_with_such_a_weight_is_refused_and_nothing_written(
    tmp_path: Path, decision: Decision, value: float
) -> None:
    matrix = random(6)
    matrix[4, 9] = value
    source = written(tmp_path / "s.gguf", (VECTOR, np.ones(WIDTH, np.float32)), (MATRIX, matrix))
    with pytest.raises(CheckpointError, match=rf"{MATRIX} holds {value} in row 4, column 9;"):
        convert(source, tmp_path / "o.gguf", decision, threads=1)
    assert [p.name for p in tmp_path.iterdir()] == ["s.gguf"]


def test_an_outlier_is_refused_by_row_and_nothing_written(tmp_path: Path) -> None:
    matrix = random(6)
    matrix[3, 0] = 1e20
    source = written(tmp_path / "s.gguf", (MATRIX, matrix))
    with pytest.raises(
        QuantizationError, match=rf"{MATRIX} holds 1e\+20 in row 3, beyond what Q8_0 can store"
    ):
        convert(source, tmp_path / "o.gguf", Decision(type="Q8_0"), threads=1)
    assert [p.name for p in tmp_path.iterdir()] == ["s.gguf"]
    # The sentence's own way out.
    convert(source, tmp_path / "o.gguf", Decision(type="bf16"), threads=1)
    assert all(check.relative_error < 1e-4 for check in verify(tmp_path / "o.gguf", load_model(source)))


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "Q8_0", "Q4_K"])
def test_zeros_constants_and_empty_tensors_are_verified(tmp_path: Path, kind: str) -> None:
    zeros, constant = np.zeros((4, WIDTH), np.float32), np.full((4, WIDTH), 0.5, np.float32)
    source = written(
        tmp_path / "s.gguf",
        (MATRIX, zeros),
        ("blk.0.ffn_down.weight", constant),
        (VECTOR, np.full(WIDTH, 1e-40, np.float32)),
        (SCALAR, np.array(1.5, np.float32)),
        (EMPTY, np.zeros((0, WIDTH), np.float32)),
    )
    convert(source, tmp_path / "o.gguf", Decision(type=kind), threads=1)
    checks = {c.name: c for c in verify(tmp_path / "o.gguf", load_model(source))}
    assert (
        checks[MATRIX].relative_error == checks[VECTOR].relative_error == checks[SCALAR].relative_error == 0
    )
    assert checks["blk.0.ffn_down.weight"].relative_error < 1e-4
    assert (checks[EMPTY].nbytes, checks[EMPTY].relative_error) == (0, None)
    shapes = {e.name: e.shape for e in open_gguf(tmp_path / "o.gguf").entries}
    # GGUF has no scalars of its own: one is a vector of one.
    assert (shapes[EMPTY], shapes[SCALAR]) == ((0, WIDTH), (1,))


def test_a_zero_row_that_was_not_zero_is_told(tmp_path: Path) -> None:
    """An error where the source has nothing is infinite, and none where both have nothing."""
    before, after = np.zeros((3, WIDTH), np.float32), np.zeros((3, WIDTH), np.float32)
    after[1, 0] = 1e-3
    source, made = (
        written(tmp_path / "s.gguf", (MATRIX, before)),
        written(tmp_path / "m.gguf", (MATRIX, after)),
    )
    (check,) = verify(made, load_model(source))
    assert (check.worst_row, check.worst_row_error) == (1, float("inf"))
    assert check.worst_rows == ((1, float("inf")),)


@pytest.mark.parametrize(
    ("kind", "at"),
    [(GGMLType.Q8_0, 0), (GGMLType.Q4_0, 0), (GGMLType.Q4_K, 0), (GGMLType.Q4_K, 2), (GGMLType.Q6_K, 208)],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_scale_that_is_none_is_found_by_row(tmp_path: Path, kind: GGMLType, at: int, value: float) -> None:
    """`at`: where a block keeps a 16-bit scale (ggml-common.h)."""
    data = ggml().quantize(kind, random(5))
    data[3, at : at + 2] = np.frombuffer(struct.pack("<e", value), np.uint8)
    source = written(tmp_path / "s.gguf", (MATRIX, data), kind=kind, row=WIDTH)
    for act in (
        lambda: verify(source),
        lambda: analyze(source, threads=1),
        lambda: convert(source, tmp_path / "o.gguf", Decision(type="Q8_0", allow_requantize=True), threads=1),
        lambda: convert(source, tmp_path / "o.gguf", Decision(type=kind.name, pure=True), threads=1),
    ):
        with pytest.raises(EwqError, match=rf"{MATRIX}'? holds (nan|-?inf) in row 3, column 0;"):
            act()
    assert not (tmp_path / "o.gguf").exists()


def test_shared_exponents_that_are_none(tmp_path: Path) -> None:
    """MXFP4's scale of 255 is NaN (OCP MX specification 5.4.1)."""
    data = ggml().quantize(GGMLType.MXFP4, random(5))
    data[2, 17 * 3] = 255
    source = written(tmp_path / "s.gguf", (MATRIX, data), kind=GGMLType.MXFP4, row=WIDTH)
    with pytest.raises(QuantizationError, match=rf"{MATRIX}"):
        verify(source)


def test_a_model_of_empty_matrices_alone_has_nothing_to_classify(tmp_path: Path) -> None:
    source = written(tmp_path / "s.gguf", (MATRIX, np.zeros((0, WIDTH), np.float32)))
    with pytest.raises(PlanError, match="block 0 holds no weight matrix"):
        analyze(source, threads=1)


def test_a_row_of_a_million_from_end_to_end(tmp_path: Path) -> None:
    source = written(tmp_path / "s.gguf", (MATRIX, random(2, 1_000_192)))
    convert(source, tmp_path / "o.gguf", Decision(type="Q4_K", pure=True), threads=2)
    (check,) = verify(tmp_path / "o.gguf", load_model(source), threads=2)
    assert check.type is GGMLType.Q4_K
    assert 0 < check.relative_error < 0.01
