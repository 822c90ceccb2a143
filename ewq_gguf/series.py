"""Several files of one model from one measurement: a score table serves any number of targets."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ewq_gguf.allocation.parsing import parse_size
from ewq_gguf.allocation.presets import PRESETS
from ewq_gguf.allocation.targets import Target
from ewq_gguf.api import convert
from ewq_gguf.decision import Decision
from ewq_gguf.errors import PlanError
from ewq_gguf.pipeline.convert import Conversion
from ewq_gguf.pipeline.memory import DEFAULT_MEMORY

StagedProgress = Callable[[str, int, int], None]
_BPW = re.compile(r"(\d+(?:\.\d+)?)\s*bpw", re.IGNORECASE)


@dataclass(frozen=True)
class Rung:
    """One file of a ladder.

    Attributes:
        label: the target as the user wrote it, part of the file's name.
        target: what it means.
    """

    label: str
    target: Target


def parse_rung(text: str) -> Rung:
    """A size (`4.2GiB`), bits per weight (`4.5bpw`) or a preset whose bytes to take (`Q4_K_M`).

    Raises:
        PlanError: it is none of them.
    """
    label = text.strip()
    if label.upper() in PRESETS:
        return Rung(label.upper(), Target(like=label.upper()))
    bpw = _BPW.fullmatch(label)
    if bpw is not None:
        return Rung(label.replace(" ", ""), Target(bpw=float(bpw[1])))
    try:
        return Rung(label.replace(" ", ""), Target(size=parse_size(label)))
    except PlanError as error:
        raise PlanError(
            f"{text!r} is no target; write a size (4.2GiB), 4.5bpw or a preset (Q4_K_M)"
        ) from error


def ladder(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    rungs: Sequence[Rung],
    decision: Decision | None = None,
    *,
    threads: int | None = None,
    memory: int = DEFAULT_MEMORY,
    progress: StagedProgress | None = None,
) -> list[Conversion]:
    """Convert a model once per rung, from the smallest target to the largest as given; measured only once.

    Files are named after the model and the rung, `SmolLM2-4.2GiB.gguf`.

    Args:
        model: a checkpoint folder, .safetensors or .gguf file.
        folder: where the files go; made if missing.
        rungs: what sizes; see `parse_rung`.
        decision: how types are decided; its own target is replaced by each rung's.

    Raises:
        PlanError: two rungs have the same name, the decision has a target of its own, or a target is out of
            reach. Files made before that stay.
        EwqError: as `convert`.

    Example:
        >>> import ewq_gguf
        >>> rungs = [ewq_gguf.parse_rung(size) for size in ("9MB", "12MB")]
        >>> entropy = ewq_gguf.Decision(method="ewq")
        >>> [done.path.name for done in ewq_gguf.ladder("path/to/checkpoint", "files", rungs, entropy)]
        ['reference-10m-9MB.gguf', 'reference-10m-12MB.gguf']
    """
    wish = decision or Decision()
    if wish.wanted.is_set or wish.plan is not None or wish.type is not None:
        raise PlanError("a ladder gets its targets from --sizes; leave out other sizes, --plan and --type")
    source, target = Path(model), Path(folder)
    name = source.resolve().name if source.is_dir() else source.stem
    outputs = [target / f"{name}-{rung.label}.gguf" for rung in rungs]
    twice = {o.name for o in outputs if outputs.count(o) > 1}
    if twice:
        raise PlanError(f"{min(twice)} would be written twice; name each target once")
    if target.exists() and not target.is_dir():
        raise PlanError(f"{target} is a file; give a folder for the ladder's files")
    target.mkdir(parents=True, exist_ok=True)
    return [
        convert(
            source,
            output,
            replace(wish, target=rung.target),
            threads=threads,
            memory=memory,
            progress=progress,
        )
        for rung, output in zip(rungs, outputs)
    ]
