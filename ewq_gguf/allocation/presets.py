"""The types that llama-quantize's presets (`Q4_K_M`, `IQ3_XS`, ...) give to every tensor of a model.

`preset_rules` holds the rules; this module walks a model's tensors in llama-quantize's order and keeps the
counts that some rules depend on. Source: llama.cpp (pinned) src/llama-quant.cpp, llama_tensor_get_type.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ewq_gguf.allocation.facts import (
    EMBEDDING_NAMES,
    OUTPUT_NAME,
    Assignment,
    ModelFacts,
    TensorFacts,
    fallback_type,
    fit,
    layer_index,
    model_facts,
    quantizable,
    quantize_order,
)
from ewq_gguf.allocation.pins import Pin, check_pins, matching_pin
from ewq_gguf.allocation.preset_rules import (
    ALIASES,
    PRESETS,
    Place,
    Preset,
    find_preset,
    held_at_q8_0,
    raised_for_size,
    role_of,
)
from ewq_gguf.ggml.types import GGMLType

__all__ = [
    "ALIASES",
    "PRESETS",
    "Assignment",
    "ModelFacts",
    "Preset",
    "TensorFacts",
    "fallback_type",
    "find_preset",
    "model_facts",
    "preset_types",
    "quantizable",
    "quantize_order",
]

_EXCUSED = ("output", "token_embd")


def preset_types(
    preset: str,
    tensors: Sequence[TensorFacts],
    model: ModelFacts,
    *,
    has_imatrix: bool = False,
    pure: bool = False,
    output_type: GGMLType | None = None,
    embedding_type: GGMLType | None = None,
    keep_output: bool = False,
    pins: Sequence[Pin] = (),
) -> dict[str, Assignment]:
    """The type of every tensor, by name, as llama-quantize would choose it; the result is in its file order.

    `tensors` must be the whole model, in any order: some rules count tensors, and a model without
    `output.weight` gives its embedding the output's type. The other arguments are llama-quantize's
    `--imatrix`, `--pure`, `--output-tensor-type`, `--token-embedding-type`, `--leave-output-tensor` and
    `--tensor-type`.
    Two places where it would stop or stay silent are handled: an explicit type whose blocks do not divide the
    row falls back as any other does, and pins are honoured with the F32, F16 and BF16 presets as well.

    Raises:
        PlanError: an unknown preset, a pin that matches nothing that can be quantized, or a row for which
            neither the type nor a stand-in fits.
    """
    chosen = find_preset(preset)
    ordered = quantize_order(tensors)
    changeable = [t for t in ordered if quantizable(t, model) and not (keep_output and t.name == OUTPUT_NAME)]
    check_pins(pins, changeable, ordered)
    walk = _Walk(
        preset=chosen,
        model=model,
        has_imatrix=has_imatrix,
        output_type=output_type,
        tied=all(t.name != OUTPUT_NAME for t in ordered),
        n_values=sum(role_of(t.name) == "attn_v" for t in ordered),
        seen=Counter(),
    )
    names = {t.name for t in changeable}
    result: dict[str, Assignment] = {}
    for tensor in ordered:
        if tensor.name not in names:
            result[tensor.name] = Assignment(tensor.type, tensor.type, "kept as in the source")
            continue
        pin = matching_pin(pins, tensor.name)
        if embedding_type is not None and _embedding_type_applies(tensor.name, pin):
            wanted, reason = embedding_type, "embedding type"
        elif output_type is not None and tensor.name == OUTPUT_NAME:
            wanted, reason = output_type, "output type"
        elif pin is not None:
            wanted, reason = pin.type, f"pin {pin}"
        elif pure or chosen.mix == "plain":
            wanted, reason = chosen.base, f"base type of {chosen.name}"
        else:
            wanted, reason = walk.choose(tensor)
        assignment = fit(tensor, wanted, reason)
        if (
            chosen.name == "Q2_K_S"
            and assignment.type == GGMLType.Q2_K
            and role_of(tensor.name) not in _EXCUSED
        ):
            # llama-quantize asks for an importance matrix for Q2_K in this preset alone.
            assignment = replace(assignment, requires_imatrix=True)
        result[tensor.name] = assignment
    return result


def _embedding_type_applies(name: str, pin: Pin | None) -> bool:
    # The per-layer table is large and separate: a pin that names it is stronger than the embedding's type.
    return name in EMBEDDING_NAMES and not (name == EMBEDDING_NAMES[1] and pin is not None)


@dataclass(frozen=True)
class _Walk:
    """The state of one pass over a model: constants, and how many tensors of each role went by."""

    preset: Preset
    model: ModelFacts
    has_imatrix: bool
    output_type: GGMLType | None
    tied: bool
    n_values: int
    seen: Counter[str]

    def choose(self, tensor: TensorFacts) -> tuple[GGMLType, str]:
        """The wanted type and why, before the row length is looked at; advances the counts."""
        preset, name = self.preset, tensor.name
        if held_at_q8_0(name, self.model):
            return GGMLType.Q8_0, f"never below Q8_0 in {self.model.arch}"
        role = role_of(name)
        if role == "output" or (role == "token_embd" and self.tied):
            return self._output(tensor)
        if preset.mix == "experts":
            return self._expert(tensor, role)
        seen = self.seen[role]
        self.seen[role] += 1
        wanted, reason = self._by_rule(role, seen, name)
        raised = raised_for_size(wanted, role, preset, self.model)
        if raised != wanted:
            return raised, f"{reason}; raised in a model of the 70B class"
        return wanted, reason

    def _by_rule(self, role: str, seen: int, name: str) -> tuple[GGMLType, str]:
        if role == "attn_v":
            position, total = seen, self.n_values
        else:
            # Expert tensors come several to a layer, so their layer is read from the name.
            layer = layer_index(name) if self.model.n_expert > 1 else None
            position, total = (seen if layer is None else layer), self.model.n_layer_all
        place = Place(self.model, self.has_imatrix, seen, position, total)
        for rule in self.preset.rules.get(role, ()):
            if rule.applies(place):
                conditions = str(rule)
                return rule.type or self.preset.base, f"{role}, {conditions}" if conditions else role
        return self.preset.base, f"base type of {self.preset.name}"

    def _output(self, tensor: TensorFacts) -> tuple[GGMLType, str]:
        role = "output" if tensor.name == OUTPUT_NAME else "embedding that is also the output"
        if self.output_type is not None:
            return self.output_type, f"{role}, output type"
        if self.model.arch == "falcon" or tensor.row_length % self.preset.base.block_size:
            return GGMLType.Q8_0, role
        return self.preset.output, role

    def _expert(self, tensor: TensorFacts, role: str) -> tuple[GGMLType, str]:
        # In bailingmoe3 the MLA projections are stacks too, so only feed-forward stacks are experts there.
        experts = tensor.is_stack and (self.model.arch != "bailingmoe3" or role.startswith("ffn_"))
        return (self.preset.base, "experts") if experts else (GGMLType.Q8_0, "not experts")
