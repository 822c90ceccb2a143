"""Perplexity by llama-perplexity's rule, with its standard error.

Source: `perplexity` in llama.cpp's tools/perplexity/perplexity.cpp.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ewq_gguf.errors import EvaluationError
from ewq_gguf.evaluation.contexts import Contexts, cut_contexts
from ewq_gguf.evaluation.engine import I32Array, Settings
from ewq_gguf.evaluation.scoring import F64Array, Scorer
from ewq_gguf.evaluation.statistics import exp_of_mean, mean

Progress = Callable[[int, int], None]
"""Called with (done, total); the unit is contexts."""


@dataclass(frozen=True)
class Perplexity:
    """How well one file predicts a text.

    Attributes:
        file: the GGUF.
        n_bytes: its size.
        ppl, ppl_se: perplexity and its standard error.
        tokens: scored tokens.
        chunks, n_ctx: contexts and their length.
        seconds: wall time of decoding and scoring, without loading and tokenizing.
        nll: float64 (tokens,): negative log-likelihood of each scored token, in nats; not part of the JSON.
        targets: int32 (tokens,): the scored tokens; not part of the JSON.
    """

    file: Path
    n_bytes: int
    ppl: float
    ppl_se: float
    tokens: int
    chunks: int
    n_ctx: int
    seconds: float
    nll: F64Array = field(repr=False, compare=False)
    targets: I32Array = field(repr=False, compare=False)

    def as_json(self) -> dict[str, object]:
        """Stable field names, floats in full precision."""
        return {
            "file": str(self.file),
            "bytes": self.n_bytes,
            "ppl": self.ppl,
            "ppl_se": self.ppl_se,
            "tokens": self.tokens,
            "chunks": self.chunks,
            "n_ctx": self.n_ctx,
            "seconds": self.seconds,
        }


def perplexity(
    path: Path,
    text: Path | str,
    *,
    settings: Settings | None = None,
    chunks: int | None = None,
    progress: Progress | None = None,
) -> Perplexity:
    """Measure the perplexity of one file.

    Args:
        path: a GGUF file (the first part of a split one).
        text: a text file, or the text itself as a string.
        settings: context length, batch, threads, KV cache types.
        chunks: contexts at most, None for the whole text.
        progress: called with (contexts done, contexts in all).

    Raises:
        EvaluationError: the file or the text cannot be used, or the model yields NaN.
    """
    settings = settings or Settings()
    with settings.engine(path) as engine, Scorer(engine.n_threads) as scorer:
        contexts = cut_contexts(engine, text, chunks)
        nll = np.empty(contexts.rows)
        began = time.perf_counter()
        if progress:
            progress(0, contexts.chunks)
        for step in contexts.steps(engine.n_seq, engine.n_batch):
            logits = step.run(engine)
            stop = step.start + len(step.targets)
            nll[step.start : stop] = scorer.score(logits, step.targets).nll
            require_numbers(path, contexts, nll[step.start : stop], step.start)
            if progress:
                progress(step.chunks_done, contexts.chunks)
        seconds = time.perf_counter() - began
        return summarize(path, engine.summary.n_bytes, contexts, nll, seconds)


def summarize(path: Path, n_bytes: int, contexts: Contexts, nll: F64Array, seconds: float) -> Perplexity:
    """Perplexity from per-token negative log-likelihoods (rows,)."""
    ppl = exp_of_mean(mean(nll))
    return Perplexity(
        path,
        n_bytes,
        ppl.value,
        ppl.se,
        len(nll),
        contexts.chunks,
        contexts.n_ctx,
        seconds,
        nll,
        contexts.targets(),
    )


def require_numbers(path: Path, contexts: Contexts, values: F64Array, start: int) -> None:
    """Refuse NaN and inf at the first row where they appear.

    Raises:
        EvaluationError: with the context and position of that row.
    """
    bad = ~np.isfinite(values)
    if bad.any():
        row = start + int(np.argmax(bad))
        chunk, place = divmod(row, contexts.rows_per_chunk)
        raise EvaluationError(
            f"{path} yields {values[row - start]} at token {contexts.first + place} of context {chunk}; "
            "its weights are damaged or a type overflows: convert it again or use a wider type"
        )
