"""Tensors in, bytes out in file order: work is cut by rows, done by threads, and bounded in memory.

Each job reads a run of rows, checks them, and quantizes them in ggml; the caller takes results in order.
A fixed number of jobs exists at a time, so memory is a constant times the chunk size, whatever the model.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ewq_gguf.checkpoint.tensor import AnyArray, DType, F32Array, to_float32
from ewq_gguf.errors import CheckpointError, QuantizationError
from ewq_gguf.ggml import GGMLType, ggml
from ewq_gguf.model import EncodedTensor, ModelTensor

ByteArray = npt.NDArray[np.uint8]
# Column weights of each tensor: float32 (n_matrices, row_length), one row per expert (1 when dense).
ImportanceWeights = Mapping[str, npt.NDArray[np.float32]]

# Weights per job: large enough that Python's share vanishes, small enough for caches and bounded memory.
CHUNK_WEIGHTS = 1 << 20
_SAME = {DType.F32: GGMLType.F32, DType.F16: GGMLType.F16, DType.BF16: GGMLType.BF16}
_EXPONENT = {DType.F16: np.uint16(0x7C00), DType.BF16: np.uint16(0x7F80)}
# From here on every type but MXFP4 gets infinite scales, and some of ggml's quantizers end the process.
_SCALE_LIMIT = 1e9
_WEIGHED_LIMIT = 1e37
# Up to here no type's scales come near the end of 16 bits, as long as no importance pulls them.
_SAFE = 6e4
_LOOKED_AT = 1 << 17
# The first magnitude that a type cannot hold: F16 rounds it to infinity, NVFP4 has no scale above 448 for its 6.
_LIMITS = {GGMLType.F16: 65520.0, GGMLType.NVFP4: 2800.0, GGMLType.MXFP4: math.inf}


@dataclass(frozen=True)
class Chunk:
    """Rows start..stop of tensor `index` in its new type; `data` is flat uint8."""

    index: int
    start: int
    stop: int
    data: ByteArray


class _Scratch(threading.local):
    """A float32 buffer per thread: fresh memory for every job would be paid for in page faults."""

    def __init__(self) -> None:
        self._buffer: F32Array = np.empty(0, dtype=np.float32)

    def rows(self, n_rows: int, row_length: int) -> F32Array:
        """Uninitialised rows, valid until the thread's next call."""
        if self._buffer.size < n_rows * row_length:
            self._buffer = np.empty(n_rows * row_length, dtype=np.float32)
        return self._buffer[: n_rows * row_length].reshape(n_rows, row_length)


_scratch = _Scratch()


def quantize_rows(
    tensor: ModelTensor, kind: GGMLType, start: int, stop: int, weights: npt.NDArray[np.float32] | None
) -> ByteArray:
    """Rows start..stop of a tensor as bytes of type `kind`, uint8 (stop - start, row bytes).

    Rows already stored in that type are passed through bit for bit.

    Args:
        weights: importance per column for these rows, float32 (row_length,), or None.

    Raises:
        CheckpointError: a weight is NaN or infinite.
        QuantizationError: ggml cannot make the type from these rows.
    """
    source = tensor.source
    if isinstance(source, EncodedTensor) and source.encoding is kind:
        data = np.ascontiguousarray(source.encoded_rows(start, stop))
        _check_encoded(tensor, kind, data, start)
        return data
    raw = source.raw_rows(start, stop)
    most = _check_finite(tensor.name, raw, source.dtype, start)
    if _SAME.get(source.dtype) is kind:
        return np.ascontiguousarray(raw).view(np.uint8)
    rows = _widened(raw, source.dtype)
    if most >= _LIMITS.get(kind, _SCALE_LIMIT if kind.is_quantized else math.inf):
        raise _too_large(tensor.name, kind, rows, start)
    if weights is not None and rows.size:
        _check_weighed(tensor.name, float(weights.max()), most, rows, start)
    made = ggml().quantize(kind, rows, weights)
    if kind.is_quantized and rows.size and (most > _SAFE or weights is not None or kind is GGMLType.MXFP4):
        _check_made(tensor.name, kind, made, rows, start)
    return made


def _too_large(name: str, kind: GGMLType, rows: F32Array, start: int) -> QuantizationError:
    sizes = np.abs(rows).max(axis=1)
    row = int(np.argmax(sizes >= _LIMITS.get(kind, _SCALE_LIMIT)))
    return QuantizationError(
        f"{name} holds {sizes[row]:g} in row {start + row}, beyond what {kind.name} can store; "
        f"give it another type, as in --tensor-type {name}=bf16"
    )


def _check_weighed(name: str, importance: float, most: float, rows: F32Array, start: int) -> None:
    """ggml adds up importance times powers of the weights in float32, and some quantizers end the process beyond it."""
    if importance * max(most, 1.0) ** 3 * rows.shape[1] >= _WEIGHED_LIMIT:
        raise QuantizationError(
            f"{name} has importance up to {importance:.3g} for weights up to {most:.3g} from row {start} on, more than "
            "ggml can add up; collect the importance matrix again"
        )


