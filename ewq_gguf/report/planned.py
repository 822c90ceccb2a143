"""Plans and what analysis and probing told, out of GGUF files, JSON and the journals of a study."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ewq_gguf.allocation.plan import Plan
from ewq_gguf.checkpoint.gguf_file import GGUFFile
from ewq_gguf.pipeline.gguf_source import open_parts
from ewq_gguf.pipeline.plan_file import read_plan
from ewq_gguf.report.fields import argument, last_part, objects, real, whole, words
from ewq_gguf.report.runs import BlockFigure, Entropies, PlanRun, ProbeFigure, Runs, Sensitivity

_PLAIN = re.compile(r"[A-Za-z0-9_.]{1,40}")
_TARGETS = ("size", "bpw", "like", "max_kld", "vram")
_MOST_BLOCKS = 100_000


def of_gguf(path: Path) -> Runs | None:
    """A GGUF file: its tensors' types, and the plan and provenance in its metadata. None for an importance matrix.

    Raises:
        CheckpointError, UnsupportedModelError: damaged, or of an unknown version.
    """
    parts = open_parts(path)
    if parts[0].value("general.type") == "imatrix":
        return None
    nbytes = sum(part.size for part in parts)
    run = PlanRun(path.name, True, read_plan(path), nbytes, _facts(parts))
    return _of_plan(run, f"GGUF file, {run.plan.method}")


def of_plan(path: Path) -> Runs:
    """A plan file.

    Raises:
        PlanError: the plan is damaged.
    """
    plan = read_plan(path)
    return _of_plan(PlanRun(path.name, False, plan, None), f"plan, {plan.method}")


def _of_plan(run: PlanRun, shown: str) -> Runs:
    entropies = _entropies(run.plan.parameters, run.file)
    return Runs(
        sources=((run.file, shown),),
        plans=(run,),
        entropies=() if entropies is None else (entropies,),
        commands=plan_commands(run),
    )


def _facts(parts: Sequence[GGUFFile]) -> tuple[tuple[str, str], ...]:
    first = parts[0]
    arch = first.value("general.architecture")
    keys = [
        ("name", "general.name"), ("licence", "general.license"), ("context length", f"{arch}.context_length"),
        ("tokenizer", "tokenizer.ggml.model"), ("pre-tokenizer", "tokenizer.ggml.pre"),
        ("ewq-gguf", "ewq.version"), ("quantization version", "general.quantization_version"),
        ("importance matrix", "quantize.imatrix.file"), ("its text", "quantize.imatrix.dataset"),
        ("its contexts", "quantize.imatrix.chunks_count"),
    ]  # fmt: skip
    found = [(label, first.value(key)) for label, key in keys]
    facts = [(label, str(value)) for label, value in found if isinstance(value, str | int | float)]
    return (*facts, *([("parts", str(len(parts)))] if len(parts) > 1 else ()))


def plan_commands(run: PlanRun) -> tuple[tuple[str, str], ...]:
    """Command lines that make the plan's file again: from the plan itself, and by deciding anew."""
    name = argument(run.file)
    again = Path(run.file).stem
    convert = ["ewq-gguf", "convert", "MODEL", "-o"]
    # Without the importance matrix the same types would round otherwise.
    imatrix = dict(run.facts).get("importance matrix")
    if imatrix is None and not run.made and run.plan.parameters.get("imatrix") is True:
        imatrix = "IMATRIX"
    weights = [] if imatrix is None else ["--imatrix", argument(last_part(imatrix))]
    replay = shlex.join([*convert, argument(f"{again}-again.gguf"), "--plan", name, *weights])
    decision = _decision(run.plan)
    commands = [(f"the tensors of {run.file}, byte for byte", replay)]
    if decision:
        commands.append(
            (f"decide as for {run.file}", shlex.join([*convert, argument(f"{again}.gguf"), *decision]))
        )
    return tuple(commands)


