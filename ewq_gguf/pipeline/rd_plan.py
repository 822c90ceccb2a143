"""The plan for a target: chosen from a study's table, then tried out.

The table's choice has the least sum of damages for its bytes (CVXQ, arXiv 2409.02026). A sum of probes flatters the plan
that it chose: whatever is best on the two contexts of the probes is a little worse elsewhere, by up to a tenth, and a plan
that nobody chose for them is not. So what is told of a plan, and what `--max-kld` and `--like` hold to, is what its file
measures on contexts spread over the whole text (`pipeline.tryout`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from ewq_gguf.allocation.facts import Assignment
from ewq_gguf.allocation.methods import preset_plan, uniform_plan
from ewq_gguf.allocation.plan import Plan, make_plan, raw_type
from ewq_gguf.allocation.scores import Allocation, ScoreTable
from ewq_gguf.allocation.targets import Target, file_budget
from ewq_gguf.errors import PlanError, QuantizationError
from ewq_gguf.ggml import GGMLType
from ewq_gguf.model import Model
from ewq_gguf.pipeline.convert import default_threads, file_size
from ewq_gguf.pipeline.header import padded
from ewq_gguf.pipeline.optimize import StagedProgress, Studied
from ewq_gguf.pipeline.scratch import ScratchCopies
from ewq_gguf.pipeline.tryout import Progress, Tryout

# What a plan that is made anew for an accuracy aims at, a part of it: nearer at first, for a plan just above it is none.
_AIMS = (0.98, 0.96, 0.94)
# A plan this near below needs no better.
_NEAR = 0.93


def rd_plan(
    model: Model,
    studied: Studied,
    target: Target,
    *,
    pins: Mapping[str, GGMLType] | None = None,
    pool: Sequence[GGMLType] | None = None,
    size_of: Callable[[Plan], int] | None = None,
) -> Plan:
    """The plan with the least predicted damage for a target; the file never exceeds it.

    Args:
        size_of: exact bytes of a plan's file, header included; by default one file with the study's
            importance matrix recorded in it.
        pins: tensors whose type is given.
        pool: types allowed; None for all in the table.

    Raises:
        PlanError: the target is out of reach; the message names floor and ceiling.
    """
    table = studied.table
    pool = pool or studied.pool
    raw = raw_type(model)
    plain = {key: value.value for key, value in model.metadata.items()}
    if target.max_kld is not None:
        if table.unit != "nats per token":
            raise PlanError("--max-kld needs measured damage; leave --damage at probe")
        allocation = table.allocate_for_damage(target.max_kld, pool=pool, pins=pins)
        return _as_plan(model, studied, target, allocation, raw)
    like_bytes = None
    if target.like is not None:
        stock = preset_plan(model, target.like, has_imatrix=True)
        like_bytes = sum(padded(t.nbytes) for t in stock.tensors)
    size_of = size_of or (lambda plan: file_size(model, plan, importance=studied.importance))
    # The header holds the plan's own provenance; it settles after a round or two.
    baseline = uniform_plan(model, raw)
    overhead = size_of(baseline) - sum(padded(t.nbytes) for t in baseline.tensors)
    for _ in range(6):
        budget = file_budget(target, plain, model.n_parameters, overhead, like_bytes)
        if budget is None:
            raise PlanError(
                "rate-distortion allocation needs a target: --size, --bpw, --like, --max-kld or --vram"
            )
        plan = _as_plan(model, studied, target, _within(table, budget, pool, pins), raw)
        if target.size is None or (size := size_of(plan)) <= target.size:
            return plan
        overhead += size - target.size
    raise PlanError(
        f"no allocation fits {target.size:,} bytes with its header; choose a slightly larger size"
    )


def _within(
    table: ScoreTable,
    budget: int,
    pool: Sequence[GGMLType] | None,
    pins: Mapping[str, GGMLType] | None,
) -> Allocation:
    """The best allocation in a budget; a budget above everything in the pool takes the best of all."""
    items = table.items(pool=pool, pins=pins)
    ceiling = table.fixed_bytes + sum(max(o.bytes for o in item.options) for item in items)
    return table.allocate(min(budget, ceiling), pool=pool, pins=pins)


def _as_plan(model: Model, studied: Studied, target: Target, allocation: Allocation, raw: GGMLType) -> Plan:
    assignments = {}
    for t in model.tensors:
        if t.name in allocation.types:
            kind = allocation.types[t.name]
            damage = studied.table.level * studied.table.options[t.name][kind].damage
            assignments[t.name] = Assignment(kind, kind, f"predicted damage {damage:.3g}")
        else:
            kind = raw if t.fixed is None else t.fixed
            assignments[t.name] = Assignment(kind, kind, "always stored so")
    solution = allocation.solution
    wanted = {k: v for k, v in vars(target).items() if v is not None and k not in ("context", "cache_type")}
    if target.vram is not None:
        wanted |= {"context": target.context, "cache_type": target.cache_type.name}
    parameters: dict[str, Any] = {
        "target": wanted,
        "damage": studied.table.damage_model,
        "unit": studied.table.unit,
        "predicted": allocation.damage,
        "tried": 0,
        "floor": studied.table.floor,
        "level": studied.table.level,
        "gap": solution.gap if math.isfinite(solution.gap) else None,
        "text": studied.study.text.name,
        "imatrix": studied.importance is not None,
        "probe_chunks": studied.study.chunks,
    }
    return make_plan(model, "rd", parameters, assignments)


@contextmanager
def tryout_of(
    model: Model, studied: Studied, *, threads: int | None = None, progress: StagedProgress | None = None
) -> Iterator[Tryout]:
    """Tries out plans of a studied model, with the study's text and importance matrix.

    Raises:
        PlanError: nothing was measured in the study.
    """
    if studied.record is None:
        raise PlanError("only measured damage can be tried out; leave --damage at probe")
    threads = threads or default_threads()

    def stage(done: int, total: int) -> None:
        if progress is not None:
            progress("Writing the scratch copy", done, total)

    text, importance = studied.study.text, studied.importance
    with (
        ScratchCopies(model, threads, stage) as scratch,
        Tryout(model, scratch, text, importance, studied.record, threads) as tryout,
    ):
        yield tryout


def tried(
    model: Model,
    studied: Studied,
    target: Target,
    plan: Plan,
    *,
    pins: Mapping[str, GGMLType] | None = None,
    pool: Sequence[GGMLType] | None = None,
    size_of: Callable[[Plan], int] | None = None,
    threads: int | None = None,
    progress: StagedProgress | None = None,
) -> Plan:
    """The plan as tried out on the calibration text; see `tried_plan`.

    Args:
        plan: from `rd_plan` with the same arguments.

    Raises:
        PlanError: nothing was measured in the study.
        EvaluationError: llama.cpp cannot run the model.
    """
    allowed = {*(pool or studied.pool), GGMLType.F32, GGMLType.F16, GGMLType.BF16}

    def is_allowed(other: Plan) -> bool:
        types = other.types()
        free = {name: kind for name, kind in types.items() if name in studied.table.options}
        pinned = all(types[name] is kind for name, kind in (pins or {}).items())
        return pinned and all(kind in allowed for name, kind in free.items() if name not in (pins or {}))

    with tryout_of(model, studied, threads=threads, progress=progress) as tryout:
        return tried_plan(
            tryout,
            plan,
            target,
            lambda other: rd_plan(model, studied, other, pins=pins, pool=pool, size_of=size_of),
            size_of or (lambda chosen: file_size(model, chosen, importance=studied.importance)),
            is_allowed,
            None if progress is None else lambda done, total: progress("Trying out the plan", done, total),
        )


def tried_plan(
    tryout: Tryout,
    plan: Plan,
    target: Target,
    again: Callable[[Target], Plan],
    size_of: Callable[[Plan], int],
    allowed: Callable[[Plan], bool],
    progress: Progress | None = None,
) -> Plan:
    """The plan with what its file measures as its prediction; for an accuracy, the smallest found that keeps it.

    Beside `--like` the stock preset is measured too (`stock`, nats per token, in the plan's parameters), and its types
    are taken where they are allowed and do better (`took_stock`).

    Args:
        plan: from `rd_plan` for the target.
        again: makes a plan for another target.
        size_of: exact bytes of a plan's file.
        allowed: whether pool and pins allow a plan's types.

    Raises:
        EvaluationError: llama.cpp cannot run a file.
    """
    measured = tryout.kld(plan.types(), progress)
    if target.max_kld is not None:
        plan, measured = _kept_accuracy(tryout, plan, measured, target, again, progress)
    if not math.isfinite(measured):
        return plan
    told = {**plan.parameters, "predicted": _rounded(measured), "tried": tryout.contexts}
    if target.like is not None:
        # Some presets cannot be made without an importance matrix.
        with suppress(PlanError, QuantizationError):
            stock = preset_plan(tryout.model, target.like, has_imatrix=tryout.importance is not None)
            theirs = tryout.kld(stock.types(), progress)
            if math.isfinite(theirs):
                told["stock"] = _rounded(theirs)
            if theirs < measured and allowed(stock):
                own = tuple(replace(t, reason=f"{target.like}'s own type") for t in stock.tensors)
                plan = replace(plan, tensors=own)
                told |= {"predicted": told["stock"], "gap": None, "took_stock": True}
    found = replace(plan, parameters=told)
    # The parameters are part of the header, and the file never exceeds its size.
    return plan if target.size is not None and size_of(found) > target.size else found


def _kept_accuracy(
    tryout: Tryout,
    plan: Plan,
    measured: float,
    target: Target,
    again: Callable[[Target], Plan],
    progress: Progress | None,
) -> tuple[Plan, float]:
    """The smallest plan that keeps an accuracy where one is found, else the one that comes closest."""
    wanted, floor = target.max_kld, float(plan.parameters["floor"])
    assert wanted is not None
    asked = wanted
    found = [(plan, measured)]
    for aim in _AIMS:
        reached = _NEAR * wanted <= measured <= wanted
        if reached or not floor < measured < math.inf or aim * wanted <= floor:
            break
        # What weights cost is taken to grow in proportion with what is asked of them.
        asked = floor + (asked - floor) * (aim * wanted - floor) / (measured - floor)
        try:
            plan = again(replace(target, max_kld=asked))
        except PlanError:
            break
        if any(plan.types() == known.types() for known, _ in found):
            break
        measured = tryout.kld(plan.types(), progress)
        found.append((plan, measured))
    kept = [(p, kld) for p, kld in found if kld <= wanted]
    best, kld = min(kept, key=lambda f: f[0].data_bytes) if kept else min(found, key=lambda f: f[1])
    told = {**best.parameters, "target": found[0][0].parameters["target"]}
    return replace(best, parameters=told), kld


def _rounded(kld: float) -> float:
    """To six digits: shorter in a header than any sum."""
    return float(f"{kld:.6g}")
