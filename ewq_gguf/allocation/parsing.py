"""Sizes and type names as people write them."""

from __future__ import annotations

import re
from difflib import get_close_matches
from fractions import Fraction

from ewq_gguf.errors import PlanError
from ewq_gguf.ggml.types import GGMLType

_SIZE = re.compile(r"\s*(\d+(?:_\d+)*(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*", re.ASCII)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_STORABLE = {kind.name: kind for kind in GGMLType if not kind.is_integer and kind != GGMLType.F64}
_PRESET_OF_TYPE = re.compile(r"(I?Q\d_K)_[SML]")


def parse_size(text: str) -> int:
    """Bytes in a size such as `4.2GiB`, `4200MB`, `900 MiB` or `123456`; fractions of a byte are cut off.

    `KiB MiB GiB TiB` are powers of 1024, `KB MB GB TB` powers of 1000, and a bare letter (`4.2G`) is a power
    of 1024, as `ls -h`, `du -h` and llama-quantize's own listing print it. Case does not matter.

    Raises:
        PlanError: not a size, an unknown unit, or less than one byte.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise PlanError(f"{text!r} is not a size; write one like 4.2GiB, 4200MB or 900MiB")
    number, unit = match[1], match[2].lower()
    prefix = unit.removesuffix("b").removesuffix("i")
    if prefix not in _POWERS or (unit.endswith("i") and unit) or (not prefix and "i" in unit):
        raise PlanError(f"{text!r}: {match[2]!r} is not a unit; use B, KB, MB, GB, TB or KiB, MiB, GiB, TiB")
    base = 1000 if unit.endswith("b") and "i" not in unit else 1024
    size = int(Fraction(number.replace("_", "")) * base ** _POWERS[prefix])
    if size < 1:
        raise PlanError(f"{text!r} is less than one byte; write a size like 4.2GiB")
    return size


def parse_type(text: str) -> GGMLType:
    """The tensor type of that name, in any case: `q4_k`, `Q8_0`, `bf16`.

    Raises:
        PlanError: no such type, a type that no weight is stored in, or the name of a preset.
    """
    name = text.strip().upper()
    kind = _STORABLE.get(name)
    if kind is not None:
        return kind
    preset = _PRESET_OF_TYPE.fullmatch(name)
    if preset is not None and preset[1] in _STORABLE:
        raise PlanError(f"{text!r} is a preset for a whole model, not the type of a tensor; use {preset[1]}")
    near = get_close_matches(name[:40], _STORABLE, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"types are {', '.join(_STORABLE)}"
    # Cut before it is quoted: escapes make up to ten characters of one.
    raise PlanError(f"{text[:30]!r} is not a tensor type; {hint}")
