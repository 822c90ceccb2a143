"""llama-quantize itself: in process through llama.cpp's library, or the program that `make tools` builds."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
from pathlib import Path

import llama_cpp

from ewq_gguf.calibration.imatrix import ImportanceMatrix
from ewq_gguf.checkpoint.gguf_file import GGUFFile
from ewq_gguf.pipeline.verify import open_gguf


def tool(name: str) -> Path | None:
    """A program of llama.cpp's, if it was built."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ewq-gguf"
    return next(iter(sorted(cache.glob(f"llama.cpp-*/bin/{name}"))), None)


@functools.cache
def _silence() -> object:
    callback = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    return callback


def quantize(
    source: Path,
    target: Path,
    ftype: int,
    *,
    pure: bool = False,
    imatrix: ImportanceMatrix | None = None,
    overrides: list[tuple[str, int]] | None = None,
    allow_requantize: bool = False,
    quantize_output: bool = True,
) -> bool:
    """llama_model_quantize; False where it refuses."""
    _silence()
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.pure = 2, ftype, pure
    params.allow_requantize, params.quantize_output_tensor = allow_requantize, quantize_output
    keep: list[object] = []
    if imatrix is not None:
        array = (llama_cpp.llama_model_imatrix_data * (len(imatrix.entries) + 1))()
        for slot, name in zip(array, imatrix.entries):
            values = imatrix.weights(name).reshape(-1)
            keep.append(values)
            slot.name, slot.size = name.encode(), values.size
            slot.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = array
    if overrides is not None:
        types = (llama_cpp.llama_model_tensor_override * (len(overrides) + 1))()
        for slot, (pattern, kind) in zip(types, overrides):
            slot.pattern, slot.type = pattern.encode(), kind
        params.tt_overrides = types
    return (
        llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) == 0
    )


def run_tool(*arguments: object) -> None:
    """Run llama-quantize; raises CalledProcessError with its output where it refuses."""
    program = tool("llama-quantize")
    assert program is not None
    subprocess.run([str(program), *map(str, arguments)], check=True, capture_output=True)


def tensors(path: Path) -> dict[str, tuple[int, tuple[int, ...], str]]:
    """Name -> type number, shape, sha256 of the bytes."""
    file = open_gguf(path)
    data = path.read_bytes()
    return {
        e.name: (e.type, e.shape, hashlib.sha256(data[e.begin : e.end]).hexdigest()) for e in file.entries
    }


def digest(path: Path) -> str:
    """One sha256 over all tensors, sorted by name."""
    state = hashlib.sha256()
    for name, facts in sorted(tensors(path).items()):
        state.update(f"{name} {facts}\n".encode())
    return state.hexdigest()


def metadata(file: GGUFFile, *, without: tuple[str, ...] = ()) -> dict[str, tuple[object, ...]]:
    """Keys with types and values, less those that begin with one of `without`."""
    return {
        key: (value.type, value.sub_type, value.value)
        for key, value in file.metadata.items()
        if not key.startswith(without)
    }
