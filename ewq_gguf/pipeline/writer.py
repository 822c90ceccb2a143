"""The header of a model's file as one call; see `header` for the format and `output` for writing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import gguf

from ewq_gguf.ggml.types import GGMLType
from ewq_gguf.model import ModelTensor
from ewq_gguf.pipeline.header import HeaderTensor, padded
from ewq_gguf.pipeline.header import header_bytes as _header_bytes

__all__ = ["header_bytes", "padded"]


def header_bytes(
    arch: str,
    metadata: Mapping[str, gguf.GGUFValue],
    tensors: Sequence[ModelTensor],
    types: Mapping[str, GGMLType],
) -> bytes:
    """Everything before the tensor data: magic, metadata, tensor table, padding up to the alignment."""
    table = [HeaderTensor(t.name, t.shape, types[t.name], t.bytes_as(types[t.name])) for t in tensors]
    return _header_bytes(metadata, table)
