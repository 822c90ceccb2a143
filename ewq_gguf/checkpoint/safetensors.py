"""safetensors files: header parsing with every check that an untrusted file needs, and lazy tensors.

Format: 8 bytes little-endian header length, that many bytes of JSON, then the data buffer. Each entry
gives dtype, shape and [begin, end) offsets into the buffer; the entries tile the buffer exactly.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ewq_gguf.checkpoint.json_file import parse_json
from ewq_gguf.checkpoint.reading import Scratch, SourceFiles
from ewq_gguf.checkpoint.regular import regular_stat
from ewq_gguf.checkpoint.tensor import AnyArray, DType, Tensor
from ewq_gguf.errors import CheckpointError, UnsupportedModelError

# The limit of the reference implementation.
MAX_HEADER_BYTES = 100_000_000
_DTYPES = {dtype.value: dtype for dtype in DType}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a header; `begin` and `end` are byte offsets from the start of the file."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Shard:
    """A safetensors file whose header was read and found consistent; entries sorted by name."""

    path: Path
    size: int
    mtime_ns: int
    entries: tuple[TensorEntry, ...]
    metadata: dict[str, str]


class FileTensor(Tensor):
    """A tensor inside a shard, read by position."""

    def __init__(self, shard: Shard, entry: TensorEntry, files: SourceFiles) -> None:
        self.shape = entry.shape
        self.dtype = entry.dtype
        self._shard = shard
        self._entry = entry
        self._files = files

    def raw_rows(self, start: int, stop: int) -> AnyArray:
        return self._read(start, stop, None)

    def borrow_rows(self, start: int, stop: int, scratch: Scratch) -> AnyArray:
        return self._read(start, stop, scratch)

    def _read(self, start: int, stop: int, scratch: Scratch | None) -> AnyArray:
        row_bytes = self.row_length * self.dtype.itemsize
        begin = self._entry.begin + start * row_bytes
        shard = self._shard
        data = self._files.read(
            shard.path, begin, begin + (stop - start) * row_bytes, shard.size, shard.mtime_ns, scratch
        )
        return data.view(self.dtype.numpy).reshape(stop - start, self.row_length)


def read_shard(path: Path) -> Shard:
    """Read and check the header of a safetensors file; no tensor data is touched.

    Raises:
        CheckpointError: the file is truncated or its header is inconsistent.
        UnsupportedModelError: a tensor has a dtype this package does not read.
    """
    try:
        stat = regular_stat(path)
        with path.open("rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise CheckpointError(
                    f"{path} is {stat.st_size} bytes long, too short for a safetensors file; download it again"
                )
            (length,) = struct.unpack("<Q", prefix)
            if length > MAX_HEADER_BYTES:
                raise CheckpointError(
                    f"{path} claims a header of {length:,} bytes (limit {MAX_HEADER_BYTES:,}); "
                    "it is damaged or not a safetensors file"
                )
            if 8 + length > stat.st_size:
                raise CheckpointError(
                    f"{path} is truncated: its header needs {8 + length:,} bytes and the file has "
                    f"{stat.st_size:,}; download it again"
                )
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    header = _parse_header(path, text)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ is not a map of strings; the header is damaged")
    data_start = 8 + length
    entries = [_parse_entry(path, name, value, data_start) for name, value in header.items()]
    _check_tiling(path, entries, data_start, stat.st_size)
    ordered = tuple(sorted(entries, key=lambda e: e.name))
    return Shard(path, stat.st_size, stat.st_mtime_ns, ordered, metadata)


def _parse_header(path: Path, text: bytes) -> dict[str, Any]:
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{path}: the header is not UTF-8 (byte {8 + error.start}); download it again"
        ) from error
    header = parse_json(decoded, f"the header of {path}")
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is a {type(header).__name__}, not an object")
    return header


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _parse_entry(path: Path, name: str, value: object, data_start: int) -> TensorEntry:
    where = f"{path}: tensor {name[:200]!r}"
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is described by a {type(value).__name__}, not an object")
    missing = [key for key in ("dtype", "shape", "data_offsets") if key not in value]
    if missing:
        raise CheckpointError(f"{where} has no {missing[0]!r} in the header; the file is damaged")
    dtype_name, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype_name, str) or dtype_name not in _DTYPES:
        raise UnsupportedModelError(
            f"{where} has dtype {dtype_name!r:.40}, which cannot be read; known are {', '.join(_DTYPES)}"
        )
    if not isinstance(shape, list) or len(shape) > 8 or not all(_is_count(n) for n in shape):
        raise CheckpointError(
            f"{where} has the shape {shape!r:.80}; expected up to 8 non-negative whole numbers"
        )
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(n) for n in offsets):
        raise CheckpointError(
            f"{where} has data_offsets {offsets!r:.80}; expected two non-negative whole numbers"
        )
    begin, end = offsets
    dtype = _DTYPES[dtype_name]
    expected = math.prod(shape) * dtype.itemsize
    if end - begin != expected:
        raise CheckpointError(
            f"{where} occupies {end - begin:,} bytes, but shape {shape} of {dtype.value} needs {expected:,}"
        )
    return TensorEntry(name, dtype, tuple(shape), data_start + begin, data_start + end)


def _check_tiling(path: Path, entries: list[TensorEntry], data_start: int, size: int) -> None:
    position, previous = data_start, "the header"
    for entry in sorted(entries, key=lambda e: (e.begin, e.end)):
        if entry.end > size:
            raise CheckpointError(
                f"{path} is truncated: tensor {entry.name!r} ends at byte {entry.end:,} and the file at {size:,}; "
                "download it again"
            )
        if entry.begin < position:
            raise CheckpointError(
                f"{path}: tensors {previous!r} and {entry.name!r} overlap at byte {entry.begin:,}"
            )
        if entry.begin > position:
            raise CheckpointError(
                f"{path}: {entry.begin - position:,} bytes before tensor {entry.name!r} belong to no tensor"
            )
        position, previous = entry.end, entry.name
    if position != size:
        raise CheckpointError(
            f"{path}: the last {size - position:,} bytes belong to no tensor; download it again"
        )
