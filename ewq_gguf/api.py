"""The library's front door: the functions behind the commands.

import ewq_gguf
result = ewq_gguf.convert("path/to/checkpoint", "model.gguf", ewq_gguf.Decision(type="Q8_0"))
print(result.nbytes, result.bpw)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ewq_gguf.allocation.analysis import Analysis, analyze_model
from ewq_gguf.allocation.entropy import DEFAULT_EPSILON
from ewq_gguf.allocation.ewq import check_parameters
from ewq_gguf.allocation.methods import ewq_plan, pinned_plan, preset_plan, uniform_plan
from ewq_gguf.allocation.parsing import parse_type
from ewq_gguf.allocation.pins import Pin
from ewq_gguf.allocation.plan import Plan, load_plan
from ewq_gguf.allocation.presets import PRESETS
from ewq_gguf.errors import PlanError
from ewq_gguf.ggml.types import GGMLType
from ewq_gguf.model import Model
from ewq_gguf.pipeline.convert import Conversion, default_threads, write_model
from ewq_gguf.pipeline.source import load_model

StagedProgress = Callable[[str, int, int], None]
METHODS = ("ewq",)


@dataclass(frozen=True)
class Decision:
    """How types are decided; the first of `plan`, `type` and `method` that is set counts.

    Attributes:
        plan: a plan file to replay.
        type: one tensor type for all (`bf16`, `Q8_0`) or a llama-quantize preset (`Q4_K_M`).
        method: "ewq".
        epsilon, x: EWQ's constants (arXiv 2503.04704).
        eight_bit, four_bit: the types behind EWQ's classes.
        embedding: type of embedding and output under EWQ, or "raw" as in the paper.
        pins: PATTERN=TYPE overrides, the first match wins.
    """

    plan: Path | None = None
    type: str | None = None
    method: str = "ewq"
    epsilon: float = DEFAULT_EPSILON
    x: float = 1.0
    eight_bit: str = "Q8_0"
    four_bit: str = "Q4_K"
    embedding: str = "raw"
    pins: tuple[Pin, ...] = ()


def _stage(progress: StagedProgress | None, name: str) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, total: progress(name, done, total)


def analyze(
    model: str | os.PathLike[str],
    *,
    epsilon: float = DEFAULT_EPSILON,
    threads: int | None = None,
    progress: StagedProgress | None = None,
) -> Analysis:
    """Entropy, variance, kurtosis and extremes of every weight matrix and transformer block.

    Args:
        model: a checkpoint folder or .safetensors file.
        progress: called with (stage, weights done, weights in all).

    Raises:
        EwqError: the model cannot be read; the subclass says why.
    """
    loaded = load_model(Path(model))
    check_parameters(epsilon=epsilon)
    return analyze_model(
        loaded, epsilon=epsilon, threads=threads or default_threads(), progress=_stage(progress, "Analysing")
    )


def decide(
    model: Model, decision: Decision, *, threads: int | None = None, progress: StagedProgress | None = None
) -> Plan:
    """The plan for an opened model.

    Raises:
        PlanError: a type, preset, pattern or constant that cannot be honoured.
        CheckpointError: a weight is not finite.
    """
    if decision.plan is not None:
        plan = load_plan(decision.plan, model)
    elif decision.type is not None:
        # F16, Q8_0 and the other plain types are also the names of presets; as types they go everywhere.
        wanted = _single_type(decision.type)
        if wanted is None:
            return preset_plan(model, decision.type, pins=decision.pins)
        plan = uniform_plan(model, wanted)
    elif decision.method == "ewq":
        check_parameters(epsilon=decision.epsilon, x=decision.x)
        types = {name: parse_type(name) for name in (decision.eight_bit, decision.four_bit)}
        embedding = None if decision.embedding == "raw" else parse_type(decision.embedding)
        analysis = analyze_model(
            model,
            epsilon=decision.epsilon,
            threads=threads or default_threads(),
            only_blocks=True,
            progress=_stage(progress, "Analysing"),
        )
        plan = ewq_plan(
            model,
            analysis,
            x=decision.x,
            eight_bit=types[decision.eight_bit],
            four_bit=types[decision.four_bit],
            embedding=embedding,
        )
    else:
        raise PlanError(f"there is no method {decision.method!r}; choose one of {', '.join(METHODS)}")
    return pinned_plan(model, plan, decision.pins) if decision.pins else plan


def _single_type(text: str) -> GGMLType | None:
    """The tensor type of that name, or None where it names a preset.

    Raises:
        PlanError: it names neither.
    """
    try:
        return parse_type(text)
    except PlanError:
        if text.strip().upper() in PRESETS:
            return None
        raise


def plan(
    model: str | os.PathLike[str],
    decision: Decision | None = None,
    *,
    threads: int | None = None,
    progress: StagedProgress | None = None,
) -> Plan:
    """Decide a type for every tensor without writing anything.

    Raises:
        EwqError: the model cannot be read or the decision not be honoured; the subclass says why.
    """
    return decide(load_model(Path(model)), decision or Decision(), threads=threads, progress=progress)


def convert(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    decision: Decision | None = None,
    *,
    threads: int | None = None,
    progress: StagedProgress | None = None,
) -> Conversion:
    """Convert a checkpoint to one GGUF file: decide, quantize while streaming, and rename when whole.

    Args:
        model: a checkpoint folder or .safetensors file.
        output: the file to write; an existing one is replaced in one step at the end.
        decision: how types are decided; EWQ with the paper's constants by default.
        threads: quantizing threads; all usable cores by default. The bytes do not depend on it.
        progress: called with (stage, weights done, weights in all).

    Raises:
        EwqError: the subclass says why; nothing is left under `output` or beside it.
    """
    loaded = load_model(Path(model))
    chosen = decide(loaded, decision or Decision(), threads=threads, progress=progress)
    return write_model(loaded, chosen, Path(output), threads=threads, progress=_stage(progress, "Quantizing"))
