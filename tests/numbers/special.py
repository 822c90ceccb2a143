"""Tensors of special values in every storage type."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from ewq_gguf.checkpoint.tensor import ArrayTensor, DType, to_float32
from ewq_gguf.ggml import GGMLType
from ewq_gguf.model import ModelTensor

FLOATS = (DType.F64, DType.F32, DType.F16, DType.BF16, DType.F8_E4M3, DType.F8_E5M2)
# Codes of the two 8-bit formats and of bfloat16; E4M3 has no infinity.
NAN = {DType.BF16: 0x7FC0, DType.F8_E4M3: 0x7F, DType.F8_E5M2: 0x7D}
INFINITY = {DType.BF16: 0xFF80, DType.F8_E5M2: 0xFC}
# Working out the tables of these takes ggml seconds, once per process.
_SLOW = frozenset({GGMLType.IQ2_XS, GGMLType.IQ2_S, GGMLType.IQ1_S, GGMLType.IQ1_M})
QUANTIZED = tuple(
    pytest.param(kind, marks=pytest.mark.slow if kind in _SLOW else (), id=kind.name)
    for kind in GGMLType
    if kind.is_quantized
)


def stored(values: npt.NDArray[np.float64], dtype: DType) -> npt.NDArray[np.generic]:
    """Values as they are stored: codes for BF16 and the 8-bit formats, each the nearest value there is."""
    if dtype is DType.BF16:
        bits = values.astype(np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    if dtype in (DType.F8_E4M3, DType.F8_E5M2):
        table = to_float32(np.arange(256, dtype=np.uint8), dtype)
        known = np.where(np.isfinite(table), table, np.inf)
        return (
            np.abs(known[None] - values.reshape(-1, 1)).argmin(axis=1).astype(np.uint8).reshape(values.shape)
        )
    return values.astype(dtype.numpy)


def tensor(values: npt.ArrayLike, dtype: DType = DType.F32) -> ArrayTensor:
    array = np.asarray(values, dtype=np.float64)
    return ArrayTensor(stored(array, dtype), dtype)


def poisoned(dtype: DType, value: float, row: int, column: int, shape: tuple[int, int]) -> ArrayTensor:
    """Ones with one value that is none."""
    data = stored(np.ones(shape), dtype)
    codes = NAN if np.isnan(value) else INFINITY
    data[row, column] = codes.get(dtype, value)
    return ArrayTensor(data, dtype)


def named(source: ArrayTensor, name: str = "blk.0.ffn_up.weight") -> ModelTensor:
    return ModelTensor(name, source)
