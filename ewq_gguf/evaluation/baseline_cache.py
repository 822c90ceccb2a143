"""A file of baseline distributions, so that any number of candidates cost one pass of the baseline.

Three forms, per scored token:

- `f32`: the raw logits. Results equal a live baseline's to the last bit. 4 bytes per vocabulary entry.
- `u16`: log-probabilities in 65,536 steps over the row's own range; half the size. The rounding adds about
  step^2 / 24 to a divergence (some 1e-8 nats); the sum really made is measured while writing.
- `topk`: the k likeliest tokens, the rest merged into one. Merging can only lower a divergence; every
  `sample_every`-th row is kept whole, so that each result can say by how much.

Perplexity, delta-p and top-1 agreement are exact in every form: nll and top token are kept beside.

Layout: 8 bytes magic, uint32 length, JSON header, zeros up to byte 4096; int32 tokens; records; whole sample
rows (float32 logits). Each section starts at a multiple of 64 bytes.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ewq_gguf.errors import EvaluationError
from ewq_gguf.evaluation.baseline_rows import CodedRows, TopKRows
from ewq_gguf.evaluation.contexts import Contexts, Step, cut_contexts
from ewq_gguf.evaluation.engine import F32Array, I32Array, Settings
from ewq_gguf.evaluation.perplexity import Progress, require_numbers
from ewq_gguf.evaluation.records import Records
from ewq_gguf.evaluation.scoring import BaselineRows, F64Array, LogitRows, RowScores, Scorer, exponentials

MAGIC = b"EWQLOGIT"
FORMS = ("f32", "u16", "topk")
_HEADER_BYTES = 4096
_VERSION = 1
# Of tokens, contexts and vocabulary: none has that many, and a row of them still fits a numpy type.
_MOST = 1 << 26
_SAMPLE_EVERY = 64


@dataclass(frozen=True)
class CacheHeader:
    """What the file says of itself.

    Attributes:
        form: `f32`, `u16` or `topk`.
        n_ctx, n_vocab, chunks, bos: as in `Contexts`.
        top_k: tokens kept per row (`topk` only, else 0).
        sample_every: every how many rows one is kept whole (`topk` only, else 0).
        rounding: mean KL(true || kept) of the `u16` form in nats, as measured while writing.
        tail: mean probability of the merged tokens of the `topk` form.
        model, model_bytes: name and size of the file the logits came from.
        cache_type_k, cache_type_v: types of the KV cache it ran with.
    """

    form: str
    n_ctx: int
    n_vocab: int
    chunks: int
    bos: int | None
    top_k: int
    sample_every: int
    rounding: float
    tail: float
    model: str
    model_bytes: int
    cache_type_k: str | None
    cache_type_v: str | None
    version: int = _VERSION

    @property
    def rows(self) -> int:
        return self.chunks * (self.n_ctx - 1 - self.n_ctx // 2)

    @property
    def samples(self) -> int:
        return -(-self.rows // self.sample_every) if self.sample_every else 0

    def record(self) -> np.dtype[Any]:
        """Layout of one row."""
        index = "<u2" if self.n_vocab <= 1 << 16 else "<u4"
        kept: dict[str, list[Any]] = {
            "f32": [("logits", "<f4", (self.n_vocab,))],
            "u16": [("low", "<f4"), ("step", "<f4"), ("codes", "<u2", (self.n_vocab,))],
            "topk": [("log_tail", "<f8"), ("log_p", "<f4", (self.top_k,)), ("index", index, (self.top_k,))],
        }
        return np.dtype([("nll", "<f8"), ("top", "<i4"), *kept[self.form]], align=True)

    @property
    def records_start(self) -> int:
        return _align(_HEADER_BYTES + 4 * self.chunks * self.n_ctx)

    @property
    def samples_start(self) -> int:
        return _align(self.records_start + self.rows * self.record().itemsize)

    @property
    def n_bytes(self) -> int:
        """Size of the whole file."""
        return self.samples_start + 4 * self.samples * self.n_vocab

    def as_json(self) -> dict[str, object]:
        """The header's fields."""
        return asdict(self)

    def encode(self) -> bytes:
        text = json.dumps(asdict(self)).encode()
        return (MAGIC + len(text).to_bytes(4, "little") + text).ljust(_HEADER_BYTES, b"\0")


