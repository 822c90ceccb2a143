"""From a method's verdict to a plan: one type for all, a stock preset, or EWQ's classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ewq_gguf.allocation.analysis import Analysis
from ewq_gguf.allocation.ewq import (
    BlockStatistics,
    Classification,
    ClassTypes,
    Precision,
    Variant,
    classify,
    variant_classes,
)
from ewq_gguf.allocation.facts import Assignment, fit, quantizable
from ewq_gguf.allocation.pins import Pin, apply_pins
from ewq_gguf.allocation.plan import Plan, facts_of, make_plan, raw_type
from ewq_gguf.allocation.presets import find_preset, preset_types
from ewq_gguf.errors import PlanError
from ewq_gguf.ggml.types import GGMLType
from ewq_gguf.model import EncodedTensor, Model, ModelTensor


def _held(kind: GGMLType) -> Assignment:
    return Assignment(kind, kind, "always stored so")


def uniform_plan(model: Model, wanted: GGMLType) -> Plan:
    """One type wherever llama.cpp allows it; float types and Q8_0 as its converter's --outtype does.

    Raises:
        PlanError: a row fits neither the type nor its fallback.
    """
    facts, tensors = facts_of(model)
    raw = raw_type(model)
    # The converter writes these to every matrix; llama-quantize, which makes the others, spares some.
    everywhere = wanted.is_float or wanted is GGMLType.Q8_0
    assignments = {}
    for t in model.tensors:
        fact = tensors[t.name]
        if t.fixed is not None:
            assignments[t.name] = _held(t.fixed)
        elif everywhere or quantizable(fact, facts):
            assignments[t.name] = fit(fact, wanted, f"--type {wanted.name}")
        else:
            assignments[t.name] = Assignment(raw, raw, "llama.cpp does not quantize it")
    return make_plan(model, "uniform", {"type": wanted.name}, assignments)


def preset_plan(model: Model, name: str, *, has_imatrix: bool = False, pins: Sequence[Pin] = ()) -> Plan:
    """The types that llama-quantize gives every tensor for a preset such as Q4_K_M.

    Pins go in here rather than afterwards: a pinned tensor does not advance the preset's counters.

    Raises:
        PlanError: no such preset, or it needs an importance matrix.
    """
    facts, tensors = facts_of(model)
    preset = find_preset(name)
    assignments = preset_types(preset.name, list(tensors.values()), facts, has_imatrix=has_imatrix, pins=pins)
    lacking = next((n for n, a in assignments.items() if a.requires_imatrix), None)
    if lacking is not None and not has_imatrix:
        raise PlanError(
            f"{preset.name} stores {lacking} as {assignments[lacking].type.name}, which needs an importance "
            "matrix; give one with --imatrix"
        )
    for t in model.tensors:
        if t.fixed is not None:
            assignments[t.name] = _held(t.fixed)
    return make_plan(
        model, "preset", {"preset": preset.name, "imatrix": has_imatrix, **_described(pins)}, assignments
    )


def class_plan(
    model: Model,
    classes: Mapping[int, Precision],
    types: ClassTypes,
    *,
    embedding: GGMLType | None = None,
    method: str = "ewq",
    parameters: Mapping[str, Any] | None = None,
) -> Plan:
    """Each block's matrices in the type of the block's class; a block without a class is raw.

    Args:
        classes: block index -> class.
        embedding: type of everything outside the blocks (embedding and output); None keeps it raw, as in
            the paper.

    Raises:
        PlanError: a row fits neither a type nor its fallback.
    """
    facts, tensors = facts_of(model)
    raw = raw_type(model)
    resolved = types.resolve(raw)
    assignments = {}
    for t in model.tensors:
        fact = tensors[t.name]
        if t.fixed is not None:
            assignments[t.name] = _held(t.fixed)
        elif not quantizable(fact, facts):
            assignments[t.name] = Assignment(raw, raw, "llama.cpp does not quantize it")
        elif t.block is not None:
            verdict = classes.get(t.block, Precision.RAW)
            reason = f"block {t.block} is {verdict.value}"
            if verdict is Precision.RAW and types.raw is None:
                own = _own_type(t, raw)
                assignments[t.name] = Assignment(own, own, reason)
            else:
                assignments[t.name] = fit(fact, resolved[verdict], reason)
        elif embedding is None:
            own = _own_type(t, raw)
            assignments[t.name] = Assignment(own, own, "outside the blocks, kept raw")
        else:
            assignments[t.name] = fit(fact, embedding, "outside the blocks")
    told = {
        **{c.value: kind.name for c, kind in resolved.items()},
        "embedding": "raw" if embedding is None else embedding.name,
        **(parameters or {}),
    }
    return make_plan(model, method, told, assignments)


def _own_type(tensor: ModelTensor, raw: GGMLType) -> GGMLType:
    """The checkpoint's 16-bit type, or what a GGUF source has quantized already: more bits would add nothing."""
    source = tensor.source
    if isinstance(source, EncodedTensor) and source.encoding.is_quantized:
        return source.encoding
    return raw


