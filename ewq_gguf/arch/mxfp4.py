"""MXFP4 blocks as gpt-oss stores them, seen as ggml's block_mxfp4 and kept bit for bit.

Source: nibble order from conversion/gpt_oss.py (transform_nibble_layout), values from the OCP MX specification.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ewq_gguf.checkpoint.tensor import AnyArray, DType, F32Array, Tensor, to_float32
from ewq_gguf.errors import CheckpointError, UnsupportedModelError
from ewq_gguf.ggml.types import GGMLType
from ewq_gguf.model import EncodedTensor

_BLOCK = 32
# The eight magnitudes of a 4-bit float with two exponent bits; the top bit of the code is the sign.
_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)


class Mxfp4(EncodedTensor):
    """Rows of 4-bit codes, two to a byte with the even element in the low half, and an exponent per 32."""

    encoding = GGMLType.MXFP4

    def __init__(self, name: str, blocks: Tensor, scales: Tensor) -> None:
        """`blocks`: uint8 (..., rows, groups, 16); `scales`: uint8 (..., rows, groups); `name` is for errors.

        Raises:
            UnsupportedModelError: the shapes or dtypes do not belong together.
        """
        fits = blocks.shape == (*scales.shape, _BLOCK // 2) and len(scales.shape) >= 2
        if not fits or blocks.dtype is not DType.U8 or scales.dtype is not DType.U8:
            raise UnsupportedModelError(
                f"{name}: MXFP4 blocks {list(blocks.shape)} and scales {list(scales.shape)} do not belong together"
            )
        self.shape = (*scales.shape[:-1], scales.shape[-1] * _BLOCK)
        self.dtype = DType.F32
        self._name, self._blocks, self._scales = name, blocks, scales

    def _read(self, start: int, stop: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Codes (rows, groups, 32) and exponents (rows, groups)."""
        groups = self.shape[-1] // _BLOCK
        raw = self._blocks.raw_rows(start * groups, stop * groups).astype(np.uint8, copy=False)
        codes = np.stack([raw & 0x0F, raw >> 4], axis=-1).reshape(stop - start, groups, _BLOCK)
        exponents = self._scales.raw_rows(start, stop).astype(np.uint8, copy=False)
        if (exponents == 0xFF).any():
            row = start + int(np.argmax((exponents == 0xFF).any(axis=1)))
            raise CheckpointError(f"{self._name} holds NaN in row {row}; download the checkpoint again")
        return codes, exponents

    def raw_rows(self, start: int, stop: int) -> AnyArray:
        codes, exponents = self._read(start, stop)
        scales: F32Array = to_float32(exponents, DType.F8_E8M0)
        return (_VALUES[codes] * scales[..., None]).reshape(stop - start, -1)

    def encoded_rows(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        codes, exponents = self._read(start, stop)
        # ggml keeps element j in the low and element j + 16 in the high half of byte j.
        packed = codes[..., :16] | (codes[..., 16:] << 4)
        encoded: npt.NDArray[np.uint8] = np.concatenate([exponents[..., None], packed], axis=-1)
        return encoded.reshape(stop - start, -1)
