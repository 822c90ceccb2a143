"""A tensor is rows on demand: a shape, a dtype, and a way to read any range of rows.

Everything that stands between a shard on disk and the quantizer (permutations, stacks of experts,
norms plus one, FP8 decoding) is a `Tensor` that answers `raw_rows` from its sources' rows, so that
nothing is ever held whole and peak memory does not grow with the model.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from ewq_gguf.checkpoint.reading import Scratch

AnyArray = npt.NDArray[Any]
F32Array = npt.NDArray[np.float32]


class DType(Enum):
    """Storage types of checkpoints, spelled as in safetensors headers."""

    F64 = "F64"
    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"
    F8_E4M3 = "F8_E4M3"
    F8_E5M2 = "F8_E5M2"
    F8_E8M0 = "F8_E8M0"
    I64 = "I64"
    I32 = "I32"
    I16 = "I16"
    I8 = "I8"
    U64 = "U64"
    U32 = "U32"
    U16 = "U16"
    U8 = "U8"
    BOOL = "BOOL"

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """How the elements lie in memory, little endian; BF16 and the FP8 kinds appear as their codes."""
        return _NUMPY[self]

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return self.numpy.itemsize

    @property
    def is_float(self) -> bool:
        return self in _FLOATS

    @property
    def is_half(self) -> bool:
        """True for the two 16-bit float formats, whose values can be counted code by code."""
        return self in (DType.F16, DType.BF16)


_NUMPY: dict[DType, np.dtype[np.generic]] = {
    DType.F64: np.dtype("<f8"),
    DType.F32: np.dtype("<f4"),
    DType.F16: np.dtype("<f2"),
    DType.BF16: np.dtype("<u2"),
    DType.F8_E4M3: np.dtype("u1"),
    DType.F8_E5M2: np.dtype("u1"),
    DType.F8_E8M0: np.dtype("u1"),
    DType.I64: np.dtype("<i8"),
    DType.I32: np.dtype("<i4"),
    DType.I16: np.dtype("<i2"),
    DType.I8: np.dtype("i1"),
    DType.U64: np.dtype("<u8"),
    DType.U32: np.dtype("<u4"),
    DType.U16: np.dtype("<u2"),
    DType.U8: np.dtype("u1"),
    DType.BOOL: np.dtype("u1"),
}
_FLOATS = frozenset({DType.F64, DType.F32, DType.F16, DType.BF16, DType.F8_E4M3, DType.F8_E5M2})


def bf16_to_f32(codes: AnyArray) -> F32Array:
    """Widen bfloat16 codes (uint16) to float32, exactly; any shape."""
    out = np.zeros((*codes.shape, 2), dtype="<u2")
    out[..., 1] = codes
    widened: F32Array = out.view("<f4")[..., 0]
    return widened


def _fp8_table(exponent_bits: int, mantissa_bits: int, finite_only: bool) -> F32Array:
    """Values of all 256 codes of an OCP 8-bit float: E4M3 (finite only, NaN at 0x7f) or E5M2 (IEEE-like)."""
    codes = np.arange(256)
    sign = np.where(codes & 0x80, -1.0, 1.0)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    bias = (1 << (exponent_bits - 1)) - 1
    value = np.where(exponent == 0, mantissa * 2.0 ** (1 - bias), (1 + mantissa) * 2.0 ** (exponent - bias))
    if finite_only:
        value[(codes & 0x7F) == 0x7F] = np.nan
    else:
        top = exponent == (1 << exponent_bits) - 1
        value[top] = np.where(mantissa[top] == 0, np.inf, np.nan)
    table: F32Array = (sign * value).astype(np.float32)
    return table


_FP8: dict[DType, F32Array] = {
    DType.F8_E4M3: _fp8_table(4, 3, finite_only=True),
    DType.F8_E5M2: _fp8_table(5, 2, finite_only=False),
}


def to_float32(raw: AnyArray, dtype: DType) -> F32Array:
    """Decode storage elements to float32.

    Exact for every dtype that float32 contains; F64 and 32/64-bit integers round to nearest even.
    F8_E8M0 (a bare exponent) is decoded as 2^(code - 127), 255 as NaN (OCP MX specification 5.4.1).
    """
    if dtype is DType.BF16:
        return bf16_to_f32(raw)
    if dtype in _FP8:
        return _FP8[dtype][raw.astype(np.intp)]
    if dtype is DType.F8_E8M0:
        exponent = raw.astype(np.float32) - 127.0
        return np.where(raw == 255, np.float32(np.nan), np.exp2(exponent)).astype(np.float32)
    return raw.astype(np.float32, copy=False)


class Tensor(ABC):
    """Rows on demand.

    Attributes:
        shape: outermost dimension first, as safetensors and numpy write it.
        dtype: the storage type that `raw_rows` yields.
    """

    shape: tuple[int, ...]
    dtype: DType

    @property
    def row_length(self) -> int:
        """Elements per row: the innermost dimension (1 for a 0-d tensor)."""
        return self.shape[-1] if self.shape else 1

    @property
    def n_rows(self) -> int:
        """Rows when all outer dimensions are flattened (1 for 0-d and 1-d tensors)."""
        return math.prod(self.shape[:-1])

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)

    @abstractmethod
    def raw_rows(self, start: int, stop: int) -> AnyArray:
        """Rows start..stop as stored: an array of shape (stop - start, row_length), dtype `dtype.numpy`.

        May be a read-only view; copy it to change it.
        """

    def borrow_rows(self, start: int, stop: int, scratch: Scratch) -> AnyArray:
        """As `raw_rows`, for a caller who is done with the rows before it lends `scratch` again: they may lie there.

        Tensors that only pass rows on override it; the others make an array anyway.
        """
        return self.raw_rows(start, stop)

    def rows(self, start: int, stop: int) -> F32Array:
        """Rows start..stop decoded to float32, shape (stop - start, row_length)."""
        return to_float32(self.raw_rows(start, stop), self.dtype)


class ArrayTensor(Tensor):
    """A tensor that already lies in memory: made-up tensors such as rope factors, and tests."""

    def __init__(self, array: AnyArray, dtype: DType | None = None) -> None:
        """`dtype` names the meaning of codes; by default it follows from the array's own type (no BF16)."""
        self.dtype = dtype if dtype is not None else _from_numpy(array.dtype)
        self._flat = np.ascontiguousarray(array, dtype=self.dtype.numpy)
        self.shape = tuple(array.shape)

    def raw_rows(self, start: int, stop: int) -> AnyArray:
        return self._flat.reshape(self.n_rows, self.row_length)[start:stop]


def _from_numpy(dtype: np.dtype[np.generic]) -> DType:
    for candidate in (DType.F32, DType.F64, DType.F16, DType.I64, DType.I32, DType.I16, DType.I8, DType.U8):
        if candidate.numpy == dtype:
            return candidate
    raise TypeError(f"no storage dtype for numpy {dtype}")
