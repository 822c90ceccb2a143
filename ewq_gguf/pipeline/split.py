"""A model over several files, as llama.cpp names, describes and reads them.

Sources: llama_split_path in src/llama.cpp, tools/gguf-split/gguf-split.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf

from ewq_gguf.allocation.parsing import parse_size
from ewq_gguf.errors import PlanError, QuantizationError
from ewq_gguf.pipeline.gguf_source import SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS, split_name
from ewq_gguf.pipeline.header import padded

# Five digits in the name, and 16 bits in the metadata.
_MOST_FILES = 65_535
_LLAMA_SIZE = re.compile(r"(\d+)([MG])")


@dataclass(frozen=True)
class Split:
    """When a new file begins; `max_bytes` counts tensor data, as llama-gguf-split does."""

    max_bytes: int | None = None
    max_tensors: int | None = None


def parse_split_size(text: str) -> int:
    """Bytes in `2G` or `500M`, which are powers of 1000 as for llama-gguf-split, or in any other size.

    Raises:
        PlanError: not a size.
    """
    match = _LLAMA_SIZE.fullmatch(text.strip())
    if match is None:
        return parse_size(text)
    size = int(match[1]) * (10**9 if match[2] == "G" else 10**6)
    if size < 1:
        raise PlanError(f"{text!r} is less than one byte; write a size like 2G")
    return size


def split_tensors(nbytes: Sequence[int], split: Split | None) -> list[tuple[int, int]]:
    """Which tensors go into which file, as (first, stop); a tensor above the limit gets a file of its own.

    Raises:
        QuantizationError: more files than the format can number.
    """
    if split is None:
        return [(0, len(nbytes))]
    ranges, first, size = [], 0, 0
    for i, n in enumerate(nbytes):
        full = split.max_bytes is not None and size + padded(n) > split.max_bytes
        if i > first and (full or (split.max_tensors is not None and i - first >= split.max_tensors)):
            ranges.append((first, i))
            first, size = i, 0
        size += padded(n)
    ranges.append((first, len(nbytes)))
    if len(ranges) > _MOST_FILES:
        raise QuantizationError(f"that would make {len(ranges):,} files; choose a larger --split-max-size")
    return ranges


def split_paths(target: Path, count: int, split: Split | None) -> list[Path]:
    """The names of the files, made from the one the user gave."""
    if split is None:
        return [target]
    prefix = target.name.removesuffix(".gguf")
    return [target.with_name(split_name(prefix, i, count)) for i in range(count)]


def split_metadata(number: int, count: int, n_tensors: int) -> dict[str, gguf.GGUFValue]:
    """The keys that tell llama.cpp which part a file is."""
    kind = gguf.GGUFValueType
    return {
        SPLIT_NO: gguf.GGUFValue(number, kind.UINT16),
        SPLIT_COUNT: gguf.GGUFValue(count, kind.UINT16),
        SPLIT_TENSORS: gguf.GGUFValue(n_tensors, kind.INT32),
    }
