"""Metadata of any type into a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gguf


def add_values(writer: gguf.GGUFWriter, values: Mapping[str, Any]) -> None:
    """Bools, integers (UINT32), floats (FLOAT32), texts and lists, by the type of each value."""
    for key, value in values.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
