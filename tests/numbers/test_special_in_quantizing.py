"""What quantizing does with special values: exact, or refused by tensor and row."""

from __future__ import annotations

import numpy as np
import pytest

from ewq_gguf.checkpoint.tensor import ArrayTensor, DType, to_float32
from ewq_gguf.errors import CheckpointError, QuantizationError
from ewq_gguf.ggml import GGMLType, ggml
from ewq_gguf.pipeline.quantize import quantize_rows, quantize_tensors
from tests.numbers.special import FLOATS, INFINITY, QUANTIZED, named, poisoned, tensor

WIDTH = 1024
PLAIN = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)
ONES = np.ones(WIDTH, dtype=np.float32)


def weights_for(kind: GGMLType) -> np.ndarray | None:
    return ONES if ggml().requires_imatrix(kind) else None


def back(source: ArrayTensor, kind: GGMLType, weights: np.ndarray | None = None) -> np.ndarray:
    """Rows quantized and decoded again, float32."""
    made = quantize_rows(named(source), kind, 0, source.n_rows, weights)
    return ggml().dequantize(kind, made, source.row_length)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", [GGMLType.F32, GGMLType.BF16, GGMLType.Q8_0])
def test_nan_and_infinity_are_refused_by_tensor_row_and_column(
    dtype: DType, value: float, kind: GGMLType
) -> None:
    if dtype is DType.F8_E4M3 and not np.isnan(value):
        pytest.skip("E4M3 has no infinity")
    source = poisoned(dtype, value, 5, 7, (8, 32))
    shown = "nan" if np.isnan(value) else "-inf" if dtype in INFINITY else str(value)
    with pytest.raises(CheckpointError, match=rf"^blk.0.ffn_up.weight holds {shown} in row 5, column 7;"):
        quantize_rows(named(source), kind, 0, 8, None)
    # Rows that are sound are not held liable.
    assert len(quantize_rows(named(source), kind, 0, 5, None)) == 5


def test_the_row_is_counted_from_the_tensors_beginning() -> None:
    source = poisoned(DType.F32, float("nan"), 700, 3, (1000, 32))
    with pytest.raises(CheckpointError, match="in row 700, column 3;"):
        list(
            quantize_tensors(
                (named(source),), {"blk.0.ffn_up.weight": GGMLType.Q8_0}, threads=2, chunk_weights=640
            )
        )


def test_float64_beyond_float32_is_refused() -> None:
    with pytest.raises(CheckpointError, match="holds inf in row 1, column 0;"):
        back(tensor([[1.0, 2.0], [1e39, 0.0]], DType.F64), GGMLType.F32)


@pytest.mark.parametrize("dtype", FLOATS)
def test_float32_keeps_every_value_of_every_type(dtype: DType) -> None:
    """Subnormals and negative zeros included; 64-bit floats are rounded to the nearest."""
    if dtype.itemsize <= 2:
        codes = np.arange(1 << (8 * dtype.itemsize)).astype(dtype.numpy if not dtype.is_half else "<u2")
        raw = codes.view(dtype.numpy)
        raw = raw[np.isfinite(to_float32(raw, dtype))][None]
    else:
        raw = np.array(
            [[1e-45, -1e-45, 1.1754942e-38, 5e-324, -0.0, 0.0, 3.4028235e38, 0.1]], dtype=dtype.numpy
        )
    wanted = to_float32(raw, dtype)
    got = back(ArrayTensor(raw, dtype), GGMLType.F32)
    assert got.tobytes() == wanted.tobytes()


@pytest.mark.parametrize(("kind", "dtype"), [(GGMLType.F16, DType.F16), (GGMLType.BF16, DType.BF16), (GGMLType.F32, DType.F32)])  # fmt: skip
def test_a_type_is_passed_through_bit_for_bit(kind: GGMLType, dtype: DType) -> None:
    raw = np.array([[1, 0x8001, 0, 0x8000, 0x03FF, 0x3C01]], dtype="<u2").view(
        "<f2" if kind is GGMLType.F16 else "<u2"
    )
    if dtype is DType.F32:
        raw = np.array([[1e-45, -0.0, 1e-39]], dtype=np.float32)
    assert quantize_rows(named(ArrayTensor(raw, dtype)), kind, 0, 1, None).tobytes() == raw.tobytes()


def test_subnormals_round_to_the_nearest_half() -> None:
    """F16's least value is 2^-24; bfloat16's subnormals reach down to 2^-133."""
    tiny = [2.0**-24, 2.0**-25, 2.0**-25 * 1.01, -(2.0**-26), 2.0**-14 * 0.5]
    assert back(tensor([tiny]), GGMLType.F16)[0].tolist() == [2.0**-24, 0.0, 2.0**-24, -0.0, 2.0**-15]
    assert back(tensor([[2.0**-133, 2.0**-126]]), GGMLType.BF16)[0].tolist() == [2.0**-133, 2.0**-126]


@pytest.mark.parametrize("kind", QUANTIZED)
def test_rows_of_zeros_stay_zero(kind: GGMLType) -> None:
    zeros = np.zeros((3, WIDTH))
    zeros[1] = -0.0
    assert not back(tensor(zeros), kind, weights_for(kind)).any()


@pytest.mark.parametrize("kind", QUANTIZED)
def test_a_zero_row_among_others_stays_zero(kind: GGMLType) -> None:
    values = np.random.default_rng(0).standard_normal((3, WIDTH))
    values[1] = 0
    got = back(tensor(values), kind, weights_for(kind))
    assert not got[1].any()
    assert got[0].any()
    assert got[2].any()


