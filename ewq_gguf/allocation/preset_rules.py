"""llama-quantize's presets as data: what each is, and the rules by which it deviates from its base type.

The data are in `presets.json`; its field `reading` says how rules are applied. Source: llama.cpp (pinned)
src/llama-quant.cpp (llama_tensor_get_type_impl) and tools/quantize/quantize.cpp (names).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib import resources
from typing import Any

from ewq_gguf.allocation.facts import EMBEDDING_NAMES, OUTPUT_NAME, ModelFacts
from ewq_gguf.errors import PlanError
from ewq_gguf.ggml.types import GGMLType


@dataclass(frozen=True)
class Rule:
    """One line of the rules: a type, and the conditions that must all hold (None: not asked).

    Depth is `position` of `total`: a feed-forward tensor's layer, a value projection's running number.
    """

    type: GGMLType | None  # None: the preset's base type
    arch: str | None = None
    not_arch: str | None = None
    experts: int | None = None  # exactly so many
    experts_from: int | None = None
    gqa_from: int | None = None  # query heads per key/value head
    imatrix: bool | None = None
    first: int | None = None  # the first 1/n of the depth
    middle: int | None = None  # all but the first and the last 1/n of the depth
    more_bits: bool | None = None  # first and last eighth, and every third between
    first_seen: int | None = None  # the first n tensors of the role
    first_seen_of: int | None = None  # the first (layers // n) tensors of the role, wherever they lie

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Rule:
        name = entry["type"]
        return cls(**{**entry, "type": None if name == "base" else GGMLType[name]})

    def applies(self, at: Place) -> bool:
        eighth = at.total // 8
        asked = (
            (self.arch is None or at.model.arch == self.arch),
            (self.not_arch is None or at.model.arch != self.not_arch),
            (self.experts is None or at.model.n_expert == self.experts),
            (self.experts_from is None or at.model.n_expert >= self.experts_from),
            (self.gqa_from is None or at.model.n_gqa >= self.gqa_from),
            (self.imatrix is None or at.has_imatrix == self.imatrix),
            (self.first is None or at.position < at.total // self.first),
            (
                self.middle is None
                or at.total // self.middle <= at.position < (self.middle - 1) * at.total // self.middle
            ),
            (
                self.more_bits is None
                or at.position < eighth
                or at.position >= 7 * at.total // 8
                or (at.position - eighth) % 3 == 2
            ),
            (self.first_seen is None or at.seen < self.first_seen),
            (self.first_seen_of is None or at.seen < at.model.n_layer_all // self.first_seen_of),
        )
        return all(asked)

    def __str__(self) -> str:
        parts = ((field.name, getattr(self, field.name)) for field in fields(self) if field.name != "type")
        return ", ".join(
            name if value is True else f"{name}={value}" for name, value in parts if value is not None
        )


@dataclass(frozen=True)
class Place:
    """Where a tensor stands when a rule looks at it."""

    model: ModelFacts
    has_imatrix: bool
    seen: int  # tensors of this role visited before
    position: int
    total: int


@dataclass(frozen=True)
class Preset:
    """A llama-quantize preset.

    `llama_ftype` is the number stored as `general.file_type`; `base` the type of a tensor no rule speaks of;
    `output` that of the output matrix (or of the embedding that stands for it) when its rows allow the base
    type; `needs_imatrix` says that llama-quantize refuses the preset without an importance matrix;
    `about` is a line for a help text.
    """

    name: str
    llama_ftype: int
    base: GGMLType
    output: GGMLType
    mix: str
    needs_imatrix: bool
    about: str
    rules: Mapping[str, tuple[Rule, ...]]


_DATA: Mapping[str, Any] = json.loads(
    resources.files("ewq_gguf.allocation").joinpath("presets.json").read_text(encoding="utf-8")
)


def _read_preset(name: str, entry: Mapping[str, Any]) -> Preset:
    common: Mapping[str, Any] = _DATA["mixes"][entry["mix"]]
    own: Mapping[str, Any] = entry.get("rules", {})
    return Preset(
        name=name,
        llama_ftype=entry["llama_ftype"],
        base=GGMLType[entry["base"]],
        output=GGMLType[entry["output"]],
        mix=entry["mix"],
        needs_imatrix=entry.get("needs_imatrix", False),
        about=entry["about"],
        rules={
            role: tuple(Rule.read(rule) for rule in (*common.get(role, ()), *own.get(role, ())))
            for role in dict.fromkeys((*common, *own))
        },
    )


PRESETS: Mapping[str, Preset] = {name: _read_preset(name, entry) for name, entry in _DATA["presets"].items()}
ALIASES: Mapping[str, str] = _DATA["aliases"]


def find_preset(name: str) -> Preset:
    """The preset of that name, in any case; `Q4_K` and its like mean `Q4_K_M`, as for llama-quantize.

    Raises:
        PlanError: there is none of that name.
    """
    upper = name.upper()
    preset = PRESETS.get(ALIASES.get(upper, upper))
    if preset is None:
        near = get_close_matches(upper, PRESETS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"presets are {', '.join(PRESETS)}"
        raise PlanError(f"{name!r} is no llama-quantize preset; {hint}")
    return preset


def role_of(name: str) -> str:
    """The role by which rules address a tensor: `output`, `token_embd`, `attn_v`, ..., or `other`."""
    if name == OUTPUT_NAME:
        return "output"
    if name in EMBEDDING_NAMES:
        return "token_embd"
    return next((role for text, role in _DATA["roles"] if text in name), "other")


def held_at_q8_0(name: str, model: ModelFacts) -> bool:
    """Whether the family keeps this tensor from going below Q8_0."""
    return any(part in name for part in _DATA["held_at_q8_0"].get(model.arch, ()))


def raised_for_size(wanted: GGMLType, role: str, preset: Preset, model: ModelFacts) -> GGMLType:
    """The type that the small value projections of models of the 70B class get instead of `wanted`."""
    raised = _DATA["size_class_70b"]
    if role != raised["role"] or preset.mix != raised["mix"] or wanted.name not in raised["raise"]:
        return wanted
    for entry in raised["models"]:
        if model.arch in entry["archs"] and model.n_layer == entry["n_layer"]:
            grouped = model.n_head != model.n_head_kv
            return (
                GGMLType[raised["raise"][wanted.name]]
                if grouped or not entry.get("grouped_heads")
                else wanted
            )
    return wanted
