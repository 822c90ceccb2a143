"""Probing a model from file to measurements in one call: workbench, meter, journal and prober put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ewq_gguf.calibration.imatrix import ImportanceMatrix
from ewq_gguf.calibration.journal import Journal
from ewq_gguf.calibration.meter import Meter
from ewq_gguf.calibration.probe import (
    Forecast,
    Probe,
    Prober,
    probe_facts,
    run_probes,
    shared_tensors,
)
from ewq_gguf.calibration.workbench import MappedWorkbench
from ewq_gguf.ggml import GGMLType

# One context of 512 tokens gave plans within 1 % of those from many on small models; four leave a margin.
DEFAULT_CHUNKS = 4


@dataclass(frozen=True)
class ProbeSettings:
    """How a model is probed.

    Attributes:
        n_ctx: tokens per context.
        chunks: contexts per measurement.
        n_threads: None for all cores.
        blocks: probe only this many blocks, evenly spread; None for all.
        types: measure these types for every tensor (direct damage); None for one suitable probe per tensor.
        thorough: types to measure of single tensors, by name, in place of the one probe.
        cache: folder that keeps measurements; None keeps none.
        scratch: folder for the scratch copy; None for a memory-backed one.
    """

    n_ctx: int = 512
    chunks: int = DEFAULT_CHUNKS
    n_threads: int | None = None
    blocks: int | None = None
    types: Sequence[GGMLType] | None = None
    thorough: Mapping[str, Sequence[GGMLType]] = field(default_factory=dict)
    cache: Path | None = None
    scratch: Path | None = None


def probe_model(
    model: Path,
    text: Path | str,
    names: Sequence[str],
    *,
    imatrix: ImportanceMatrix | None = None,
    settings: ProbeSettings | None = None,
    announce: Callable[[Forecast], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Probe]:
    """Measure what errors in each tensor cost; interrupted, it continues where it stopped.

    Args:
        model: a GGUF file with the weights in F32, F16 or BF16.
        text: calibration text, a file or the text itself.
        names: tensors whose types will be chosen.
        imatrix: importance weights used in quantizing.
        announce: told the number of probes and the expected time before the first is made.
        progress: called with (tensors done, tensors in all).

    Raises:
        EvaluationError: the model cannot be run or changed in memory, or the text cannot be used.
    """
    settings = settings or ProbeSettings()
    wanted = shared_tensors(names, settings.blocks)
    facts = probe_facts(model, text, imatrix, n_ctx=settings.n_ctx, chunks=settings.chunks)
    journal = Journal(settings.cache, "probe", facts)
    bench = MappedWorkbench(
        model, n_ctx=settings.n_ctx, n_threads=settings.n_threads, folder=settings.scratch
    )
    with bench, Meter(bench.engine, text, settings.chunks) as meter:
        prober = Prober(bench, meter, imatrix=imatrix, journal=journal)
        return run_probes(
            prober, wanted, settings.types, thorough=settings.thorough, announce=announce, progress=progress
        )