@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize("size", [1e-45, 1e-40, 1e-30])
def test_rows_too_small_for_a_scale_become_zero_or_stay_small(kind: GGMLType, size: float) -> None:
    """Scales are 16 bits wide: what is below them is lost, but never turned into something large."""
    got = back(tensor(np.full((2, WIDTH), size)), kind, weights_for(kind))
    assert np.isfinite(got).all()
    assert np.abs(got).max() <= 1e-6


@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize("value", [1.0, -0.3, 100.0])
def test_constant_rows_keep_their_size(kind: GGMLType, value: float) -> None:
    got = back(tensor(np.full((2, WIDTH), value)), kind, weights_for(kind))
    assert np.isfinite(got).all()
    # One bit or a ternary digit per weight is what the coarsest types have.
    assert np.sign(got.mean()) == np.sign(value)
    assert 0.3 < abs(got.mean() / value) < 2


@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize("value", [1e9, 3e38])
def test_outliers_that_no_scale_holds_are_refused_by_row(kind: GGMLType, value: float) -> None:
    """llama-quantize finds most of them afterwards; on some ggml ends the process."""
    values = np.full((4, WIDTH), 0.02)
    values[2, 37] = -value
    if kind is GGMLType.MXFP4:
        # Its scales are powers of two as wide as float32's own.
        assert back(tensor(values), kind)[2, 37] == pytest.approx(-value, rel=0.5)
        return
    with pytest.raises(QuantizationError, match=rf"^blk.0.ffn_up.weight holds .* in row 2, .* {kind.name} "):
        back(tensor(values), kind, weights_for(kind))


@pytest.mark.parametrize("kind", [GGMLType.Q8_0, GGMLType.Q4_K, GGMLType.IQ4_NL])
def test_a_scale_that_overflows_is_noticed(kind: GGMLType) -> None:
    """Below the general limit too: the largest 16-bit scale is 65,504."""
    values = np.full((3, WIDTH), 0.02)
    values[1, 3] = 5e8
    with pytest.raises(QuantizationError, match="in row 1, for which"):
        back(tensor(values), kind)


@pytest.mark.parametrize("value", [65520.0, -1e6, 3e38])
def test_what_f16_cannot_hold_is_refused(value: float) -> None:
    for dtype in (DType.F32, DType.BF16):
        with pytest.raises(QuantizationError, match="row 1, beyond what F16 can store"):
            back(tensor([[1.0, 2.0], [0.0, value]], dtype), GGMLType.F16)
    assert back(tensor([[65519.0]]), GGMLType.F16)[0, 0] == 65504.0


@pytest.mark.parametrize("kind", [k for k in QUANTIZED if str(k.id).startswith("IQ")])
def test_importance_without_bounds_is_refused(kind: GGMLType) -> None:
    """Sums beyond float32 make some of ggml's quantizers end the process."""
    source = tensor(np.random.default_rng(1).standard_normal((2, WIDTH)))
    with pytest.raises(QuantizationError, match=r"importance up to 3e\+38"):
        back(source, kind, ONES * np.float32(3e38))
    assert np.isfinite(back(source, kind, ONES * np.float32(1e20))).all()


@pytest.mark.parametrize("shape", [(0, 256), (4, 0), (0, 0), (0, 4, 256), (2, 0, 256)])
@pytest.mark.parametrize("kind", [*PLAIN, GGMLType.Q8_0, GGMLType.Q4_K])
def test_empty_tensors_take_no_bytes(shape: tuple[int, ...], kind: GGMLType) -> None:
    source = ArrayTensor(np.zeros(shape, dtype=np.float16))
    assert named(source).bytes_as(kind) == 0
    chunks = list(quantize_tensors((named(source),), {"blk.0.ffn_up.weight": kind}, threads=1))
    assert sum(chunk.data.nbytes for chunk in chunks) == 0


@pytest.mark.parametrize("dtype", FLOATS)
def test_scalars_and_vectors_are_one_row(dtype: DType) -> None:
    assert back(tensor(1.5, dtype), GGMLType.F32).tolist() == [[1.5]]
    assert back(tensor([1.5, -2.0, 0.25], dtype), GGMLType.F32).tolist() == [[1.5, -2.0, 0.25]]


@pytest.mark.parametrize("kind", [*PLAIN, GGMLType.Q8_0, GGMLType.Q4_K])
def test_a_row_of_a_million_and_a_million_rows(kind: GGMLType) -> None:
    """A row longer than a chunk is one job; many short ones share jobs. The bytes are those of single rows."""
    rng = np.random.default_rng(2)
    long = ArrayTensor(rng.standard_normal((2, 1_000_192), dtype=np.float32))
    jobs = list(quantize_tensors((named(long),), {"blk.0.ffn_up.weight": kind}, threads=2))
    assert len(jobs) == 2
    alone = [quantize_rows(named(long), kind, i, i + 1, None).tobytes() for i in range(2)]
    assert b"".join(job.data.tobytes() for job in jobs) == b"".join(alone)
    if not kind.is_quantized:
        tall = ArrayTensor(rng.standard_normal((1_000_000, 1), dtype=np.float32))
        made = [
            job.data for job in quantize_tensors((named(tall),), {"blk.0.ffn_up.weight": kind}, threads=2)
        ]
        assert np.concatenate(made).tobytes() == ggml().quantize(kind, tall.rows(0, 1_000_000)).tobytes()
