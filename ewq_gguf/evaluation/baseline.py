"""Where the baseline's distributions come from: a running model, a cache file, or llama.cpp's own file."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from ewq_gguf.checkpoint.regular import regular_stat
from ewq_gguf.errors import EvaluationError
from ewq_gguf.evaluation import baseline_cache
from ewq_gguf.evaluation.baseline_rows import CodedRows
from ewq_gguf.evaluation.contexts import Contexts, Step, cut_contexts
from ewq_gguf.evaluation.engine import Settings
from ewq_gguf.evaluation.records import Records
from ewq_gguf.evaluation.scoring import BaselineRows, LogitRows

_LLAMA_MAGIC = b"_logits_"
_LLAMA_FLOOR = -16.0
"""llama.cpp leaves tokens below this log-probability out of its sums."""


class BaselineSource(Protocol):
    """A baseline, asked for its rows batch by batch.

    Attributes:
        path: the file behind it.
        n_vocab: its vocabulary.
        contexts: the tokens to run.
        knows_bos: whether `contexts.bos` was recorded; llama.cpp's file does not say.
        tokenizer: digest of the tokenizer that has just split the text, or None where it was split before.
    """

    path: Path
    n_vocab: int
    contexts: Contexts
    knows_bos: bool
    tokenizer: str | None

    def rows(self, step: Step) -> BaselineRows:
        """The baseline's distributions for the scored rows of one step."""
        ...

    def __enter__(self) -> BaselineSource: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LiveBaseline:
    """A GGUF that runs along with its candidates, always with llama.cpp's own f16 KV cache.

    So a candidate's quantized cache counts as a part of what was changed, and a file against itself with
    `cache_type_k="q8_0"` shows what that cache alone costs.
    """

    knows_bos = True

    def __init__(
        self, path: Path, text: Path | str, settings: Settings, chunks: int | None, spread: bool = False
    ) -> None:
        self.path = path
        self._engine = replace(settings, cache_type_k=None, cache_type_v=None).engine(path)
        try:
            self.contexts = cut_contexts(self._engine, text, chunks, spread=spread)
        except BaseException:
            self._engine.close()
            raise
        self.n_vocab = self._engine.n_vocab
        self.tokenizer: str | None = self._engine.summary.tokenizer

    def rows(self, step: Step) -> BaselineRows:
        return LogitRows(step.run(self._engine), step.targets)

    def __enter__(self) -> LiveBaseline:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()


class LlamaBaseline:
    """The file that llama-perplexity writes with `--kl-divergence-base`.

    Layout (tools/perplexity/perplexity.cpp): magic, uint32 n_ctx, int32 n_vocab, int32 n_chunk, int32 tokens,
    then for each scored row float32 scale, float32 lowest log-probability, uint16 codes, padded to an even
    count.
    """

    knows_bos = False

    def __init__(self, path: Path, chunks: int | None) -> None:
        self.path = path
        self.tokenizer: str | None = None
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(20)
        if len(head) < 20:
            raise EvaluationError(f"{path} is truncated: it ends inside its header; write it again")
        n_ctx, self.n_vocab, n_chunk = struct.unpack("<Iii", head[8:])
        if not (4 <= n_ctx <= 1 << 24 and 0 < self.n_vocab <= 1 << 24 and 0 < n_chunk <= 1 << 31):
            raise EvaluationError(
                f"{path} has an impossible header ({n_ctx}, {self.n_vocab}, {n_chunk}); "
                "write it again with llama-perplexity --kl-divergence-base"
            )
        row = np.dtype(
            [("step", "<f4"), ("low", "<f4"), ("codes", "<u2", (self.n_vocab + self.n_vocab % 2,))]
        )
        start = 20 + 4 * n_ctx * n_chunk
        n_rows = n_chunk * (n_ctx - 1 - n_ctx // 2)
        if size < start + n_rows * row.itemsize:
            raise EvaluationError(
                f"{path} is truncated: {n_chunk} contexts need {start + n_rows * row.itemsize:,} bytes, "
                f"it has {size:,}; write it again"
            )
        count = n_chunk if chunks is None else min(chunks, n_chunk)
        tokens = Records(path, np.dtype(("<i4", (n_ctx,))), 20, n_chunk).read(0, count)
        self.contexts = Contexts(tokens.astype(np.int32), None)
        self._records = Records(path, row, start, n_rows)

    def rows(self, step: Step) -> BaselineRows:
        part = self._records.read(step.start, step.start + len(step.targets))
        codes = part["codes"][:, : self.n_vocab]
        return CodedRows(codes, part["low"], part["step"], step.targets, floor=_LLAMA_FLOOR)

    def __enter__(self) -> LlamaBaseline:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def open_baseline(
    path: Path,
    text: Path | str | None,
    *,
    settings: Settings | None = None,
    chunks: int | None = None,
    spread: bool = False,
) -> BaselineSource:
    """Open whatever `path` is: a GGUF, a cache of ours, or llama.cpp's file of log-probabilities.

    Args:
        text: needed with a GGUF; the files bring their own tokens.
        chunks: contexts at most.
        spread: take them evenly from the whole text; of a GGUF only, for the files bring their own.

    Raises:
        EvaluationError: the file is missing, damaged or of no known kind, or a text is missing.
    """
    if chunks is not None and chunks < 1:
        raise EvaluationError(f"{chunks} contexts cannot be measured; ask for at least one")
    try:
        regular_stat(path)
        with path.open("rb") as file:
            magic = file.read(8)
    except OSError as error:
        raise EvaluationError(f"the baseline {path} cannot be read: {error.strerror or error}") from None
    if magic == _LLAMA_MAGIC:
        return LlamaBaseline(path, chunks)
    if magic == baseline_cache.MAGIC:
        return baseline_cache.CachedBaseline(path, chunks)
    if text is None and magic[:4] == b"GGUF":
        raise EvaluationError(f"the baseline {path} is a model: give the text it is to be run on")
    if text is None or magic[:4] != b"GGUF":
        raise EvaluationError(
            f"the baseline {path} is no GGUF, no baseline cache and no file of llama-perplexity's "
            "--kl-divergence-base"
        )
    return LiveBaseline(path, text, settings or Settings(), chunks, spread)
