"""Two candidates on the same tokens: is the difference real?

Two perplexities, or two mean divergences, have large errors that they share, because the same tokens are hard
for both. The difference token by token does not carry the shared part. The tokens of one context are not
independent of one another, so the standard error is taken over contexts where there are enough of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ewq_gguf.errors import EvaluationError
from ewq_gguf.evaluation.divergence import Divergence
from ewq_gguf.evaluation.perplexity import Perplexity
from ewq_gguf.evaluation.statistics import mean_over_groups

F64Array = npt.NDArray[np.float64]
_CLEAR = 3.0
_LIKELY = 2.0


@dataclass(frozen=True)
class Paired:
    """The difference of a measure between two files, first minus second.

    Attributes:
        measure: what was measured (`nll`, `kld`).
        first, second: the files.
        difference, se: mean difference and its standard error, in the measure's unit (nats per token).
        z: difference / se; 0 where both vanish.
        tokens: pairs.
        better: the file with the smaller mean where the error allows a verdict, else None.
        sentence: the verdict in words.
    """

    measure: str
    first: Path
    second: Path
    difference: float
    se: float
    z: float
    tokens: int
    better: Path | None
    sentence: str

    def as_json(self) -> dict[str, object]:
        """Stable field names."""
        return {
            "measure": self.measure,
            "first": str(self.first),
            "second": str(self.second),
            "difference": self.difference,
            "se": self.se,
            "z": self.z if math.isfinite(self.z) else None,
            "tokens": self.tokens,
            "better": None if self.better is None else str(self.better),
            "sentence": self.sentence,
        }


def compare_values(
    measure: str, first: Path, second: Path, a: F64Array, b: F64Array, groups: int = 1
) -> Paired:
    """Compare per-token values (n,) of two files, smaller being better.

    Raises:
        EvaluationError: the two were not measured on the same number of tokens.
    """
    if a.shape != b.shape:
        raise EvaluationError(
            f"{first} and {second} were measured on {len(a)} and {len(b)} tokens; use the same text for both"
        )
    found = mean_over_groups(a - b, groups)
    z = (
        found.value / found.se
        if found.se > 0
        else math.copysign(math.inf, found.value)
        if found.value
        else 0.0
    )
    better = None
    if abs(z) >= _LIKELY:
        better = first if found.value < 0 else second
    name = {"kld": "divergence", "nll": "negative log-likelihood"}.get(measure, measure)
    figures = f"{found.value:+.6f} +/- {found.se:.6f} nats per token, {abs(z):.1f} standard errors"
    if better is None:
        words = f"no difference in {name} between {first.name} and {second.name} can be told from chance"
    else:
        worse = second if better is first else first
        how = "has" if abs(z) >= _CLEAR else "probably has"
        words = f"{better.name} {how} the smaller {name} than {worse.name}"
    return Paired(measure, first, second, found.value, found.se, z, len(a), better, f"{words} ({figures})")


def compare_divergences(first: Divergence, second: Divergence) -> Paired:
    """Which of two candidates diverges less from the same baseline.

    Raises:
        EvaluationError: they were compared with different baselines or on different tokens.
    """
    same = np.array_equal(first.per_token.baseline_nll, second.per_token.baseline_nll)
    if first.tokens == second.tokens and not same:
        raise EvaluationError(
            f"{first.file} and {second.file} have different baselines or texts; use the same for both"
        )
    a, b = first.per_token.kld, second.per_token.kld
    return compare_values("kld", first.file, second.file, a, b, first.chunks)


def compare_perplexities(first: Perplexity, second: Perplexity) -> Paired:
    """Which of two files predicts the same tokens better.

    Raises:
        EvaluationError: they were measured on different tokens.
    """
    if first.tokens == second.tokens and not np.array_equal(first.targets, second.targets):
        raise EvaluationError(
            f"{first.file} and {second.file} split the text into different tokens; their perplexities are not alike"
        )
    return compare_values("nll", first.file, second.file, first.nll, second.nll, first.chunks)


def compare_all(results: Sequence[Divergence]) -> list[Paired]:
    """`compare_divergences` for every pair, in order."""
    return [compare_divergences(a, b) for a, b in combinations(results, 2)]


def ranking(results: Sequence[Divergence]) -> list[Paired]:
    """Each file against the next worse one: the steps of the ranking by mean divergence."""
    ordered = sorted(results, key=lambda result: result.mean_kld)
    return [compare_divergences(a, b) for a, b in pairwise(ordered)]
