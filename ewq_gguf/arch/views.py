"""Row-wise views: each transform a family needs, answering `raw_rows` from its sources' rows.

A view that only rearranges keeps its source's storage dtype, so that values reach the file untouched
and 16-bit codes can still be counted; one that computes yields float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ewq_gguf.checkpoint.reading import Scratch
from ewq_gguf.checkpoint.tensor import AnyArray, DType, F32Array, Tensor
from ewq_gguf.errors import UnsupportedModelError


class Reshape(Tensor):
    """The same elements under another shape, as numpy's C-order reshape."""

    def __init__(self, source: Tensor, shape: Sequence[int]) -> None:
        if math.prod(shape) != source.n_elements:
            raise UnsupportedModelError(f"cannot see a tensor of shape {list(source.shape)} as {list(shape)}")
        self.shape = tuple(shape)
        self.dtype = source.dtype
        self._source = source

    def raw_rows(self, start: int, stop: int) -> AnyArray:
        ours, theirs = self.row_length, self._source.row_length
        if ours == theirs or ours * theirs == 0:
            return self._source.raw_rows(start, stop).reshape(stop - start, ours)
        first, last = start * ours, stop * ours
        lower, upper = first // theirs, -(-last // theirs)
        flat = self._source.raw_rows(lower, upper).reshape(-1)
        return flat[first - lower * theirs : last - lower * theirs].reshape(stop - start, ours)

    def borrow_rows(self, start: int, stop: int, scratch: Scratch) -> AnyArray:
        if self.row_length != self._source.row_length:
            return self.raw_rows(start, stop)
        return self._source.borrow_rows(start, stop, scratch)