def _check_made(name: str, kind: GGMLType, made: ByteArray, rows: F32Array, start: int) -> None:
    """Finite weights can still make an infinite scale, which is kept in 8 or 16 bits; llama-quantize refuses that too.

    ggml's own check tells the terminal about every such block, so the values are looked at instead.
    """
    step = max(1, _LOOKED_AT // max(1, rows.shape[1]))
    for first in range(0, len(made), step):
        good = np.isfinite(ggml().dequantize(kind, made[first : first + step], rows.shape[1])).all(axis=1)
        if not good.all():
            row = first + int(np.argmin(good))
            raise QuantizationError(
                f"{name} holds {np.abs(rows[row]).max():g} in row {start + row}, for which {kind.name} has no finite "
                f"scales; give it another type, as in --tensor-type {name}=bf16"
            )


def _widened(raw: AnyArray, dtype: DType) -> F32Array:
    """Rows as float32; half-precision ones through ggml, which is exact too and needs no new memory."""
    if dtype.is_half and raw.size:
        n_rows, row_length = raw.shape
        out = _scratch.rows(n_rows, row_length)
        return ggml().dequantize(_SAME[dtype], np.ascontiguousarray(raw).view(np.uint8), row_length, out)
    return to_float32(raw, dtype)


def _check_finite(name: str, rows: AnyArray, dtype: DType, start: int) -> float:
    """The largest magnitude in some rows.

    Raises:
        CheckpointError: a weight is NaN or infinite.
    """
    if not rows.size:
        return 0.0
    if dtype in _EXPONENT:
        # Without their sign, the codes are in the order of the values, with infinity and NaN at the end.
        top = (rows.view("<u2") & np.uint16(0x7FFF)).max()
        if top < _EXPONENT[dtype]:
            return float(to_float32(np.array([top], dtype="<u2").view(dtype.numpy), dtype)[0])
        rows = to_float32(rows, dtype)
    elif dtype is not DType.F32:
        # F64 beyond float32 becomes infinite here, and is refused as such.
        with np.errstate(over="ignore"):
            rows = to_float32(rows, dtype)
    most = float(max(rows.max(), -rows.min()))
    if math.isfinite(most):
        return most
    row, column = np.argwhere(~np.isfinite(rows))[0]
    raise CheckpointError(
        f"{name} holds {rows[row, column]} in row {start + row}, column {column}; "
        "a checkpoint with such weights cannot be used: download it again"
    )


def _check_encoded(tensor: ModelTensor, kind: GGMLType, data: ByteArray, start: int) -> None:
    """Rows that are copied as they are must be sound too: llama-quantize checks them, and so does a loader."""
    if kind.is_integer or kind is GGMLType.F64 or not data.size:
        return
    dtype = next((d for d, same in _SAME.items() if same is kind), None)
    if dtype is not None:
        _check_finite(tensor.name, data.view(dtype.numpy), dtype, start)
        return
    out = _scratch.rows(len(data), tensor.row_length)
    _check_finite(tensor.name, ggml().dequantize(kind, data, tensor.row_length, out), DType.F32, start)


def chunk_rows(tensor: ModelTensor, chunk_weights: int = CHUNK_WEIGHTS) -> list[tuple[int, int]]:
    """Row ranges of a tensor's jobs; none crosses from one matrix of a stack into the next."""
    per_matrix = tensor.shape[-2] if len(tensor.shape) >= 2 else 1
    step = max(1, chunk_weights // max(1, tensor.row_length))
    return [
        (first, min(first + step, base + per_matrix))
        for base in range(0, tensor.n_rows, max(1, per_matrix))
        for first in range(base, base + per_matrix, step)
    ]


def quantize_tensors(
    tensors: tuple[ModelTensor, ...],
    types: Mapping[str, GGMLType],
    *,
    threads: int,
    imatrix: ImportanceWeights | None = None,
    chunk_weights: int = CHUNK_WEIGHTS,
    in_flight: int | None = None,
    skip: int = 0,
) -> Iterator[Chunk]:
    """Quantize tensors in order; chunks come out in file order, the same bytes for any thread count.

    Args:
        chunk_weights: weights per job, about.
        in_flight: jobs that may exist at a time; 2 * threads + 2 by default.
        skip: tensors at the beginning that need no work (already written by an earlier run).

    Raises:
        CheckpointError, QuantizationError: see `quantize_rows`.
    """
    ggml()  # loaded once, before any thread needs it
    limit = 2 * threads + 2 if in_flight is None else max(1, in_flight)
    pending: deque[tuple[int, int, int, Future[ByteArray]]] = deque()
    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="quantize") as pool:
        try:
            for index in range(skip, len(tensors)):
                tensor = tensors[index]
                columns = None if imatrix is None else imatrix.get(tensor.name)
                per_matrix = tensor.shape[-2] if len(tensor.shape) >= 2 else 1
                for start, stop in chunk_rows(tensor, chunk_weights):
                    if columns is None:
                        weights = None
                    else:
                        weights = columns[start // per_matrix if len(columns) > 1 else 0]
                    kind = types[tensor.name]
                    job = pool.submit(quantize_rows, tensor, kind, start, stop, weights)
                    pending.append((index, start, stop, job))
                    while len(pending) >= limit:
                        yield _take(pending)
            while pending:
                yield _take(pending)
        finally:
            for *_, job in pending:
                job.cancel()


def _take(pending: deque[tuple[int, int, int, Future[ByteArray]]]) -> Chunk:
    index, start, stop, job = pending.popleft()
    return Chunk(index, start, stop, job.result().reshape(-1))
