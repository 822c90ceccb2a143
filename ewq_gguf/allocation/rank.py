"""Effective rank of a weight matrix: exp of the entropy of its normalised singular values (Roy & Vetterli 2007)."""

from __future__ import annotations

import math

import numpy as np

from ewq_gguf.allocation.entropy import F64Array
from ewq_gguf.checkpoint.tensor import Tensor

# The smaller side of a matrix beyond which its Gram matrix (8 bytes per entry) would take over half a gigabyte.
RANK_LIMIT = 8192
_CHUNK_ELEMENTS = 1 << 22


def effective_rank(tensor: Tensor, start: int, stop: int, limit: int = RANK_LIMIT) -> float | None:
    """Effective rank of rows start..stop over the smaller side: 1 for equal singular values, 0..1.

    The singular values are the square roots of the eigenvalues of the Gram matrix of the smaller side, summed
    in float64 from chunks of rows, so the matrix is never held whole. None for an empty matrix and where the
    smaller side exceeds `limit`; 0 for a matrix of zeros.
    """
    n_rows, width = stop - start, tensor.row_length
    side = min(n_rows, width)
    if side == 0 or side > limit:
        return None
    gram = _tall(tensor, start, stop) if width <= n_rows else _wide(tensor, start, stop)
    singular = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0.0, None))
    total = math.fsum(singular)
    if total == 0:
        return 0.0
    p = singular[singular > 0] / total
    return math.exp(-math.fsum(p * np.log(p))) / side


def _rows(tensor: Tensor, first: int, last: int) -> F64Array:
    return tensor.rows(first, last).astype(np.float64)


def _tall(tensor: Tensor, start: int, stop: int) -> F64Array:
    step = max(1, _CHUNK_ELEMENTS // tensor.row_length)
    gram = np.zeros((tensor.row_length, tensor.row_length))
    for first in range(start, stop, step):
        chunk = _rows(tensor, first, min(first + step, stop))
        gram += chunk.T @ chunk
    return gram


def _wide(tensor: Tensor, start: int, stop: int) -> F64Array:
    """Two chunks of rows at a time, since each entry needs two whole rows."""
    step = max(1, _CHUNK_ELEMENTS // tensor.row_length)
    n = stop - start
    gram = np.zeros((n, n))
    for i in range(0, n, step):
        upper = _rows(tensor, start + i, min(start + i + step, stop))
        for j in range(0, i + 1, step):
            lower = upper if i == j else _rows(tensor, start + j, min(start + j + step, stop))
            product = upper @ lower.T
            gram[i : i + len(upper), j : j + len(lower)] = product
            gram[j : j + len(lower), i : i + len(upper)] = product.T
    return gram
