"""Fused query-key-value projections that interleave the three, and how to put them apart."""

from __future__ import annotations

import numpy as np

from ewq_gguf.arch.views import ConcatRows, take
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.errors import UnsupportedModelError


def split_groups(source: Tensor, n_groups: int, per_group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a projection made of `n_groups` groups.

    A group is `per_group` query heads, a key and a value; Falcon and InternLM2 have several queries in one,
    Bloom and GPT-NeoX have one. Works on weights (rows) and on 1-d biases.
    Sources: conversion/falcon.py, conversion/internlm.py, conversion/bloom.py.

    Raises:
        UnsupportedModelError: the rows do not divide among the heads that config.json names.
    """
    rows, heads = source.shape[0], n_groups * (per_group + 2)
    if n_groups <= 0 or per_group <= 0 or rows % heads:
        raise UnsupportedModelError(
            f"a fused projection of {rows} rows cannot hold {n_groups} groups of {per_group} query heads, "
            "a key and a value; config.json does not fit"
        )
    order = np.arange(rows).reshape(n_groups, per_group + 2, rows // heads)
    queries, keys, values = order[:, :-2].reshape(-1), order[:, -2].reshape(-1), order[:, -1].reshape(-1)
    return take(source, queries), take(source, keys), take(source, values)


def regroup(source: Tensor, n_groups: int, per_group: int = 1) -> Tensor:
    """All queries, then all keys, then all values, in one tensor of the same shape."""
    return ConcatRows(split_groups(source, n_groups, per_group))
