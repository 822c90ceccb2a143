"""FastEWQ: which blocks full analysis would quantize, guessed without reading a weight (arXiv 2503.04704).

A random forest on three numbers that config and tensor headers give: `num_parameters` of the block,
`num_blocks` of the model, and `exec_index`, the position in execution order with the embedding counted first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ewq_gguf.allocation.analysis import is_weight_matrix
from ewq_gguf.allocation.ewq import Precision
from ewq_gguf.allocation.forest import Forest, read_forest
from ewq_gguf.errors import PlanError
from ewq_gguf.model import Model, ModelTensor

FEATURES = ("num_parameters", "num_blocks", "exec_index")
DEFAULT_FOREST = "fast"
# The paper's two: trained on all labelled rows, and on a training split of them.
SHIPPED = {"fast": "fastewq_fast.json", "fast-train": "fastewq_fast_train.json"}


@dataclass(frozen=True)
class BlockFeatures:
    """What the classifier sees of a block; `index` is the block's number, counted from 0."""

    index: int
    num_parameters: int
    num_blocks: int
    exec_index: int

    @property
    def row(self) -> tuple[int, int, int]:
        """In the order of `FEATURES`."""
        return self.num_parameters, self.num_blocks, self.exec_index


@dataclass(frozen=True)
class BlockVerdict:
    """The classifier's word on a block.

    Attributes:
        probability: that full analysis would quantize it.
        precision: its class; see `decide_blocks`.
    """

    index: int
    exec_index: int
    parameters: int
    probability: float
    precision: Precision


def exec_index(block: int) -> int:
    """Position in execution order, the token embedding being 1."""
    return block + 2


def block_features(model: Model | Iterable[ModelTensor]) -> tuple[BlockFeatures, ...]:
    """Features of every block that holds weight matrices, in order, from names and shapes alone.

    Raises:
        PlanError: the model has no transformer blocks.
    """
    counts: dict[int, int] = {}
    for t in model.tensors if isinstance(model, Model) else model:
        if t.block is not None and is_weight_matrix(t):
            counts[t.block] = counts.get(t.block, 0) + t.n_elements
    if not counts:
        raise PlanError("the model has no transformer blocks; FastEWQ has nothing to classify")
    n = len(counts)
    return tuple(BlockFeatures(i, counts[i], n, exec_index(i)) for i in sorted(counts))


@cache
def load_forest(name: str = DEFAULT_FOREST) -> Forest:
    """A shipped classifier by name, or one that `fastewq train` wrote by path.

    Raises:
        PlanError: no such classifier, or it is damaged or made for other features.
    """
    path = Path(__file__).with_name(SHIPPED[name]) if name in SHIPPED else Path(name)
    if name not in SHIPPED and not path.is_file():
        raise PlanError(
            f"there is no classifier {name!r}: name {' or '.join(SHIPPED)}, or a file that `fastewq train` wrote"
        )
    forest = read_forest(path)
    if forest.features != FEATURES:
        raise PlanError(
            f"{path} expects the features {', '.join(forest.features)}, not {', '.join(FEATURES)}"
        )
    return forest


def decide_blocks(
    forest: Forest, features: Sequence[BlockFeatures], *, x: float = 1.0
) -> tuple[BlockVerdict, ...]:
    """A class for every block.

    A block is quantized where the forest's probability exceeds one half. The classifier does not tell 4-bit from
    8-bit; the paper gives the few bits to the last blocks. Our reading: of the quantized blocks, those latest in
    execution order are 4-bit, as many as a Gaussian has below T = mu - x sigma among those below mu (32 % at
    x = 1), rounded to the nearest.
    """
    probabilities = forest.predict_proba([f.row for f in features])[:, 1].tolist()
    quantized = sorted((f.exec_index for f, p in zip(features, probabilities) if p > 0.5), reverse=True)
    share = math.erfc(x / math.sqrt(2))
    four = set(quantized[: math.floor(share * len(quantized) + 0.5)])
    eight = set(quantized) - four

    def precision(f: BlockFeatures) -> Precision:
        if f.exec_index in four:
            return Precision.FOUR_BIT
        return Precision.EIGHT_BIT if f.exec_index in eight else Precision.RAW

    return tuple(
        BlockVerdict(f.index, f.exec_index, f.num_parameters, p, precision(f))
        for f, p in zip(features, probabilities)
    )