def _align(offset: int) -> int:
    return -(-offset // 64) * 64


def write_baseline(
    model: Path,
    text: Path | str,
    out: Path,
    *,
    form: str = "u16",
    top_k: int = 256,
    settings: Settings | None = None,
    chunks: int | None = None,
    progress: Progress | None = None,
) -> CacheHeader:
    """Run `model` over `text` once and keep its distributions in `out`.

    Written beside the target and renamed at the end.

    Raises:
        EvaluationError: the model or the text cannot be used, the form is unknown, the model yields NaN, or
            the file cannot be written.
    """
    if form not in FORMS:
        raise EvaluationError(f"no baseline cache has the form {form!r}; use one of {', '.join(FORMS)}")
    settings = settings or Settings()
    part = out.with_name(out.name + ".part")
    with settings.engine(model) as engine, Scorer(engine.n_threads) as scorer:
        if form == "topk" and not 1 <= top_k < engine.n_vocab:
            raise EvaluationError(
                f"top_k {top_k} must be at least 1 and less than the {engine.n_vocab} tokens of {model}"
            )
        contexts = cut_contexts(engine, text, chunks)
        header = CacheHeader(
            form,
            engine.n_ctx,
            engine.n_vocab,
            contexts.chunks,
            contexts.bos,
            top_k if form == "topk" else 0,
            _SAMPLE_EVERY if form == "topk" else 0,
            0.0,
            0.0,
            model.name,
            engine.summary.n_bytes,
            settings.cache_type_k,
            settings.cache_type_v,
        )
        if len(header.encode()) > _HEADER_BYTES:
            raise EvaluationError(f"the name of {model} is too long for a baseline cache; rename it")
        try:
            with part.open("wb") as file:
                file.truncate(header.n_bytes)
                file.seek(_HEADER_BYTES)
                file.write(contexts.tokens.astype("<i4").tobytes())
                writer = _Writer(file, header)
                for step in contexts.steps(engine.n_seq, engine.n_batch):
                    logits = step.run(engine)
                    scores = scorer.score(logits, step.targets)
                    require_numbers(model, contexts, scores.nll, step.start)
                    writer.add(step.start, logits, scores, scorer)
                    if progress:
                        progress(step.chunks_done, contexts.chunks)
                header = replace(
                    header, rounding=writer.rounding / header.rows, tail=writer.tail / header.rows
                )
                file.seek(0)
                file.write(header.encode())
            part.replace(out)
        except OSError as error:
            raise EvaluationError(f"{out} cannot be written: {error.strerror or error}") from None
        finally:
            part.unlink(missing_ok=True)
    return header


class _Writer:
    """Packs rows block by block; sums up what the form loses."""

    def __init__(self, file: BinaryIO, header: CacheHeader) -> None:
        self._file = file
        self._header = header
        self._record = header.record()
        self.rounding = 0.0
        self.tail = 0.0

    def add(self, start: int, logits: F32Array, scores: RowScores, scorer: Scorer) -> None:
        """Write the rows that follow row `start`; logits float32 (rows, n_vocab)."""
        records = np.zeros(len(logits), dtype=self._record)
        records["nll"] = scores.nll
        records["top"] = scores.top
        lost = np.zeros(len(logits))

        def pack(begin: int, stop: int) -> None:
            block, out = logits[begin:stop], records[begin:stop]
            if self._header.form == "f32":
                out["logits"] = block
            elif self._header.form == "u16":
                lost[begin:stop] = _pack_codes(block, out)
            else:
                lost[begin:stop] = _pack_top(block, out, self._header.top_k)

        scorer.each_block(pack, *logits.shape)
        self._file.seek(self._header.records_start + start * self._record.itemsize)
        self._file.write(records.tobytes())
        if self._header.form == "u16":
            self.rounding += float(lost.sum())
        elif self._header.form == "topk":
            self.tail += float(lost.sum())
        every = self._header.sample_every
        if every:
            first = -(-start // every)
            whole = logits[first * every - start :: every]
            self._file.seek(self._header.samples_start + 4 * first * self._header.n_vocab)
            self._file.write(whole.astype("<f4").tobytes())


def _pack_codes(block: F32Array, out: npt.NDArray[Any]) -> F64Array:
    """Fill low, step and codes; returns KL(true || kept) per row, float64 (rows,)."""
    weights, log_norm, _ = exponentials(block)
    log_p = block - log_norm[:, None]
    # A token masked with -inf has no place on the scale; it gets the lowest one.
    low = np.where(np.isfinite(log_p), log_p, np.inf).min(axis=1)
    step = (log_p.max(axis=1) - low) / 65535.0
    out["low"], out["step"] = low, step
    # Rounded against what the file will say, not against the float64 values before storing.
    low, step = out["low"].astype(np.float64), out["step"].astype(np.float64)
    scale = np.where(step > 0, step, 1.0)
    codes = np.clip(np.rint((log_p - low[:, None]) / scale[:, None]), 0, 65535)
    out["codes"] = codes
    kept = low[:, None] + step[:, None] * codes
    p = weights / weights.sum(axis=1, keepdims=True)
    gap = np.where(p > 0, log_p - kept, 0.0)
    lost: F64Array = np.einsum("ij,ij->i", p, gap) + np.log(np.exp(kept).sum(axis=1))
    return lost


def _pack_top(block: F32Array, out: npt.NDArray[Any], k: int) -> F64Array:
    """Fill index, log_p and log_tail; returns the merged probability per row, float64 (rows,)."""
    index = np.argpartition(block, -k, axis=1)[:, -k:]
    weights, log_norm, _ = exponentials(block)
    out["index"] = index
    out["log_p"] = np.take_along_axis(block, index, axis=1) - log_norm[:, None]
    total = weights.sum(axis=1)
    np.put_along_axis(weights, index, 0.0, axis=1)
    tail: F64Array = weights.sum(axis=1) / total
    out["log_tail"] = np.log(tail)
    return tail


class CachedBaseline:
    """A cache file, opened as a baseline."""

    knows_bos = True

    def __init__(self, path: Path, chunks: int | None = None) -> None:
        """Open the file; rows are read when they are asked for.

        Raises:
            EvaluationError: its header makes no sense or its size is not what the header implies.
        """
        self.path = path
        self.header = read_header(path)
        header = self.header
        self.n_vocab = header.n_vocab
        self.tokenizer: str | None = None
        count = header.chunks if chunks is None else min(chunks, header.chunks)
        tokens = Records(path, np.dtype(("<i4", (header.n_ctx,))), _HEADER_BYTES, header.chunks)
        self.contexts = Contexts(tokens.read(0, count).astype(np.int32), header.bos)
        self._records = Records(path, header.record(), header.records_start, header.rows)
        whole = np.dtype(("<f4", (header.n_vocab,)))
        self._samples = Records(path, whole, header.samples_start, header.samples)

    def rows(self, step: Step) -> BaselineRows:
        stop = step.start + len(step.targets)
        part = self._records.read(step.start, stop)
        if self.header.form == "f32":
            return LogitRows(part["logits"], step.targets)
        exact = RowScores(np.array(part["nll"]), np.array(part["top"], dtype=np.int32))
        if self.header.form == "u16":
            targets: I32Array = step.targets
            return CodedRows(
                part["codes"], part["low"], part["step"], targets, exact=exact, missing=self.header.rounding
            )
        if (part["index"] >= self.n_vocab).any():
            raise EvaluationError(
                f"{self.path} is damaged: rows {step.start} to {stop - 1} hold a token that its vocabulary of "
                f"{self.n_vocab} does not have; write it again"
            )
        every = self.header.sample_every
        first = -(-step.start // every)
        whole = {row - step.start: row // every - first for row in range(first * every, stop, every)}
        samples = self._samples.read(first, first + len(whole))
        return TopKRows(part["index"], part["log_p"], part["log_tail"], exact, whole, samples)

    def __enter__(self) -> CachedBaseline:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def read_header(path: Path) -> CacheHeader:
    """The checked header of a cache file.

    Raises:
        EvaluationError: the file cannot be read, its header makes no sense, or its size is another.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER_BYTES)
        size = path.stat().st_size
    except OSError as error:
        raise EvaluationError(f"the baseline {path} cannot be read: {error.strerror or error}") from None
    length = int.from_bytes(head[8:12], "little")
    try:
        if head[:8] != MAGIC or length > _HEADER_BYTES - 12:
            raise ValueError("no header")
        header = CacheHeader(**json.loads(head[12 : 12 + length]))
        numbers = (header.n_ctx, header.n_vocab, header.chunks)
        if header.version != _VERSION or header.form not in FORMS:
            raise ValueError(f"version {header.version!r:.40}, form {header.form!s:.40}")
        if not all(type(n) is int and 0 < n <= _MOST for n in numbers) or header.n_ctx < 4:
            raise ValueError(f"sizes {numbers!r:.100}")
        kept = (header.top_k, header.sample_every)
        fits = kept == (0, 0)
        if header.form == "topk":
            fits = (
                all(type(n) is int for n in kept) and 0 < kept[0] < header.n_vocab and 0 < kept[1] <= 1 << 20
            )
        if not fits:
            raise ValueError(f"top_k {header.top_k!r:.40}, sample_every {header.sample_every!r:.40}")
        if header.bos is not None and (type(header.bos) is not int or not 0 <= header.bos < header.n_vocab):
            raise ValueError(f"bos {header.bos!r:.40}")
        if not (math.isfinite(header.rounding) and math.isfinite(header.tail)):
            raise ValueError("errors that are no numbers")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise EvaluationError(f"{path} is no usable baseline cache ({error}); write it again") from None
    if size != header.n_bytes:
        raise EvaluationError(
            f"{path} is truncated: {header.n_bytes:,} bytes are announced, {size:,} are there; write it again"
        )
    return header
