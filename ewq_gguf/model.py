"""A model ready to be written: GGUF metadata and a list of tensors, wherever they came from."""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import gguf
import numpy as np
import numpy.typing as npt

from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.ggml.types import GGMLType

_BLOCK = re.compile(r"^blk\.(\d+)\.")


class EncodedTensor(Tensor):
    """A tensor that the checkpoint already holds in a ggml type, to be kept bit for bit.

    `rows` decodes it, for whoever wants to look at the values.

    Attributes:
        encoding: the type of the rows that `encoded_rows` yields.
    """

    encoding: GGMLType

    @abstractmethod
    def encoded_rows(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Rows start..stop as stored in a GGUF file, uint8 (stop - start, row bytes)."""


@dataclass(frozen=True)
class ModelTensor:
    """A tensor as the GGUF file will hold it.

    Attributes:
        name: GGUF name, such as "blk.0.attn_q.weight".
        source: its rows, outermost dimension first.
        fixed: the type it must be stored as (norms, biases, routers: F32), or None when a plan may choose.
    """

    name: str
    source: Tensor
    fixed: GGMLType | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def n_elements(self) -> int:
        return math.prod(self.source.shape)

    @property
    def row_length(self) -> int:
        return self.source.row_length

    @property
    def n_rows(self) -> int:
        return self.source.n_rows

    @property
    def block(self) -> int | None:
        """Index of the transformer block it belongs to, or None (embedding, output, final norm)."""
        return block_of(self.name)

    def bytes_as(self, t: GGMLType) -> int:
        """Bytes of the tensor's data stored as `t`.

        Raises:
            PlanError: its rows do not fit the type's blocks.
        """
        return self.n_rows * t.row_bytes(self.row_length)


@dataclass(frozen=True)
class Model:
    """What a source yields: metadata in the order of writing, tensors in the order of the file.

    Attributes:
        arch: GGUF architecture, such as "llama".
        metadata: GGUF keys with their typed values, without file type and provenance.
        tensors: unique names.
        fingerprint: identifies the source's bytes cheaply (names, sizes, times), for plans and resuming.
    """

    arch: str
    metadata: Mapping[str, gguf.GGUFValue]
    tensors: tuple[ModelTensor, ...]
    fingerprint: str

    @property
    def n_parameters(self) -> int:
        return sum(t.n_elements for t in self.tensors)

    @property
    def n_blocks(self) -> int:
        return 1 + max((t.block for t in self.tensors if t.block is not None), default=-1)


def block_of(name: str) -> int | None:
    """The block index in a GGUF tensor name, or None."""
    match = _BLOCK.match(name)
    return int(match.group(1)) if match else None
