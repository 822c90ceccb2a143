"""From a method's verdict to a plan: one type for all, a stock preset, or EWQ's classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ewq_gguf.allocation.analysis import Analysis
from ewq_gguf.allocation.ewq import Classification, Precision, classify
from ewq_gguf.allocation.facts import Assignment, fit, quantizable
from ewq_gguf.allocation.pins import Pin, apply_pins
from ewq_gguf.allocation.plan import Plan, facts_of, make_plan, raw_type
from ewq_gguf.allocation.presets import find_preset, preset_types
from ewq_gguf.errors import PlanError
from ewq_gguf.ggml.types import GGMLType
from ewq_gguf.model import Model

DEFAULT_EIGHT_BIT = GGMLType.Q8_0
DEFAULT_FOUR_BIT = GGMLType.Q4_K


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


def ewq_plan(
    model: Model,
    analysis: Analysis,
    *,
    x: float = 1.0,
    eight_bit: GGMLType = DEFAULT_EIGHT_BIT,
    four_bit: GGMLType = DEFAULT_FOUR_BIT,
    embedding: GGMLType | None = None,
) -> Plan:
    """EWQ's 4-bit/8-bit mixed variant: each block's matrices in the type of the block's class.

    Args:
        x: T = mu - x sigma.
        eight_bit, four_bit: the types behind the classes; "raw" is the checkpoint's own 16-bit type.
        embedding: type of everything outside the blocks (embedding and output); None keeps it raw, as in
            the paper.

    Raises:
        PlanError: no blocks, or a row fits neither a type nor its fallback.
    """
    facts, tensors = facts_of(model)
    raw = raw_type(model)
    found = classify([b.entropy for b in analysis.blocks], x)
    types = {Precision.RAW: raw, Precision.EIGHT_BIT: eight_bit, Precision.FOUR_BIT: four_bit}
    class_of = {b.index: c for b, c in zip(analysis.blocks, found.classes)}
    assignments = {}
    for t in model.tensors:
        fact = tensors[t.name]
        if t.fixed is not None:
            assignments[t.name] = _held(t.fixed)
        elif not quantizable(fact, facts):
            assignments[t.name] = Assignment(raw, raw, "llama.cpp does not quantize it")
        elif t.block is not None:
            verdict = class_of[t.block]
            assignments[t.name] = fit(fact, types[verdict], f"block {t.block} is {verdict.value}")
        elif embedding is None:
            assignments[t.name] = Assignment(raw, raw, "outside the blocks, kept raw")
        else:
            assignments[t.name] = fit(fact, embedding, "outside the blocks")
    parameters = {
        "epsilon": analysis.epsilon,
        "x": x,
        "raw": raw.name,
        "8-bit": eight_bit.name,
        "4-bit": four_bit.name,
        "embedding": "raw" if embedding is None else embedding.name,
        **describe(analysis, found),
    }
    return make_plan(model, "ewq", parameters, assignments)


def describe(analysis: Analysis, found: Classification) -> Mapping[str, Any]:
    """Thresholds and blocks as JSON: `mu`, `sigma`, `threshold`, `blocks[]` with their class."""
    return {
        "mu": found.mu,
        "sigma": found.sigma,
        "threshold": found.threshold,
        "blocks": [{**asdict(b), "class": c.value} for b, c in zip(analysis.blocks, found.classes)],
    }


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
