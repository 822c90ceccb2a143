"""llama_model_quantize called directly, for real or dry, and what it says."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from llama_cpp._logger import llama_log_callback

from ewq_gguf.allocation.pins import Pin
from ewq_gguf.allocation.presets import PRESETS, Assignment
from ewq_gguf.ggml.types import GGMLType

PRINTED = re.compile(
    r"^\[ *\d+/ *\d+\] (\S+) +- \[[^]]*\], type = +(\w+), size = [^\n]*?MiB(?: -> [^\n]*\((\w+)\))?$", re.M
)


@contextmanager
def native_log() -> Iterator[list[str]]:
    """Collect what llama.cpp says instead of printing it."""
    lines: list[str] = []

    @llama_cpp.llama_log_callback
    def collect(_level: int, text: bytes, _data: Any) -> None:
        lines.append(text.decode("utf-8", "replace"))

    llama_cpp.llama_log_set(collect, ctypes.c_void_p(0))
    try:
        yield lines
    finally:
        llama_cpp.llama_log_set(llama_log_callback, ctypes.c_void_p(0))


def native(
    source: Path,
    target: Path | None,
    preset: str,
    *,
    imatrix: Mapping[str, np.ndarray] | None = None,
    pins: Sequence[Pin] = (),
    output_type: GGMLType | None = None,
    embedding_type: GGMLType | None = None,
    **flags: bool,
) -> tuple[int, str]:
    """Call llama_model_quantize, dry when `target` is None; its return code and everything it said."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = PRESETS[preset].llama_ftype
    params.nthread = 1
    params.dry_run = target is None
    if output_type is not None:
        params.output_tensor_type = int(output_type)
    if embedding_type is not None:
        params.token_embedding_type = int(embedding_type)
    for name, value in flags.items():
        setattr(params, name, value)
    held: list[Any] = []  # everything the structure points to
    if imatrix is not None:
        entries = (llama_cpp.llama_model_imatrix_data * (len(imatrix) + 1))()
        for entry, (name, values) in zip(entries, imatrix.items()):
            values = np.ascontiguousarray(values, np.float32)
            held.append(values)
            entry.name = name.encode()
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entry.size = values.size
        params.imatrix = entries
        held.append(entries)
    if pins:
        overrides = (llama_cpp.llama_model_tensor_override * (len(pins) + 1))()
        for override, pin in zip(overrides, pins):
            override.pattern = pin.pattern.encode()
            override.type = int(pin.type)
        params.tt_overrides = overrides
        held.append(overrides)
    with native_log() as lines:
        code = llama_cpp.llama_model_quantize(
            str(source).encode(), str(target or "").encode(), ctypes.byref(params)
        )
    return int(code), "".join(lines)


def printed_types(text: str) -> dict[str, str]:
    return {name: (after or before).upper() for name, before, after in PRINTED.findall(text)}


def dry_run(source: Path, preset: str, **options: Any) -> dict[str, str]:
    code, text = native(source, None, preset, **options)
    assert code == 0, text
    return printed_types(text)


def names(assignments: Mapping[str, Assignment]) -> dict[str, str]:
    return {name: assignment.type.name for name, assignment in assignments.items()}


def stored_types(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
