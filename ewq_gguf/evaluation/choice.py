"""Multiple choice by likelihood: which answer does the model find likeliest, and did quantization change it?

The answers of a question share the processing of the text before them, and many questions share a batch.
MMLU's answers are single letters; longer ones are compared by likelihood per byte (lm-evaluation-harness's
`acc_norm`) or per token (llama-perplexity's `--hellaswag`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ewq_gguf.errors import EvaluationError
from ewq_gguf.evaluation.engine import Engine, F32Array, I32Array, Settings
from ewq_gguf.evaluation.perplexity import Progress
from ewq_gguf.evaluation.questions import Question
from ewq_gguf.evaluation.scoring import BoolArray, F64Array, Scorer, exponentials
from ewq_gguf.evaluation.statistics import proportion

NORMALIZATIONS = ("bytes", "tokens", "none")
_MAX_SEQUENCES = 64
_MAX_OUTPUT_BYTES = 1 << 28


@dataclass(frozen=True)
class ChoiceResult:
    """How one file answers.

    Attributes:
        file, n_bytes: the GGUF.
        accuracy, accuracy_se: share of right answers and its binomial standard error.
        questions: how many were asked.
        groups: group -> (right answers, questions).
        normalize: what log-likelihoods were divided by.
        picks: int32 (questions,): the chosen answer; not part of the JSON.
        correct: bool (questions,).
        log_likelihoods: float64 (questions, most choices), nats, NaN beyond a question's choices.
    """

    file: Path
    n_bytes: int
    accuracy: float
    accuracy_se: float
    questions: int
    groups: dict[str, tuple[int, int]]
    normalize: str
    picks: I32Array = field(repr=False, compare=False)
    correct: BoolArray = field(repr=False, compare=False)
    log_likelihoods: F64Array = field(repr=False, compare=False)

    def as_json(self) -> dict[str, object]:
        """Stable field names."""
        return {
            "file": str(self.file),
            "bytes": self.n_bytes,
            "accuracy": self.accuracy,
            "accuracy_se": self.accuracy_se,
            "questions": self.questions,
            "normalize": self.normalize,
            "groups": {name: {"correct": a, "questions": b} for name, (a, b) in self.groups.items()},
        }


@dataclass(frozen=True)
class _Choice:
    """One answer, tokenized: `tokens[start:]` is scored. Question and choice number say where the sum goes."""

    question: int
    choice: int
    tokens: I32Array
    start: int


@dataclass
class _Batch:
    """Tokens of whole questions, ready for `Engine.decode`, and which logits are wanted for what."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    members: list[list[int]] = field(default_factory=list)
    wanted: list[tuple[int, int, int, int]] = field(default_factory=list)
    """(place in the batch, target token, question, choice)"""
    sequences: int = 0
    questions: int = 0


