"""Entropy and moments of a weight matrix in one pass, in float64, exactly repeatable.

p = softmax(flatten(W)),  H(W) = -sum p ln(p + eps)   (EWQ, arXiv 2503.04704, section 3)

Sixteen-bit storage has at most 65,536 distinct values, so one histogram of the codes gives H for any eps
along with every moment, and no exp is taken per weight. Counts are whole numbers: chunk size, thread
count and order cannot change them. Values stored as F32 that a bfloat16 holds are counted as such, so a
checkpoint and its F32 copy agree to the last bit. Other values go through fixed blocks of elements whose
sums are added exactly.

Single precision would not do: for millions of weights H differs between blocks in the eighth digit.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ewq_gguf.checkpoint.reading import Scratch
from ewq_gguf.checkpoint.tensor import AnyArray, DType, Tensor, to_float32
from ewq_gguf.errors import CheckpointError

F64Array = npt.NDArray[np.float64]

DEFAULT_EPSILON = 0.01
# Elements whose float64 sum is formed by numpy in one go; part of the result's definition for F32 data.
_BLOCK = 1 << 16
_CHUNK_ELEMENTS = 1 << 18
# Codes counted in one call: many against the call, few against caches.
_COUNT_AT_ONCE = 1 << 18
# Far from what 32 bits count to.
_CARRY_AFTER = 1 << 30
_ONE = np.int32(1)


@dataclass(frozen=True)
class Distribution:
    """The values of a matrix and how often each occurs: float64 (k,), int64 (k,), ascending values."""

    values: F64Array
    counts: npt.NDArray[np.int64]

    @property
    def n(self) -> int:
        return int(self.counts.sum())


@dataclass(frozen=True)
class WeightStatistics:
    """What one pass over a matrix tells.

    Attributes:
        n: weights.
        entropy: H(W) in nats, with the epsilon asked for.
        mean, variance: of the values; variance divides by n.
        kurtosis: excess kurtosis, 0 for a Gaussian.
        minimum, maximum: extreme values.
        outliers: share of weights more than 6 standard deviations from the mean.
        rank: effective rank over the smaller side, where it was asked for (see `rank`).
    """

    n: int
    entropy: float
    mean: float
    variance: float
    kurtosis: float
    minimum: float
    maximum: float
    outliers: float
    rank: float | None = None


@dataclass(frozen=True)
class Part:
    """Rows start..stop of a tensor, taken as one matrix; `name` is for messages."""

    tensor: Tensor
    start: int
    stop: int
    name: str = "tensor"


def statistics(
    tensor: Tensor,
    start: int = 0,
    stop: int | None = None,
    *,
    epsilon: float = DEFAULT_EPSILON,
    name: str = "tensor",
    progress: Callable[[int], None] | None = None,
) -> WeightStatistics:
    """Statistics of rows start..stop of a tensor taken as one matrix.

    Args:
        epsilon: the constant inside the logarithm; 0 gives the plain entropy.
        name: used in messages.
        progress: told the number of weights after each chunk.

    Raises:
        CheckpointError: a weight is NaN or infinite; the message names tensor and row.
    """
    stop = tensor.n_rows if stop is None else stop
    return measure(Part(tensor, start, stop, name), epsilon, progress)[0]


def measure(
    part: Part, epsilon: float = DEFAULT_EPSILON, progress: Callable[[int], None] | None = None
) -> tuple[WeightStatistics, Distribution | None]:
    """Statistics, and the counted values where they could be counted; see `statistics`."""
    distribution = count_values(part.tensor, part.start, part.stop, name=part.name, progress=progress)
    if distribution is not None:
        return from_distribution(distribution, epsilon), distribution
    return _streamed([part], epsilon, progress), None


def entropy_of_all(parts: Sequence[Part], epsilon: float = DEFAULT_EPSILON) -> float:
    """H of several matrices laid end to end under one softmax, by two passes over their values.

    Raises:
        CheckpointError: a weight is NaN or infinite.
    """
    return _streamed(parts, epsilon, None).entropy


def merge(one: Distribution | None, other: Distribution) -> Distribution:
    """The values of two matrices laid end to end."""
    if one is None:
        return other
    values, places = np.unique(np.concatenate([one.values, other.values]), return_inverse=True)
    counts = np.zeros(len(values), dtype=np.int64)
    np.add.at(counts, places, np.concatenate([one.counts, other.counts]))
    return Distribution(values, counts)


def count_values(
    tensor: Tensor,
    start: int,
    stop: int,
    *,
    name: str = "tensor",
    progress: Callable[[int], None] | None = None,
) -> Distribution | None:
    """Count the distinct values of 16-bit data (or F32 data that bfloat16 holds), or None when there are more.

    Raises:
        CheckpointError: a weight is NaN or infinite.
    """
    dtype = tensor.dtype
    if not (dtype.is_half or dtype is DType.F32):
        return None
    counter = CodeCounter()
    for first, raw in _chunks(tensor, start, stop):
        codes: npt.NDArray[Any] = raw.reshape(-1)
        if dtype is DType.F32:
            bits = codes.view("<u4")
            if (bits & np.uint32(0xFFFF)).any():
                _check_finite(raw, dtype, first, name)
                return None
            codes = (bits >> np.uint32(16)).astype(np.uint16)
        elif dtype is DType.F16:
            codes = codes.view("<u2")
        counter.add(codes)
        if progress is not None:
            progress(raw.size)
    kind = DType.F16 if dtype is DType.F16 else DType.BF16
    counts = counter.counts()
    used = np.flatnonzero(counts)
    codes = used.astype("<u2")
    stored = codes.view(kind.numpy)
    values = to_float32(stored, kind).astype(np.float64)
    if not np.isfinite(values).all():
        _find_not_finite(tensor, start, stop, name)
    order = np.argsort(values, kind="stable")
    return Distribution(values[order], counts[used][order])


class _Workplace(threading.local):
    """What a thread counts with, kept from matrix to matrix: fresh memory costs page faults."""

    def __init__(self) -> None:
        self.scratch = Scratch()
        # Codes as numpy indexes with them.
        self.indices = np.empty(_COUNT_AT_ONCE, dtype=np.intp)


_workplace = _Workplace()


class CodeCounter:
    """How often each 16-bit code occurs.

    What was tried, in nanoseconds a weight on one core of an AMD EPYC with numpy 2.2, codes in cache: np.add.at on
    int32 counts 0.92 and on int64 counts 1.01, of which 0.15 for widening the codes; on int16 counts 0.94; 46 where
    the number added is of another type than the counts; np.bincount 1.29, because it looks for negative numbers
    first and clears and adds a table each time; np.sort of the codes 3.2. The first and np.bincount hold the
    interpreter's lock, so that threads do not help and processes do (see `workers`).
    """

    def __init__(self) -> None:
        self._total: npt.NDArray[np.int64] | None = None
        self._recent = np.zeros(1 << 16, dtype=np.int32)
        self._pending = 0

    def add(self, codes: npt.NDArray[Any]) -> None:
        """Count codes: any unsigned type of 16 bits, (n,)."""
        for first in range(0, len(codes), _COUNT_AT_ONCE):
            piece = codes[first : first + _COUNT_AT_ONCE]
            wide = _workplace.indices[: len(piece)]
            np.copyto(wide, piece)
            np.add.at(self._recent, wide, _ONE)
            self._pending += len(piece)
            if self._pending >= _CARRY_AFTER:
                self._carry()

    def counts(self) -> npt.NDArray[np.int64]:
        """By code, int64 (65536,)."""
        return self._recent.astype(np.int64) if self._total is None else self._total + self._recent

    def _carry(self) -> None:
        self._total = self.counts()
        self._recent[:] = 0
        self._pending = 0


def from_distribution(distribution: Distribution, epsilon: float = DEFAULT_EPSILON) -> WeightStatistics:
    """All statistics from counted values; every sum is over distinct values, in ascending order."""
    values, counts = distribution.values, distribution.counts.astype(np.float64)
    n = distribution.n
    if n == 0:
        return WeightStatistics(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    exps = np.exp(values - values[-1])
    p = exps / _exact_sum(counts * exps)
    entropy = -_exact_sum(counts * p * _log(p + epsilon))
    mean = _exact_sum(counts * values) / n
    centred = values - mean
    squared = centred * centred
    variance = _exact_sum(counts * squared) / n
    fourth = _exact_sum(counts * squared * squared) / n
    far = np.abs(centred) > 6 * math.sqrt(variance)
    return WeightStatistics(
        n=n,
        entropy=entropy,
        mean=mean,
        variance=variance,
        kurtosis=fourth / variance**2 - 3 if variance > 0 else 0.0,
        minimum=float(values[0]),
        maximum=float(values[-1]),
        outliers=float(counts[far].sum()) / n,
    )


def _exact_sum(terms: F64Array) -> float:
    """The sum, rounded once; a list, because fsum takes far longer over an array's elements."""
    return math.fsum(terms.tolist())


