"""A text cut into contexts, and the batches in which they are run.

The rule is llama-perplexity's (tools/perplexity/perplexity.cpp): the text is tokenized once and cut
into contexts of n_ctx tokens; the first token of each is replaced by BOS where the model wants one; the
logits at positions n_ctx/2 .. n_ctx-2 are scored on the token that follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ewq_gguf.errors import EvaluationError
from ewq_gguf.evaluation.engine import Engine, F32Array, I32Array


@dataclass(frozen=True)
class Step:
    """One call of llama.cpp: the tokens of some contexts, and which scored rows they yield.

    Attributes:
        tokens, positions, sequences: int32 (n,).
        outputs: bool (n,): the tokens whose logits are scored.
        targets: int32 (rows,): the token that truly follows each scored position.
        start: number of the first row among all scored rows of the run; rows count context by context.
        fresh: whether the KV cache must be cleared before.
        chunks_done: contexts complete after this step.
    """

    tokens: I32Array
    positions: I32Array
    sequences: I32Array
    outputs: npt.NDArray[np.bool_]
    targets: I32Array
    start: int
    fresh: bool
    chunks_done: int

    def run(self, engine: Engine) -> F32Array:
        """Logits of the scored rows, float32 (rows, n_vocab): a view valid until the engine's next call."""
        if self.fresh:
            engine.clear()
        return engine.decode(self.tokens, self.positions, self.sequences, self.outputs)


@dataclass(frozen=True)
class Contexts:
    """Contexts of one text.

    Attributes:
        tokens: int32 (chunks, n_ctx), as the text has them.
        bos: what replaces the first token of each context, or None.
    """

    tokens: I32Array
    bos: int | None

    @property
    def chunks(self) -> int:
        return int(self.tokens.shape[0])

    @property
    def n_ctx(self) -> int:
        return int(self.tokens.shape[1])

    @property
    def first(self) -> int:
        """Position of the first scored row of each context."""
        return self.n_ctx // 2

    @property
    def rows_per_chunk(self) -> int:
        return self.n_ctx - 1 - self.first

    @property
    def rows(self) -> int:
        """Scored tokens in all."""
        return self.chunks * self.rows_per_chunk

    def targets(self) -> I32Array:
        """int32 (rows,): the token that follows each scored position, context by context."""
        return np.ascontiguousarray(self.tokens[:, self.first + 1 :]).reshape(-1)

    def steps(self, n_seq: int, n_batch: int) -> Iterator[Step]:
        """The batches: `n_seq` contexts at a time, or one context in pieces of `n_batch` tokens."""
        inputs = self.tokens.copy()
        if self.bos is not None:
            inputs[:, 0] = self.bos
        together = max(1, min(n_seq, n_batch // self.n_ctx))
        width = min(n_batch, self.n_ctx)
        row = 0
        for chunk in range(0, self.chunks, together):
            stop = min(chunk + together, self.chunks)
            for left in range(0, self.n_ctx, width):
                right = min(left + width, self.n_ctx)
                positions = np.arange(left, right, dtype=np.int32)
                scored = (positions >= self.first) & (positions < self.n_ctx - 1)
                targets = self.tokens[chunk:stop, left + 1 : right + 1][:, scored[: self.n_ctx - left - 1]]
                n_chunks = stop - chunk
                yield Step(
                    tokens=np.ascontiguousarray(inputs[chunk:stop, left:right]).reshape(-1),
                    positions=np.tile(positions, n_chunks),
                    sequences=np.repeat(np.arange(n_chunks, dtype=np.int32), right - left),
                    outputs=np.tile(scored, n_chunks),
                    targets=np.ascontiguousarray(targets).reshape(-1),
                    start=row,
                    fresh=left == 0,
                    chunks_done=stop if right == self.n_ctx else chunk,
                )
                row += targets.size


def require_tokens(path: Path, tokens: npt.NDArray[np.signedinteger[Any]], n_vocab: int) -> None:
    """Refuse token ids of a file that its vocabulary does not have: they would be looked up all the same.

    Raises:
        EvaluationError: the first such token and its place.
    """
    wrong = np.flatnonzero((tokens < 0) | (tokens >= n_vocab))
    if len(wrong):
        at = int(wrong[0])
        raise EvaluationError(
            f"{path} is damaged: token {at} is {int(tokens.reshape(-1)[at])}, of a vocabulary of {n_vocab}; write it again"
        )


def read_text(text: Path | str) -> bytes:
    """The bytes to tokenize: a file's without its last newline (as llama.cpp's `--file` reads it), or a
    string's.

    Raises:
        EvaluationError: the file cannot be read.
    """
    if isinstance(text, str):
        return text.encode("utf-8", "surrogatepass")
    try:
        data = text.read_bytes()
    except OSError as error:
        raise EvaluationError(f"the text {text} cannot be read: {error.strerror or error}") from None
    return data[:-1] if data.endswith(b"\n") else data


def cut_contexts(
    engine: Engine, text: Path | str, chunks: int | None = None, *, spread: bool = False
) -> Contexts:
    """Tokenize `text` with the engine's vocabulary and cut it.

    Args:
        text: a file, or the text itself as a string.
        chunks: contexts at most, None for all that the text fills.
        spread: take them evenly from the whole text, not its beginning.

    Raises:
        EvaluationError: the text cannot be read, or does not fill one context.
    """
    if chunks is not None and chunks < 1:
        raise EvaluationError(f"{chunks} contexts cannot be measured; ask for at least one")
    n_ctx = engine.n_ctx
    if n_ctx < 4:
        raise EvaluationError(f"a context of {n_ctx} scores nothing; it needs at least 4 tokens")
    tokens = engine.tokenize(read_text(text))
    available = len(tokens) // n_ctx
    if available < 1:
        name = str(text) if isinstance(text, Path) else "the text"
        raise EvaluationError(
            f"{name} has {len(tokens)} tokens, less than one context of {n_ctx}; "
            "give a longer text or a smaller --n-ctx"
        )
    count = available if chunks is None else min(chunks, available)
    whole = tokens[: available * n_ctx].reshape(available, n_ctx)
    chosen = (np.arange(count) * available) // count if spread else np.arange(count)
    return Contexts(whole[chosen], engine.bos)