class SliceRows(Tensor):
    """Entries start..stop of the outermost dimension."""

    def __init__(self, source: Tensor, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= source.shape[0]:
            raise UnsupportedModelError(f"cannot take rows {start}..{stop} of shape {list(source.shape)}")
        self.shape = (stop - start, *source.shape[1:])
        self.dtype = source.dtype
        self._source = source
        self._start = start

    def raw_rows(self, start: int, stop: int) -> AnyArray:
        if len(self.shape) == 1:
            return self._source.raw_rows(start, stop)[:, self._start : self._start + self.shape[0]]
        inner = math.prod(self.shape[1:-1])
        return self._source.raw_rows(self._start * inner + start, self._start * inner + stop)

    def borrow_rows(self, start: int, stop: int, scratch: Scratch) -> AnyArray:
        if len(self.shape) == 1:
            return self.raw_rows(start, stop)
        skipped = self._start * math.prod(self.shape[1:-1])
        return self._source.borrow_rows(skipped + start, skipped + stop, scratch)


class ConcatRows(Tensor):
    """Sources one after another along the outermost dimension; inner shapes and dtypes must agree."""

    def __init__(self, sources: Sequence[Tensor]) -> None:
        first = sources[0]
        for other in sources[1:]:
            if other.shape[1:] != first.shape[1:] or other.dtype is not first.dtype:
                raise UnsupportedModelError(
                    f"cannot join tensors of shapes {list(first.shape)} {first.dtype.value} "
                    f"and {list(other.shape)} {other.dtype.value}"
                )
        self.shape = (sum(s.shape[0] for s in sources), *first.shape[1:])
        self.dtype = first.dtype
        self._sources = tuple(sources)
        rows = [s.n_rows if len(self.shape) > 1 else s.shape[0] for s in sources]
        self._starts = np.concatenate([[0], np.cumsum(rows)])

    def raw_rows(self, start: int, stop: int) -> AnyArray:
        if len(self.shape) == 1:
            return np.concatenate([s.raw_rows(0, 1) for s in self._sources], axis=1)[start:stop]
        index = int(np.searchsorted(self._starts, start, side="right")) - 1
        parts = []
        while start < stop:
            base, end = int(self._starts[index]), int(self._starts[index + 1])
            if start < end:
                upper = min(stop, end)
                parts.append(self._sources[index].raw_rows(start - base, upper - base))
                start = upper
            index += 1
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return np.empty((0, self.row_length), dtype=self.dtype.numpy)
        return np.concatenate(parts)

    def borrow_rows(self, start: int, stop: int, scratch: Scratch) -> AnyArray:
        index = int(np.searchsorted(self._starts, start, side="right")) - 1
        if len(self.shape) == 1 or not start < stop <= self._starts[index + 1]:
            return self.raw_rows(start, stop)
        base = int(self._starts[index])
        return self._sources[index].borrow_rows(start - base, stop - base, scratch)


def stack(sources: Sequence[Tensor]) -> Tensor:
    """Sources of equal shape under a new outermost dimension, as experts are stored: (n, *shape)."""
    return Reshape(ConcatRows(sources), (len(sources), *sources[0].shape))


class TakeRows(Tensor):
    """`source[..., index, :]`: rows chosen alike in every matrix of a stack.

    Rows that lie close together in the source are read in one go, the small gaps between them included.
    """

    _GAP = 8

    def __init__(self, source: Tensor, index: npt.NDArray[np.intp]) -> None:
        self.shape = (*source.shape[:-2], len(index), source.shape[-1])
        self.dtype = source.dtype
        self._source = source
        self._index = index

    def raw_rows(self, start: int, stop: int) -> AnyArray:
        return self._picked(start, stop, self._source.raw_rows)

    def borrow_rows(self, start: int, stop: int, scratch: Scratch) -> AnyArray:
        return self._picked(start, stop, lambda a, b: self._source.borrow_rows(a, b, scratch))

    def _picked(self, start: int, stop: int, read: Callable[[int, int], AnyArray]) -> AnyArray:
        if stop <= start:
            return np.empty((0, self.row_length), dtype=self.dtype.numpy)
        matrix, row = np.divmod(np.arange(start, stop), len(self._index))
        order = matrix * self._source.shape[-2] + self._index[row]
        needed = np.unique(order)
        runs = np.split(needed, np.flatnonzero(np.diff(needed) > self._GAP) + 1)
        if len(runs) == 1:
            lower = int(needed[0])
            picked: AnyArray = read(lower, int(needed[-1]) + 1)[order - lower]
            return picked
        out = np.empty((stop - start, self.row_length), dtype=self.dtype.numpy)
        by_place = np.argsort(order, kind="stable")
        ordered = order[by_place]
        for run in runs:
            lower, upper = int(run[0]), int(run[-1]) + 1
            first, last = np.searchsorted(ordered, (lower, upper))
            out[by_place[first:last]] = read(lower, upper)[ordered[first:last] - lower]
        return out


def take(source: Tensor, index: slice | npt.NDArray[np.intp]) -> Tensor:
    """Rows chosen alike in every matrix of a stack; of a 1-d tensor, its elements.

    Raises:
        UnsupportedModelError: the index speaks of rows that are not there.
    """
    if len(source.shape) == 1:
        taken = take(Reshape(source, (source.shape[0], 1)), index)
        return Reshape(taken, taken.shape[:1])
    rows = source.shape[-2]
    chosen = np.arange(rows)[index] if isinstance(index, slice) else index
    if len(chosen) and not 0 <= chosen.min() <= chosen.max() < rows:
        raise UnsupportedModelError(
            f"a tensor of shape {list(source.shape)} has no row {int(chosen.max())}; config.json does not fit"
        )
    return TakeRows(source, chosen)


class TakeColumns(Tensor):
    """Column c of the view is column order[c] of the source."""

    def __init__(self, source: Tensor, order: npt.NDArray[np.intp]) -> None:
        self.shape = (*source.shape[:-1], len(order))
        self.dtype = source.dtype
        self._source = source
        self._order = order

    def raw_rows(self, start: int, stop: int) -> AnyArray:
        return self._source.raw_rows(start, stop)[:, self._order]


def permute_heads(source: Tensor, n_head: int) -> Tensor:
    """Interleave the two halves of each attention head's rows, as llama.cpp's rotary embedding wants them.

    Source: conversion/llama.py (permute). Works on weights (rows) and on 1-d biases.
    """
    rows = source.shape[0]
    if n_head <= 0 or rows % (2 * n_head):
        raise UnsupportedModelError(
            f"a projection of {rows} rows cannot be divided among {n_head} attention heads; config.json does not fit"
        )
    head = rows // n_head
    return take(source, np.arange(rows).reshape(n_head, 2, head // 2).swapaxes(1, 2).reshape(-1))


class Transpose(Tensor):
    """Rows and columns exchanged, in each matrix of a stack (GPT-2's Conv1D weights, fused experts).

    Each read takes the columns it needs from every row of the matrix, a band of rows at a time.
    """

    _BAND_BYTES = 8 << 20

    def __init__(self, source: Tensor) -> None:
        if len(source.shape) < 2:
            raise UnsupportedModelError(f"cannot transpose a tensor of shape {list(source.shape)}")
        self.shape = (*source.shape[:-2], source.shape[-1], source.shape[-2])
        self.dtype = source.dtype
        self._source = source

    def raw_rows(self, start: int, stop: int) -> AnyArray:
        out = np.empty((stop - start, self.row_length), dtype=self.dtype.numpy)
        per_matrix = self.shape[-2]
        while start < stop:
            matrix, first = divmod(start, per_matrix)
            last = min(first + stop - start, per_matrix)
            self._fill(out[len(out) - (stop - start) :][: last - first], matrix, first, last)
            start += last - first
        return out

    def _fill(self, out: AnyArray, matrix: int, first: int, last: int) -> None:
        source, length = self._source, self.row_length
        band = max(1, self._BAND_BYTES // max(1, source.row_length * self.dtype.itemsize))
        for lower in range(0, length, band):
            upper = min(lower + band, length)
            rows = source.raw_rows(matrix * length + lower, matrix * length + upper)
            out[:, lower:upper] = rows[:, first:last].T


class PadRows(Tensor):
    """The source followed by rows of zeros, up to `n` entries of the outermost dimension."""

    def __init__(self, source: Tensor, n: int) -> None:
        self.shape = (n, *source.shape[1:])
        self.dtype = source.dtype
        self._source = source

    def raw_rows(self, start: int, stop: int) -> AnyArray:
        have = self._source.n_rows
        out = np.zeros((stop - start, self.row_length), dtype=self.dtype.numpy)
        if start < have:
            out[: min(stop, have) - start] = self._source.raw_rows(start, min(stop, have))
        return out


class Computed(Tensor):
    """A float32 function of the source's float32 rows that keeps the row length: norms plus one, scales.

    `function(rows, start)` gets the decoded rows and the number of the first.
    """

    def __init__(self, source: Tensor, function: Callable[[F32Array, int], F32Array]) -> None:
        self.shape = source.shape
        self.dtype = DType.F32
        self._source = source
        self._function = function

    def raw_rows(self, start: int, stop: int) -> AnyArray:
        return self._function(self._source.rows(start, stop), start)


def plus_one(source: Tensor) -> Tensor:
    """Weights plus one: norms that are stored as offsets from one."""
    return plus(source, 1.0)


def plus(source: Tensor, amount: float) -> Tensor:
    """Weights plus a number.

    The sum is rounded to F16 for an F16 source, as in llama.cpp's converter, and to float32 otherwise.
    """
    single = np.float32(amount)
    if source.dtype is DType.F16:
        return Computed(source, lambda rows, _: (rows + single).astype(np.float16).astype(np.float32))
    return Computed(source, lambda rows, _: rows + single)