def answer_questions(
    path: Path,
    questions: Sequence[Question],
    *,
    normalize: str = "bytes",
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> ChoiceResult:
    """Let one file answer.

    Args:
        normalize: `bytes`, `tokens` or `none`; what an answer's log-likelihood is divided by before
            comparing.
        settings: batch, threads, KV cache types; contexts are made as long as the questions need.
        progress: called with (questions done, questions in all).

    Raises:
        EvaluationError: the file cannot be used, there is no question, or the model yields NaN.
    """
    if normalize not in NORMALIZATIONS:
        raise EvaluationError(f"cannot normalize by {normalize!r}; use one of {', '.join(NORMALIZATIONS)}")
    if not questions:
        raise EvaluationError("no question was given")
    settings = settings or Settings()
    most = max(len(question.choices) for question in questions)
    sums = np.full((len(questions), most), np.nan)
    lengths = np.ones_like(sums)
    with Engine(
        path,
        n_ctx=settings.n_batch,
        n_batch=settings.n_batch,
        n_threads=settings.n_threads,
        cache_type_k=settings.cache_type_k,
        cache_type_v=settings.cache_type_v,
        use_extra_bufts=settings.use_extra_bufts,
        n_seq=max(_MAX_SEQUENCES, most),
        kv_unified=True,
        cells=settings.n_batch,
    ) as engine:
        tokenized = [_tokenize(engine, number, question) for number, question in enumerate(questions)]
        for number, (question, choices) in enumerate(zip(questions, tokenized)):
            for choice, (_, ending) in zip(choices, question.choices):
                sums[number, choice.choice] = 0.0
                n_bytes, n_tokens = len(ending.strip().encode()), len(choice.tokens) - choice.start
                lengths[number, choice.choice] = {"bytes": n_bytes, "tokens": n_tokens}.get(normalize, 1)
        needed = max(_cells(choices, engine.shares_prefix) for choices in tokenized)
        if needed > engine.cells:
            engine.reopen(cells=needed)
        done = 0
        with Scorer(engine.n_threads) as scorer:
            for batch in _batches(tokenized, engine):
                _run(engine, scorer, batch, sums)
                done += batch.questions
                if progress:
                    progress(done, len(questions))
        n_bytes_of_file = engine.summary.n_bytes
    bad = np.isnan(sums) & (np.arange(most) < np.array([[len(q.choices)] for q in questions]))
    if bad.any():
        raise EvaluationError(
            f"{path} yields NaN at question {int(np.argmax(bad.any(axis=1)))}; convert it again"
        )
    return _summarize(path, n_bytes_of_file, questions, sums, lengths, normalize)


def _tokenize(engine: Engine, number: int, question: Question) -> list[_Choice]:
    """Each choice as one text; its answer starts where the tokens first differ from those of the text before."""
    out = []
    for at, (before, ending) in enumerate(question.choices):
        whole = engine.tokenize(before + ending)
        start = _common([whole, engine.tokenize(before)])
        # Something must come before what is scored, and something must be scored.
        start = max(1, min(start, len(whole) - 1))
        if len(whole) < 2:
            raise EvaluationError(f"question {number} has an empty text before choice {at}")
        out.append(_Choice(number, at, whole, start))
    return out


def _common(rows: Sequence[I32Array]) -> int:
    """Length of the longest common beginning."""
    shortest = min(len(row) for row in rows)
    same = np.ones(shortest, dtype=np.bool_)
    for row in rows[1:]:
        same &= row[:shortest] == rows[0][:shortest]
    return shortest if same.all() else int(np.argmin(same))


def _prefix(choices: Sequence[_Choice], shares: bool) -> int:
    """Tokens that all choices of a question have in common and that need to be run only once."""
    if not shares:
        return 0
    # The last token of a choice is only ever a target.
    return min(_common([c.tokens for c in choices]), min(len(c.tokens) for c in choices) - 1)


def _cells(choices: Sequence[_Choice], shares: bool) -> int:
    prefix = _prefix(choices, shares)
    return prefix + sum(len(c.tokens) - 1 - prefix for c in choices)


def _batches(tokenized: Sequence[list[_Choice]], engine: Engine) -> Iterator[_Batch]:
    """Whole questions, as many as the batch, its sequences and its logits have room for."""
    rows_at_most = max(1, _MAX_OUTPUT_BYTES // (4 * engine.n_vocab))
    batch = _Batch()
    for choices in tokenized:
        full = (
            len(batch.tokens) + _cells(choices, engine.shares_prefix) > engine.cells
            or batch.sequences + len(choices) > engine.n_seq
            or len(batch.wanted) + sum(len(c.tokens) - c.start for c in choices) > rows_at_most
        )
        if full and batch.questions:
            yield batch
            batch = _Batch()
        _add(batch, choices, engine.shares_prefix)
    if batch.questions:
        yield batch


def _add(batch: _Batch, choices: Sequence[_Choice], shares: bool) -> None:
    prefix = _prefix(choices, shares)
    first, base = batch.sequences, len(batch.tokens)
    everyone = list(range(first, first + len(choices)))
    batch.tokens += choices[0].tokens[:prefix].tolist()
    batch.positions += range(prefix)
    batch.members += [everyone] * prefix
    for sequence, choice in zip(everyone, choices):
        tail = len(batch.tokens) - prefix
        batch.tokens += choice.tokens[prefix:-1].tolist()
        batch.positions += range(prefix, len(choice.tokens) - 1)
        batch.members += [[sequence]] * (len(choice.tokens) - 1 - prefix)
        for position in range(choice.start - 1, len(choice.tokens) - 1):
            place = base + position if position < prefix else tail + position
            target = int(choice.tokens[position + 1])
            batch.wanted.append((place, target, choice.question, choice.choice))
    batch.sequences += len(choices)
    batch.questions += 1


def _run(engine: Engine, scorer: Scorer, batch: _Batch, sums: F64Array) -> None:
    """Decode the batch, in pieces if it is longer than n_batch, and add up the log-likelihoods."""
    engine.clear()
    tokens = np.array(batch.tokens, dtype=np.int32)
    positions = np.array(batch.positions, dtype=np.int32)
    wanted = sorted(batch.wanted)
    places = np.array([place for place, *_ in wanted], dtype=np.int64)
    outputs = np.zeros(len(tokens), dtype=np.bool_)
    outputs[places] = True
    for left in range(0, len(tokens), engine.n_batch):
        right = min(left + engine.n_batch, len(tokens))
        logits = engine.decode(
            tokens[left:right], positions[left:right], batch.members[left:right], outputs[left:right]
        )
        here = slice(int(np.searchsorted(places, left)), int(np.searchsorted(places, right)))
        if here.start == here.stop:
            continue
        norms = _log_norms(scorer, logits)
        rows = (np.cumsum(outputs[left:right]) - 1)[places[here] - left]
        targets = np.array([target for _, target, *_ in wanted[here]], dtype=np.int32)
        values = logits[rows, targets].astype(np.float64) - norms[rows]
        for (_, _, question, choice), value in zip(wanted[here], values):
            sums[question, choice] += value


def _log_norms(scorer: Scorer, logits: F32Array) -> F64Array:
    out = np.empty(len(logits))

    def block(start: int, stop: int) -> None:
        _, out[start:stop], _ = exponentials(logits[start:stop])

    scorer.each_block(block, *logits.shape)
    return out


def _summarize(
    path: Path,
    n_bytes: int,
    questions: Sequence[Question],
    sums: F64Array,
    lengths: F64Array,
    normalize: str,
) -> ChoiceResult:
    picks = np.nanargmax(sums / lengths, axis=1).astype(np.int32)
    correct = picks == np.array([question.answer for question in questions])
    groups: dict[str, tuple[int, int]] = {}
    for question, hit in zip(questions, correct):
        right, asked = groups.get(question.group, (0, 0))
        groups[question.group] = (right + int(hit), asked + 1)
    share = proportion(correct)
    return ChoiceResult(
        path, n_bytes, share.value, share.se, len(questions), groups, normalize, picks, correct, sums
    )
