"""EWQ: entropy-weighted quantization, block by block (arXiv 2503.04704).

Blocks of low entropy go to the fewest bits: with mu and sigma over the transformer blocks and
T = mu - X sigma, a block with H <= T becomes 4-bit, T < H <= mu 8-bit, H > mu stays raw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from ewq_gguf.allocation.entropy import WeightStatistics
from ewq_gguf.allocation.parsing import parse_type
from ewq_gguf.errors import PlanError
from ewq_gguf.ggml.types import GGMLType


class Precision(Enum):
    """The paper's classes, from most to fewest bits; the last is for budgets only."""

    RAW = "raw"
    EIGHT_BIT = "8-bit"
    FOUR_BIT = "4-bit"
    TERNARY = "1.58-bit"


LADDER = tuple(Precision)


class Variant(Enum):
    """The columns of the paper's tables: what the classes do to the blocks."""

    RAW = "raw"
    UNIFORM_8BIT = "uniform-8bit"
    UNIFORM_4BIT = "uniform-4bit"
    MIXED_8BIT = "8bit-mixed"
    MIXED_4BIT_8BIT = "4bit-8bit-mixed"

    @property
    def needs_entropy(self) -> bool:
        """Whether blocks differ, so that the weights must be read first."""
        return self in (Variant.MIXED_8BIT, Variant.MIXED_4BIT_8BIT)


class BlockEntropy(Enum):
    """How a block's matrices make one entropy; sources differ.

    WEIGHTED_MEAN: mean of the matrices' entropies, weighted by their element counts (the default).
    PLAIN_MEAN: the same mean without weights, every matrix counting once.
    FLATTENED: one softmax over all weights of the block laid end to end.
    """

    WEIGHTED_MEAN = "weighted-mean"
    PLAIN_MEAN = "plain-mean"
    FLATTENED = "flattened"


@dataclass(frozen=True)
class ClassTypes:
    """The tensor types behind the classes; `raw` None is the checkpoint's own 16-bit type."""

    raw: GGMLType | None = None
    eight_bit: GGMLType = GGMLType.Q8_0
    four_bit: GGMLType = GGMLType.Q4_K
    ternary: GGMLType = GGMLType.TQ1_0

    def resolve(self, own: GGMLType) -> Mapping[Precision, GGMLType]:
        """Class -> type for a checkpoint whose 16-bit type is `own`."""
        found = (self.raw or own, self.eight_bit, self.four_bit, self.ternary)
        return dict(zip(LADDER, found))


def parse_classes(text: str, ternary: GGMLType = GGMLType.TQ1_0) -> ClassTypes:
    """The GGUF reading of the classes: `Q8_0,Q6_K,Q4_K` for high, middle and low entropy.

    A fourth type takes the place of the 1.58-bit class, which only budgets use; `raw` names the checkpoint's
    own type.

    Raises:
        PlanError: not three or four types, or one that does not exist.
    """
    names = [part.strip() for part in text.split(",")]
    if len(names) not in (3, 4):
        raise PlanError(
            f"--classes {text!r} names {len(names)} types; give three, for high, middle and low entropy, as in "
            "Q8_0,Q6_K,Q4_K (a fourth is what a budget may fall to)"
        )
    types = [None if name.lower() == "raw" else parse_type(name) for name in names]
    if None in types[1:]:
        raise PlanError(f"--classes {text!r}: only the first class can be raw")
    return ClassTypes(types[0], *(t for t in types[1:] if t is not None), *([ternary] * (4 - len(types))))


@dataclass(frozen=True)
class BlockStatistics:
    """A transformer block's weight matrices taken together.

    `entropy` follows the chosen `BlockEntropy`; `variance`, `kurtosis` and `outliers` are means over the
    matrices weighted by their element counts; `parameters` counts the weights of those matrices (norms and
    biases do not count). `rank` is the weighted mean of the matrices' relative effective ranks, where asked.
    """

    index: int
    entropy: float
    variance: float
    kurtosis: float
    minimum: float
    maximum: float
    outliers: float
    parameters: int
    rank: float | None = None


@dataclass(frozen=True)
class Classification:
    """Thresholds and the class of each block, in block order. All entropies in nats."""

    mu: float
    sigma: float
    threshold: float
    classes: tuple[Precision, ...]


def block_statistics(
    index: int,
    matrices: Sequence[WeightStatistics],
    *,
    reading: BlockEntropy = BlockEntropy.WEIGHTED_MEAN,
    flattened: float | None = None,
) -> BlockStatistics:
    """Combine a block's matrices.

    Args:
        flattened: the entropy of the whole block under one softmax; needed for that reading only.

    Raises:
        PlanError: the block has no weight matrix.
    """
    total = sum(m.n for m in matrices)
    if total == 0:
        raise PlanError(f"block {index} holds no weight matrix; EWQ has nothing to measure there")

    def mean(values: Sequence[float]) -> float:
        return math.fsum(m.n * v for m, v in zip(matrices, values)) / total

    if reading is BlockEntropy.FLATTENED:
        if flattened is None:
            raise PlanError(
                f"block {index} was not measured as a whole; analyze it with the flattened reading"
            )
        entropy = flattened
    elif reading is BlockEntropy.PLAIN_MEAN:
        entropy = math.fsum(m.entropy for m in matrices) / len(matrices)
    else:
        entropy = mean([m.entropy for m in matrices])
    ranked = [(m.n, m.rank) for m in matrices if m.rank is not None]
    return BlockStatistics(
        index=index,
        entropy=entropy,
        variance=mean([m.variance for m in matrices]),
        kurtosis=mean([m.kurtosis for m in matrices]),
        minimum=min(m.minimum for m in matrices),
        maximum=max(m.maximum for m in matrices),
        outliers=mean([m.outliers for m in matrices]),
        parameters=total,
        rank=math.fsum(n * r for n, r in ranked) / sum(n for n, _ in ranked) if ranked else None,
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
    # Measured from the lowest: equal entropies have their mean exactly there, and rounding decides nothing.
    base = min(entropies)
    above = [h - base for h in entropies]
    centre = math.fsum(above) / len(above)
    sigma = math.sqrt(math.fsum((d - centre) ** 2 for d in above) / len(above))
    limit = centre - x * sigma

    def of(d: float) -> Precision:
        if d > centre:
            return Precision.RAW
        # Equal entropies have sigma = 0 and T = mu: nothing stands out, so nothing goes to 4 bits.
        return Precision.FOUR_BIT if d <= limit and sigma > 0 else Precision.EIGHT_BIT

    return Classification(base + centre, sigma, base + limit, tuple(of(d) for d in above))


def variant_classes(classes: Sequence[Precision], variant: Variant) -> tuple[Precision, ...]:
    """What a variant makes of the classes: "selected" blocks are those that are not raw."""
    if variant is Variant.MIXED_4BIT_8BIT:
        return tuple(classes)
    if variant is Variant.MIXED_8BIT:
        return tuple(Precision.RAW if c is Precision.RAW else Precision.EIGHT_BIT for c in classes)
    uniform = {
        Variant.RAW: Precision.RAW,
        Variant.UNIFORM_8BIT: Precision.EIGHT_BIT,
        Variant.UNIFORM_4BIT: Precision.FOUR_BIT,
    }
    return (uniform[variant],) * len(classes)


def ascending_entropy(blocks: Sequence[BlockStatistics]) -> tuple[int, ...]:
    """Block indices in the order of demotion: lowest entropy first, ties by block index."""
    return tuple(b.index for b in sorted(blocks, key=lambda b: (b.entropy, b.index)))
