"""Rate-distortion allocation from end to end: run the model once, measure, and choose types for any size.

The model is written to a scratch GGUF in its own 16-bit type (llama.cpp can only run a file), an importance
matrix is collected, every tensor is disturbed in memory and the divergence measured, and each type's error on
each tensor is taken with ggml's own quantizers. The resulting table serves any number of targets (CVXQ,
arXiv 2409.02026; the linearity theorem, arXiv 2411.17525). Everything measured is kept in the cache.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ewq_gguf._version import __version__
from ewq_gguf.allocation.distortion import FULL_POOL, PLAIN_POOL, measure_distortions, types_to_measure
from ewq_gguf.allocation.facts import Assignment
from ewq_gguf.allocation.methods import preset_plan, uniform_plan
from ewq_gguf.allocation.plan import Plan, make_plan, raw_type
from ewq_gguf.allocation.scores import Allocation, DamageModel, ScoreTable, score_table
from ewq_gguf.allocation.targets import Target, file_budget
from ewq_gguf.calibration.imatrix import ImportanceMatrix, collect_imatrix
from ewq_gguf.calibration.imatrix_file import save_imatrix
from ewq_gguf.calibration.journal import Journal, fingerprint
from ewq_gguf.calibration.probe import Probe
from ewq_gguf.calibration.session import ProbeSettings, probe_model
from ewq_gguf.errors import PlanError
from ewq_gguf.ggml import GGMLType, ggml
from ewq_gguf.model import Model
from ewq_gguf.pipeline.convert import default_threads, file_size
from ewq_gguf.pipeline.header import padded
from ewq_gguf.pipeline.importance import Importance, load_importance
from ewq_gguf.pipeline.levels import leveled
from ewq_gguf.pipeline.scratch import ScratchCopies
from ewq_gguf.pipeline.tryout import Tryout, tried_plan

StagedProgress = Callable[[str, int, int], None]
# The first and last weights are large, unlike the rest, and what makes or breaks a small file: every type is measured.
OUTER = ("token_embd.weight", "output.weight")
# A short text of the project's own, for those who give none.
DEFAULT_TEXT = Path(__file__).parent.parent / "calibration" / "default.txt"


def default_cache() -> Path:
    """Where studies are kept: EWQ_GGUF_CACHE, XDG_CACHE_HOME/ewq-gguf or ~/.cache/ewq-gguf, under studies."""
    base = os.environ.get("EWQ_GGUF_CACHE")
    root = (
        Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ewq-gguf"
    )
    return root / "studies"


@dataclass(frozen=True)
class Study:
    """How a model is studied.

    Attributes:
        damage: "probe" (measured), "imatrix" (weighted error only) or "mse" (no model run at all).
        text: calibration text; the built-in one by default.
        imatrix: an importance matrix file, or None to collect one.
        use_imatrix: whether importance weights are used at all.
        pool: types to choose from; None for every type worth having.
        chunks: contexts of 512 tokens per probe; `imatrix_chunks` for the importance matrix.
        blocks: probe only this many blocks, evenly spread; None for all.
        rounds: further rounds of probes around the plan (see `pipeline.refine`).
        try_out: measure the chosen plan on the text before its file is made (see `pipeline.tryout`).
        cache: folder that keeps what was measured; None keeps nothing.
    """

    damage: DamageModel = "probe"
    text: Path = DEFAULT_TEXT
    imatrix: Path | None = None
    use_imatrix: bool = True
    pool: tuple[GGMLType, ...] | None = None
    chunks: int = 2
    imatrix_chunks: int = 16
    blocks: int | None = None
    rounds: int = 0
    try_out: bool = True
    cache: Path | None = field(default_factory=default_cache)


@dataclass(frozen=True)
class Studied:
    """What a study found: the table for any target, and the importance matrix to quantize with.

    `record` keeps what files measured; None where the model was not run.
    """

    study: Study
    pool: tuple[GGMLType, ...]
    table: ScoreTable
    importance: Importance | None
    probes: tuple[Probe, ...]
    record: Journal | None = field(default=None, compare=False, repr=False)


def study_model(
    model: Model,
    study: Study,
    *,
    extra: Iterable[GGMLType] = (),
    threads: int | None = None,
    progress: StagedProgress | None = None,
) -> Studied:
    """Measure what the study needs; what an earlier run measured is taken from the cache.

    Args:
        extra: types beside the pool that the table must hold, because tensors are pinned to them.

    Raises:
        EvaluationError: llama.cpp cannot run the model, or the text is unusable.
        CheckpointError: the source or importance matrix is damaged.
        PlanError: a tensor can take no type of the pool.
    """
    threads = threads or default_threads()
    folder = None if study.cache is None else study.cache / model.fingerprint[:16]
    pool = study.pool or (FULL_POOL if study.use_imatrix else PLAIN_POOL)

    def stage(name: str) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, total: progress(name, done, total)

    importance = load_importance(study.imatrix) if study.imatrix is not None and study.use_imatrix else None
    probes: Sequence[Probe] = ()
    record: Journal | None = None
    with ScratchCopies(model, threads, stage("Writing the scratch copy")) as scratch:
        if study.use_imatrix and importance is None:
            importance = _collected(study, scratch, folder, threads, stage("Importance matrix"))
        imatrix = None if importance is None else importance.matrix
        facts = {
            "model": model.fingerprint,
            "imatrix": None if imatrix is None else imatrix.fingerprint(),
        }
        distortions = measure_distortions(
            model,
            tuple(dict.fromkeys([*types_to_measure(pool), *extra])),
            imatrix=imatrix,
            journal=Journal(folder, "distortion", facts),
            n_threads=threads,
            progress=stage("Errors of each type"),
        )
        if study.damage in ("probe", "direct"):
            settings = ProbeSettings(
                chunks=study.chunks,
                n_threads=threads,
                blocks=study.blocks,
                types=pool if study.damage == "direct" else None,
                thorough={name: pool for name in OUTER if name in distortions},
                cache=folder,
            )
            record = _record(study, settings, facts, list(distortions))
            probes = _probed(
                study, scratch, list(distortions), imatrix, settings, record, stage("Probing tensors")
            )
        table = score_table(model, distortions, study.damage, probes)
        if record is not None:
            with Tryout(model, scratch, study.text, importance, record, threads) as tryout:
                table = leveled(table, tryout, stage("Two files to predict from"))
    return Studied(study, pool, table, importance, tuple(probes), record)


def _record(study: Study, settings: ProbeSettings, facts: Mapping[str, Any], names: Sequence[str]) -> Journal:
    """What an earlier study with the same settings found.

    Probes themselves are kept one by one with the scratch file's fingerprint; this record spares the next
    target from writing that file only to find that nothing is left to measure.
    """
    asked = {
        **facts,
        "text": hashlib.sha256(study.text.read_bytes()).hexdigest(),
        "types": None if settings.types is None else [t.name for t in settings.types],
        "thorough": {name: [t.name for t in types] for name, types in settings.thorough.items()},
        "scratch": "F16",
        "chunks": settings.chunks,
        "blocks": settings.blocks,
        "names": list(names),
        "ggml": ggml().version,
        "version": __version__,
    }
    return Journal(settings.cache, "study", asked)


def _probed(
    study: Study,
    scratch: ScratchCopies,
    names: Sequence[str],
    imatrix: ImportanceMatrix | None,
    settings: ProbeSettings,
    record: Journal,
    progress: Callable[[int, int], None] | None,
) -> list[Probe]:
    found = record.get("probes")
    if found is None:
        probes = probe_model(
            scratch.for_probes(), study.text, names, imatrix=imatrix, settings=settings, progress=progress
        )
        record.add("probes", {"probes": [asdict(p) for p in probes]})
        return probes
    return [Probe(**p) for p in found["probes"]]


def _collected(
    study: Study,
    source: ScratchCopies,
    folder: Path | None,
    threads: int,
    progress: Callable[[int, int], None] | None,
) -> Importance:
    text = study.text.read_bytes()
    key = fingerprint(
        {"text": hashlib.sha256(text).hexdigest(), "chunks": study.imatrix_chunks, "version": __version__}
    )
    with tempfile.TemporaryDirectory(prefix="ewq-gguf-") as scratch:
        kept = Path(scratch if folder is None else folder) / f"imatrix-{key[:16]}.gguf"
        if not kept.is_file():
            matrix = collect_imatrix(
                source.original(),
                study.text,
                chunks=study.imatrix_chunks,
                output=True,
                n_threads=threads,
                progress=progress,
            )
            kept.parent.mkdir(parents=True, exist_ok=True)
            save_imatrix(matrix, kept)
        found = load_importance(kept)
    # The path is recorded in the file's metadata, where the name says enough.
    return replace(found, path=Path(kept.name))


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
    """The plan as tried out on the calibration text; see `pipeline.tryout.tried_plan`.

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
