"""Whether what a program read out of a file is what is in it: header and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ewq_gguf.ggml import GGMLType, ggml
from ewq_gguf.pipeline.gguf_source import open_gguf

Header = dict[str, Any]
# Of a tensor's largest value: a code times a scale plus an offset, each step rounded to 16 bits as some programs do.
_TOLERANCE = 2.0**-9


def read_header(path: Path) -> Header:
    """Metadata and tensor list, with every number as text: JSON has no 64-bit integers."""
    opened = open_gguf(path)
    start = min(entry.begin for entry in opened.entries)
    tensors = [
        {
            "name": entry.name,
            "shape": [str(n) for n in reversed(entry.shape)],
            "type": entry.type,
            "offset": str(entry.begin - start),
        }
        for entry in opened.entries
    ]
    return {
        "metadata": {key: _plain(value.value) for key, value in opened.metadata.items()},
        "tensors": tensors,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value).lower() if isinstance(value, bool) else value if isinstance(value, str) else repr(value)


def header_difference(expected: Header, found: Header) -> str:
    """The first thing that differs, or "": every key and value, every tensor's name, shape, type and place."""
    for name, value in expected["metadata"].items():
        if name not in found["metadata"]:
            return f"{name} is missing"
        if not _equal(value, found["metadata"][name]):
            return f"{name} differs"
    ours = {tensor["name"]: tensor for tensor in expected["tensors"]}
    theirs = {tensor["name"]: tensor for tensor in found["tensors"]}
    if list(ours) != list(theirs):
        return "the tensors' names or order differ"
    return next((f"{name} differs" for name in ours if ours[name] != theirs[name]), "")


def _equal(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, list):
        return isinstance(theirs, list) and len(ours) == len(theirs) and all(map(_equal, ours, theirs))
    if ours == theirs:
        return True
    try:
        return float(ours) == float(theirs)
    except (TypeError, ValueError):
        return False


def reference_values(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Every tensor of a file as float32, dequantized by ggml."""
    library = ggml()
    bytes_ = np.memmap(path, dtype=np.uint8, mode="r")
    return {
        entry.name: library.dequantize(
            GGMLType(entry.type), np.array(bytes_[entry.begin : entry.end]), entry.shape[-1]
        ).reshape(entry.shape)
        for entry in open_gguf(path).entries
    }


def values_difference(expected: dict[str, npt.NDArray[np.float32]], found: Path) -> str:
    """The first tensor whose values are not ggml's to 16-bit precision, or ""."""
    with np.load(found) as arrays:
        for name, ours in expected.items():
            if name not in arrays:
                return f"{name} is missing"
            theirs = arrays[name].astype(np.float32)
            if theirs.size != ours.size:
                return f"{name} has {theirs.size} values, not {ours.size}"
            bound = _TOLERANCE * np.maximum(np.abs(ours).max(), 1e-30)
            apart = float(np.abs(theirs.reshape(ours.shape) - ours).max())
            if not apart <= bound:
                return f"{name} differs by up to {apart:.3g}"
    return ""
