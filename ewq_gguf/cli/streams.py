"""Standard streams and signals of a long run: a lost terminal or a stuck reader must not cost the work.

stderr carries progress and notes, which nobody may be reading: what cannot be written there is dropped. stdout
carries results: what cannot be written there is an error. SIGTERM and SIGHUP end a run as Ctrl-C does.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import stat
import sys
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, TextIO

# How long a full pipe may hold up the run, once.
_PATIENCE = 5.0
# A pipe that poll finds ready takes so many bytes without blocking (POSIX).
_PIPE_BUF = getattr(select, "PIPE_BUF", 512)


class Stopped(KeyboardInterrupt):
    """A signal asked the run to end.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int, left: str = "") -> None:
        super().__init__(f"interrupted; {left}" if left else "interrupted")
        self.number = number


class _BestEffort:
    """A text stream that never raises and never blocks for long."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._fd = stream.fileno()
        kind = os.fstat(self._fd).st_mode
        self._may_fill = sys.platform != "win32" and (stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind))
        self._patience = _PATIENCE

    def write(self, text: str) -> int:
        try:
            if self._may_fill:
                self._write_slowly(text)
            else:
                self._stream.write(text)
        except BlockingIOError:
            pass
        except (OSError, ValueError):
            self._give_up()
        return len(text)

    def _write_slowly(self, text: str) -> None:
        self._stream.flush()
        data = text.encode(self._stream.encoding or "utf-8", "backslashreplace")
        while data:
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            if not poll.poll(self._patience * 1000):
                self._patience = 0.0
                return
            data = data[os.write(self._fd, data[:_PIPE_BUF]) :]

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BlockingIOError:
            pass
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        """Nobody listens: native libraries that write to the same descriptor are spared the error too."""
        silence(self._fd)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def silence(fd: int) -> None:
    """Let a descriptor lead nowhere, so that what is still buffered for it raises no more errors."""
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, fd)
        os.close(null)


def steady_streams() -> None:
    """Streams that are there, an stderr that never fails and an stdout that says why; until the process ends."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            # Closed by whoever started us (`2>&-`).
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123
    # Only what stands for a descriptor can be silenced.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr = _BestEffort(sys.stderr)
        sys.stdout = _Results(sys.stdout)


class _Results:
    """A text stream that remembers why it failed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lose(error)
            raise

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)
            raise

    def _lose(self, error: OSError) -> None:
        self.lost = error
        # What is still buffered must not fail again when the interpreter ends.
        silence(self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def results_lost() -> OSError | None:
    """Why a result could not be written to stdout, or None where all went well."""
    found: OSError | None = getattr(sys.stdout, "lost", None)
    return found


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `Stopped` in the main thread, where nobody asked for them to be ignored."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
