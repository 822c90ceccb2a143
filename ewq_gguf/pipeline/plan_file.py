"""Plans without their model: read from JSON or out of a GGUF file, compared, and handed to llama-quantize."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ewq_gguf.allocation.facts import Assignment, ModelFacts, TensorFacts, quantizable
from ewq_gguf.allocation.pins import exact_pin
from ewq_gguf.allocation.plan import FORMAT, VERSION, Plan, PlannedTensor, load_plan, make_plan, type_in_plan
from ewq_gguf.checkpoint.gguf_file import GGUFFile
from ewq_gguf.checkpoint.json_file import load_json_object
from ewq_gguf.errors import CheckpointError, PlanError
from ewq_gguf.ggml.types import GGMLType
from ewq_gguf.model import Model
from ewq_gguf.pipeline.convert import PLAN_KEY
from ewq_gguf.pipeline.gguf_source import is_gguf, open_parts

_MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class Change:
    """A tensor whose type differs between two plans; None where a plan does not have the tensor."""

    name: str
    shape: tuple[int, ...]
    before: GGMLType | None
    after: GGMLType | None
    bytes_before: int
    bytes_after: int


def read_plan(path: Path) -> Plan:
    """A plan file, or the types of a GGUF file's tensors with the method that its metadata name.

    Raises:
        PlanError: not a plan, or an entry that cannot be.
        CheckpointError, UnsupportedModelError: a GGUF file that is damaged or of an unknown version.
    """
    return _of_gguf(open_parts(path)) if is_gguf(path) else _of_json(path)


def fitted_plan(path: Path, model: Model) -> Plan:
    """A plan from JSON or from a GGUF file, for a model that has the same tensors.

    Raises:
        PlanError: see `load_plan`.
    """
    if not is_gguf(path):
        return load_plan(path, model)
    plan = read_plan(path)
    types = plan.types()
    known = {t.name: t for t in model.tensors}
    strangers = [*(n for n in types if n not in known), *(n for n in known if n not in types)]
    if strangers:
        raise PlanError(f"{path} and the model do not have the same tensors, for example {strangers[0]!r}")
    assignments = {}
    for name, kind in types.items():
        # What the model must keep in its own type does not follow the other file.
        fixed = known[name].fixed
        chosen = kind if fixed is None else fixed
        assignments[name] = Assignment(chosen, chosen, f"as in {path.name}")
    return make_plan(model, plan.method, {**plan.parameters, "types_of": path.name}, assignments)


def _of_json(path: Path) -> Plan:
    try:
        data = load_json_object(path)
    except CheckpointError as error:
        raise PlanError(str(error)) from error
    if data.get("format") != FORMAT or data.get("version") != VERSION:
        raise PlanError(
            f"{path} is not a version {VERSION} plan (its format field says {data.get('format')!r:.60})"
        )
    source, parameters, entries = data.get("source"), data.get("parameters"), data.get("tensors")
    if not isinstance(source, dict) or not isinstance(entries, list):
        raise PlanError(f"{path} lacks its source or its tensors; make the plan again")
    tensors = tuple(_entry(path, i, entry) for i, entry in enumerate(entries))
    return Plan(
        str(data.get("method")),
        parameters if isinstance(parameters, dict) else {},
        str(source.get("arch")),
        str(source.get("fingerprint")),
        tensors,
    )


def _entry(path: Path, number: int, entry: Any) -> PlannedTensor:
    if not isinstance(entry, dict):
        raise PlanError(f"{path}: entry {number} of tensors is not an object")
    name, kind, shape, reason = (entry.get(key) for key in ("name", "type", "shape", "reason"))
    if not isinstance(name, str) or not isinstance(kind, str):
        raise PlanError(f"{path}: entry {number} of tensors has no name or no type")
    if not name.isprintable() and any(0xD800 <= ord(c) < 0xE000 for c in name):
        raise PlanError(f"{path}: entry {number} of tensors has a name with half of a surrogate pair")
    sizes = shape if isinstance(shape, list) and len(shape) <= _MAX_DIMENSIONS else [None]
    if not all(type(n) is int and 0 <= n < 2**48 for n in sizes):
        raise PlanError(f"{path}: tensor {name[:200]!r} has no shape; make the plan again")
    chosen = type_in_plan(path, name, kind)
    wanted = type_in_plan(path, name, entry["wanted"]) if isinstance(entry.get("wanted"), str) else chosen
    try:
        nbytes = math.prod(sizes[:-1]) * chosen.row_bytes(sizes[-1] if sizes else 1)
    except PlanError as error:
        raise PlanError(f"{path}, tensor {name!r:.200}: {error}") from error
    return PlannedTensor(name, tuple(sizes), chosen, wanted, str(reason or ""), nbytes)


def is_as_made(parts: tuple[GGUFFile, ...]) -> bool:
    """Whether the tensors have the types of the plan that is stored in the file.

    Another program may have quantized the file again and carried our keys along.
    """
    stored = _stored(parts[0].value(PLAN_KEY)).get("tensors")
    return stored == {e.name: GGMLType(e.type).name for part in parts for e in part.entries}


def _of_gguf(parts: tuple[GGUFFile, ...]) -> Plan:
    first = parts[0]
    tensors = tuple(
        PlannedTensor(e.name, e.shape, GGMLType(e.type), GGMLType(e.type), "as in the file", e.end - e.begin)
        for part in parts
        for e in part.entries
    )
    ours = is_as_made(parts)
    method = str(_stored(first.value(PLAN_KEY)).get("method")) if ours else "as stored"
    parameters = _stored(first.value("ewq.parameters")) if ours else {}
    fingerprint = first.value("ewq.source") if ours else ""
    arch = first.value("general.architecture")
    return Plan(method, parameters, str(arch), str(fingerprint), tensors)


def _stored(text: Any) -> Mapping[str, Any]:
    try:
        found = json.loads(text) if isinstance(text, str) else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def plan_changes(before: Plan, after: Plan) -> list[Change]:
    """The tensors that two plans treat differently, in the order of the first, then those only in the second."""
    ours, theirs = ({t.name: t for t in plan.tensors} for plan in (before, after))
    found = []
    for name in dict.fromkeys((*ours, *theirs)):
        a, b = ours.get(name), theirs.get(name)
        if a is not None and b is not None and a.type is b.type:
            continue
        shape = a.shape if a else b.shape if b else ()
        types = (a.type if a else None, b.type if b else None)
        found.append(Change(name, shape, *types, a.nbytes if a else 0, b.nbytes if b else 0))
    return found


def llama_quantize_types(plan: Plan) -> str:
    """The plan as a `--tensor-type-file` of llama-quantize: one `pattern=type` a line.

    Tensors that llama-quantize never changes are left out. Give it a quantized preset (Q8_0, say) as the
    type: it looks at the file for those only. Source: llama.cpp tools/quantize/quantize.cpp.

    Raises:
        PlanError: no tensor is left that llama-quantize would change.
    """
    facts = ModelFacts(arch=plan.arch, n_layer=0, n_layer_all=0)
    pins = [
        str(exact_pin(t.name, t.type))
        for t in plan.tensors
        if quantizable(TensorFacts(t.name, t.shape, t.type), facts)
    ]
    if not pins:
        raise PlanError("the plan has no tensor that llama-quantize would change")
    return "\n".join(pins) + "\n"
