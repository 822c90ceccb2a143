"""One call for what most people measure: perplexity, and divergence where there is something to compare with."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import overload

from ewq_gguf.errors import EvaluationError
from ewq_gguf.evaluation.divergence import Divergence, divergence
from ewq_gguf.evaluation.engine import Settings
from ewq_gguf.evaluation.perplexity import Perplexity, perplexity

StagedProgress = Callable[[str, int, int], None]
AnyPath = str | os.PathLike[str]


@overload
def evaluate(
    files: AnyPath | Sequence[AnyPath],
    text: AnyPath | None = ...,
    *,
    baseline: None = ...,
    settings: Settings | None = ...,
    chunks: int | None = ...,
    progress: StagedProgress | None = ...,
) -> list[Perplexity]: ...


@overload
def evaluate(
    files: AnyPath | Sequence[AnyPath],
    text: AnyPath | None = ...,
    *,
    baseline: AnyPath,
    settings: Settings | None = ...,
    chunks: int | None = ...,
    progress: StagedProgress | None = ...,
) -> list[Divergence]: ...


def evaluate(
    files: AnyPath | Sequence[AnyPath],
    text: AnyPath | None = None,
    *,
    baseline: AnyPath | None = None,
    settings: Settings | None = None,
    chunks: int | None = None,
    progress: StagedProgress | None = None,
) -> list[Perplexity] | list[Divergence]:
    """Measure GGUF files on a text; with a baseline, how far each is from it.

    Args:
        files: one GGUF file or several.
        text: path of a text; only a baseline cache makes it dispensable.
        baseline: a GGUF, a cache of `evaluate baseline`, or llama-perplexity's `--kl-divergence-base`.
        settings: context length, batch, threads, KV cache types.
        chunks: contexts at most, None for the whole text.
        progress: called with (stage, contexts done, contexts in all).

    Returns:
        One `Perplexity` per file, or one `Divergence` (which has the perplexities too) with a baseline.

    Raises:
        EvaluationError: a file or the text cannot be used, vocabularies differ, or a model yields NaN.

    Example:
        >>> import ewq_gguf
        >>> for name in ("bf16", "Q4_K_M"):
        ...     done = ewq_gguf.convert("path/to/checkpoint", f"{name}.gguf", ewq_gguf.Decision(type=name))
        >>> [found] = ewq_gguf.evaluate("Q4_K_M.gguf", "some-text.txt", baseline="bf16.gguf", chunks=2)
        >>> found.mean_kld > 0, found.top1_agreement < 1
        (True, True)
    """
    paths = [Path(files)] if isinstance(files, (str, os.PathLike)) else [Path(f) for f in files]
    source = None if text is None else Path(text)

    def stage(name: str) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, total: progress(name, done, total)

    if baseline is not None:
        return divergence(
            paths, Path(baseline), source, settings=settings, chunks=chunks, progress=stage("divergence")
        )
    if source is None:
        raise EvaluationError("give a text to measure on, or a baseline that brings its own")
    if not paths:
        raise EvaluationError("no file to measure was given")
    return [
        perplexity(path, source, settings=settings, chunks=chunks, progress=stage(path.name))
        for path in paths
    ]
