"""EWQ and FastEWQ from an opened model to a plan: classes by verdict or by budget.

Without a goal (a size, or the memory of machines) the classes are the method's verdict. With one every block
starts raw, or as the named variant has it, and is demoted until the goal is met.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from ewq_gguf.allocation.analysis import Progress, analyze_model
from ewq_gguf.allocation.budget import Goal, fit_goal
from ewq_gguf.allocation.entropy import DEFAULT_EPSILON
from ewq_gguf.allocation.ewq import (
    LADDER,
    BlockEntropy,
    ClassTypes,
    Precision,
    Variant,
    ascending_entropy,
    check_parameters,
    classify,
    parse_classes,
    variant_classes,
)
from ewq_gguf.allocation.fastewq import DEFAULT_FOREST, block_features, decide_blocks, load_forest
from ewq_gguf.allocation.methods import class_plan, describe
from ewq_gguf.allocation.parsing import parse_type
from ewq_gguf.allocation.plan import Plan
from ewq_gguf.errors import PlanError
from ewq_gguf.ggml.types import GGMLType
from ewq_gguf.model import Model

Adjust = Callable[[Plan], Plan]


def _as_it_is(plan: Plan) -> Plan:
    return plan


@dataclass(frozen=True)
class BlockwiseOptions:
    """What EWQ and FastEWQ can be told.

    Attributes:
        epsilon, x: the paper's constants.
        reading: how a block's matrices make one entropy.
        variant: what the classes do to the blocks; None is the method's default, and raw blocks to start from
            where there is a goal.
        types: behind the classes.
        embedding: type of embedding and output; None keeps them raw.
        lowest: the class below which no block goes for a goal.
        forest: FastEWQ's classifier: "fast", "fast-train", or a file that `fastewq train` wrote.
    """

    epsilon: float = DEFAULT_EPSILON
    x: float = 1.0
    reading: BlockEntropy = BlockEntropy.WEIGHTED_MEAN
    variant: Variant | None = None
    types: ClassTypes = field(default_factory=ClassTypes)
    embedding: GGMLType | None = None
    lowest: Precision = Precision.TERNARY
    forest: str = DEFAULT_FOREST

    def __post_init__(self) -> None:
        check_parameters(epsilon=self.epsilon, x=self.x)

    def check_ladder(self) -> None:
        """Refuse types that would grow a block by demoting it.

        Raises:
            PlanError: they do.
        """
        resolved = self.types.resolve(GGMLType.BF16)
        for higher, lower in pairwise(LADDER[: LADDER.index(self.lowest) + 1]):
            if resolved[lower].bpw > resolved[higher].bpw:
                raise PlanError(
                    f"a budget demotes from {resolved[higher].name} to {resolved[lower].name}, which is "
                    f"larger; name the types behind {higher.value} and {lower.value} in falling size"
                )


def class_types(
    classes: str | None,
    raw: str = "raw",
    eight_bit: str = "Q8_0",
    four_bit: str = "Q4_K",
    ternary: str = "TQ1_0",
) -> ClassTypes:
    """The types behind the classes from their names; `classes` ("Q8_0,Q6_K,Q4_K") takes the place of the first three.

    Raises:
        PlanError: a type that does not exist.
    """
    lowest = parse_type(ternary)
    if classes is not None:
        return parse_classes(classes, lowest)
    own = raw.strip().lower() == "raw"
    return ClassTypes(None if own else parse_type(raw), parse_type(eight_bit), parse_type(four_bit), lowest)


def ewq_decision(
    model: Model,
    options: BlockwiseOptions,
    *,
    goal: Goal | None = None,
    adjust: Adjust = _as_it_is,
    threads: int = 1,
    progress: Progress | None = None,
) -> Plan:
    """EWQ's plan: by full analysis, unless a variant treats all blocks alike and there is no goal.

    Args:
        adjust: what is done to every plan before it is measured against the goal (pins, kept tensors).

    Raises:
        PlanError: no blocks, a row that fits no type, or a goal that cannot be reached.
        CheckpointError: a weight is NaN or infinite.
    """
    variant = options.variant or (Variant.MIXED_4BIT_8BIT if goal is None else Variant.RAW)
    if goal is None and not variant.needs_entropy:
        alike: dict[str, Any] = {"variant": variant.value}
        return _finish(model, options, "ewq", _alike(model, variant), (), alike, goal, adjust)
    analysis = analyze_model(
        model,
        epsilon=options.epsilon,
        reading=options.reading,
        threads=threads,
        only_blocks=True,
        progress=progress,
    )
    found = classify([b.entropy for b in analysis.blocks], options.x)
    classes = dict(zip((b.index for b in analysis.blocks), variant_classes(found.classes, variant)))
    parameters: dict[str, Any] = {"variant": variant.value, "x": options.x, **describe(analysis, found)}
    order = ascending_entropy(analysis.blocks)
    return _finish(model, options, "ewq", classes, order, parameters, goal, adjust)


def fastewq_decision(
    model: Model, options: BlockwiseOptions, *, goal: Goal | None = None, adjust: Adjust = _as_it_is
) -> Plan:
    """FastEWQ's plan, from names and shapes alone; a goal demotes by descending exec_index.

    The default variant is 8-bit mixed; see `fastewq.decide_blocks` for the 4-bit share of the other.

    Raises:
        PlanError: no blocks, a classifier that cannot be used, or a goal that cannot be reached.
    """
    forest = load_forest(options.forest)
    features = block_features(model)
    variant = options.variant or (Variant.MIXED_8BIT if goal is None else Variant.RAW)
    verdicts = decide_blocks(forest, features, x=options.x)
    chosen = variant_classes([v.precision for v in verdicts], variant)
    parameters = {
        "variant": variant.value,
        "x": options.x,
        "forest": forest.name,
        "forest_digest": forest.digest,
        "blocks": [
            {
                "index": v.index,
                "exec_index": v.exec_index,
                "parameters": v.parameters,
                "probability": v.probability,
                "class": c.value,
            }
            for v, c in zip(verdicts, chosen)
        ],
    }
    classes = dict(zip((f.index for f in features), chosen))
    order = [f.index for f in sorted(features, key=lambda f: -f.exec_index)]
    return _finish(model, options, "fastewq", classes, order, parameters, goal, adjust)


def _alike(model: Model, variant: Variant) -> dict[int, Precision]:
    indices = sorted({t.block for t in model.tensors if t.block is not None})
    return dict(zip(indices, variant_classes([Precision.RAW] * len(indices), variant)))


def _finish(
    model: Model,
    options: BlockwiseOptions,
    method: str,
    classes: Mapping[int, Precision],
    order: Sequence[int],
    parameters: Mapping[str, Any],
    goal: Goal | None,
    adjust: Adjust,
) -> Plan:
    """The plan with these classes, or with what is left of them once the goal is met."""

    def plan_for(now: Mapping[int, Precision]) -> Plan:
        told = dict(parameters)
        if "blocks" in told:
            told["blocks"] = [{**b, "class": now[b["index"]].value} for b in told["blocks"]]
        if goal is not None:
            told["limit"] = goal.limit
        return adjust(
            class_plan(model, now, options.types, embedding=options.embedding, method=method, parameters=told)
        )

    if goal is None:
        return plan_for(classes)
    options.check_ladder()
    return fit_goal(classes, order, goal, plan_for, options.lowest).plan
