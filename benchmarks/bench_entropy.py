"""How fast the entropy analysis goes over bf16 weights, against a plain read of the same bytes.

    python benchmarks/bench_entropy.py [--size 8GB] [--workers 1,2] [--repeat 5]

The checkpoint is made in a temporary folder and read once before, so that nothing waits for the disk. The
plain read adds up the bytes as 64-bit numbers, which numpy does at the speed of memory. Beyond one worker
the analysis starts processes; their start is part of the time, and so is the processor time they took.
"Counting alone" is the innermost loop in processes that share nothing: no reading, no start, one small array each.
What two of those gain over one is what this machine's cores have to give.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from processes import remember
from synthetic import llama_of, write_checkpoint

from ewq_gguf.allocation.analysis import analyze_model, is_weight_matrix
from ewq_gguf.allocation.parsing import parse_size
from ewq_gguf.model import Model
from ewq_gguf.pipeline.source import load_model

_CHUNK = 1 << 20


def _plain_read(model: Model, workers: int) -> None:
    """Touch every byte of every weight matrix."""

    def read(job: tuple[int, int, int]) -> int:
        index, start, stop = job
        raw = model.tensors[index].source.raw_rows(start, stop)
        return int(np.add.reduce(np.ascontiguousarray(raw).reshape(-1).view(np.uint64)))

    jobs = []
    for i, t in enumerate(model.tensors):
        if is_weight_matrix(t):
            step = max(1, _CHUNK // t.row_length)
            jobs += [(i, first, min(first + step, t.n_rows)) for first in range(0, t.n_rows, step)]
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(read, jobs):
            pass


_COUNTER = """
import sys, time
import numpy as np
from ewq_gguf.allocation.entropy import CodeCounter

rng = np.random.default_rng(0)
codes = (rng.standard_normal(1 << 22, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)
counter = CodeCounter()
counter.add(codes)
print("ready", flush=True)
sys.stdin.readline()
began = time.perf_counter(), time.process_time()
for _ in range(int(sys.argv[1])):
    counter.add(codes)
print(time.perf_counter() - began[0], time.process_time() - began[1], flush=True)
"""


def _counting_alone(weights: int, workers: int) -> tuple[float, float]:
    """Seconds of wall (of the slowest) and processor time that independent processes take to count `weights`."""
    rounds = max(1, round(weights / workers / (1 << 22)))
    command = [sys.executable, "-c", _COUNTER, str(rounds)]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(workers)
    ]
    for process in running:
        assert process.stdout is not None
        process.stdout.readline()
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    times = [tuple(map(float, process.communicate()[0].split())) for process in running]
    return max(wall for wall, _ in times), sum(cpu for _, cpu in times)


def _processor_time() -> float:
    """Of this process and the processes that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _fastest(repeat: int, work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of wall and processor time of the fastest of some runs."""
    best = (float("inf"), 0.0)
    for _ in range(repeat):
        wall, cpu = time.perf_counter(), _processor_time()
        work()
        best = min(best, (time.perf_counter() - wall, _processor_time() - cpu))
    return best


def _row(workers: int, name: str, wall: float, cpu: float, rate: float, alone: dict[str, float]) -> None:
    cells = [workers, name, f"{wall:.3f}", f"{cpu:.3f}", f"{rate:.0f}", f"{rate / workers:.0f}"]
    print("|", " | ".join(map(str, cells)), "|", f"{rate / alone[name]:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="8GB")
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--repeat", type=int, default=5, help="the fastest of so many runs counts")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ewq-bench-", dir=options.folder))
    try:
        write_checkpoint(folder, llama_of(parse_size(options.size)))
        remember(folder.glob("*.safetensors"))
        model = load_model(folder)
        weights = sum(t.n_elements for t in model.tensors if is_weight_matrix(t))
        print(f"{weights / 1e6:.0f} M weights in bf16, {len(os.sched_getaffinity(0))} usable cores\n")
        print("| workers | work | wall, s | CPU, s | Mweights/s | Mweights/s per worker | scaling |")
        print("|" + "---|" * 7)
        alone: dict[str, float] = {}
        for workers in map(int, options.workers.split(",")):
            for name, work in (
                ("plain read", lambda n=workers: _plain_read(model, n)),
                ("entropy", lambda n=workers: analyze_model(model, threads=n)),
            ):
                wall, cpu = _fastest(options.repeat, work)
                rate = weights / wall / 1e6
                alone.setdefault(name, rate)
                _row(workers, name, wall, cpu, rate, alone)
            best = min(_counting_alone(weights, workers) for _ in range(options.repeat))
            rate = weights / best[0] / 1e6
            alone.setdefault("counting alone", rate)
            _row(workers, "counting alone", *best, rate, alone)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
