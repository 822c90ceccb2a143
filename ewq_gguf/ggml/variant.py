"""Which build of the native library made a file: version, system and instruction sets.

Same source and plan give the same bytes with one build. Builds for other machines may round differently where
the compiler joins a multiplication and an addition (FMA, the rule on arm64), so a file says what made it.
"""

from __future__ import annotations

import ctypes
import functools
import platform

from ewq_gguf.errors import EwqError
from ewq_gguf.ggml.library import find_library, ggml


class _Feature(ctypes.Structure):
    """struct ggml_backend_feature (ggml/include/ggml-backend.h)."""

    _fields_ = (("name", ctypes.c_char_p), ("value", ctypes.c_char_p))


@functools.cache
def library_variant() -> str:
    """For example "ggml 0.25.3, Linux x86_64, SSE3 AVX AVX2 F16C FMA OPENMP".

    The instruction sets are those of llama.cpp's system info (llama_print_system_info in src/llama.cpp).

    Raises:
        EwqError: the library is missing or not the expected one.
    """
    system = f"{platform.system()} {platform.machine()}"
    # Behind the number stands the commit of whatever git tree the build happened to lie in.
    version = ggml().version.partition(" ")[0]
    return ", ".join(part for part in (f"ggml {version}", system, _features()) if part)


def _features() -> str:
    try:
        lib = ctypes.CDLL(str(find_library("ggml-cpu")))
        base = ctypes.CDLL(str(ggml().path))
        lib.ggml_backend_cpu_reg.restype = ctypes.c_void_p
        base.ggml_backend_reg_get_proc_address.restype = ctypes.c_void_p
        base.ggml_backend_reg_get_proc_address.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        registry = lib.ggml_backend_cpu_reg()
        address = base.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_get_features")
    except (OSError, AttributeError, EwqError):
        # Builds that load their CPU code on demand have it under other names; the version says most.
        return ""
    if not address:
        return ""
    features = ctypes.CFUNCTYPE(ctypes.POINTER(_Feature), ctypes.c_void_p)(address)(registry)
    names = []
    for feature in features:
        if not feature.name:
            break
        if feature.value == b"1":
            names.append(feature.name.decode())
    return " ".join(names)
