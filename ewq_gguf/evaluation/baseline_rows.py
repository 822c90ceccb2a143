"""Baseline distributions in compact form: 16-bit codes, or the k likeliest tokens and the rest as one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ewq_gguf.evaluation.engine import F32Array, I32Array
from ewq_gguf.evaluation.scoring import F64Array, LogitRows, RowScores, buffer, pick

U16Array = npt.NDArray[np.uint16]


class CodedRows:
    """Log-probabilities as `low + step * code`, uint16 codes over each row's own range.

    Args:
        codes: uint16 (rows, n_vocab).
        low, step: float32 (rows,).
        targets: int32 (rows,).
        floor: tokens at or below this log-probability take no part in the sum (llama.cpp's rule for its
            file).
        exact: the baseline's true nll and top where the file has them; else they are read off the codes.
        missing: what the rounding adds to a divergence, NaN if not known.
    """

    def __init__(
        self,
        codes: U16Array,
        low: F32Array,
        step: F32Array,
        targets: I32Array,
        *,
        floor: float = -np.inf,
        exact: RowScores | None = None,
        missing: float = np.nan,
    ) -> None:
        self._codes = codes
        self._low = low.astype(np.float64)
        self._step = step.astype(np.float64)
        self._floor = floor
        self._missing = missing
        self._known = exact is not None
        self._targets = targets
        self._scores = exact if exact is not None else RowScores.empty(len(targets))

    def compare(
        self, start: int, stop: int, logits: F32Array, log_norm: F64Array
    ) -> tuple[F64Array, F64Array | float]:
        codes = self._codes[start:stop]
        log_p = buffer("baseline", *codes.shape)
        np.multiply(codes, self._step[start:stop, None], out=log_p, dtype=np.float64)
        log_p += self._low[start:stop, None]
        if not self._known:
            self._scores.nll[start:stop] = -pick(log_p, self._targets[start:stop])
            self._scores.top[start:stop] = codes.argmax(axis=1)
        gap = buffer("gap", *codes.shape)
        np.subtract(log_p, logits, out=gap)
        if np.isneginf(self._floor):
            np.exp(log_p, out=log_p)
            total = np.einsum("ij,ij->i", log_p, gap) / log_p.sum(axis=1) + log_norm
            # Rounding leaves a sum a little off 1; dividing makes it a distribution, whose logarithm shifts
            # along.
            return total - np.log(log_p.sum(axis=1)), self._missing
        log_p[log_p <= self._floor] = -np.inf
        np.exp(log_p, out=log_p)
        return np.einsum("ij,ij->i", log_p, gap) + log_norm * log_p.sum(axis=1), self._missing

    def scores(self, start: int, stop: int) -> tuple[F64Array, I32Array]:
        return self._scores.nll[start:stop], self._scores.top[start:stop]


class TopKRows:
    """The k likeliest tokens of each row with their log-probabilities, and the rest taken together.

    Merging the rest can only lower a KL divergence. By how much is measured on sample rows that are kept
    whole.

    Args:
        index: integer (rows, k).
        log_p: float32 (rows, k).
        log_tail: float64 (rows,): log of the probability of all other tokens.
        exact: the baseline's nll and top.
        whole: number of a row within this step -> its position in `samples`.
        samples: float32 (n, n_vocab) raw logits.
    """

    def __init__(
        self,
        index: npt.NDArray[np.unsignedinteger],
        log_p: F32Array,
        log_tail: F64Array,
        exact: RowScores,
        whole: dict[int, int],
        samples: F32Array,
    ) -> None:
        self._index = index
        self._log_p = log_p
        self._log_tail = log_tail
        self._scores = exact
        self._whole = whole
        self._samples = samples

    def compare(
        self, start: int, stop: int, logits: F32Array, log_norm: F64Array
    ) -> tuple[F64Array, F64Array | float]:
        index = self._index[start:stop].astype(np.intp)
        log_p = self._log_p[start:stop].astype(np.float64)
        log_q = np.take_along_axis(logits, index, axis=1).astype(np.float64) - log_norm[:, None]
        log_tail = self._log_tail[start:stop]
        # Where rounding leaves no rest at all, its share is below the resolution of float64.
        rest = np.log(np.maximum(1.0 - np.exp(log_q).sum(axis=1), 1e-16))
        share = np.exp(log_tail)
        tail = np.where(share > 0, share * (log_tail - rest), 0.0)
        kld: F64Array = np.einsum("ij,ij->i", np.exp(log_p), log_p - log_q) + tail
        missing = np.full(stop - start, np.nan)
        for row in range(start, stop):
            if row in self._whole:
                at = row - start
                sample = self._samples[self._whole[row]][None]
                full, _ = LogitRows(sample, np.zeros(1, dtype=np.int32)).compare(
                    0, 1, logits[at : at + 1], log_norm[at : at + 1]
                )
                missing[at] = full[0] - kld[at]
        return kld, missing

    def scores(self, start: int, stop: int) -> tuple[F64Array, I32Array]:
        return self._scores.nll[start:stop], self._scores.top[start:stop]
