"""Which answers quantization changed: a candidate against its baseline, question by question.

At a few hundred questions the accuracy of two files says little, because both errors are large and shared; the
questions on which the two differ carry all the evidence there is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ewq_gguf.errors import EvaluationError
from ewq_gguf.evaluation.choice import ChoiceResult
from ewq_gguf.evaluation.statistics import proportion


@dataclass(frozen=True)
class Flips:
    """A candidate's answers against the baseline's, question by question.

    Attributes:
        first, second: baseline and candidate.
        agreement, agreement_se: share of questions where both choose the same answer.
        lost, gained: right answers turned wrong, and wrong ones turned right.
        difference, difference_se: accuracy of the candidate minus the baseline's, the error from the flips
            alone.
        p_value: exact two-sided McNemar test of `lost` against `gained`.
        sentence: the verdict in words.
    """

    first: Path
    second: Path
    agreement: float
    agreement_se: float
    lost: int
    gained: int
    difference: float
    difference_se: float
    p_value: float
    sentence: str

    def as_json(self) -> dict[str, object]:
        """Stable field names."""
        out: dict[str, object] = {"first": str(self.first), "second": str(self.second)}
        for name in (
            "agreement", "agreement_se", "lost", "gained", "difference", "difference_se", "p_value", "sentence",
        ):  # fmt: skip
            out[name] = getattr(self, name)
        return out


def compare_answers(baseline: ChoiceResult, candidate: ChoiceResult) -> Flips:
    """Paired comparison on the same questions.

    Raises:
        EvaluationError: the two were not asked the same number of questions.
    """
    n = baseline.questions
    if n != candidate.questions:
        raise EvaluationError(
            f"{baseline.file} and {candidate.file} answered {n} and {candidate.questions} questions; "
            "ask both the same"
        )
    same = proportion(baseline.picks == candidate.picks)
    lost = int((baseline.correct & ~candidate.correct).sum())
    gained = int((candidate.correct & ~baseline.correct).sum())
    flips = lost + gained
    difference = (gained - lost) / n
    variance = max(0.0, flips / n - difference**2)
    error = math.sqrt(variance / (n - 1)) if n > 1 else 0.0
    p_value = _sign_test(min(lost, gained), flips)
    names = f"{candidate.file.name} answers as {baseline.file.name} does in {same.value:.2%} of {n} questions"
    if p_value < 0.05:
        verdict = "loses" if lost > gained else "gains"
        verdict = f"{verdict} accuracy ({difference:+.2%} +/- {error:.2%}, p = {p_value:.2g})"
    else:
        verdict = f"its accuracy cannot be told from the baseline's ({difference:+.2%} +/- {error:.2%})"
    sentence = f"{names}; {lost} right answers lost, {gained} gained: {verdict}"
    return Flips(
        baseline.file,
        candidate.file,
        same.value,
        same.se,
        lost,
        gained,
        difference,
        error,
        p_value,
        sentence,
    )


def _sign_test(fewer: int, n: int) -> float:
    """Two-sided exact binomial test of `fewer` out of `n` fair coin tosses."""
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    return min(1.0, float(2 * tail / 2**n)) if n < 1000 else min(1.0, _normal_tail(fewer, n))


def _normal_tail(fewer: int, n: int) -> float:
    """The same with the normal approximation, exact enough beyond 1000 tosses."""
    z = (n / 2 - fewer - 0.5) / math.sqrt(n / 4)
    return math.erfc(max(0.0, z) / math.sqrt(2))
