"""From logits to per-token figures, in float64 and in blocks of rows that stay in the processor's cache.

Definitions are llama-perplexity's (tools/perplexity/perplexity.cpp, `log_softmax` and `kl_divergence`); there
the exponentials are taken in float32 and the baseline is rounded to 16 bits, here everything is float64.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ewq_gguf.evaluation.engine import F32Array, I32Array

F64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
_BLOCK_ELEMENTS = 1 << 15
"""Elements per block: two float64 buffers of this many (512 KiB) fit a second-level cache."""


@dataclass(frozen=True)
class RowScores:
    """What one file says about each scored token.

    Attributes:
        nll: float64 (rows,): negative log-likelihood of the true next token, in nats.
        top: int32 (rows,): the most probable token (the first of equals).
    """

    nll: F64Array
    top: I32Array

    @classmethod
    def empty(cls, rows: int) -> RowScores:
        return cls(np.full(rows, np.nan), np.full(rows, -1, dtype=np.int32))


class BaselineRows(Protocol):
    """The baseline's distributions for the rows of one step, in whatever form they are kept."""

    def compare(
        self, start: int, stop: int, logits: F32Array, log_norm: F64Array
    ) -> tuple[F64Array, F64Array | float]:
        """KL(baseline || candidate) in nats of rows start..stop, float64 (stop - start,), and what it misses.

        Args:
            logits: the candidate's, float32 (stop - start, n_vocab).
            log_norm: the candidate's log of the sum of exp(logits), float64 (stop - start,).

        Returns:
            The divergences, and per row (or for all) how far the form in which the baseline is kept puts
            them off; NaN where that is not known, 0 where nothing was lost.
        """
        ...

    def scores(self, start: int, stop: int) -> tuple[F64Array, I32Array]:
        """The baseline's own (nll, top) of rows start..stop; may rely on `compare` having seen them."""
        ...


class _Scratch(threading.local):
    """Buffers of each worker thread, so that no block pays for fresh memory."""

    def __init__(self) -> None:
        self.buffers: dict[str, F64Array] = {}


_scratch = _Scratch()


def buffer(name: str, rows: int, columns: int) -> F64Array:
    """Uninitialised float64 (rows, columns) of this thread, the same memory at every call under `name`."""
    memory = _scratch.buffers.get(name)
    if memory is None or memory.size < rows * columns:
        memory = np.empty(rows * columns)
        _scratch.buffers[name] = memory
    return memory[: rows * columns].reshape(rows, columns)


def exponentials(logits: F32Array, name: str = "exp") -> tuple[F64Array, F64Array, I32Array]:
    """exp(logits - max) of each row, in a buffer of this thread that the next call under `name` overwrites.

    Returns:
        (float64 (rows, n_vocab) exponentials, float64 (rows,) log of the sum of exp(logits), int32 (rows,)
        argmax).
    """
    top = logits.argmax(axis=1)
    largest = np.take_along_axis(logits, top[:, None], axis=1)
    out = buffer(name, *logits.shape)
    np.subtract(logits, largest, out=out, dtype=np.float64)
    np.exp(out, out=out)
    log_norm = largest[:, 0].astype(np.float64) + np.log(out.sum(axis=1))
    return out, log_norm, top.astype(np.int32)


def pick(matrix: npt.NDArray[np.floating], columns: I32Array) -> F64Array:
    """The element of each row at the given column, as float64."""
    return np.take_along_axis(matrix, columns[:, None].astype(np.intp), axis=1)[:, 0].astype(np.float64)


class LogitRows:
    """Baseline rows as raw float32 logits: another model's live output, or a full-precision cache.

    Args:
        logits: float32 (rows, n_vocab); read only while the step is scored.
        targets: int32 (rows,): true next tokens.
    """

    def __init__(self, logits: F32Array, targets: I32Array) -> None:
        self._logits = logits
        self._targets = targets
        self._scores = RowScores.empty(len(targets))

    def compare(
        self, start: int, stop: int, logits: F32Array, log_norm: F64Array
    ) -> tuple[F64Array, F64Array | float]:
        mine = self._logits[start:stop]
        weights, base_norm, top = exponentials(mine, "baseline")
        self._scores.nll[start:stop] = base_norm - pick(mine, self._targets[start:stop])
        self._scores.top[start:stop] = top
        gap = buffer("gap", *mine.shape)
        np.subtract(mine, logits, out=gap, dtype=np.float64)
        total = np.einsum("ij,ij->i", weights, gap)
        for row in np.flatnonzero(~np.isfinite(total)):
            # Tokens masked with -inf have no probability and no share in the sum.
            possible = weights[row] > 0
            total[row] = weights[row, possible] @ gap[row, possible]
        kld: F64Array = total / weights.sum(axis=1) - base_norm + log_norm
        return kld, 0.0

    def scores(self, start: int, stop: int) -> tuple[F64Array, I32Array]:
        return self._scores.nll[start:stop], self._scores.top[start:stop]


class Scorer:
    """Turns logits into per-token figures on a few threads; numpy lets go of the interpreter meanwhile."""

    def __init__(self, n_threads: int) -> None:
        self._pool = ThreadPoolExecutor(n_threads, thread_name_prefix="ewq-score")

    def close(self) -> None:
        self._pool.shutdown()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def score(self, logits: F32Array, targets: I32Array) -> RowScores:
        """nll and top of each row of `logits` (rows, n_vocab) for `targets` (rows,)."""
        out = RowScores.empty(len(targets))

        def block(start: int, stop: int) -> None:
            part = logits[start:stop]
            _, log_norm, top = exponentials(part)
            out.nll[start:stop] = log_norm - pick(part, targets[start:stop])
            out.top[start:stop] = top

        self.each_block(block, *logits.shape)
        return out

    def compare(
        self, logits: F32Array, targets: I32Array, baseline: BaselineRows
    ) -> tuple[RowScores, F64Array, F64Array]:
        """As `score`, with the two arrays of `BaselineRows.compare`, float64 (rows,), in nats."""
        out = RowScores.empty(len(targets))
        kld = np.full(len(targets), np.nan)
        missing = np.full(len(targets), np.nan)

        def block(start: int, stop: int) -> None:
            part = logits[start:stop]
            _, log_norm, top = exponentials(part)
            out.nll[start:stop] = log_norm - pick(part, targets[start:stop])
            out.top[start:stop] = top
            kld[start:stop], missing[start:stop] = baseline.compare(start, stop, part, log_norm)

        self.each_block(block, *logits.shape)
        return out, kld, missing

    def each_block(self, block: Callable[[int, int], None], rows: int, columns: int) -> None:
        """Call `block(start, stop)` for all rows, a cache-sized part of the matrix at a time."""
        height = max(1, _BLOCK_ELEMENTS // max(1, columns))

        def guarded(start: int) -> None:
            # NaN and inf are looked for in the results, where they can be named.
            with np.errstate(all="ignore"):
                block(start, min(start + height, rows))

        waiting: list[Future[None]] = [self._pool.submit(guarded, start) for start in range(0, rows, height)]
        for future in waiting:
            future.result()
