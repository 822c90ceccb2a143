"""Entropy against the formula written out in float64, whatever dtype, chunk or thread count."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ewq_gguf.allocation import entropy as module
from ewq_gguf.allocation.analysis import analyze_model
from ewq_gguf.allocation.entropy import statistics
from ewq_gguf.checkpoint import ArrayTensor, DType
from ewq_gguf.errors import CheckpointError
from ewq_gguf.pipeline.source import load_model


def formula(weights: np.ndarray, epsilon: float) -> float:
    """-sum p ln(p + eps) with p = softmax(w), straight from the paper, with exact summation."""
    w = weights.astype(np.float64).reshape(-1)
    e = np.exp(w - w.max())
    p = e / math.fsum(e)
    terms = p * np.log(p + epsilon) if epsilon else np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0)
    return -math.fsum(terms)


def bf16(values: np.ndarray) -> np.ndarray:
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2")


@pytest.mark.parametrize("epsilon", [0.0, 0.01, 1e-6])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F32 of BF16 values"])
def test_matches_the_formula(dtype: str, epsilon: float) -> None:
    values = np.random.default_rng(3).normal(scale=0.05, size=(300, 257)).astype(np.float32)
    if dtype == "BF16":
        tensor = ArrayTensor(bf16(values), DType.BF16)
    elif dtype == "F16":
        tensor = ArrayTensor(values.astype(np.float16))
    elif dtype == "F32":
        tensor = ArrayTensor(values)
    else:
        tensor = ArrayTensor((bf16(values).astype("<u4") << 16).view("<f4"))
    got = statistics(tensor, epsilon=epsilon)
    plain = tensor.rows(0, tensor.n_rows).astype(np.float64)
    assert got.entropy == pytest.approx(formula(plain, epsilon), rel=1e-12)
    assert got.n == values.size
    assert got.mean == pytest.approx(plain.mean(), rel=1e-9, abs=1e-15)
    assert got.variance == pytest.approx(plain.var(), rel=1e-12)
    centred = plain - plain.mean()
    assert got.kurtosis == pytest.approx((centred**4).mean() / plain.var() ** 2 - 3, rel=1e-9)
    assert (got.minimum, got.maximum) == (plain.min(), plain.max())


def test_bf16_and_its_f32_copy_agree_to_the_last_bit() -> None:
    codes = bf16(np.random.default_rng(5).normal(size=(64, 64)))
    copy = (codes.astype("<u4") << 16).view("<f4")
    assert statistics(ArrayTensor(codes, DType.BF16)) == statistics(ArrayTensor(copy))


@pytest.mark.parametrize("chunk", [1, 100, 4096, 1 << 20])
def test_chunk_size_changes_nothing(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    values = np.random.default_rng(9).normal(size=(500, 300)).astype(np.float32)
    expected = [statistics(ArrayTensor(values)), statistics(ArrayTensor(bf16(values), DType.BF16))]
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", chunk)
    assert [statistics(ArrayTensor(values)), statistics(ArrayTensor(bf16(values), DType.BF16))] == expected


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e4, 1e4, width=16), min_size=1, max_size=300),
    st.sampled_from([0.0, 0.01, 1.0]),
)
def test_any_values(values: list[float], epsilon: float) -> None:
    array = np.array(values, dtype=np.float16)
    got = statistics(ArrayTensor(array.reshape(1, -1)), epsilon=epsilon)
    assert got.entropy == pytest.approx(formula(array, epsilon), rel=1e-12, abs=1e-13)
    assert got.variance >= 0


def test_constant_and_empty_matrices() -> None:
    assert statistics(ArrayTensor(np.zeros((4, 8), dtype=np.float32)), epsilon=0.0).entropy == pytest.approx(
        math.log(32)
    )
    assert statistics(ArrayTensor(np.empty((0, 8), dtype=np.float16))).n == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_weights_that_are_no_numbers_are_named(bad: float, dtype: type) -> None:
    values = np.ones((5, 4), dtype=dtype)
    values[3, 2] = bad
    with pytest.raises(CheckpointError, match=r"blk\.0\.x holds .* in row 3, column 2"):
        statistics(ArrayTensor(values), name="blk.0.x")


def test_reference_model_blocks(reference: Path) -> None:
    """Every block against the formula, and one against two threads."""
    model = load_model(reference)
    one, two = analyze_model(model, threads=1), analyze_model(model, threads=2)
    assert one == two
    assert len(one.blocks) == 12
    for block in one.blocks:
        total, weighted = 0, []
        for t in model.tensors:
            if t.block == block.index and len(t.shape) == 2:
                weights = t.source.rows(0, t.n_rows)
                weighted.append(weights.size * formula(weights, 0.01))
                total += weights.size
        assert block.entropy == pytest.approx(math.fsum(weighted) / total, rel=1e-12)
        assert block.parameters == total
