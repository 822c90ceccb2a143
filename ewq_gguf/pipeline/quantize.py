"""Tensors in, bytes out in file order: work is cut by rows, done by threads, and bounded in memory.

Each job reads a run of rows, checks them, and quantizes them in ggml; the caller takes results in order.
A fixed number of jobs exists at a time, so memory is a constant times the chunk size, whatever the model.
"""

from __future__ import annotations

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
# The first magnitude that rounds to infinity in F16.
_F16_LIMIT = 65520


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
    _check_finite(tensor.name, raw, source.dtype, start)
    if _SAME.get(source.dtype) is kind:
        return np.ascontiguousarray(raw).view(np.uint8)
    rows = _widened(raw, source.dtype)
    if kind is GGMLType.F16 and source.dtype is not DType.F16 and rows.size:
        _check_f16_range(tensor.name, rows, start)
    return ggml().quantize(kind, rows, weights)


def _widened(raw: AnyArray, dtype: DType) -> F32Array:
    """Rows as float32; half-precision ones through ggml, which is exact too and needs no new memory."""
    if dtype.is_half and raw.size:
        n_rows, row_length = raw.shape
        out = _scratch.rows(n_rows, row_length)
        return ggml().dequantize(_SAME[dtype], np.ascontiguousarray(raw).view(np.uint8), row_length, out)
    return to_float32(raw, dtype)


def _check_f16_range(name: str, rows: F32Array, start: int) -> None:
    if max(rows.max(), -rows.min()) < _F16_LIMIT:
        return
    row = int(np.argmax(np.abs(rows).max(axis=1) >= _F16_LIMIT))
    raise QuantizationError(
        f"{name} holds {np.abs(rows).max():g} in row {start + row}, beyond what F16 can store; use --type bf16"
    )


def _check_finite(name: str, rows: AnyArray, dtype: DType, start: int) -> None:
    if not rows.size:
        return
    if dtype in _EXPONENT:
        mask = _EXPONENT[dtype]
        if (rows.view("<u2") & mask).max() < mask:
            return
        rows = to_float32(rows, dtype)
    elif dtype is not DType.F32:
        # F64 beyond float32 becomes infinite here, and is refused as such.
        with np.errstate(over="ignore"):
            rows = to_float32(rows, dtype)
    good = np.isfinite(rows)
    if good.all():
        return
    row, column = np.argwhere(~good)[0]
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
