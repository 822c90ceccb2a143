"""What each tensor's error costs when all the others carry theirs too: probes around a plan.

Below 4 bits divergences no longer add up. So the whole plan is put into the running model, and each tensor in turn
is given its original weights: by how much the divergence falls is what its error costs where it will be made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ewq_gguf.calibration.imatrix import ImportanceMatrix
from ewq_gguf.calibration.meter import Meter
from ewq_gguf.calibration.probe import apply, error_of
from ewq_gguf.calibration.workbench import Workbench
from ewq_gguf.ggml import GGMLType


@dataclass(frozen=True)
class Surroundings:
    """A plan as measured.

    Attributes:
        kld: mean divergence of the whole plan from the original, nats per token.
        relief: by tensor, how much less it is with that tensor's original weights; noise can make it negative.
    """

    kld: float
    relief: Mapping[str, float]


def measure_plan(
    bench: Workbench, meter: Meter, types: Mapping[str, GGMLType], imatrix: ImportanceMatrix | None
) -> float:
    """Mean divergence, in nats per token, with all the given tensors quantized; leaves them in the model.

    Raises:
        EvaluationError: the model cannot be run.
    """
    for name, kind in types.items():
        apply(bench, name, error_of(bench.slots[name], kind, imatrix))
    return meter.read().mean.value


def probe_around(
    bench: Workbench,
    meter: Meter,
    types: Mapping[str, GGMLType],
    imatrix: ImportanceMatrix | None,
    progress: Callable[[int, int], None] | None = None,
) -> Surroundings:
    """Measure a plan and what each of its tensors contributes; the model is whole again afterwards.

    Args:
        types: by tensor; those in a float type already are left alone.

    Raises:
        EvaluationError: the model cannot be run or restored.
    """
    try:
        kld = measure_plan(bench, meter, types, imatrix)
        relief = {}
        for done, name in enumerate(types, start=1):
            quantized = bench.stored(name)
            bench.restore(name)
            relief[name] = kld - meter.read().mean.value
            bench.store(name, quantized)
            if progress is not None:
                progress(done, len(types))
    finally:
        for name in types:
            bench.restore(name)
    return Surroundings(kld, relief)
