"""One timed run of one file, as a process of its own; prints one line of JSON.

python -m ewq_gguf.evaluation.speed_child MODEL.gguf '{"prompt": 512, "generate": 64, ...}'
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ewq_gguf.errors import EwqError
from ewq_gguf.evaluation.engine import Engine
from ewq_gguf.evaluation.native import llama


def measure(path: Path, order: dict[str, Any]) -> dict[str, float | int]:
    """Load, warm up, read a prompt of random tokens, generate greedily after it."""
    prompt, generate = int(order["prompt"]), int(order["generate"])
    # Importing the library is no part of loading a model.
    llama()
    began = time.perf_counter()
    with Engine(
        path,
        n_ctx=prompt + generate,
        n_batch=int(order["n_batch"]),
        n_threads=order["n_threads"],
        cache_type_k=order["cache_type_k"],
        cache_type_v=order["cache_type_v"],
        use_extra_bufts=bool(order["use_extra_bufts"]),
        n_seq=1,
    ) as engine:
        load = time.perf_counter() - began
        tokens = np.random.default_rng(0).integers(0, engine.n_vocab, prompt, dtype=np.int32)

        def run(part: np.ndarray[Any, np.dtype[np.int32]], at: int) -> int:
            wanted = np.zeros(len(part), dtype=np.bool_)
            wanted[-1] = True
            positions = np.arange(at, at + len(part), dtype=np.int32)
            logits = engine.decode(part, positions, np.zeros(len(part), dtype=np.int32), wanted)
            return int(logits[-1].argmax())

        # The first call maps the weights and starts the threads.
        run(tokens[: engine.n_batch], 0)
        engine.clear()
        began = time.perf_counter()
        token = 0
        for left in range(0, prompt, engine.n_batch):
            token = run(tokens[left : left + engine.n_batch], left)
        prompt_seconds = time.perf_counter() - began
        began = time.perf_counter()
        for at in range(prompt, prompt + generate):
            token = run(np.array([token], dtype=np.int32), at)
        generate_seconds = time.perf_counter() - began
        return {
            "prompt_tps": prompt / prompt_seconds,
            "generate_tps": generate / generate_seconds,
            "load_seconds": load,
            "rss_bytes": peak_rss(),
            "n_threads": engine.n_threads,
        }


def peak_rss() -> int:
    """Largest resident set of this process so far, in bytes; 0 where the system does not tell."""
    if sys.platform == "win32":
        return _peak_rss_windows()
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


def _peak_rss_windows() -> int:
    class Counters(ctypes.Structure):
        # PROCESS_MEMORY_COUNTERS of psapi.h
        _fields_ = (
            ("cb", ctypes.c_uint32),
            ("PageFaultCount", ctypes.c_uint32),
            *((f"size_{n}", ctypes.c_size_t) for n in range(8)),
        )

    counters = Counters()
    counters.cb = ctypes.sizeof(counters)
    windows = getattr(ctypes, "windll")  # noqa: B009
    process = windows.kernel32.GetCurrentProcess()
    done = windows.psapi.GetProcessMemoryInfo(ctypes.c_void_p(process), ctypes.byref(counters), counters.cb)
    return int(counters.size_0) if done else 0


def main() -> None:
    try:
        answer: dict[str, Any] = dict(measure(Path(sys.argv[1]), json.loads(sys.argv[2])))
    except EwqError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
