"""Run a program and tell what it took: wall and processor time, peak memory, bytes from and to the disk."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """What one program, or several after another, took.

    Attributes:
        wall, cpu: seconds; cpu is user and system time of all threads.
        peak: the most bytes in memory at a time, mapped files included.
        read, written: bytes that went through to the disk; what the page cache had does not count as read.
    """

    wall: float
    cpu: float
    peak: int
    read: int
    written: int

    def then(self, other: Usage) -> Usage:
        """Both, one after the other."""
        return Usage(
            self.wall + other.wall,
            self.cpu + other.cpu,
            max(self.peak, other.peak),
            self.read + other.read,
            self.written + other.written,
        )


class _Peak(threading.Thread):
    """Asks for a process' high-water mark until it ends: wait4 would report that of its parent, if higher."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._status = Path(f"/proc/{pid}/status")
        self.bytes = 0
        self.start()

    def run(self) -> None:
        while True:
            lines = self._status.read_text().splitlines()
            found = [line for line in lines if line.startswith("VmHWM:")]
            if not found:  # a process that has ended has no memory
                return
            self.bytes = int(found[0].split()[1]) << 10
            time.sleep(0.01)


def run(command: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> Usage:
    """Run a program to its end; Linux only, for /proc/PID/io.

    Raises:
        RuntimeError: it failed; the message holds the end of what it said.
    """
    with log.open("w") as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        watch = _Peak(process.pid)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        wall = time.perf_counter() - started
        watch.join()
        # The dead keep their accounts until somebody fetches them.
        io = dict(line.split(": ") for line in Path(f"/proc/{process.pid}/io").read_text().splitlines())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text()[-2000:]}")
    return Usage(
        wall,
        usage.ru_utime + usage.ru_stime,
        watch.bytes,
        int(io["read_bytes"]),
        int(io["write_bytes"]),
    )


def forget(paths: Iterable[Path]) -> None:
    """Drop files from the page cache, so that the next reader pays for the disk."""
    os.sync()
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def remember(paths: Iterable[Path]) -> None:
    """Read files once, so that the next reader finds them in the page cache."""
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(16 << 20):
                pass
