"""Runs of the command in processes of their own, slowed down so that a fault hits them where it should."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ewq_gguf.pipeline.journal import journal_path

# Each job of the quantizer takes so much longer, and the fifth waits for a file where one is named; nothing else
# is different from the console script.
_SLOWED = """
import itertools, os, time
import ewq_gguf.pipeline.quantize as quantize
real, count = quantize.quantize_rows, itertools.count()
def slow(*arguments):
    time.sleep({delay})
    if {gate!r} and next(count) == 5:
        while not os.path.exists({gate!r}):
            time.sleep(0.01)
    return real(*arguments)
quantize.quantize_rows = slow
from ewq_gguf.cli import main
main()
"""


def command(source: Path, out: Path, *more: str, delay: float = 0.0, gate: Path | None = None) -> list[str]:
    """The command line of a conversion with one thread.

    Args:
        delay: seconds that each job takes longer.
        gate: a file that must be there before the fifth job begins.
    """
    program = (
        ["-c", _SLOWED.format(delay=delay, gate=str(gate or ""))] if delay or gate else ["-m", "ewq_gguf"]
    )
    options = ["-o", str(out), "--type", "Q4_0", "--threads", "1", *more]
    return [sys.executable, *program, "convert", str(source), *options]


def run(arguments: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run to the end, whatever the exit code."""
    return subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False, **options)


def as_in_a_terminal() -> None:
    """In the child: Ctrl-C counts, also where the tests run behind a shell's `&`, which ignores it for all below."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait(until: Callable[[], bool], process: subprocess.Popen[Any], seconds: float = 60.0) -> None:
    """Wait for a condition while a process runs."""
    deadline = time.monotonic() + seconds
    while not until():
        assert process.poll() is None, f"the run ended with exit code {process.returncode} before its time"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def tensors_done(out: Path) -> int:
    """How many tensors the journal of an unfinished file lists."""
    journal = journal_path(out)
    return max(0, journal.read_bytes().count(b"\n") - 1) if journal.exists() else 0


def left_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())
