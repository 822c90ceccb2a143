"""How fast a file runs, and how much memory it takes.

Every run is a process of its own, so that memory is that file's alone and nothing is left warm but the page
cache. Files take turns and medians are reported, because a machine's speed drifts.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ewq_gguf.errors import EvaluationError
from ewq_gguf.evaluation.engine import Settings
from ewq_gguf.evaluation.gguf_check import check_gguf
from ewq_gguf.evaluation.perplexity import Progress


@dataclass(frozen=True)
class SpeedRun:
    """One run.

    Attributes:
        prompt_tps: tokens per second while reading a prompt.
        generate_tps: tokens per second while generating one by one.
        load_seconds: from opening the file to a usable context.
        rss_bytes: largest resident memory of the process, mapped weights included.
    """

    prompt_tps: float
    generate_tps: float
    load_seconds: float
    rss_bytes: int


@dataclass(frozen=True)
class Speed:
    """Medians over a file's runs, and their range.

    Attributes:
        prompt_range, generate_range: slowest and fastest run, tokens per second.
        runs: the runs themselves, in order.
    """

    file: Path
    n_bytes: int
    prompt_tps: float
    generate_tps: float
    prompt_range: tuple[float, float]
    generate_range: tuple[float, float]
    load_seconds: float
    rss_bytes: int
    prompt_tokens: int
    generated_tokens: int
    n_threads: int
    runs: tuple[SpeedRun, ...]

    def as_json(self) -> dict[str, object]:
        """Stable field names."""
        return {
            "file": str(self.file),
            "bytes": self.n_bytes,
            "prompt_tps": self.prompt_tps,
            "generate_tps": self.generate_tps,
            "load_seconds": self.load_seconds,
            "rss_bytes": self.rss_bytes,
            "prompt_tokens": self.prompt_tokens,
            "generated_tokens": self.generated_tokens,
            "n_threads": self.n_threads,
            "runs": [asdict(run) for run in self.runs],
        }


def speed(
    paths: Sequence[Path] | Path,
    *,
    prompt_tokens: int = 512,
    generated_tokens: int = 64,
    repeats: int = 5,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> list[Speed]:
    """Time files in turn: first run of each, second run of each, and so on.

    Args:
        prompt_tokens, generated_tokens: length of the prompt and of the generation.
        repeats: runs per file.
        settings: batch, threads, KV cache types.
        progress: called with (runs done, runs in all).

    Raises:
        EvaluationError: a file cannot be used, or a run dies.
    """
    files = [paths] if isinstance(paths, Path) else list(paths)
    if not files or min(prompt_tokens, generated_tokens, repeats) < 1:
        raise EvaluationError("speed needs a file, and at least one prompt token, generated token and run")
    settings = settings or Settings()
    # What can be known without a child is said before the first run.
    sizes = [check_gguf(path).n_bytes for path in files]
    order: dict[str, object] = {
        "prompt": prompt_tokens,
        "generate": generated_tokens,
        "n_batch": settings.n_batch,
        "n_threads": settings.n_threads,
        "cache_type_k": settings.cache_type_k,
        "cache_type_v": settings.cache_type_v,
        "use_extra_bufts": settings.use_extra_bufts,
    }
    runs: list[list[SpeedRun]] = [[] for _ in files]
    threads = 0
    for turn in range(repeats):
        for at, path in enumerate(files):
            run, threads = _run_child(path, order)
            runs[at].append(run)
            if progress:
                progress(turn * len(files) + at + 1, repeats * len(files))
    return [
        _summarize(path, n_bytes, tuple(done), prompt_tokens, generated_tokens, threads)
        for path, n_bytes, done in zip(files, sizes, runs)
    ]


def _run_child(path: Path, order: dict[str, object]) -> tuple[SpeedRun, int]:
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
    command = [sys.executable, "-m", "ewq_gguf.evaluation.speed_child", str(path), json.dumps(order)]
    child = subprocess.run(command, capture_output=True, env=environment, check=False)
    text = child.stdout.decode("utf-8", "replace").strip().splitlines()
    try:
        answer = json.loads(text[-1])
    except (IndexError, ValueError):
        last = child.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise EvaluationError(
            f"{path} cannot be timed: its process ended with code {child.returncode} {' '.join(last)}".rstrip()
        ) from None
    if "error" in answer:
        raise EvaluationError(str(answer["error"]))
    threads = int(answer.pop("n_threads"))
    return SpeedRun(**answer), threads


def _summarize(
    path: Path, n_bytes: int, runs: tuple[SpeedRun, ...], prompt: int, generated: int, threads: int
) -> Speed:
    prompts, generations = [r.prompt_tps for r in runs], [r.generate_tps for r in runs]
    return Speed(
        path,
        n_bytes,
        statistics.median(prompts),
        statistics.median(generations),
        (min(prompts), max(prompts)),
        (min(generations), max(generations)),
        statistics.median(r.load_seconds for r in runs),
        int(statistics.median(r.rss_bytes for r in runs)),
        prompt,
        generated,
        threads,
        runs,
    )
