"""How much memory a run may take, and what it took.

A job holds its rows as float32, sometimes a copy of them as stored, and its result; a result waits until its
turn to be written. Chunk size and number of jobs follow from the memory allowed, never from the model.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

from ewq_gguf.errors import QuantizationError
from ewq_gguf.pipeline.quantize import CHUNK_WEIGHTS

DEFAULT_MEMORY = 1 << 30
MIN_MEMORY = 256 << 20
# Interpreter, libraries, metadata with a large vocabulary: what is there before the first job.
_BASE = 160 << 20
# Per weight: of a job that runs (rows as stored, as float32, a rearranged copy, masks, the result) and of a
# waiting result.
_RUNNING, _WAITING = 16, 4
_MIN_CHUNK = 1 << 15


@dataclass(frozen=True)
class Budget:
    """What a run may hold at a time.

    Attributes:
        threads: that quantize; fewer than asked for where memory allows no more.
        chunk_weights: weights per job.
        in_flight: jobs that exist at a time, running or waiting to be written.
    """

    threads: int
    chunk_weights: int
    in_flight: int


def budget(memory: int, threads: int) -> Budget:
    """Divide `memory` bytes among `threads`.

    Raises:
        QuantizationError: less than `MIN_MEMORY`.
    """
    if memory < MIN_MEMORY:
        raise QuantizationError(
            f"{memory:,} bytes of memory are too few; allow at least {MIN_MEMORY >> 20} MiB with --memory"
        )
    left = memory - _BASE
    # in_flight is 2 * threads + 2, and each job takes at least the smallest chunk.
    most = (left // _MIN_CHUNK - 2 * _WAITING) // (_RUNNING + 2 * _WAITING)
    threads = max(1, min(threads, most))
    in_flight = 2 * threads + 2
    chunk = left // (threads * _RUNNING + in_flight * _WAITING)
    return Budget(threads, max(_MIN_CHUNK, min(CHUNK_WEIGHTS, chunk)), in_flight)


def peak_rss() -> int | None:
    """The most bytes this process has had in memory so far, or None where the system does not tell."""
    if sys.platform == "linux":
        # getrusage's figure starts from that of the process that started this one.
        with contextlib.suppress(OSError, ValueError):
            for line in Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) << 10
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10
