"""How far a changed model has moved from itself: KL divergence against baseline logits kept in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ewq_gguf.errors import EvaluationError
from ewq_gguf.evaluation.contexts import Contexts, Step, cut_contexts
from ewq_gguf.evaluation.engine import Engine, F32Array
from ewq_gguf.evaluation.scoring import F64Array, Scorer
from ewq_gguf.evaluation.statistics import Mean, mean

DEFAULT_MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class Reading:
    """KL(baseline || changed model) in nats.

    Attributes:
        rows: float64 (scored tokens,), in the order of the contexts; inf where the model broke down.
    """

    rows: F64Array

    @property
    def mean(self) -> Mean:
        """Mean and its standard error, tokens taken as independent."""
        return mean(self.rows)


@dataclass(frozen=True)
class _Baseline:
    """Distributions of some rows: float32 logits and, where they are kept, probabilities (rows, n_vocab)."""

    logits: F32Array
    p: F32Array | None

    @classmethod
    def of(cls, logits: F32Array, scorer: Scorer, *, compact: bool) -> _Baseline:
        own = logits.copy()
        if compact:
            return cls(own, None)
        p = np.empty_like(logits)

        def block(start: int, stop: int) -> None:
            p[start:stop] = _softmax(own[start:stop])

        scorer.each_block(block, *logits.shape)
        return cls(own, p)

    def divergence(self, logits: F32Array, scorer: Scorer) -> F64Array:
        """KL per row as log E_p[exp(-d) - 1 + d], d the difference of logits less its mean under p.

        Every term is positive, so small divergences keep their digits: KL is about half the variance of d.
        """
        out = np.full(len(logits), np.nan)

        def block(start: int, stop: int) -> None:
            p = _softmax(self.logits[start:stop]) if self.p is None else self.p[start:stop]
            d = np.subtract(self.logits[start:stop], logits[start:stop], dtype=np.float64)
            d -= np.einsum("ij,ij->i", p, d)[:, None]
            terms = np.exp(-d)
            terms += d
            terms -= 1
            out[start:stop] = np.log1p(np.einsum("ij,ij->i", p, terms))

        scorer.each_block(block, *logits.shape)
        return np.where(np.isfinite(out), out, np.inf)


def _softmax(logits: F32Array) -> F32Array:
    """Computed in float64, (rows, n_vocab)."""
    part = logits.astype(np.float64)
    weights = np.exp(part - part.max(axis=1, keepdims=True))
    p: F32Array = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return p


def _thinned(step: Step, stride: int) -> Step:
    """The same step with every `stride`-th scored token."""
    kept = np.flatnonzero(step.outputs)[::stride]
    outputs = np.zeros_like(step.outputs)
    outputs[kept] = True
    return replace(step, outputs=outputs, targets=step.targets[::stride])


class Meter:
    """Runs calibration contexts through an engine and compares with the first time; a context manager.

    Memory: 8 bytes * scored tokens * vocabulary, half of that if `compact`. Where that exceeds `max_bytes`, evenly spread tokens are
    scored; a large vocabulary makes each of them dear, and neighbours say much the same.

    Args:
        engine: the running model, unchanged at this moment.
        text: calibration text.
        chunks: contexts at most; None for all.
        max_bytes: of baseline distributions kept in memory.
        compact: whether probabilities are made from logits at each reading, which takes twice the time.
        spread: whether the contexts are spread over the whole text, where there are more than `chunks`.

    Attributes:
        contexts: the text, cut.
        tokens: scored tokens per reading.

    Raises:
        EvaluationError: the text cannot be used or the unchanged model yields NaN.
    """

    def __init__(
        self,
        engine: Engine,
        text: Path | str,
        chunks: int | None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        *,
        compact: bool = False,
        spread: bool = False,
    ) -> None:
        self.engine = engine
        self.contexts: Contexts = cut_contexts(engine, text, chunks, spread=spread)
        per_logit = 4 if compact else 8
        stride = max(1, math.ceil(per_logit * self.contexts.rows * engine.n_vocab / max_bytes))
        self._steps = [_thinned(step, stride) for step in self.contexts.steps(engine.n_seq, engine.n_batch)]
        self.tokens = sum(int(step.outputs.sum()) for step in self._steps)
        self._scorer = Scorer(engine.n_threads)
        self._baseline: list[_Baseline] = []
        for step in self._steps:
            logits = step.run(engine)
            if not np.isfinite(logits).all():
                self.close()
                raise EvaluationError(f"{engine.path} yields logits that are not finite; it cannot be probed")
            self._baseline.append(_Baseline.of(logits, self._scorer, compact=compact))

    def read(
        self, engine: Engine | None = None, progress: Callable[[int, int], None] | None = None
    ) -> Reading:
        """Measure the model as it is now, or another one of the same vocabulary, opened in the same way."""
        parts = []
        for step, baseline in zip(self._steps, self._baseline):
            parts.append(baseline.divergence(step.run(engine or self.engine), self._scorer))
            if progress is not None:
                progress(len(parts), len(self._steps))
        return Reading(np.concatenate(parts))

    def close(self) -> None:
        self._scorer.close()
        self._baseline.clear()

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
