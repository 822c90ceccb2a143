"""Tensors in, bytes out in file order: work is cut by rows, done by threads, and bounded in memory.

Each job reads a run of rows, checks them, and quantizes them in ggml; the caller takes results in order.
At most `2 * threads` jobs exist at a time, so memory is a constant times the chunk size, whatever the model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ewq_gguf.checkpoint.tensor import AnyArray, DType, to_float32
from ewq_gguf.errors import CheckpointError, QuantizationError
from ewq_gguf.ggml import GGMLType, ggml
from ewq_gguf.model import EncodedTensor, ModelTensor

ByteArray = npt.NDArray[np.uint8]
# Column weights of each tensor: float32 (n_matrices, row_length), one row per expert (1 when dense).
ImportanceWeights = Mapping[str, npt.NDArray[np.float32]]

# Weights per job: large enough that Python's share vanishes, small enough for caches and bounded memory.
CHUNK_WEIGHTS = 1 << 20
_SAME = {DType.F32: GGMLType.F32, DType.F16: GGMLType.F16, DType.BF16: GGMLType.BF16}
_EXPONENT = {DType.F16: 0x7C00, DType.BF16: 0x7F80}


@dataclass(frozen=True)
class Chunk:
    """Rows start..stop of tensor `index` in its new type; `data` is flat uint8."""

    index: int
    start: int
    stop: int
    data: ByteArray


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
        return source.encoded_rows(start, stop)
    if _SAME.get(source.dtype) is kind:
        raw = source.raw_rows(start, stop)
        _check_finite(tensor.name, raw, source.dtype, start)
        return np.ascontiguousarray(raw).view(np.uint8)
    rows = source.rows(start, stop)
    _check_finite(tensor.name, rows, DType.F32, start)
    if kind is GGMLType.F16 and (np.abs(rows) >= 65520).any():
        row = start + int(np.argmax(np.abs(rows).max(axis=1) >= 65520))
        raise QuantizationError(
            f"{tensor.name} holds {np.abs(rows).max():g} in row {row}, beyond what F16 can store; use --type bf16"
        )
    return ggml().quantize(kind, rows, weights)


def _check_finite(name: str, rows: AnyArray, dtype: DType, start: int) -> None:
    if dtype in _EXPONENT:
        mask = np.uint16(_EXPONENT[dtype])
        bad = (rows.view("<u2") & mask) == mask
    else:
        bad = ~np.isfinite(rows)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        value = to_float32(rows[row : row + 1, column : column + 1], dtype)[0, 0]
        raise CheckpointError(
            f"{name} holds {value} in row {start + row}, column {column}; "
            "a checkpoint with such weights cannot be used: download it again"
        )


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
    skip: int = 0,
) -> Iterator[Chunk]:
    """Quantize tensors in order; chunks come out in file order, the same bytes for any thread count.

    Args:
        skip: tensors at the beginning that need no work (already written by an earlier run).

    Raises:
        CheckpointError, QuantizationError: see `quantize_rows`.
    """
    ggml()  # loaded once, before any thread needs it
    pending: deque[tuple[int, int, int, Future[ByteArray]]] = deque()
    with ThreadPoolExecutor(max(1, threads)) as pool:
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
                    while len(pending) >= 2 * threads:
                        yield _take(pending)
            while pending:
                yield _take(pending)
        finally:
            for *_, job in pending:
                job.cancel()


def _take(pending: deque[tuple[int, int, int, Future[ByteArray]]]) -> Chunk:
    index, start, stop, job = pending.popleft()
    return Chunk(index, start, stop, job.result().reshape(-1))
