"""Importance matrices on disk: the GGUF container that llama-quantize reads, and the legacy .dat format.

Sources: tools/imatrix/imatrix.cpp (save_imatrix), common/imatrix-loader.cpp, tools/quantize/quantize.cpp.
A file is untrusted input: every length is checked before it is used, every value before it is kept.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np

from ewq_gguf.calibration.imatrix import Entry, F32Array, ImportanceMatrix
from ewq_gguf.checkpoint.gguf_file import read_gguf
from ewq_gguf.checkpoint.regular import regular_stat
from ewq_gguf.errors import CheckpointError, UnsupportedModelError
from ewq_gguf.ggml import GGMLType

_SUM, _COUNT = ".in_sum2", ".counts"
_DATASETS, _CHUNKS, _CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
# ggml keeps names in 64 bytes, the terminator included.
_MAX_NAME = 63
_MAX_COUNT = 2**53
_SIZES = {int(t): (t.block_size, t.block_bytes) for t in GGMLType}


def save_imatrix(matrix: ImportanceMatrix, path: Path) -> None:
    """Write `matrix` as llama-imatrix does (same tensors in the same order, same metadata).

    The file appears under its name only when it is complete.

    Raises:
        CheckpointError: there is nothing to write, a name is too long for ggml, or the disk refuses.
    """
    if not matrix.entries:
        raise CheckpointError(f"the importance matrix for {path} is empty; collect one first")
    for name in matrix.entries:
        if len((name + _SUM).encode()) > _MAX_NAME:
            raise CheckpointError(
                f"the name {name} is too long for an importance matrix file; leave the entry out"
            )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        _write(matrix, temporary)
        temporary.replace(path)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _write(matrix: ImportanceMatrix, path: Path) -> None:
    writer = gguf.GGUFWriter(path, "imatrix")
    # The package always names an architecture; llama-imatrix writes none.
    writer.kv_data[0].pop(gguf.Keys.General.ARCHITECTURE, None)
    writer.add_type("imatrix")
    writer.add_array(_DATASETS, list(matrix.datasets) or ["unknown"])
    writer.add_uint32(_CHUNKS, matrix.chunk_count)
    writer.add_uint32(_CHUNK_SIZE, matrix.chunk_size)
    for name, entry in sorted(matrix.entries.items()):
        sums = np.ascontiguousarray(entry.in_sum2, dtype=np.float32)
        counts = entry.counts.astype(np.float32)[:, None]
        # ggml drops outer dimensions of one, so a dense weight's entries are vectors in llama-imatrix's file.
        writer.add_tensor(name + _SUM, sums if len(counts) > 1 else sums[0])
        writer.add_tensor(name + _COUNT, counts if len(counts) > 1 else counts[0])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def load_imatrix(path: Path) -> ImportanceMatrix:
    """Read a GGUF or legacy importance matrix.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, or holds values that cannot be weights.
    """
    try:
        regular_stat(path)
        with path.open("rb") as file:
            magic = file.read(4)
        return _load_gguf(path) if magic == b"GGUF" else _load_legacy(path)
    except OSError as error:
        raise CheckpointError(
            f"the importance matrix {path} cannot be read: {error.strerror or error}"
        ) from None


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"the importance matrix {path} is damaged: {what}; collect or download it again")


def _load_gguf(path: Path) -> ImportanceMatrix:
    try:
        file = read_gguf(path, _SIZES)
    except (CheckpointError, UnsupportedModelError) as error:
        raise CheckpointError(f"the importance matrix cannot be read: {error}") from None
    found: dict[str, dict[str, F32Array]] = {}
    with path.open("rb") as data:
        for tensor in file.entries:
            suffix = next((end for end in (_SUM, _COUNT) if tensor.name.endswith(end)), None)
            if suffix is None:
                continue
            if tensor.type != GGMLType.F32:
                raise _damaged(path, f"{tensor.name} is not stored as F32")
            data.seek(tensor.begin)
            values = np.frombuffer(data.read(tensor.end - tensor.begin), dtype="<f4")
            found.setdefault(tensor.name.removesuffix(suffix), {})[suffix] = values
    if not found:
        raise _damaged(path, "it holds no entry")
    entries = {}
    for name, parts in sorted(found.items()):
        if len(parts) != 2:
            raise _damaged(path, f"sums and counts of {name} do not come in pairs")
        sums, counts = parts[_SUM], parts[_COUNT]
        if not counts.size or not sums.size or sums.size % counts.size:
            raise _damaged(path, f"{name} has {sums.size} sums for {counts.size} counts")
        entries[name] = _entry(path, name, sums.reshape(counts.size, -1), counts)
    datasets, chunks, chunk_size = (file.value(key) for key in (_DATASETS, _CHUNKS, _CHUNK_SIZE))
    if not isinstance(datasets, list) or not isinstance(chunks, int) or not isinstance(chunk_size, int):
        raise _damaged(
            path, f"it lacks {_DATASETS}, {_CHUNKS} or {_CHUNK_SIZE}, which llama-quantize wants too"
        )
    return ImportanceMatrix(entries, tuple(str(name) for name in datasets), chunks, chunk_size)


def _entry(path: Path, name: str, sums: F32Array, counts: F32Array) -> Entry:
    sums = np.ascontiguousarray(sums, dtype=np.float32)
    # A NaN compares false, so these tests refuse it too.
    if not (np.isfinite(sums).all() and (sums >= 0).all()):
        raise _damaged(path, f"{name} holds values that are negative or not finite")
    if not ((counts >= 0).all() and (counts < _MAX_COUNT).all()):
        raise _damaged(path, f"{name} holds impossible counts")
    return Entry(sums, np.rint(counts).astype(np.int64))


def _load_legacy(path: Path) -> ImportanceMatrix:
    """Entries of (name, calls, values already scaled by calls), then optionally chunk count and text name."""
    with path.open("rb") as file:
        return _read_legacy(path, file, os.fstat(file.fileno()).st_size)


def _read_legacy(path: Path, file: BinaryIO, file_bytes: int) -> ImportanceMatrix:
    at = 0

    def take(size: int, what: str) -> bytes:
        nonlocal at
        # Asked before it is read: the size is the file's own word.
        data = file.read(size) if 0 <= size <= file_bytes - at else b""
        if len(data) != size:
            raise _damaged(path, f"it ends within {what} (byte {at:,})")
        at += size
        return data

    def number(what: str) -> int:
        return int(struct.unpack("<i", take(4, what))[0])

    n_entries = number("the header")
    # Each entry needs 13 bytes at least: an invented count cannot make the loop long.
    if n_entries < 1 or n_entries > file_bytes // 13:
        raise CheckpointError(
            f"{path} is no importance matrix: it is neither GGUF nor of the legacy format; "
            f"make one with `ewq-gguf calibrate imatrix`"
        )
    entries: dict[str, Entry] = {}
    for index in range(n_entries):
        name = take(number(f"entry {index}"), f"the name of entry {index}").decode("utf-8", "replace")
        shown = f"entry {index} ({name!r:.80})"
        calls, n_values = number(shown), number(shown)
        if not name or name in entries or n_values < 1 or calls < 0:
            raise _damaged(path, f"entry {index} ({name!r}) is empty or occurs twice")
        values = np.frombuffer(take(4 * n_values, shown), dtype="<f4").reshape(1, -1)
        # Without calls llama-quantize takes the values as they are: dividing by one is the same.
        entries[name] = _entry(path, name, values, np.array([max(calls, 1)], dtype=np.float32))
    chunks = 0
    datasets: tuple[str, ...] = ()
    if at < file_bytes:
        chunks = max(0, number("the number of chunks"))
        if at < file_bytes:
            text = take(number("the text's name"), "the text's name").decode("utf-8", "replace")
            datasets = (text,) if text else ()
    return ImportanceMatrix(dict(sorted(entries.items())), datasets, chunks, 0)
