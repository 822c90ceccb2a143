"""A plan: the type of every tensor, why, and what it comes to. Deciding ends here; doing starts from here.

A plan is JSON that a person can read, edit, diff and replay. `tensors` has one line per tensor; only
`name` and `type` matter when a plan is replayed, the rest is checked or recomputed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ewq_gguf.allocation.facts import Assignment, ModelFacts, TensorFacts, model_facts
from ewq_gguf.allocation.parsing import parse_type
from ewq_gguf.checkpoint.json_file import load_json_object
from ewq_gguf.checkpoint.tensor import DType
from ewq_gguf.errors import CheckpointError, PlanError
from ewq_gguf.ggml.types import GGMLType
from ewq_gguf.model import Model, ModelTensor

FORMAT = "ewq-gguf plan"
VERSION = 1


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor's decision; `wanted` differs from `type` where the row length forced a fallback."""

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    wanted: GGMLType
    reason: str
    nbytes: int

    @property
    def n_elements(self) -> int:
        count = 1
        for n in self.shape:
            count *= n
        return count


@dataclass(frozen=True)
class Plan:
    """The decision for a whole model.

    Attributes:
        method: "ewq", "uniform", "preset", ...; `parameters` are what it was given and what it found.
        arch, fingerprint: of the model it was made for.
        tensors: in the order of the file.
    """

    method: str
    parameters: Mapping[str, Any]
    arch: str
    fingerprint: str
    tensors: tuple[PlannedTensor, ...] = field(repr=False)

    @property
    def data_bytes(self) -> int:
        """Bytes of tensor data, without header and padding."""
        return sum(t.nbytes for t in self.tensors)

    @property
    def n_parameters(self) -> int:
        return sum(t.n_elements for t in self.tensors)

    @property
    def bpw(self) -> float:
        """Bits per weight over all tensors."""
        return 8 * self.data_bytes / max(1, self.n_parameters)

    @property
    def predicted_kld(self) -> float | None:
        """Mean KL divergence from the original, in nats per token of calibration text, as tried out or else as the sum
        of what errors cost; None where neither was measured."""
        found = self.parameters.get("predicted")
        if self.parameters.get("unit") != "nats per token" or not isinstance(found, float):
            return None
        return found

    def types(self) -> dict[str, GGMLType]:
        """Tensor name -> type."""
        return {t.name: t.type for t in self.tensors}

    def to_json(self) -> str:
        """The plan as text: stable order, one tensor a line, floats in full precision."""
        head = {
            "format": FORMAT,
            "version": VERSION,
            "method": self.method,
            "parameters": dict(self.parameters),
            "source": {"arch": self.arch, "fingerprint": self.fingerprint},
            "data_bytes": self.data_bytes,
            "bpw": self.bpw,
        }
        lines = [
            json.dumps(
                {
                    "name": t.name,
                    "type": t.type.name,
                    **({"wanted": t.wanted.name} if t.wanted != t.type else {}),
                    "shape": list(t.shape),
                    "bytes": t.nbytes,
                    "reason": t.reason,
                }
            )
            for t in self.tensors
        ]
        opening = json.dumps(head, indent=1)[:-2]
        return opening + ',\n "tensors": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"


def make_plan(
    model: Model, method: str, parameters: Mapping[str, Any], assignments: Mapping[str, Assignment]
) -> Plan:
    """Put decisions for every tensor of a model together.

    Raises:
        PlanError: a tensor has no decision, or its rows do not fit the type.
    """
    tensors = []
    for t in model.tensors:
        if t.name not in assignments:
            raise PlanError(f"the plan has no type for tensor {t.name!r}")
        a = assignments[t.name]
        tensors.append(PlannedTensor(t.name, t.shape, a.type, a.wanted, a.reason, t.bytes_as(a.type)))
    return Plan(method, parameters, model.arch, model.fingerprint, tuple(tensors))


def type_in_plan(path: Path, name: str, text: str) -> GGMLType:
    """The type that a plan gives a tensor.

    Raises:
        PlanError: there is no such type.
    """
    try:
        return parse_type(text)
    except PlanError as error:
        raise PlanError(f"{path}, tensor {name!r:.200}: {error}") from error


def load_plan(path: Path, model: Model) -> Plan:
    """Read a plan file and fit it to a model.

    Raises:
        PlanError: not a plan, made for another model, or a tensor is missing, unknown or of a wrong type.
    """
    try:
        data = load_json_object(path)
    except CheckpointError as error:
        raise PlanError(str(error)) from error
    if data.get("format") != FORMAT or data.get("version") != VERSION:
        raise PlanError(
            f"{path} is not a version {VERSION} plan (its format field says {data.get('format')!r:.60})"
        )
    entries = data.get("tensors")
    if not isinstance(entries, list):
        raise PlanError(f"{path} has no list of tensors")
    chosen: dict[str, tuple[GGMLType, str]] = {}
    for i, entry in enumerate(entries):
        name, kind = (entry.get("name"), entry.get("type")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(kind, str):
            raise PlanError(f"{path}: entry {i} of tensors has no name or no type")
        if name in chosen:
            raise PlanError(f"{path} gives tensor {name[:200]!r} twice")
        reason = entry.get("reason")
        chosen[name] = (
            type_in_plan(path, name, kind),
            reason if isinstance(reason, str) else "from the plan file",
        )
    known = {t.name: t for t in model.tensors}
    unknown = next((name for name in chosen if name not in known), None)
    if unknown is not None:
        raise PlanError(f"{path} names tensor {unknown[:200]!r}, which the model does not have")
    missing = next((name for name in known if name not in chosen), None)
    if missing is not None:
        raise PlanError(f"{path} has no type for tensor {missing!r}; was it made for another model?")
    assignments = {}
    for name, (kind, reason) in chosen.items():
        fixed = known[name].fixed
        if fixed is not None and kind != fixed:
            raise PlanError(
                f"{path} asks for {name} as {kind.name}, but llama.cpp reads it only as {fixed.name}"
            )
        assignments[name] = Assignment(kind, kind, reason)
    parameters = data.get("parameters")
    method = data.get("method")
    return make_plan(
        model,
        method if isinstance(method, str) else "plan",
        parameters if isinstance(parameters, dict) else {},
        assignments,
    )


_STORED_AS = {
    DType.F32: GGMLType.F32,
    DType.F16: GGMLType.F16,
    DType.BF16: GGMLType.BF16,
    DType.F64: GGMLType.F32,
}


def raw_type(model: Model) -> GGMLType:
    """The model's own 16-bit type: that of its first matrix; F16 for checkpoints kept in 32 or 8 bits."""
    for t in model.tensors:
        if t.fixed is None and len(t.shape) >= 2:
            found = _STORED_AS.get(t.source.dtype, GGMLType.BF16)
            return GGMLType.F16 if found is GGMLType.F32 else found
    return GGMLType.F16


def facts_of(model: Model) -> tuple[ModelFacts, dict[str, TensorFacts]]:
    """What the rules of llama-quantize look at: the model, and each tensor with its type before quantizing."""
    raw = raw_type(model)
    plain = {key: value.value for key, value in model.metadata.items()}
    return model_facts(plain), {t.name: _tensor_facts(t, raw) for t in model.tensors}


def _tensor_facts(tensor: ModelTensor, raw: GGMLType) -> TensorFacts:
    return TensorFacts(tensor.name, tensor.shape, raw if tensor.fixed is None else tensor.fixed)
