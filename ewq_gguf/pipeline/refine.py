"""Further rounds: a plan's tensors are probed again where they will stand, and the plan is made anew.

The first round's probes disturb one tensor of an otherwise exact model. Where errors are large they do not add up
(the linearity theorem, arXiv 2411.17525, holds near the original only), so each round measures the tensors around
the plan, scales the table's rows accordingly and solves again. A new plan counts only if it measures better than
the old one; otherwise the old one stays and the rounds end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ewq_gguf.allocation.plan import Plan
from ewq_gguf.allocation.scores import ScoreTable
from ewq_gguf.allocation.solver import Option
from ewq_gguf.allocation.targets import Target
from ewq_gguf.calibration.around import measure_plan, probe_around
from ewq_gguf.calibration.meter import Meter
from ewq_gguf.calibration.workbench import MappedWorkbench
from ewq_gguf.errors import PlanError
from ewq_gguf.ggml import GGMLType
from ewq_gguf.model import Model
from ewq_gguf.pipeline.convert import default_threads
from ewq_gguf.pipeline.optimize import StagedProgress, Studied
from ewq_gguf.pipeline.rd_plan import rd_plan
from ewq_gguf.pipeline.scratch import ScratchCopies

# A single round's correction of a tensor's cost is kept within this factor, for noise has large ratios too.
_MOST = 4.0


@dataclass(frozen=True)
class Round:
    """One round: what the plan before it cost on the calibration text, and what the plan after it does."""

    before: float
    after: float

    @property
    def helped(self) -> bool:
        return self.after < self.before


def refined_plan(
    model: Model,
    studied: Studied,
    target: Target,
    plan: Plan,
    rounds: int,
    *,
    pins: Mapping[str, GGMLType] | None = None,
    pool: Sequence[GGMLType] | None = None,
    size_of: Callable[[Plan], int] | None = None,
    threads: int | None = None,
    progress: StagedProgress | None = None,
) -> tuple[Plan, list[Round]]:
    """Probe around a plan and solve again, as often as asked or until it does not help.

    Args:
        plan: from `rd_plan` with the same arguments.

    Raises:
        EvaluationError: llama.cpp cannot run the model, or the text is unusable.
        PlanError: the target is an accuracy, or damage was not measured.
    """
    if studied.table.unit != "nats per token":
        raise PlanError("--rounds needs measured damage; leave --damage at probe")
    if target.max_kld is not None:
        raise PlanError("--rounds needs a size to hold to; give --size, --bpw, --like or --vram")
    threads = threads or default_threads()
    imatrix = None if studied.importance is None else studied.importance.matrix
    history: list[Round] = []

    def stage(name: str) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, total: progress(name, done, total)

    with (
        ScratchCopies(model, threads, stage("Writing the scratch copy")) as scratch,
        MappedWorkbench(scratch.for_probes(), n_threads=threads) as bench,
        Meter(bench.engine, studied.study.text, studied.study.chunks) as meter,
    ):
        for number in range(1, rounds + 1):
            types = _quantized(plan, studied.table)
            found = probe_around(bench, meter, types, imatrix, stage(f"Round {number}"))
            table = corrected(studied.table, types, found.kld, found.relief)
            studied = replace(studied, table=table)
            better = rd_plan(model, studied, target, pins=pins, pool=pool, size_of=size_of)
            changed = _quantized(better, table)
            try:
                after = measure_plan(bench, meter, changed, imatrix)
            finally:
                for name in changed:
                    bench.restore(name)
            history.append(Round(found.kld, after))
            if not history[-1].helped:
                break
            plan = better
    parameters = {**plan.parameters, "rounds": [vars(r) for r in history]}
    return replace(plan, parameters=parameters), history


def corrected(
    table: ScoreTable, types: Mapping[str, GGMLType], kld: float, relief: Mapping[str, float]
) -> ScoreTable:
    """The table with each tensor's row scaled to what it contributes around a plan.

    Reliefs need not add up to the plan's divergence; the rows are scaled so that the plan's prediction does.
    """
    options: dict[str, Mapping[GGMLType, Option]] = {}
    scales = {}
    for name, kind in types.items():
        known = table.options[name][kind].damage
        ratio = relief[name] / known if known > 0 else 1.0
        scales[name] = min(max(ratio, 1 / _MOST), _MOST)
    total = sum(scales.get(n, 1.0) * row[types[n]].damage for n, row in table.options.items() if n in types)
    whole = kld / total if total > 0 else 1.0
    for name, row in table.options.items():
        scale = whole * scales.get(name, 1.0)
        options[name] = {k: replace(o, damage=o.damage * scale) for k, o in row.items()}
    return replace(table, options=options)


def _quantized(plan: Plan, table: ScoreTable) -> dict[str, GGMLType]:
    """The plan's choices that change a weight."""
    floats = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)
    return {n: t for n, t in plan.types().items() if n in table.options and t not in floats}
