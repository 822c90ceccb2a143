"""GGUF files as untrusted input: the header parsed and checked, tensors as rows read by position.

Format: magic, version, counts, key-value pairs, tensor table, then aligned tensor data (docs/gguf.md of
ggml). The gguf package reads trusted files; this reader bounds every count and offset by the file's size
before anything is allocated.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ewq_gguf.checkpoint.growing import MAX_ARRAY_ITEMS, GrowingPrefix
from ewq_gguf.checkpoint.reading import Scratch, SourceFiles
from ewq_gguf.checkpoint.regular import regular_stat
from ewq_gguf.checkpoint.tensor import AnyArray, DType, Tensor
from ewq_gguf.errors import CheckpointError, UnsupportedModelError

_V = gguf.GGUFValueType
SCALARS: dict[int, tuple[str, gguf.GGUFValueType]] = {
    0: ("B", _V.UINT8), 1: ("b", _V.INT8), 2: ("H", _V.UINT16), 3: ("h", _V.INT16), 4: ("I", _V.UINT32),
    5: ("i", _V.INT32), 6: ("f", _V.FLOAT32), 7: ("?", _V.BOOL), 10: ("Q", _V.UINT64), 11: ("q", _V.INT64),
    12: ("d", _V.FLOAT64),
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MAX_LENGTH = 1 << 40
_MAX_DIMENSIONS = 4
# (weights per block, bytes per block) of every type number; the ggml package holds the named table.
BlockSizes = Mapping[int, tuple[int, int]]


@dataclass(frozen=True)
class GGUFEntry:
    """One tensor of a GGUF file: type number, shape outermost first, absolute byte range."""

    name: str
    type: int
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class GGUFFile:
    """A GGUF file whose header was read and found consistent.

    Attributes:
        metadata: keys in file order with typed values; strings are str (bytes where they are not UTF-8).
        entries: tensors in file order.
        alignment: of tensor data, bytes.
    """

    path: Path
    size: int
    mtime_ns: int
    version: int
    alignment: int
    metadata: Mapping[str, gguf.GGUFValue]
    entries: tuple[GGUFEntry, ...]

    def value(self, key: str) -> Any:
        """The plain value of a key, or None."""
        found = self.metadata.get(key)
        return None if found is None else found.value


class GGUFRows(Tensor):
    """The rows of a GGUF tensor as bytes (dtype U8), or as floats where they are stored so."""

    def __init__(
        self, file: GGUFFile, entry: GGUFEntry, files: SourceFiles, dtype: DType, row_length: int
    ) -> None:
        """`row_length`: elements of `dtype` per row (bytes per row for U8)."""
        self.shape = (*entry.shape[:-1], row_length)
        self.dtype = dtype
        self._file = file
        self._entry = entry
        self._files = files

    def raw_rows(self, start: int, stop: int) -> AnyArray:
        return self._read(start, stop, None)

    def borrow_rows(self, start: int, stop: int, scratch: Scratch) -> AnyArray:
        return self._read(start, stop, scratch)

    def _read(self, start: int, stop: int, scratch: Scratch | None) -> AnyArray:
        row_bytes = self.row_length * self.dtype.itemsize
        begin = self._entry.begin + start * row_bytes
        file = self._file
        data = self._files.read(
            file.path, begin, begin + (stop - start) * row_bytes, file.size, file.mtime_ns, scratch
        )
        return data.view(self.dtype.numpy).reshape(stop - start, self.row_length)


class _Cursor:
    """Reads little-endian fields, never past the end of the file."""

    def __init__(self, path: Path, data: GrowingPrefix) -> None:
        self.path = path
        self.size = len(data)
        self.data = data.data
        self.at = 0
        self._reach = data.reach
        self._items = 0

    def fail(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path} is damaged: {what} at byte {self.at:,}; download or convert it again"
        )

    def take(self, n: int) -> int:
        start = self.at
        if n > self.size - start:
            raise CheckpointError(
                f"{self.path} is truncated: {n:,} bytes wanted at byte {start:,} of {self.size:,}; "
                "download or convert it again"
            )
        self.at = start + n
        if self.at > len(self.data):
            self._reach(self.at)
        return start

    def number(self, code: str) -> Any:
        return struct.unpack_from("<" + code, self.data, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str | bytes:
        n = self.number("Q")
        start = self.take(n)
        raw = bytes(self.data[start : start + n])
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return raw

    def name(self, what: str) -> str:
        found = self.string()
        if not isinstance(found, str):
            raise self.fail(f"a {what} that is not UTF-8")
        return found

    def value(self) -> gguf.GGUFValue:
        kind = self.number("I")
        if kind == _STRING:
            return gguf.GGUFValue(self.string(), _V.STRING)
        if kind in SCALARS:
            code, named = SCALARS[kind]
            return gguf.GGUFValue(self.number(code), named)
        if kind != _ARRAY:
            raise self.fail(f"metadata of unknown type {kind}")
        item, count = self.number("I"), self.number("Q")
        if item in SCALARS:
            code, named = SCALARS[item]
            start = self.take(self._counted(count, struct.calcsize("<" + code)))
            dtype = np.dtype("?" if code == "?" else "<" + code)
            values = np.frombuffer(bytes(self.data[start : self.at]), dtype=dtype).tolist()
            return gguf.GGUFValue(values, _V.ARRAY, named)
        if item != _STRING:
            raise self.fail(f"an array of unknown type {item}")
        # Each string takes at least its 8-byte length.
        if count > (self.size - self.at) // 8:
            raise self.fail(f"an array of {count:,} strings in a file of {self.size:,} bytes")
        self._counted(count, 8)
        return gguf.GGUFValue([self.string() for _ in range(count)], _V.ARRAY, _V.STRING)

    def _counted(self, count: int, size: int) -> int:
        """The bytes of `count` array items of `size` bytes, where they are not more than any file has."""
        if count * size <= self.size - self.at:
            self._items += count
            if self._items > MAX_ARRAY_ITEMS:
                raise self.fail(f"arrays of more than {MAX_ARRAY_ITEMS:,} items in all")
        return count * size


def read_gguf(path: Path, sizes: BlockSizes) -> GGUFFile:
    """Read and check the header of a GGUF file; no tensor data is touched.

    Args:
        sizes: block sizes by type number, to check every tensor's extent.

    Raises:
        CheckpointError: not a GGUF file, truncated, or inconsistent.
        UnsupportedModelError: a version or tensor type that is not known.
    """
    try:
        stat = regular_stat(path)
        with path.open("rb") as file:
            if stat.st_size < 24:
                raise CheckpointError(f"{path} has {stat.st_size} bytes and is no GGUF file")
            return _scan(_Cursor(path, GrowingPrefix(file, stat.st_size)), stat.st_mtime_ns, sizes)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def _scan(cursor: _Cursor, mtime_ns: int, sizes: BlockSizes) -> GGUFFile:
    path, size = cursor.path, cursor.size
    magic = bytes(cursor.data[cursor.take(4) : 4])
    if magic != b"GGUF":
        raise CheckpointError(f"{path} is not a GGUF file: it starts with {magic!r}")
    version = cursor.number("I")
    if version not in (2, 3):
        raise UnsupportedModelError(
            f"{path} has GGUF version {version}; 2 and 3, little endian, can be read: convert it again"
        )
    n_tensors, n_keys = cursor.number("Q"), cursor.number("Q")
    metadata: dict[str, gguf.GGUFValue] = {}
    for _ in range(n_keys):
        key = cursor.name("metadata key")
        if key in metadata:
            raise cursor.fail(f"the key {key[:80]!r} a second time")
        metadata[key] = cursor.value()
    alignment = metadata["general.alignment"].value if "general.alignment" in metadata else 32
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        raise cursor.fail(f"the alignment {alignment!r:.40}")
    table, seen = [], set()
    for _ in range(n_tensors):
        entry = _entry(cursor, sizes)
        if entry[0] in seen:
            raise cursor.fail(f"tensor {entry[0][:80]!r} a second time")
        seen.add(entry[0])
        table.append(entry)
    start = -(-cursor.at // alignment) * alignment
    entries = []
    for name, kind, shape, offset, nbytes in table:
        if offset % alignment:
            raise CheckpointError(f"{path}: tensor {name!r} starts at {offset}, no multiple of {alignment}")
        if start + offset + nbytes > size:
            raise CheckpointError(
                f"{path} is truncated: tensor {name!r} ends at byte {start + offset + nbytes:,}, "
                f"the file at {size:,}; download or convert it again"
            )
        entries.append(GGUFEntry(name, kind, shape, start + offset, start + offset + nbytes))
    previous = None
    for placed in sorted(entries, key=lambda e: (e.begin, e.end)):
        if previous is not None and placed.begin < previous.end:
            raise CheckpointError(f"{path}: tensors {previous.name!r} and {placed.name!r} overlap")
        previous = placed
    return GGUFFile(path, size, mtime_ns, version, alignment, metadata, tuple(entries))


def _entry(cursor: _Cursor, sizes: BlockSizes) -> tuple[str, int, tuple[int, ...], int, int]:
    name = cursor.name("tensor name")
    n_dimensions = cursor.number("I")
    if n_dimensions > _MAX_DIMENSIONS:
        raise cursor.fail(f"tensor {name[:80]!r} with {n_dimensions} dimensions")
    shape = tuple(reversed([cursor.number("Q") for _ in range(n_dimensions)]))
    if max(shape, default=0) > _MAX_LENGTH:
        # An empty tensor may claim any other dimension, and numpy then refuses to shape nothing.
        raise cursor.fail(f"tensor {name[:80]!r} with a dimension of {max(shape):,}")
    kind, offset = cursor.number("I"), cursor.number("Q")
    if kind not in sizes:
        raise UnsupportedModelError(f"{cursor.path}: tensor {name[:80]!r} has the unknown type number {kind}")
    block, block_bytes = sizes[kind]
    row_length = shape[-1] if shape else 1
    if row_length % block:
        raise cursor.fail(
            f"tensor {name[:80]!r} with rows of {row_length:,}, no multiple of its block of {block}"
        )
    return name, kind, shape, offset, math.prod(shape) // block * block_bytes
