"""Rate-distortion allocation, the study: run the model once and measure what any choice of types would cost.

The model is written to a scratch GGUF in its own 16-bit type (llama.cpp can only run a file), an importance
matrix is collected, every tensor is disturbed in memory and the divergence measured, and each type's error on
each tensor is taken with ggml's own quantizers. The resulting table serves any number of targets (`pipeline.rd_plan`; CVXQ,
arXiv 2409.02026; the linearity theorem, arXiv 2411.17525). Everything measured is kept in the cache.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ewq_gguf._version import __version__
from ewq_gguf.allocation.distortion import FULL_POOL, PLAIN_POOL, measure_distortions, types_to_measure
from ewq_gguf.allocation.scores import DamageModel, ScoreTable, score_table
from ewq_gguf.calibration.imatrix import ImportanceMatrix, collect_imatrix
from ewq_gguf.calibration.imatrix_file import save_imatrix
from ewq_gguf.calibration.journal import Journal, fingerprint
from ewq_gguf.calibration.probe import Probe
from ewq_gguf.calibration.session import ProbeSettings, probe_model
from ewq_gguf.ggml import GGMLType, ggml
from ewq_gguf.model import Model
from ewq_gguf.pipeline.convert import default_threads
from ewq_gguf.pipeline.importance import Importance, load_importance
from ewq_gguf.pipeline.levels import leveled
from ewq_gguf.pipeline.scratch import ScratchCopies
from ewq_gguf.pipeline.tryout import Tryout

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