def ewq_plan(
    model: Model,
    analysis: Analysis,
    *,
    x: float = 1.0,
    variant: Variant = Variant.MIXED_4BIT_8BIT,
    types: ClassTypes | None = None,
    embedding: GGMLType | None = None,
) -> Plan:
    """EWQ: each block's matrices in the type of the class that its entropy puts it in.

    Args:
        x: T = mu - x sigma.
        variant: what the classes do to the blocks.
        types: the types behind the classes; the paper's by default.
        embedding: type of everything outside the blocks; None keeps it raw.

    Raises:
        PlanError: no blocks, or a row fits neither a type nor its fallback.
    """
    found = classify([b.entropy for b in analysis.blocks], x)
    classes = variant_classes(found.classes, variant)
    return class_plan(
        model,
        {b.index: c for b, c in zip(analysis.blocks, classes)},
        types or ClassTypes(),
        embedding=embedding,
        parameters={"variant": variant.value, "x": x, **describe(analysis, found, classes)},
    )


def uniform_class_plan(
    model: Model, variant: Variant, types: ClassTypes, *, embedding: GGMLType | None = None
) -> Plan:
    """The variants that treat all blocks alike; no weight is read.

    Raises:
        PlanError: a row fits neither a type nor its fallback.
    """
    indices = sorted({t.block for t in model.tensors if t.block is not None})
    classes = dict(zip(indices, variant_classes([Precision.RAW] * len(indices), variant)))
    return class_plan(model, classes, types, embedding=embedding, parameters={"variant": variant.value})


def describe(
    analysis: Analysis, found: Classification, classes: Sequence[Precision] | None = None
) -> Mapping[str, Any]:
    """Thresholds and blocks as JSON: `epsilon`, `reading`, `mu`, `sigma`, `threshold`, `blocks[]` with class.

    Args:
        classes: what the blocks got in the end, where that differs from what was found.
    """
    return {
        "epsilon": analysis.epsilon,
        "reading": analysis.reading.value,
        "mu": found.mu,
        "sigma": found.sigma,
        "threshold": found.threshold,
        "blocks": [
            {**block_json(b), "class": c.value} for b, c in zip(analysis.blocks, classes or found.classes)
        ],
    }


def block_json(block: BlockStatistics) -> dict[str, Any]:
    """A block's statistics as JSON; the rank only where it was measured."""
    return {key: value for key, value in asdict(block).items() if value is not None}


def pinned_plan(model: Model, plan: Plan, pins: Sequence[Pin]) -> Plan:
    """The same plan with pinned tensors in their pin's type; the first matching pin wins.

    Raises:
        PlanError: a pattern matches nothing that may be changed, or a row does not fit.
    """
    facts, tensors = facts_of(model)
    before = {t.name: Assignment(t.type, t.wanted, t.reason) for t in plan.tensors}
    after = apply_pins(before, pins, list(tensors.values()), facts)
    return make_plan(model, plan.method, {**plan.parameters, **_described(pins)}, after)


def _described(pins: Sequence[Pin]) -> dict[str, Any]:
    return {"pins": [str(pin) for pin in pins]} if pins else {}
