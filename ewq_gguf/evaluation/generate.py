"""Greedy generation: the likeliest token, again and again."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ewq_gguf.errors import EvaluationError
from ewq_gguf.evaluation.engine import Engine, I32Array, Settings


def generate_tokens(engine: Engine, prompt: I32Array, n: int) -> Iterator[int]:
    """Up to `n` token ids after `prompt` (int32 (tokens,)), ending early at an end-of-text token.

    Raises:
        EvaluationError: the prompt is empty, prompt and continuation exceed the context, or the model yields
            NaN.
    """
    if len(prompt) == 0:
        raise EvaluationError(f"{engine.path} starts from no token: give a prompt")
    if len(prompt) + n > engine.n_ctx:
        raise EvaluationError(
            f"{len(prompt)} prompt tokens and {n} new ones exceed the context of {engine.n_ctx}; enlarge it"
        )
    engine.clear()
    pending = prompt
    at = 0
    for _ in range(n):
        for left in range(0, len(pending), engine.n_batch):
            part = pending[left : left + engine.n_batch]
            wanted = np.zeros(len(part), dtype=np.bool_)
            wanted[-1] = True
            positions = np.arange(at, at + len(part), dtype=np.int32)
            logits = engine.decode(part, positions, np.zeros(len(part), dtype=np.int32), wanted)
            at += len(part)
        if np.isnan(logits[-1]).any():
            raise EvaluationError(f"{engine.path} yields NaN at token {at}; convert it again")
        token = int(logits[-1].argmax())
        if engine.ends_generation(token):
            return
        yield token
        pending = np.array([token], dtype=np.int32)


def generate(path: Path, prompt: str, n: int = 64, *, settings: Settings | None = None) -> Iterator[str]:
    """The model's greedy continuation of `prompt`, piece by piece, as text.

    Args:
        n: tokens at most.
        settings: threads, KV cache types; the context is made long enough.

    Raises:
        EvaluationError: see `Engine` and `generate_tokens`.
    """
    settings = settings or Settings()
    with Engine(
        path,
        n_ctx=max(settings.n_ctx, len(prompt.encode()) + n + 8),
        n_batch=settings.n_batch,
        n_threads=settings.n_threads,
        cache_type_k=settings.cache_type_k,
        cache_type_v=settings.cache_type_v,
        use_extra_bufts=settings.use_extra_bufts,
        n_seq=1,
    ) as engine:
        # A token may hold part of a character.
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in generate_tokens(engine, engine.tokenize(prompt), n):
            piece = decoder.decode(engine.piece(token))
            if piece:
                yield piece
        rest = decoder.decode(b"", final=True)
        if rest:
            yield rest
