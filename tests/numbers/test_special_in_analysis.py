"""What the analysis makes of special values, against the formula written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ewq_gguf.allocation.entropy import DEFAULT_EPSILON, Part, entropy_of_all, statistics
from ewq_gguf.allocation.ewq import Precision, classify
from ewq_gguf.allocation.rank import effective_rank
from ewq_gguf.checkpoint.tensor import ArrayTensor, DType, to_float32
from ewq_gguf.errors import CheckpointError
from tests.numbers.special import FLOATS, poisoned, tensor


def entropy(values: np.ndarray, epsilon: float = DEFAULT_EPSILON) -> float:
    flat = values.astype(np.float64).reshape(-1)
    exps = np.exp(flat - flat.max())
    p = exps / math.fsum(exps)
    logs = np.log(np.where(p + epsilon > 0, p + epsilon, 1.0))
    return -math.fsum(p * logs)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused_by_tensor_row_and_column(dtype: DType, value: float) -> None:
    if dtype is DType.F8_E4M3 and not np.isnan(value):
        pytest.skip("E4M3 has no infinity")
    with pytest.raises(CheckpointError, match=r"^t holds -?(nan|inf) in row 5, column 7;"):
        statistics(poisoned(dtype, value, 5, 7, (8, 32)), name="t")


def test_float64_beyond_float32_is_refused() -> None:
    with pytest.raises(CheckpointError, match="holds inf in row 1, column 0;"):
        statistics(tensor([[1.0, 2.0], [1e39, 0.0]], DType.F64))


SPECIAL = {
    "zeros": np.zeros((4, 8)),
    "constant": np.full((4, 8), 0.75),
    "one value": np.array([[2.5]]),
    "a zero row": np.vstack([np.zeros(8), np.linspace(-1, 1, 8)]),
    "an outlier": np.array([[0.0, 0.0, 100.0, -100.0]]),
    "subnormals": np.full((2, 4), 1e-40) * np.arange(8).reshape(2, 4),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("epsilon", [0.0, DEFAULT_EPSILON])
def test_special_values_follow_the_formula(dtype: DType, name: str, epsilon: float) -> None:
    source = tensor(SPECIAL[name], dtype)
    values = to_float32(source.raw_rows(0, source.n_rows), dtype).astype(np.float64)
    found = statistics(source, epsilon=epsilon)
    assert found.n == values.size
    assert found.entropy == pytest.approx(entropy(values, epsilon), rel=1e-13, abs=1e-13)
    assert (found.minimum, found.maximum) == (values.min(), values.max())
    assert found.mean == pytest.approx(values.mean(), rel=1e-12, abs=1e-300)
    assert found.variance == pytest.approx(values.var(), rel=1e-9, abs=1e-300)
    assert math.isfinite(found.kurtosis)
    assert found.outliers == 0.0


def test_a_constant_matrix_has_the_entropy_of_its_size() -> None:
    for dtype in (DType.F32, DType.F16, DType.BF16):
        found = statistics(tensor(np.full((32, 32), 0.5), dtype), epsilon=0.0)
        assert found.entropy == pytest.approx(math.log(1024), rel=1e-14)
        assert (found.variance, found.kurtosis, found.outliers) == (0.0, 0.0, 0.0)


def test_the_largest_values_of_float32_do_not_overflow() -> None:
    found = statistics(tensor([[3.4e38, -3.4e38, 0.0, 1.0]], DType.F32))
    assert found.entropy == pytest.approx(-math.log(1 + DEFAULT_EPSILON), rel=1e-12)
    assert math.isfinite(found.variance)
    assert math.isfinite(found.kurtosis)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(0, 8), (8, 0), (0, 0)])
def test_an_empty_matrix_has_nothing_to_tell(dtype: DType, shape: tuple[int, int]) -> None:
    found = statistics(ArrayTensor(np.zeros(shape, dtype=dtype.numpy), dtype))
    assert (found.n, found.entropy, found.variance, found.kurtosis, found.outliers) == (0, 0.0, 0.0, 0.0, 0.0)
    assert effective_rank(ArrayTensor(np.zeros(shape, dtype=dtype.numpy), dtype), 0, shape[0]) is None


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_scalar_and_a_vector(dtype: DType) -> None:
    assert statistics(tensor(0.5, dtype), epsilon=0.0).entropy == 0.0
    assert statistics(tensor([0.5, 0.5], dtype), epsilon=0.0).entropy == pytest.approx(math.log(2))


@pytest.mark.parametrize("shape", [(1, 1_000_000), (1_000_000, 1)])
@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16])
def test_a_row_of_a_million_and_a_million_rows(shape: tuple[int, int], dtype: DType) -> None:
    source = tensor(np.linspace(-1, 1, 1_000_000).reshape(shape), dtype)
    values = to_float32(source.raw_rows(0, shape[0]), dtype)
    found = statistics(source)
    assert found.n == 1_000_000
    assert found.entropy == pytest.approx(entropy(values), rel=1e-12)


def test_empty_and_full_parts_lie_end_to_end() -> None:
    full, empty = tensor([[0.1, 0.7], [0.3, -1.0]]), tensor(np.zeros((0, 2)))
    parts = [Part(empty, 0, 0), Part(full, 0, 2), Part(empty, 0, 0)]
    assert entropy_of_all(parts) == statistics(full).entropy


def test_blocks_of_equal_entropy_do_not_stand_out() -> None:
    """sigma is 0 and T = mu = H: none is raw, and none goes to 4 bits."""
    found = classify([1.25] * 5, 1.0)
    assert (found.sigma, found.mu, found.threshold) == (0.0, 1.25, 1.25)
    assert set(found.classes) == {Precision.EIGHT_BIT}
