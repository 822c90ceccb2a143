"""Pins: `PATTERN=TYPE` pairs by which a user fixes the type of chosen tensors, as llama-quantize takes them.

Patterns are regular expressions, lower-cased and searched for anywhere in a tensor's name; the first pin that
matches decides. Source: llama.cpp tools/quantize/quantize.cpp (parse_tensor_type, parse_tensor_type_file) and
src/llama-quant.cpp (llama_tensor_get_type).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ewq_gguf.allocation.facts import Assignment, ModelFacts, TensorFacts, fit, quantizable
from ewq_gguf.allocation.parsing import parse_type
from ewq_gguf.errors import PlanError
from ewq_gguf.ggml.types import GGMLType

# llama.cpp compiles patterns as ECMAScript with POSIX classes; Python's `re` has no such classes.
_POSIX_CLASSES = {
    "alnum": "a-zA-Z0-9",
    "alpha": "a-zA-Z",
    "digit": "0-9",
    "lower": "a-z",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\s",
    "upper": "A-Z",
    "xdigit": "0-9a-fA-F",
}
_POSIX_CLASS = re.compile(r"\[:(\w+):\]")
_ESCAPE_OR_SET = re.compile(r"\\.|\[(?:\[:\w+:\]|\\.|[^\]\\])+\]")
# What is left of a pattern without escapes and sets shows whether one repeat follows another: `a*+` is a
# possessive repeat for new Pythons, an error for old ones and a repeated repeat for llama.cpp.
_REPEATED_REPEAT = re.compile(r"[*+?}][*+]")
_NOT_ECMASCRIPT = re.compile(r"\(\?(?![:=!])")


@dataclass(frozen=True)
class Pin:
    """A pattern (already lower-cased) and the type of the tensors whose name it is found in."""

    pattern: str
    type: GGMLType
    _regex: re.Pattern[str] = field(repr=False, compare=False)

    def matches(self, name: str) -> bool:
        """Whether the pattern is found anywhere in `name`."""
        return self._regex.search(name) is not None

    def __str__(self) -> str:
        return f"{self.pattern}={self.type.name.lower()}"


def parse_pin(text: str) -> Pin:
    """Read `ffn_down=q6_k`: a pattern, the last `=`, and a type name in any case.

    Raises:
        PlanError: no `=`, nothing before or after it, an unknown type, or a pattern that llama.cpp's regular
            expressions (ECMAScript) do not know.
    """
    pattern, equals, kind = text.rpartition("=")
    pattern, kind = pattern.strip(), kind.strip()
    if not equals or not pattern or not kind:
        raise PlanError(f"{text!r} is not a pin; write PATTERN=TYPE, for example ffn_down=q6_k")
    return make_pin(pattern, parse_type(kind))


def make_pin(pattern: str, kind: GGMLType) -> Pin:
    """A pin from its two halves; the pattern is lower-cased as llama-quantize does.

    Raises:
        PlanError: the pattern is not a regular expression that llama.cpp knows.
    """
    lowered = pattern.lower()
    if _NOT_ECMASCRIPT.search(lowered):
        raise PlanError(
            f"pattern {pattern!r}: llama.cpp's expressions know no (?...) but (?:...), (?=...), (?!...)"
        )
    if _REPEATED_REPEAT.search(_ESCAPE_OR_SET.sub("x", lowered)):
        raise PlanError(f"pattern {pattern!r} repeats a repeat; put the inner one in a group, as in (?:a*)+")
    try:
        with warnings.catch_warnings():
            # Python warns that sets may nest some day; in llama.cpp's dialect they do not.
            warnings.simplefilter("ignore", FutureWarning)
            regex = re.compile(_ESCAPE_OR_SET.sub(_expanded, lowered), re.ASCII)
    except re.error as error:
        raise PlanError(f"pattern {pattern!r} is not a regular expression: {error}") from error
    return Pin(lowered, kind, regex)


def _expanded(part: re.Match[str]) -> str:
    """An escape as it is; a set with its POSIX classes spelled out."""
    return part[0][0] + _POSIX_CLASS.sub(_members, part[0][1:])


def _members(posix_class: re.Match[str]) -> str:
    members = _POSIX_CLASSES.get(posix_class[1])
    if members is None:
        raise PlanError(f"{posix_class[0]} is not a character class; classes are {', '.join(_POSIX_CLASSES)}")
    return members


def exact_pin(name: str, kind: GGMLType) -> Pin:
    """A pin that matches one tensor by its whole name, for exporting a plan.

    Patterns are lower-cased but names are not, so a capital in a name can only be matched as any character.
    """
    escaped = re.sub(r"[^a-z0-9_]", lambda m: "." if m[0].isalpha() else re.escape(m[0]), name)
    return make_pin(f"^{escaped}$", kind)


def read_pins(path: Path) -> tuple[Pin, ...]:
    """Read a `--tensor-type-file`: pins separated by blanks or newlines, in order.

    Raises:
        PlanError: the file cannot be read as text, or one of its entries is not a pin; its line is named.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"cannot read pins from {path}: {error}") from error
    return tuple(
        _parse_entry(entry, f"{path}, line {number}")
        for number, line in enumerate(lines, start=1)
        for entry in line.split()
    )


def _parse_entry(entry: str, where: str) -> Pin:
    try:
        return parse_pin(entry)
    except PlanError as error:
        raise PlanError(f"{where}: {error}") from error


def matching_pin(pins: Sequence[Pin], name: str) -> Pin | None:
    """The first pin whose pattern is found in `name`."""
    return next((pin for pin in pins if pin.matches(name)), None)


def check_pins(
    pins: Sequence[Pin], changeable: Sequence[TensorFacts], tensors: Sequence[TensorFacts]
) -> None:
    """Make sure that every pin's pattern is found in a tensor that can be changed.

    A pin whose tensors all belong to earlier pins is fine: it matches, it merely comes too late.

    Raises:
        PlanError: a pattern matches nothing, or only tensors that are never quantized.
    """
    for pin in pins:
        if any(pin.matches(tensor.name) for tensor in changeable):
            continue
        kept = next((tensor.name for tensor in tensors if pin.matches(tensor.name)), None)
        if kept is not None:
            raise PlanError(f"pin {pin}: it only matches tensors that are never quantized, such as {kept}")
        raise PlanError(
            f"pin {pin}: no tensor's name contains a match; names look like blk.0.ffn_down.weight "
            "(`inspect` lists them)"
        )


def apply_pins(
    assignments: Mapping[str, Assignment],
    pins: Sequence[Pin],
    tensors: Sequence[TensorFacts],
    model: ModelFacts,
) -> dict[str, Assignment]:
    """The same assignments, with pinned tensors set to their pin's type or its stand-in where rows need one.

    For methods of our own; a preset takes its pins in `preset_types`, where they change what the rules count.

    Raises:
        PlanError: a pattern matches nothing that can be quantized, or a row fits neither type nor stand-in.
    """
    changeable = [tensor for tensor in tensors if quantizable(tensor, model)]
    check_pins(pins, changeable, tensors)
    result = dict(assignments)
    for tensor in changeable:
        pin = matching_pin(pins, tensor.name)
        if pin is not None:
            result[tensor.name] = fit(tensor, pin.type, f"pin {pin}")
    return result
