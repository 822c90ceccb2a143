"""Fields of JSON that somebody else may have written: the value, if it is what it should be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# So that no sum, square or ratio of two figures leaves the range of floats.
_LARGEST = 1e100


def real(entry: Mapping[str, Any], key: str) -> float | None:
    """A finite number, or None. What no measurement yields (above 1e100) is None, below 1e-100 it is nothing."""
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # An integer of a thousand digits is no float.
    try:
        found = float(value)
    except OverflowError:
        return None
    if not math.isfinite(found) or abs(found) > _LARGEST:
        return None
    return found if abs(found) >= 1 / _LARGEST else 0.0


def whole(entry: Mapping[str, Any], key: str, limit: int = 2**60) -> int | None:
    """An integer from 0 to `limit`, or None."""
    value = entry.get(key)
    return value if type(value) is int and 0 <= value <= limit else None


def words(entry: Mapping[str, Any], key: str) -> str:
    """A string, or ""."""
    value = entry.get(key)
    return value if isinstance(value, str) else ""


def objects(value: Any) -> list[Mapping[str, Any]]:
    """The objects of a list; [] for anything else."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def last_part(path: str) -> str:
    """The file name of a path of any system; paths say too much about somebody's machine."""
    return path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def argument(name: str) -> str:
    """A file name as a command's argument: never taken for an option."""
    return f"./{name}" if name.startswith("-") else name
