"""Is a GGUF file whole? Checked before llama.cpp sees it.

llama.cpp answers a damaged file with a null pointer, or dies while it reads mapped memory past the
end of the file. The header says where every tensor lies, so the question can be settled without it.
Source of the layout: docs/gguf.md of ggml.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from pathlib import Path

from ewq_gguf.checkpoint.growing import MAX_ARRAY_ITEMS, GrowingPrefix
from ewq_gguf.checkpoint.regular import regular_stat
from ewq_gguf.errors import EvaluationError
from ewq_gguf.evaluation.tokenizing import Tokenizing
from ewq_gguf.ggml.types import GGMLType
from ewq_gguf.vocab.normalizer import NORMALIZER_KEY
from ewq_gguf.vocab.own_bpe import IGNORE_MERGES_KEY, SPLITS_KEY, OwnBPE, known_form

_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY, _UINT32, _INT32, _BOOL = 8, 9, 4, 5, 7
_MAX_DIMENSIONS = 4
_NORMALIZER, _SPLITS, _IGNORE_MERGES = (
    key.encode() for key in (NORMALIZER_KEY, SPLITS_KEY, IGNORE_MERGES_KEY)
)
_OURS = (_NORMALIZER, _SPLITS, _IGNORE_MERGES)
_TOKENS, _TOKEN_TYPES, _MERGES = (b"tokenizer.ggml." + name for name in (b"tokens", b"token_type", b"merges"))
# A string of one null character as it stands in a file: its length, then itself.
_NULL_STRING = struct.pack("<Q", 1) + b"\0"
_KNOWN_TYPES = frozenset(int(ggml_type) for ggml_type in GGMLType)


@dataclass(frozen=True)
class GgufSummary:
    """What the header of a whole file says.

    Attributes:
        architecture: `general.architecture`, empty if absent.
        n_tensors: tensors in this file (one part of a split model).
        quantized: whether any tensor is stored in a block-quantized type.
        n_bytes: size of the file in bytes.
        tokenizer: digest of the tokenizer's metadata; files with equal ones split every text alike.
        tokenizing: what llama.cpp does not do to a text as the tokenizer does, or None.
        null_token: id of the token that is a null character, which llama.cpp takes for an empty one; or None.
    """

    architecture: str
    n_tensors: int
    quantized: bool
    n_bytes: int
    tokenizer: str
    tokenizing: Tokenizing | None = None
    null_token: int | None = None


class _Cursor:
    """Reads little-endian fields and refuses to step past the end of the file."""

    def __init__(self, data: GrowingPrefix) -> None:
        self.size = len(data)
        self.data = data.data
        self.at = 0
        self._reach = data.reach
        self._items = 0

    def skip(self, n: int) -> int:
        start = self.at
        if n > self.size - start:
            raise struct.error(f"{n} bytes wanted at byte {start}")
        self.at = start + n
        if self.at > len(self.data):
            self._reach(self.at)
        return start

    def number(self, code: str) -> int:
        start = self.skip(struct.calcsize("<" + code))
        return int(struct.unpack_from("<" + code, self.data, start)[0])

    def string(self) -> bytes:
        n = self.number("Q")
        start = self.skip(n)
        return bytes(self.data[start : start + n])

    def array(self, at: int) -> list[bytes] | list[int]:
        """The array of strings or 32-bit integers whose type stands at `at`; empty for any other value."""
        self.at = at
        if self.number("I") != _ARRAY:
            return []
        item, count = self.number("I"), self.number("Q")
        if item == _STRING:
            return [self.string() for _ in range(count)]
        if item not in (_UINT32, _INT32):
            return []
        start = self.skip(4 * count)
        return list(struct.unpack_from(f"<{count}i", self.data, start))

    def flag(self, at: int) -> bool:
        """The bool whose type stands at `at`; False for any other value."""
        self.at = at
        return self.number("I") == _BOOL and self.number("B") == 1

    def value(self, kind: int) -> bytes | int | None:
        """Read a string, a UINT32, or step over any other value."""
        if kind == _STRING:
            return self.string()
        if kind == _UINT32:
            return self.number("I")
        if kind in _SCALAR_BYTES:
            self.skip(_SCALAR_BYTES[kind])
            return None
        if kind != _ARRAY:
            raise ValueError(f"unknown metadata type {kind} at byte {self.at}")
        item, count = self.number("I"), self.number("Q")
        if item in _SCALAR_BYTES:
            self.skip(_SCALAR_BYTES[item] * count)
            return None
        # Arrays of arrays are none that llama.cpp reads (gguf.cpp).
        self._items += count
        if item != _STRING or self._items > MAX_ARRAY_ITEMS:
            raise ValueError(f"unusable metadata array at byte {self.at}")
        for _ in range(count):
            self.string()
        return None


def check_gguf(path: Path) -> GgufSummary:
    """Read the header and compare every tensor's place with the size of the file.

    Raises:
        EvaluationError: the file is missing, empty, not GGUF, of an unknown version, or truncated.
    """
    try:
        status = regular_stat(path)
        with path.open("rb") as file:
            size = status.st_size
            if size < 24:
                raise EvaluationError(
                    f"{path} is not a GGUF file: it has {size} bytes; convert the model again"
                )
            return _scan(path, _Cursor(GrowingPrefix(file, size)))
    except FileNotFoundError:
        raise EvaluationError(f"{path} does not exist; give the path of a GGUF file") from None
    except IsADirectoryError:
        raise EvaluationError(f"{path} is a folder; give the path of a GGUF file inside it") from None
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror or error}") from None
    except (struct.error, ValueError, OverflowError, RecursionError) as error:
        raise EvaluationError(
            f"{path} is truncated or damaged: its header breaks off ({error}); download or convert it again"
        ) from None


def _scan(path: Path, cursor: _Cursor) -> GgufSummary:
    size = cursor.size
    magic = bytes(cursor.data[cursor.skip(4) : 4])
    if magic != b"GGUF":
        raise EvaluationError(f"{path} is not a GGUF file: it starts with {magic!r} instead of b'GGUF'")
    version = cursor.number("I")
    if version not in (2, 3):
        raise EvaluationError(
            f"{path} has GGUF version {version}; versions 2 and 3 in little-endian order can be read"
        )
    n_tensors, n_values = cursor.number("Q"), cursor.number("Q")
    architecture, alignment = "", 32
    tokenizer = hashlib.blake2b(digest_size=16)
    keys: set[bytes] = set()
    places: dict[bytes, int] = {}
    null_seen = False
    for _ in range(n_values):
        start = cursor.at
        key = cursor.string()
        if key in keys:
            raise ValueError(f"the key {key[:64]!r} a second time")
        keys.add(key)
        if key in _OURS or key in (_TOKENS, _TOKEN_TYPES, _MERGES):
            places[key] = cursor.at
        value = cursor.value(cursor.number("I"))
        if key == _TOKENS:
            null_seen = cursor.data.find(_NULL_STRING, start, cursor.at) >= 0
        if key.startswith(b"tokenizer.ggml.") or key in _OURS:
            tokenizer.update(cursor.data[start : cursor.at])
        if key == b"general.architecture" and isinstance(value, bytes):
            architecture = value.decode("utf-8", "replace")
        elif key == b"general.alignment" and isinstance(value, int) and value > 0:
            alignment = value
    stored: list[tuple[bytes, int, int]] = []
    names: set[bytes] = set()
    quantized = False
    for _ in range(n_tensors):
        name = cursor.string()
        if name in names:
            raise ValueError(f"tensor {name[:64]!r} a second time")
        names.add(name)
        n_dimensions = cursor.number("I")
        if n_dimensions > _MAX_DIMENSIONS:
            raise ValueError(f"tensor {name[:64]!r} has {n_dimensions} dimensions")
        shape = [cursor.number("Q") for _ in range(n_dimensions)]
        kind, offset = cursor.number("I"), cursor.number("Q")
        n_bytes = 0
        # A type newer than our table has no known size: llama.cpp decides about it.
        if kind in _KNOWN_TYPES:
            ggml_type = GGMLType(kind)
            n_bytes = math.prod(shape) // ggml_type.block_size * ggml_type.block_bytes
            quantized |= ggml_type.is_quantized
        else:
            quantized = True
        stored.append((name, offset, n_bytes))
    start = -(-cursor.at // alignment) * alignment
    for name, offset, n_bytes in stored:
        if start + offset + n_bytes > size:
            raise EvaluationError(
                f"{path} is truncated: tensor {name.decode('utf-8', 'replace')} ends at byte "
                f"{start + offset + n_bytes:,}, the file at {size:,}; download or convert it again"
            )
    ours = any(key in places for key in _OURS)
    tokenizing = _tokenizing(cursor, places) if ours else None
    null = _null_token(cursor, places[_TOKENS]) if _TOKENS in places and null_seen else None
    return GgufSummary(architecture, n_tensors, quantized, size, tokenizer.hexdigest(), tokenizing, null)


def _null_token(cursor: _Cursor, place: int) -> int | None:
    tokens = cursor.array(place)
    return next((number for number, token in enumerate(tokens) if token == b"\0"), None)


def _tokenizing(cursor: _Cursor, places: dict[bytes, int]) -> Tokenizing | None:
    """Read again what our own way needs; every other file is spared the lists."""

    def strings(key: bytes) -> list[bytes]:
        found = cursor.array(places[key]) if key in places else []
        return [item for item in found if isinstance(item, bytes)]

    steps, form, tokens = (strings(key) for key in (_NORMALIZER, _SPLITS, _TOKENS))
    types = cursor.array(places[_TOKEN_TYPES]) if _TOKEN_TYPES in places else []
    bpe = None
    regexes = [pattern.decode("utf-8", "replace") for pattern in form]
    if known_form(regexes):
        merges = [merge.decode("utf-8", "replace") for merge in strings(_MERGES)]
        whole = _IGNORE_MERGES in places and cursor.flag(places[_IGNORE_MERGES])
        bpe = OwnBPE(tokens, merges, regexes, ignore_merges=whole)
    return Tokenizing.of(steps, tokens, [kind for kind in types if isinstance(kind, int)], bpe)
