"""The bytes before a GGUF file's tensor data: magic, counts, metadata, tensor table, padding.

Format: docs/gguf.md of ggml, version 3, little endian. Metadata from another GGUF file passes through as it
is, empty arrays and strings that are not UTF-8 included; the gguf package's writer refuses those.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import gguf
import numpy as np

from ewq_gguf.checkpoint.gguf_file import SCALARS
from ewq_gguf.errors import CheckpointError
from ewq_gguf.ggml.types import GGMLType

ALIGNMENT = int(gguf.GGUF_DEFAULT_ALIGNMENT)
_VERSION = 3
_CODES = {named: code for code, named in SCALARS.values()}


@dataclass(frozen=True)
class HeaderTensor:
    """One line of the tensor table; shape outermost first, bytes of data without padding."""

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    nbytes: int


def padded(nbytes: int) -> int:
    """`nbytes` rounded up to the alignment of tensor data."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def header_bytes(metadata: Mapping[str, gguf.GGUFValue], tensors: Sequence[HeaderTensor]) -> bytes:
    """Everything before the tensor data, padded up to the alignment; tensors lie in the order given.

    Raises:
        CheckpointError: a metadata value that does not fit its type.
    """
    parts = [b"GGUF", struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), struct.pack("<I", value.type), *_checked(key, value)]
    offset = 0
    for t in tensors:
        shape = t.shape or (1,)
        fields = (len(shape), *reversed(shape), t.type, offset)
        parts += [_string(t.name), struct.pack(f"<I{len(shape)}QIQ", *fields)]
        offset += padded(t.nbytes)
    data = b"".join(parts)
    return data + bytes(padded(len(data)) - len(data))


def _checked(key: str, value: gguf.GGUFValue) -> Iterable[bytes]:
    try:
        return _value(value)
    except (struct.error, OverflowError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"the metadata key {key} cannot be stored as {value.type.name}: {error}; correct it in the source"
        ) from error


def _string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def _value(value: gguf.GGUFValue) -> Iterable[bytes]:
    if value.type is gguf.GGUFValueType.STRING:
        return (_string(value.value),)
    if value.type is not gguf.GGUFValueType.ARRAY:
        return (struct.pack("<" + _CODES[value.type], value.value),)
    items = value.value
    kind = gguf.GGUFValueType.get_type(items[0]) if value.sub_type is None else value.sub_type
    head = struct.pack("<IQ", kind, len(items))
    if kind is gguf.GGUFValueType.STRING:
        return (head, *map(_string, items))
    code = _CODES[kind]
    return (head, np.asarray(items, dtype="?" if code == "?" else "<" + code).tobytes())
