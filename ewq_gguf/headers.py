"""A model's outline for FastEWQ: how many weights each block has, from config and headers, fast and lean.

A checkpoint of the 671B class lists ninety thousand tensors, nearly all of them experts that differ in their
number only. One expert per layer and projection stands for its siblings here, so that the family's own rules
see a few thousand names; whatever does not fit that picture goes the long way round.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from ewq_gguf.allocation.fastewq import BlockFeatures, block_features
from ewq_gguf.arch import family_for
from ewq_gguf.arch.base import block_number
from ewq_gguf.checkpoint import open_checkpoint
from ewq_gguf.checkpoint.folder import INDEX_NAME
from ewq_gguf.checkpoint.json_file import load_json_object
from ewq_gguf.checkpoint.safetensors import MAX_HEADER_BYTES
from ewq_gguf.checkpoint.tensor import AnyArray, DType, Tensor
from ewq_gguf.errors import CheckpointError, EwqError
from ewq_gguf.pipeline.gguf_source import is_gguf
from ewq_gguf.pipeline.source import load_model

_EXPERT = re.compile(r"^(.*\bexperts)\.(\d{1,6})\.(.+)$")
_STACK = "_exps."


class _Unlike(Exception):
    """The checkpoint does not fit the short picture."""


class _Outline(Tensor):
    """A tensor of which only the header entry was read."""

    def __init__(self, entry: Any) -> None:
        if not isinstance(entry, dict) or not isinstance(entry.get("shape"), list):
            raise _Unlike
        self.shape = tuple(entry["shape"])
        if len(self.shape) > 8 or not all(type(n) is int and 0 <= n < 2**62 for n in self.shape):
            raise _Unlike
        self.dtype = DType(entry.get("dtype"))
        self._entry = (entry["dtype"], entry["shape"])

    def is_like(self, entry: Any) -> bool:
        """Whether another entry has this one's shape and dtype."""
        return isinstance(entry, dict) and (entry.get("dtype"), entry.get("shape")) == self._entry

    def raw_rows(self, start: int, stop: int) -> AnyArray:
        raise CheckpointError("only the header of this tensor was read")


def header_features(path: Path) -> tuple[BlockFeatures, ...]:
    """FastEWQ's features of a checkpoint folder, .safetensors or .gguf file; no weight and no tokenizer is read.

    Raises:
        CheckpointError, UnsupportedModelError: as for opening the model.
        PlanError: the model has no transformer blocks.
    """
    path = Path(path)
    if is_gguf(path):
        return block_features(load_model(path))
    try:
        return _short(path)
    except (
        _Unlike,
        EwqError,
        ArithmeticError,
        AttributeError,
        LookupError,
        OSError,
        RecursionError,
        TypeError,
        ValueError,
    ):
        # The long way finds the same or says what is wrong.
        checkpoint = open_checkpoint(path)
        family = family_for(checkpoint.config)(checkpoint.config, checkpoint.tensors)
        return block_features(family.tensors())


def _short(path: Path) -> tuple[BlockFeatures, ...]:
    folder = path if path.is_dir() else path.parent
    config = load_json_object(folder / "config.json")
    sources: dict[str, _Outline] = {}
    members: dict[str, int] = {}
    for name, value in _entries(path):
        found = _EXPERT.match(name)
        standing = name if found is None else f"{found[1]}.0.{found[3]}"
        first = sources.get(standing)
        if first is None:
            sources[standing] = _Outline(value)
        elif found is None or not first.is_like(value):
            raise _Unlike
        if found is not None:
            members[standing] = members.get(standing, 0) + 1
    experts: dict[int | None, int] = {}
    for name, count in members.items():
        if experts.setdefault(block_number(name), count) != count:
            raise _Unlike
    tensors = tuple(family_for(config)(config, sources).tensors())
    per_block = {f.index: f for f in block_features(tensors)}
    # Layers that predict further tokens count from 0 again in some checkpoints: only a common number is safe there.
    common = next(iter(experts.values())) if len(set(experts.values())) == 1 else None
    for t in tensors:
        if experts and t.block is not None and _STACK in t.name and len(t.shape) == 3:
            siblings = common or experts.get(t.block)
            if siblings is None or t.shape[0] != 1:
                raise _Unlike
            held = per_block[t.block]
            more = held.num_parameters + (siblings - 1) * t.n_elements
            per_block[t.block] = replace(held, num_parameters=more)
    return tuple(per_block[i] for i in sorted(per_block))


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Names and header entries of all shards, in the order of a `Checkpoint`."""
    for shard in _shards(path):
        with shard.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
            if length > MAX_HEADER_BYTES:
                raise _Unlike
            header = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise _Unlike
        header.pop("__metadata__", None)
        yield from sorted(header.items())


def _shards(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    index = path / INDEX_NAME
    if not index.is_file():
        return sorted(path.glob("model*.safetensors"))
    weight_map = json.loads(index.read_bytes()).get("weight_map")
    if not isinstance(weight_map, Mapping):
        raise _Unlike
    names = sorted({str(name) for name in weight_map.values()})
    if any(PurePosixPath(name).name != name for name in names):
        raise _Unlike
    return [path / name for name in names]