def _decision(plan: Plan) -> list[str]:
    """Options that decide as the plan was decided; [] where the plan does not tell all of them."""
    told = plan.parameters
    if "pins" in told or "kept" in told or "types_of" in told:
        return []
    if plan.method in ("uniform", "preset"):
        kind = told.get("type" if plan.method == "uniform" else "preset")
        weighted = ["--imatrix", "IMATRIX"] if told.get("imatrix") is True else []
        return ["--type", kind, *weighted] if isinstance(kind, str) and _PLAIN.fullmatch(kind) else []
    target = told.get("target")
    if plan.method != "rd" or not isinstance(target, dict):
        return []
    options: list[str] = []
    for key in (*_TARGETS, "context", "cache_type"):
        value = target.get(key)
        if isinstance(value, str) and _PLAIN.fullmatch(value):
            options += [f"--{key.replace('_', '-')}", value]
        elif (figure := real(target, key)) is not None:
            options += [f"--{key.replace('_', '-')}", f"{figure:.17g}"]
    text, damage, chunks = words(told, "text"), words(told, "damage"), whole(told, "probe_chunks")
    if not options:
        return []
    options += ["--text", text] if text and text != "default.txt" else []
    options += ["--damage", damage] if damage in ("imatrix", "mse") else []
    options += ["--probe-chunks", str(chunks)] if chunks not in (None, 2) else []
    summed = told.get("tried") == 0 and damage == "probe"
    return [*options, *(["--no-try-out"] if summed else [])]


def of_analysis(data: Mapping[str, Any], source: str) -> Runs | None:
    """`analyze --json`; None if it is something else."""
    found = _entropies(data, source)
    if found is None or "tensors" not in data:
        return None
    command = ["ewq-gguf", "analyze", "MODEL", "--json"]
    for key in ("epsilon", "x"):
        value = real(data, key)
        command += [f"--{key}", f"{value:g}"] if value is not None else []
    return Runs(
        sources=((source, f"entropies of {len(found.blocks)} blocks"),),
        entropies=(found,),
        commands=((f"the entropies of {source}", shlex.join(command)),),
    )


def _entropies(data: Mapping[str, Any], source: str) -> Entropies | None:
    blocks = []
    for entry in objects(data.get("blocks")):
        index, entropy = whole(entry, "index", _MOST_BLOCKS), real(entry, "entropy")
        if index is not None and entropy is not None:
            blocks.append(BlockFigure(index, entropy, words(entry, "class")))
    if not blocks:
        return None
    figures = (real(data, key) for key in ("epsilon", "mu", "threshold"))
    return Entropies(source, tuple(sorted(blocks, key=lambda b: b.index)), *figures)


def of_probes(rows: Sequence[Mapping[str, Any]], source: str) -> Runs | None:
    """`calibrate probe --json` or the records of a study's journal; None if there is no probe among them."""
    found = []
    for row in rows:
        tensor, kind = words(row, "tensor"), words(row, "type")
        scale, kld = real(row, "scale"), real(row, "kld")
        if tensor and kind and scale is not None and kld is not None and kld >= 0:
            found.append(ProbeFigure(tensor, kind, scale, kld, max(0.0, real(row, "se") or 0.0)))
    if not found:
        return None
    return Runs(
        sources=((source, f"{len(found)} probes"),),
        sensitivities=(Sensitivity(source, tuple(found)),),
        commands=((f"the probes of {source}", "ewq-gguf calibrate probe BASELINE.gguf --json"),),
    )


def journal_rows(lines: Sequence[str]) -> tuple[str, list[Mapping[str, Any]]]:
    """The kind and the records of a journal; a last line cut short is dropped, ("", []) for anything else."""
    found: list[Any] = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):
            break
    head = found[0] if found and isinstance(found[0], dict) else {}
    if head.get("format") != "ewq-gguf measurements":
        return "", []
    return words(head, "kind"), [v for e in objects(found[1:]) if isinstance(v := e.get("value"), dict)]
