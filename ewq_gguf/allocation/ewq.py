"""EWQ: entropy-weighted quantization, block by block (arXiv 2503.04704).

Blocks of low entropy go to the fewest bits: with mu and sigma over the transformer blocks and
T = mu - X sigma, a block with H <= T becomes 4-bit, T < H <= mu 8-bit, H > mu stays raw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from ewq_gguf.allocation.entropy import WeightStatistics
from ewq_gguf.errors import PlanError


class Precision(Enum):
    """The paper's classes, from most to fewest bits."""

    RAW = "raw"
    EIGHT_BIT = "8-bit"
    FOUR_BIT = "4-bit"


@dataclass(frozen=True)
class BlockStatistics:
    """A transformer block's weight matrices taken together.

    `entropy`, `variance` and `kurtosis` are means over the matrices weighted by their element counts;
    `parameters` counts the weights of those matrices (norms and biases do not count).
    """

    index: int
    entropy: float
    variance: float
    kurtosis: float
    minimum: float
    maximum: float
    parameters: int


@dataclass(frozen=True)
class Classification:
    """Thresholds and the class of each block, in block order. All entropies in nats."""

    mu: float
    sigma: float
    threshold: float
    classes: tuple[Precision, ...]


def block_statistics(index: int, matrices: Sequence[WeightStatistics]) -> BlockStatistics:
    """Combine a block's matrices, weighting by element count (EWQ, block entropy).

    Raises:
        PlanError: the block has no weight matrix.
    """
    total = sum(m.n for m in matrices)
    if total == 0:
        raise PlanError(f"block {index} holds no weight matrix; EWQ has nothing to measure there")

    def mean(values: Sequence[float]) -> float:
        return math.fsum(m.n * v for m, v in zip(matrices, values)) / total

    return BlockStatistics(
        index=index,
        entropy=mean([m.entropy for m in matrices]),
        variance=mean([m.variance for m in matrices]),
        kurtosis=mean([m.kurtosis for m in matrices]),
        minimum=min(m.minimum for m in matrices),
        maximum=max(m.maximum for m in matrices),
        parameters=total,
    )


def check_parameters(*, epsilon: float = 0.01, x: float = 1.0) -> None:
    """Refuse constants outside their range before any work.

    Raises:
        PlanError: epsilon or x is negative or not finite.
    """
    for name, value in (("epsilon", epsilon), ("x", x)):
        if not (math.isfinite(value) and value >= 0):
            raise PlanError(f"--{name} is {value!r}; expected a number >= 0")


def classify(entropies: Sequence[float], x: float = 1.0) -> Classification:
    """Classes from block entropies: mean, population standard deviation and T = mu - x sigma.

    Raises:
        PlanError: no blocks, or x is not a finite number >= 0.
    """
    if not entropies:
        raise PlanError("the model has no transformer blocks; EWQ has nothing to classify")
    check_parameters(x=x)
    n = len(entropies)
    mu = math.fsum(entropies) / n
    sigma = math.sqrt(math.fsum((h - mu) ** 2 for h in entropies) / n)
    threshold = mu - x * sigma

    def of(h: float) -> Precision:
        if h > mu:
            return Precision.RAW
        # Equal entropies have sigma = 0 and T = mu: nothing stands out, so nothing goes to 4 bits.
        return Precision.FOUR_BIT if h <= threshold and sigma > 0 else Precision.EIGHT_BIT

    return Classification(mu, sigma, threshold, tuple(of(h) for h in entropies))