def _log(x: F64Array) -> F64Array:
    """Natural logarithm with 0 ln 0 = 0: where p underflows, p ln p is 0."""
    logarithm: F64Array = np.log(np.where(x > 0, x, 1.0))
    return logarithm


def _chunks(tensor: Tensor, start: int, stop: int) -> Iterator[tuple[int, AnyArray]]:
    """Rows in pieces; each is gone when the next one is asked for."""
    step = max(1, _CHUNK_ELEMENTS // max(1, tensor.row_length))
    scratch = _workplace.scratch
    for first in range(start, stop, step):
        yield first, tensor.borrow_rows(first, min(first + step, stop), scratch)


def _check_finite(raw: AnyArray, dtype: DType, first: int, name: str) -> None:
    # F64 beyond float32 becomes infinite here, and is refused as such.
    with np.errstate(over="ignore"):
        rows = to_float32(raw, dtype)
    if not np.isfinite(rows).all():
        row, column = np.argwhere(~np.isfinite(rows))[0]
        raise CheckpointError(
            f"{name} holds {rows[row, column]} in row {first + row}, column {column}; "
            "a checkpoint with such weights cannot be used: download it again or train on"
        )


def _find_not_finite(tensor: Tensor, start: int, stop: int, name: str) -> None:
    for first, raw in _chunks(tensor, start, stop):
        _check_finite(raw, tensor.dtype, first, name)


def _blocks(parts: Sequence[Part]) -> Iterator[F64Array]:
    """The elements in runs of `_BLOCK`, whatever the rows; the last may be shorter."""
    rest: F64Array = np.empty(0, dtype=np.float64)
    for part in parts:
        for first, raw in _chunks(part.tensor, part.start, part.stop):
            _check_finite(raw, part.tensor.dtype, first, part.name)
            flat = np.concatenate([rest, to_float32(raw, part.tensor.dtype).reshape(-1).astype(np.float64)])
            whole = len(flat) // _BLOCK * _BLOCK
            for begin in range(0, whole, _BLOCK):
                yield flat[begin : begin + _BLOCK]
            rest = flat[whole:]
    if len(rest):
        yield rest


def _streamed(
    parts: Sequence[Part], epsilon: float, progress: Callable[[int], None] | None
) -> WeightStatistics:
    """Two passes for data with too many distinct values: the normaliser and moments, then the entropy."""
    tops, sums, moments = [], [], []
    minimum, maximum, n = math.inf, -math.inf, 0
    for block in _blocks(parts):
        top = float(block.max())
        tops.append(top)
        sums.append(float(np.exp(block - top).sum()))
        moments.append(float(block.sum()))
        minimum, maximum, n = min(minimum, float(block.min())), max(maximum, top), n + len(block)
    if n == 0:
        return WeightStatistics(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    mean = math.fsum(moments) / n
    normaliser = math.fsum(s * math.exp(top - maximum) for s, top in zip(sums, tops))
    entropies, seconds, fourths = [], [], []
    for block in _blocks(parts):
        p = np.exp(block - maximum) / normaliser
        entropies.append(float((p * _log(p + epsilon)).sum()))
        centred = block - mean
        seconds.append(float((centred**2).sum()))
        fourths.append(float((centred**4).sum()))
        if progress is not None:
            progress(len(block))
    variance = math.fsum(seconds) / n
    limit = 6 * math.sqrt(variance)
    far = sum(int((np.abs(b - mean) > limit).sum()) for b in _blocks(parts))
    kurtosis = math.fsum(fourths) / n / variance**2 - 3 if variance > 0 else 0.0
    return WeightStatistics(n, -math.fsum(entropies), mean, variance, kurtosis, minimum, maximum, far / n)
