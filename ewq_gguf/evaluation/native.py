"""llama.cpp as a library: imported on first use, its log kept off the terminal.

Source of the API: include/llama.h of the llama.cpp that llama-cpp-python carries.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections import deque
from functools import lru_cache
from pathlib import Path
from typing import Any

from ewq_gguf.errors import EvaluationError

_WARN, _ERROR, _CONTINUED = 3, 4, 5
_log_lines: deque[str] = deque(maxlen=12)
_log_lock = threading.Lock()
# The one that llama.cpp calls, kept alive here.
_listeners: list[Any] = []

# What llama.cpp's own programs accept for --cache-type-k/-v (common/arg.cpp), with ggml's type numbers.
CACHE_TYPES: dict[str, int] = {
    "f32": 0,
    "f16": 1,
    "bf16": 30,
    "q8_0": 8,
    "q5_1": 7,
    "q5_0": 6,
    "q4_1": 3,
    "q4_0": 2,
    "iq4_nl": 20,
}


@lru_cache(maxsize=1)
def llama() -> Any:
    """The low-level module of llama-cpp-python, initialised once; the log goes to `last_log_lines`.

    Raises:
        EvaluationError: llama-cpp-python is missing or its library does not load.
    """
    # GNU OpenMP's threads wait for one another by spinning for milliseconds; on a machine with other work
    # each of the thousands of waits would then cost a time slice (20x slower, seen). Read once, when the
    # library loads.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError, FileNotFoundError) as error:
        raise EvaluationError(
            f"llama-cpp-python does not load ({error}); reinstall it with `pip install llama-cpp-python`"
        ) from None

    state = {"level": _WARN}

    def remember(level: int, text: bytes | None, _user: Any) -> None:
        if level != _CONTINUED:
            state["level"] = level
        if text and state["level"] in (_WARN, _ERROR):
            with _log_lock:
                _log_lines.append(text.decode("utf-8", "replace").strip())

    _listeners.append(llama_cpp.llama_log_callback(remember))
    llama_cpp.llama_log_set(_listeners[-1], ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


def library_path() -> Path:
    """Where the native libllama that `llama()` uses lies."""
    module = llama()
    folder = Path(module.__file__).parent / "lib"
    for pattern in ("libllama.so", "libllama.dylib", "llama.dll", "libllama.*"):
        for candidate in sorted(folder.glob(pattern)):
            return candidate
    return Path(module.__file__)


def forget_log() -> None:
    """Empty the memory of warnings and errors, before a call whose failure is to be explained.

    llama.cpp has one listener for all; whoever else in this process has put in theirs has had it since.
    """
    llama().llama_log_set(_listeners[-1], ctypes.c_void_p(0))
    with _log_lock:
        _log_lines.clear()


def last_log_lines(n: int = 2) -> str:
    """The last warnings and errors of llama.cpp in one line, for the end of an error message."""
    with _log_lock:
        lines = [line for line in _log_lines if line]
    return "; ".join(lines[-n:]) or "llama.cpp gave no reason"


def cache_type(name: str | None) -> int | None:
    """ggml's number of a KV cache type.

    Raises:
        EvaluationError: llama.cpp keeps no KV cache in that type.
    """
    if name is None:
        return None
    try:
        return CACHE_TYPES[name.lower()]
    except KeyError:
        known = ", ".join(CACHE_TYPES)
        raise EvaluationError(f"no KV cache can be kept in type {name!r}; use one of {known}") from None


def default_threads() -> int:
    """Physical cores this process may run on: hyper-threads of one core share its arithmetic units."""
    if hasattr(os, "sched_getaffinity"):
        cpus = sorted(os.sched_getaffinity(0))
        cores = set()
        for cpu in cpus:
            siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
            try:
                cores.add(siblings.read_text(encoding="ascii").strip())
            except OSError:
                return len(cpus)
        return max(1, len(cores))
    return max(1, os.cpu_count() or 1)


def cpu_features() -> list[str]:
    """What the native library was compiled for, as llama.cpp names it: AVX2, NEON, OPENMP and the like.

    Raises:
        EvaluationError: llama-cpp-python is missing or its library does not load.
    """
    told = llama().llama_print_system_info().decode("utf-8", "replace")
    return [
        name.split(":")[-1].strip()
        for name, _, value in (part.partition("=") for part in told.split("|"))
        if value.strip() == "1"
    ]
