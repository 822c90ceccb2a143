"""Is a GGUF file what it should be? Structure, numbers, and distance from its source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ewq_gguf.checkpoint.gguf_file import GGUFEntry, GGUFFile, GGUFRows
from ewq_gguf.checkpoint.mapping import MappedFiles
from ewq_gguf.errors import CheckpointError, QuantizationError
from ewq_gguf.ggml import GGMLType, ggml
from ewq_gguf.model import Model
from ewq_gguf.pipeline.gguf_source import byte_rows, open_gguf
from ewq_gguf.pipeline.quantize import CHUNK_WEIGHTS

__all__ = ["TensorCheck", "byte_rows", "open_gguf", "verify"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TensorCheck:
    """A tensor that was read back.

    Attributes:
        relative_error: |W_q - W|^2 / |W|^2 over the tensor, or None without a source.
        worst_row, worst_row_error: the row with the largest relative error.
    """

    name: str
    type: GGMLType
    nbytes: int
    relative_error: float | None
    worst_row: int | None
    worst_row_error: float | None


def verify(path: Path, model: Model | None = None, *, progress: Progress | None = None) -> list[TensorCheck]:
    """Read every block of a GGUF file: no NaN or infinity, and with a model, how far the weights moved.

    Args:
        model: the source it should have been made from.
        progress: called with (bytes done, bytes in all).

    Raises:
        CheckpointError: damaged structure, or tensors that do not match the source.
        QuantizationError: a block holds NaN or infinity; the message names tensor and row.
    """
    file = open_gguf(path)
    if model is not None:
        _match(file, model)
    files = MappedFiles()
    total = sum(e.end - e.begin for e in file.entries)
    done, found = 0, []
    for entry in file.entries:
        found.append(_check(file, entry, files, model))
        done += entry.end - entry.begin
        if progress is not None:
            progress(done, total)
    return found


def _match(file: GGUFFile, model: Model) -> None:
    ours = {e.name: e for e in file.entries}
    theirs = {t.name: t for t in model.tensors}
    for name in ours.keys() ^ theirs.keys():
        where = "the source" if name in ours else str(file.path)
        raise CheckpointError(f"tensor {name!r} is missing from {where}; was the file made from this model?")
    for name, entry in ours.items():
        if entry.shape != theirs[name].shape:
            raise CheckpointError(
                f"{file.path}: tensor {name!r} has shape {list(entry.shape)}, "
                f"the source {list(theirs[name].shape)}; was the file made from this model?"
            )


def _ranges(rows: GGUFRows, row_length: int) -> Iterator[tuple[int, int]]:
    step = max(1, CHUNK_WEIGHTS // max(1, row_length))
    for start in range(0, rows.n_rows, step):
        yield start, min(start + step, rows.n_rows)


def _check(file: GGUFFile, entry: GGUFEntry, files: MappedFiles, model: Model | None) -> TensorCheck:
    kind = GGMLType(entry.type)
    nbytes = entry.end - entry.begin
    if kind.is_integer or kind is GGMLType.F64 or not nbytes:
        return TensorCheck(entry.name, kind, nbytes, None, None, None)
    rows = byte_rows(file, entry, files)
    row_length = entry.shape[-1] if entry.shape else 1
    source = None if model is None else next(t.source for t in model.tensors if t.name == entry.name)
    errors, norms = [], []
    for start, stop in _ranges(rows, row_length):
        data = np.asarray(rows.raw_rows(start, stop), dtype=np.uint8)
        values = ggml().dequantize(kind, data, row_length)
        bad = ~np.isfinite(values)
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise QuantizationError(
                f"{file.path}: tensor {entry.name!r} holds {values[row, column]} in row {start + row}, "
                f"column {column}; convert it again"
            )
        if source is not None:
            wanted = source.rows(start, stop).astype(np.float64)
            errors.append(((values - wanted) ** 2).sum(axis=1))
            norms.append((wanted**2).sum(axis=1))
    if source is None:
        return TensorCheck(entry.name, kind, nbytes, None, None, None)
    error, norm = np.concatenate(errors), np.concatenate(norms)
    relative = np.divide(error, norm, out=np.zeros_like(error), where=norm > 0)
    worst = int(relative.argmax())
    whole = float(error.sum() / norm.sum()) if norm.sum() > 0 else float(error.sum() > 0)
    return TensorCheck(entry.name, kind, nbytes, whole, worst, float(relative[worst]))
