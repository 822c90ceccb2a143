"""ggml's tensor types: numbers, block sizes and names, known without loading the native library.

The library, when loaded, is checked against this table (see `library.py`), so a pinned llama.cpp that
changed a type is noticed before a byte is written. Source of the numbers: ggml/include/ggml.h
(enum ggml_type) and ggml/src/ggml-common.h (block structs).
"""

from __future__ import annotations

from enum import IntEnum

from ewq_gguf.errors import PlanError


class GGMLType(IntEnum):
    """A ggml tensor type; the value is the number stored in a GGUF file."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41
    Q2_0 = 42

    @property
    def block_size(self) -> int:
        """Weights per block; a row's length must be a multiple of it."""
        return _LAYOUT[self][0]

    @property
    def block_bytes(self) -> int:
        """Bytes per block."""
        return _LAYOUT[self][1]

    @property
    def bpw(self) -> float:
        """Bits per weight."""
        return 8 * self.block_bytes / self.block_size

    @property
    def is_float(self) -> bool:
        """F32, F16, BF16 and F64: one element per block, no grid."""
        return self in (GGMLType.F32, GGMLType.F16, GGMLType.BF16, GGMLType.F64)

    @property
    def is_integer(self) -> bool:
        return self in (GGMLType.I8, GGMLType.I16, GGMLType.I32, GGMLType.I64)

    @property
    def is_quantized(self) -> bool:
        return not (self.is_float or self.is_integer)

    def row_bytes(self, row_length: int) -> int:
        """Bytes of a row of `row_length` weights.

        Raises:
            PlanError: the length is no multiple of the block size.
        """
        if row_length % self.block_size:
            raise PlanError(
                f"a row of {row_length} weights cannot be stored as {self.name}, "
                f"whose blocks hold {self.block_size}; choose a type with smaller blocks, such as Q8_0"
            )
        return row_length // self.block_size * self.block_bytes


_LAYOUT: dict[GGMLType, tuple[int, int]] = {
    GGMLType.F32: (1, 4),
    GGMLType.F16: (1, 2),
    GGMLType.BF16: (1, 2),
    GGMLType.F64: (1, 8),
    GGMLType.I8: (1, 1),
    GGMLType.I16: (1, 2),
    GGMLType.I32: (1, 4),
    GGMLType.I64: (1, 8),
    GGMLType.Q4_0: (32, 18),
    GGMLType.Q4_1: (32, 20),
    GGMLType.Q5_0: (32, 22),
    GGMLType.Q5_1: (32, 24),
    GGMLType.Q8_0: (32, 34),
    GGMLType.Q2_K: (256, 84),
    GGMLType.Q3_K: (256, 110),
    GGMLType.Q4_K: (256, 144),
    GGMLType.Q5_K: (256, 176),
    GGMLType.Q6_K: (256, 210),
    GGMLType.IQ2_XXS: (256, 66),
    GGMLType.IQ2_XS: (256, 74),
    GGMLType.IQ2_S: (256, 82),
    GGMLType.IQ3_XXS: (256, 98),
    GGMLType.IQ3_S: (256, 110),
    GGMLType.IQ1_S: (256, 50),
    GGMLType.IQ1_M: (256, 56),
    GGMLType.IQ4_NL: (32, 18),
    GGMLType.IQ4_XS: (256, 136),
    GGMLType.TQ1_0: (256, 54),
    GGMLType.TQ2_0: (256, 66),
    GGMLType.MXFP4: (32, 17),
    GGMLType.NVFP4: (64, 36),
    GGMLType.Q1_0: (128, 18),
    GGMLType.Q2_0: (64, 18),
}

# Types whose quantizer asserts when it is given no importance matrix (ggml_quantize_requires_imatrix).
REQUIRES_IMATRIX = frozenset({GGMLType.IQ2_XXS, GGMLType.IQ2_XS, GGMLType.IQ1_S})
