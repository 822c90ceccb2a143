"""What the curves are called, and which plan belongs to which measurement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ewq_gguf.allocation.plan import Plan
from ewq_gguf.report.fields import real
from ewq_gguf.report.runs import Measurement, PlanRun

# In the order of the legend, which also gives colour and shape.
LABELS = {
    "rd": "rate-distortion",
    "stock": "stock preset",
    "stock+imatrix": "stock preset + imatrix",
    "ewq": "EWQ",
    "fastewq": "FastEWQ",
    "pinned": "rate-distortion, embedding and output as stock",
    "k-quants": "rate-distortion, K-quants",
    "random": "random types",
    "damage-imatrix": "weighted error only",
    "damage-mse": "plain error only",
    "direct": "rate-distortion, all types measured",
    "uniform": "one type",
    "": "measured files",
}
STOCK = ("stock+imatrix", "stock")


def label(method: str) -> str:
    """A method's name for people; one that is not known keeps its own."""
    return LABELS.get(method, method)


def style(method: str) -> int:
    """The number that colour and shape of a method's marks are taken from: the same on every page."""
    known = list(LABELS)
    return known.index(method) if method in LABELS else len(known) + sum(map(ord, method[:40])) % 9


def once(measurements: Sequence[Measurement]) -> list[Measurement]:
    """Each measurement once, though a study keeps it in two files; the one with a prediction tells more."""
    kept: dict[tuple[str, str, str], Measurement] = {}
    for number, m in enumerate(measurements):
        key = (m.model, m.text, m.key or f"no key {number}")
        if key not in kept or kept[key].predicted is None:
            kept[key] = m
    return list(kept.values())


@dataclass(frozen=True)
class Ratio:
    """A divergence relative to that of the stock preset of the same size, and its standard error.

    The error takes the two measurements as independent, which is too large rather than too small: both are
    taken on the same tokens.
    """

    value: float
    se: float
    stock: Measurement


def ratios(group: Sequence[Measurement]) -> dict[Measurement, Ratio]:
    """For every measurement made at a preset's size: its ratio to the preset, with importance matrix if there is one."""
    base: dict[str, Measurement] = {}
    for method in reversed(STOCK):
        base |= {m.preset: m for m in group if m.method == method and m.preset and m.kld}
    found = {}
    for m in group:
        stock = base.get(m.preset.removeprefix("like "))
        if stock is None or not stock.kld or not m.kld or m.kld < 0 or m.method in STOCK:
            continue
        relative = math.hypot((m.kld_se or 0.0) / m.kld, (stock.kld_se or 0.0) / stock.kld)
        found[m] = Ratio(m.kld / stock.kld, relative * m.kld / stock.kld, stock)
    return found


def joined(measurements: Sequence[Measurement], plans: Sequence[PlanRun]) -> list[Measurement]:
    """Measurements with what the plan of the measured file tells: method, place on its curve, prediction.

    A plan belongs to a measurement of a file of its name and size.
    """
    made = {(p.file, p.nbytes): p.plan for p in plans if p.made}
    found = []
    for m in measurements:
        plan = made.get((m.file, m.nbytes))
        if plan is not None and not m.method:
            method, place = place_of(plan)
            m = replace(m, method=method, preset=place, bpw=plan.bpw, predicted=predicted(plan))
        found.append(m)
    return found


def place_of(plan: Plan) -> tuple[str, str]:
    """The curve a plan belongs to, and its place on it ("" for none)."""
    told = plan.parameters
    if plan.method == "preset":
        return ("stock+imatrix" if told.get("imatrix") is True else "stock"), str(told.get("preset", ""))
    if plan.method == "uniform":
        return "uniform", str(told.get("type", ""))
    if plan.method == "rd":
        return "rd", _target(told.get("target"))
    if plan.method in ("ewq", "fastewq"):
        return plan.method, "limit" if "limit" in told else ""
    return "", ""


def _target(target: Any) -> str:
    if not isinstance(target, Mapping) or not target:
        return "target"
    name, value = next(iter(target.items()))
    return f"like {value}" if name == "like" else f"{name} {value}"


def predicted(plan: Plan) -> float | None:
    """The divergence that the plan foretells, in nats per token; None where it foretells none."""
    told = plan.parameters
    return real(told, "predicted") if told.get("unit") == "nats per token" else None
