"""What quantization changed: the candidate's distributions against the baseline's, token by token.

Both models run side by side on the same batches, so no logits file is needed; a cache file of baseline
logits (see `baseline`) can stand in for the baseline model. Definitions are those of `kl_divergence` in
llama.cpp's tools/perplexity/perplexity.cpp. One difference is wanted: llama.cpp's baseline file cuts
log-probabilities off 16 nats below the largest logit, which shifts the *baseline's* perplexity; here nothing
is cut.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from ewq_gguf.errors import EvaluationError
from ewq_gguf.evaluation.baseline import BaselineSource, open_baseline
from ewq_gguf.evaluation.contexts import Contexts, Step, cut_contexts, require_tokens
from ewq_gguf.evaluation.engine import Engine, Settings
from ewq_gguf.evaluation.perplexity import Progress, require_numbers
from ewq_gguf.evaluation.scoring import BoolArray, F64Array, RowScores, Scorer
from ewq_gguf.evaluation.statistics import (
    correlation,
    exp_of_mean,
    mean,
    mean_over_groups,
    percentile,
    proportion,
    root_mean_square,
)


@dataclass(frozen=True)
class TokenFigures:
    """Per scored token, all of shape (tokens,).

    Attributes:
        nll, baseline_nll: float64, negative log-likelihood of the true token, nats.
        kld: float64, KL(baseline || candidate), nats.
        delta_p: float64, probability of the true token, candidate's minus baseline's.
        same_top: bool, whether both rank the same token first.
    """

    nll: F64Array
    baseline_nll: F64Array
    kld: F64Array
    delta_p: F64Array
    same_top: BoolArray


@dataclass(frozen=True)
class Divergence:
    """One file against its baseline. KL divergences in nats, probabilities and shares as fractions of 1.

    Attributes:
        file, n_bytes, baseline: what was compared with what.
        ppl, ppl_se, baseline_ppl, baseline_ppl_se: perplexities with standard errors.
        tokens, chunks, n_ctx: scored tokens, contexts, their length.
        mean_kld, mean_kld_se, median_kld, p90_kld, p95_kld, p99_kld, p999_kld, max_kld: KL(baseline || file).
        mean_kld_se_contexts: error of mean_kld if tokens of one context hang together (`mean_over_groups`).
        mean_delta_p, rms_delta_p (with errors): change of the true token's probability.
        top1_agreement (with error): share of tokens where both rank the same token first.
        ln_ppl_ratio, ppl_ratio (with errors): perplexity against the baseline's, the errors from paired
            tokens.
        correlation: of the two files' negative log-likelihoods.
        kld_error: by how much the form in which the baseline is kept puts mean_kld off, as measured: 0 for a
            live baseline or a full one, None where it is not known (llama.cpp's file).
        seconds: wall time of decoding and scoring, the baseline's share included.
        per_token: the figures behind it, not part of the JSON.
    """

    file: Path
    n_bytes: int
    baseline: Path
    ppl: float
    ppl_se: float
    tokens: int
    chunks: int
    n_ctx: int
    baseline_ppl: float
    baseline_ppl_se: float
    mean_kld: float
    mean_kld_se: float
    mean_kld_se_contexts: float
    median_kld: float
    p90_kld: float
    p95_kld: float
    p99_kld: float
    p999_kld: float
    max_kld: float
    mean_delta_p: float
    mean_delta_p_se: float
    rms_delta_p: float
    rms_delta_p_se: float
    top1_agreement: float
    top1_agreement_se: float
    ln_ppl_ratio: float
    ln_ppl_ratio_se: float
    ppl_ratio: float
    ppl_ratio_se: float
    correlation: float
    kld_error: float | None
    seconds: float
    per_token: TokenFigures = field(repr=False, compare=False)

    def as_json(self) -> dict[str, object]:
        """Stable field names, floats in full precision."""
        out: dict[str, object] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "per_token":
                continue
            if isinstance(value, Path):
                value = str(value)
            elif isinstance(value, float) and math.isnan(value):
                value = None
            out["bytes" if item.name == "n_bytes" else item.name] = value
        return out


class _Collector:
    """Per-token figures of one candidate while they come in."""

    def __init__(self, path: Path, n_bytes: int, rows: int) -> None:
        self.path = path
        self.n_bytes = n_bytes
        self.scores = RowScores.empty(rows)
        self.kld = np.full(rows, np.nan)
        self.missing = np.full(rows, np.nan)
        self.seconds = 0.0


def divergence(
    candidates: Sequence[Path] | Path,
    baseline: Path,
    text: Path | str | None = None,
    *,
    settings: Settings | None = None,
    chunks: int | None = None,
    spread: bool = False,
    progress: Progress | None = None,
) -> list[Divergence]:
    """Compare files with a baseline; all models are open at once and share each batch.

    Args:
        candidates: GGUF files.
        baseline: a GGUF file, a cache written by `baseline.write_baseline`, or a file of llama-perplexity's
            `--kl-divergence-base`; the latter two bring their own tokens and context length.
        text: a text file, or the text itself; needed with a GGUF baseline.
        settings: context length, batch, threads; KV cache types of the candidates (the baseline keeps f16).
        chunks: contexts at most, None for all.
        spread: take them evenly from the whole text, with a GGUF baseline.
        progress: called with (contexts done, contexts in all).

    Returns:
        One result per candidate, in their order.

    Raises:
        EvaluationError: a file or the text cannot be used, vocabularies differ, or a model yields NaN.
    """
    settings = settings or Settings()
    paths = [candidates] if isinstance(candidates, Path) else list(candidates)
    if not paths:
        raise EvaluationError("no file to compare with the baseline was given")
    with ExitStack() as stack:
        source = stack.enter_context(
            open_baseline(baseline, text, settings=settings, chunks=chunks, spread=spread)
        )
        settings = settings.with_context(source.contexts.n_ctx)
        engines = [stack.enter_context(settings.engine(path)) for path in paths]
        contexts = source.contexts
        if not source.knows_bos:
            contexts = replace(contexts, bos=engines[0].bos)
        for engine in engines:
            _require_same_vocabulary(engine, source, contexts, text)
        require_tokens(baseline, contexts.tokens, source.n_vocab)
        scorer = stack.enter_context(Scorer(engines[0].n_threads))
        collected = [_Collector(e.path, e.summary.n_bytes, contexts.rows) for e in engines]
        base = RowScores.empty(contexts.rows)
        shared = 0.0
        if progress:
            progress(0, contexts.chunks)
        for step in contexts.steps(engines[0].n_seq, engines[0].n_batch):
            shared += _run_step(step, source, engines, collected, base, scorer)
            rows = slice(step.start, step.start + len(step.targets))
            require_numbers(baseline, contexts, base.nll[rows], step.start)
            for item in collected:
                require_numbers(item.path, contexts, item.scores.nll[rows], step.start)
                require_numbers(item.path, contexts, item.kld[rows], step.start)
            if progress:
                progress(step.chunks_done, contexts.chunks)
        return [_summarize(item, baseline, base, contexts, shared) for item in collected]


def _run_step(
    step: Step,
    source: BaselineSource,
    engines: Sequence[Engine],
    collected: Sequence[_Collector],
    base: RowScores,
    scorer: Scorer,
) -> float:
    """Run one batch through the baseline and every candidate; returns the baseline's seconds."""
    began = time.perf_counter()
    rows = slice(step.start, step.start + len(step.targets))
    reference = source.rows(step)
    shared = time.perf_counter() - began
    for engine, item in zip(engines, collected):
        began = time.perf_counter()
        scores, kld, missing = scorer.compare(step.run(engine), step.targets, reference)
        item.scores.nll[rows] = scores.nll
        item.scores.top[rows] = scores.top
        item.kld[rows] = kld
        item.missing[rows] = missing
        item.seconds += time.perf_counter() - began
    base.nll[rows], base.top[rows] = reference.scores(0, len(step.targets))
    return shared


def _require_same_vocabulary(
    engine: Engine, source: BaselineSource, contexts: Contexts, text: Path | str | None
) -> None:
    """Token ids must mean the same on both sides: same count, same start token, same tokens for the text."""
    if engine.n_vocab != source.n_vocab:
        raise EvaluationError(
            f"{engine.path} has {engine.n_vocab} tokens, its baseline {source.path} has {source.n_vocab}: "
            "they cannot be compared token by token; choose a baseline of the same model"
        )
    # Splitting a text takes seconds; the same tokenizer need not do it twice.
    if text is None or engine.summary.tokenizer == source.tokenizer:
        return
    mine = cut_contexts(engine, text, contexts.chunks)
    if mine.bos != contexts.bos or not np.array_equal(mine.tokens, contexts.tokens):
        raise EvaluationError(
            f"{engine.path} and its baseline {source.path} split the text into different tokens; "
            "choose a baseline of the same model (or, for a cache, the text and context it was made with)"
        )


def _summarize(
    item: _Collector, baseline: Path, base: RowScores, contexts: Contexts, shared_seconds: float
) -> Divergence:
    nll, kld = item.scores.nll, item.kld
    delta_p = np.exp(-nll) - np.exp(-base.nll)
    same_top = item.scores.top == base.top
    ppl, base_ppl = exp_of_mean(mean(nll)), exp_of_mean(mean(base.nll))
    # The error of a mean of paired differences: var(a) + var(b) - 2 cov(a, b), without the cancellation.
    log_ratio = mean(nll - base.nll)
    known = ~np.isnan(item.missing)
    kld_mean, delta_mean = mean(kld), mean(delta_p)
    rms, agreement = root_mean_square(delta_p), proportion(same_top)
    return Divergence(
        file=item.path,
        n_bytes=item.n_bytes,
        baseline=baseline,
        ppl=ppl.value,
        ppl_se=ppl.se,
        tokens=len(nll),
        chunks=contexts.chunks,
        n_ctx=contexts.n_ctx,
        baseline_ppl=base_ppl.value,
        baseline_ppl_se=base_ppl.se,
        mean_kld=kld_mean.value,
        mean_kld_se=kld_mean.se,
        mean_kld_se_contexts=mean_over_groups(kld, contexts.chunks).se,
        median_kld=percentile(kld, 0.5),
        p90_kld=percentile(kld, 0.9),
        p95_kld=percentile(kld, 0.95),
        p99_kld=percentile(kld, 0.99),
        p999_kld=percentile(kld, 0.999),
        max_kld=float(kld.max()),
        mean_delta_p=delta_mean.value,
        mean_delta_p_se=delta_mean.se,
        rms_delta_p=rms.value,
        rms_delta_p_se=rms.se,
        top1_agreement=agreement.value,
        top1_agreement_se=agreement.se,
        ln_ppl_ratio=log_ratio.value,
        ln_ppl_ratio_se=log_ratio.se,
        ppl_ratio=math.exp(log_ratio.value),
        ppl_ratio_se=math.exp(log_ratio.value) * log_ratio.se,
        correlation=correlation(nll, base.nll),
        kld_error=float(item.missing[known].mean()) if known.any() else None,
        seconds=item.seconds + shared_seconds,
        per_token=TokenFigures(nll, base.nll, kld, delta_p, same_top),
    )
