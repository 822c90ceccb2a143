"""Is a GGUF file what it should be? Structure, numbers, checksums, and distance from its source."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ewq_gguf.checkpoint.gguf_file import GGUFEntry, GGUFFile
from ewq_gguf.checkpoint.reading import SourceFiles
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.errors import CheckpointError, QuantizationError
from ewq_gguf.ggml import GGMLType, ggml
from ewq_gguf.model import Model
from ewq_gguf.pipeline.convert import CHECKSUM_PREFIX, default_threads
from ewq_gguf.pipeline.gguf_source import byte_rows, open_gguf, open_parts
from ewq_gguf.pipeline.plan_file import is_as_made
from ewq_gguf.pipeline.quantize import CHUNK_WEIGHTS

__all__ = ["TensorCheck", "byte_rows", "open_gguf", "verify"]

Progress = Callable[[int, int], None]
F64Array = npt.NDArray[np.float64]
# Worst rows that are kept per tensor.
_WORST = 10
_PIECE = 8 << 20


@dataclass(frozen=True)
class TensorCheck:
    """A tensor that was read back.

    Attributes:
        relative_error: |W_q - W|^2 / |W|^2 over the tensor, or None without a source.
        worst_row, worst_row_error: the row with the largest relative error.
        worst_rows: up to ten rows and their relative errors, the worst first; rows that did not change are left out.
        checksum: whether the stored sha256 was there, and right.
    """

    name: str
    type: GGMLType
    nbytes: int
    relative_error: float | None = None
    worst_row: int | None = None
    worst_row_error: float | None = None
    worst_rows: tuple[tuple[int, float], ...] = ()
    checksum: bool = False


@dataclass(frozen=True)
class _Rows:
    """What a run of rows yielded: squared error and squared norm of each row, float64; None without a source."""

    errors: F64Array | None
    norms: F64Array | None


def verify(
    path: Path, model: Model | None = None, *, threads: int | None = None, progress: Progress | None = None
) -> list[TensorCheck]:
    """Read every block of a GGUF file: no NaN or infinity, and with a model, how far the weights moved.

    Args:
        path: of a split model, any part.
        model: the source it should have been made from.
        progress: called with (bytes done, bytes in all).

    Raises:
        CheckpointError: damaged structure, a checksum that is not that of the bytes, or tensors that do not
            match the source.
        QuantizationError: a block holds NaN or infinity; the message names tensor and row.
    """
    parts = open_parts(Path(path))
    entries = [(part, entry) for part in parts for entry in part.entries]
    if model is not None:
        _match(parts, model)
    sources: Mapping[str, Tensor] = {} if model is None else {t.name: t.source for t in model.tensors}
    sums = _stored_sums(parts)
    files = SourceFiles()
    total = sum(e.end - e.begin for _, e in entries)
    done, found = 0, []
    threads = max(1, threads or default_threads())
    with ThreadPoolExecutor(threads) as pool:
        for file, entry in entries:
            stored = sums.get(entry.name)
            digest = None if stored is None else pool.submit(_sha256, file, entry, files)
            found.append(
                _check(file, entry, files, sources.get(entry.name), pool, threads, digest is not None)
            )
            if digest is not None and digest.result() != stored:
                raise CheckpointError(
                    f"{file.path}: the bytes of tensor {entry.name!r} do not have the checksum that the file gives "
                    "for them; download or convert it again"
                )
            done += entry.end - entry.begin
            if progress is not None:
                progress(done, total)
    return found


def _stored_sums(parts: tuple[GGUFFile, ...]) -> dict[str, str]:
    """Checksums by tensor; none where another program rewrote the file and carried the keys along."""
    sums = {
        key.removeprefix(CHECKSUM_PREFIX): str(value.value)
        for key, value in parts[0].metadata.items()
        if key.startswith(CHECKSUM_PREFIX)
    }
    return sums if sums and is_as_made(parts) else {}


def _sha256(file: GGUFFile, entry: GGUFEntry, files: SourceFiles) -> str:
    state = hashlib.sha256()
    for begin in range(entry.begin, entry.end, _PIECE):
        end = min(begin + _PIECE, entry.end)
        state.update(files.read(file.path, begin, end, file.size, file.mtime_ns).data)
    return state.hexdigest()


def _match(parts: tuple[GGUFFile, ...], model: Model) -> None:
    path = parts[0].path
    ours = {e.name: e for part in parts for e in part.entries}
    theirs = {t.name: t for t in model.tensors}
    for name in ours.keys() ^ theirs.keys():
        where = "the source" if name in ours else str(path)
        raise CheckpointError(f"tensor {name!r} is missing from {where}; was the file made from this model?")
    for name, entry in ours.items():
        # A scalar is written as a vector of one.
        if (entry.shape or (1,)) != (theirs[name].shape or (1,)):
            raise CheckpointError(
                f"{path}: tensor {name!r} has shape {list(entry.shape)}, "
                f"the source {list(theirs[name].shape)}; was the file made from this model?"
            )


def _check(
    file: GGUFFile,
    entry: GGUFEntry,
    files: SourceFiles,
    source: Tensor | None,
    pool: ThreadPoolExecutor,
    threads: int,
    checksum: bool,
) -> TensorCheck:
    kind = GGMLType(entry.type)
    nbytes = entry.end - entry.begin
    if kind.is_integer or kind is GGMLType.F64 or not nbytes:
        return TensorCheck(entry.name, kind, nbytes, checksum=checksum)
    pending: deque[Future[_Rows]] = deque()
    read: list[_Rows] = []
    for start, stop in _ranges(entry):
        pending.append(pool.submit(_read, file, entry, files, source, start, stop))
        if len(pending) > 2 * threads:
            read.append(pending.popleft().result())
    read += [job.result() for job in pending]
    errors = [r.errors for r in read if r.errors is not None]
    norms = [r.norms for r in read if r.norms is not None]
    if not errors:
        return TensorCheck(entry.name, kind, nbytes, checksum=checksum)
    error, norm = np.concatenate(errors), np.concatenate(norms)
    relative = _ratio(error, norm)
    order = np.argsort(-relative, kind="stable")[:_WORST]
    rows = tuple((int(i), float(relative[i])) for i in order)
    whole = float(_ratio(error.sum(keepdims=True), norm.sum(keepdims=True))[0])
    changed = tuple(row for row in rows if row[1] > 0)
    return TensorCheck(entry.name, kind, nbytes, whole, *rows[0], changed, checksum)


def _ratio(error: F64Array, norm: F64Array) -> F64Array:
    """error / norm, where nothing of nothing is 0 and something of nothing infinite."""
    out = np.where(error > 0, np.inf, 0.0)
    ratio: F64Array = np.divide(error, norm, out=out, where=norm > 0)
    return ratio


def _ranges(entry: GGUFEntry) -> Iterator[tuple[int, int]]:
    n_rows = int(np.prod(entry.shape[:-1], dtype=np.int64))
    step = max(1, CHUNK_WEIGHTS // max(1, entry.shape[-1] if entry.shape else 1))
    for start in range(0, n_rows, step):
        yield start, min(start + step, n_rows)


def _read(
    file: GGUFFile, entry: GGUFEntry, files: SourceFiles, source: Tensor | None, start: int, stop: int
) -> _Rows:
    kind = GGMLType(entry.type)
    row_length = entry.shape[-1] if entry.shape else 1
    data = np.asarray(byte_rows(file, entry, files).raw_rows(start, stop), dtype=np.uint8)
    values = ggml().dequantize(kind, data, row_length)
    good = np.isfinite(values)
    if not good.all():
        row, column = np.argwhere(~good)[0]
        raise QuantizationError(
            f"{file.path}: tensor {entry.name!r} holds {values[row, column]} in row {start + row}, "
            f"column {column}; convert it again"
        )
    if not ggml().validate(kind, data):
        raise QuantizationError(
            f"{file.path}: ggml finds tensor {entry.name!r} damaged in rows {start} to {stop - 1}; convert it again"
        )
    if source is None:
        return _Rows(None, None)
    wanted = source.rows(start, stop).astype(np.float64)
    return _Rows(((values - wanted) ** 2).sum(axis=1), (wanted**2).sum(axis=1))
