"""Weights read by position from files that are not ours alone.

A memory map would be as fast, but a file that is cut short, a disk or a network share that fails while its
pages are touched kill the process with SIGBUS, in the middle of numpy or ggml, and no exception can be made of
that. Positioned reads (pread) say what happened instead. They also give each caller its own copy, so that the
bytes that were checked are the bytes that are written, whatever another program does to the file meanwhile.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ewq_gguf.errors import CheckpointError

# A common limit of open files is 1024, some systems have 256.
MAX_OPEN = 96


class _OpenFile:
    """A descriptor that lives as long as somebody uses it."""

    def __init__(self, path: Path) -> None:
        self._number = -1
        self._number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._lock = threading.Lock()

    def fill(self, view: memoryview, offset: int) -> int:
        """Read into `view` from byte `offset` of the file; the bytes that came."""
        if hasattr(os, "preadv"):
            return os.preadv(self._number, [view], offset)
        with self._lock:
            os.lseek(self._number, offset, os.SEEK_SET)
            data = os.read(self._number, len(view))
        view[: len(data)] = data
        return len(data)

    def __del__(self) -> None:
        if self._number >= 0:
            os.close(self._number)


class Scratch:
    """Memory that one caller lends again and again for rows it only looks at; fresh memory costs page faults."""

    def __init__(self) -> None:
        self._data = np.empty(0, dtype=np.uint8)

    def take(self, size: int) -> npt.NDArray[np.uint8]:
        """uint8 (size,), which the next call hands out again."""
        if len(self._data) < size:
            self._data = np.empty(size, dtype=np.uint8)
        return self._data[:size]


class SourceFiles:
    """Many files, opened when first read, at most `MAX_OPEN` at a time. Safe to call from threads."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, _OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    def read(
        self, path: Path, start: int, stop: int, size: int, mtime_ns: int, scratch: Scratch | None = None
    ) -> npt.NDArray[np.uint8]:
        """Bytes start..stop of a file: uint8 (stop - start,), read-only, aligned for any dtype.

        Args:
            size, mtime_ns: what the file had when its header was read.
            scratch: where the bytes may lie; else they lie in memory of their own.

        Raises:
            CheckpointError: the file cannot be opened or read, ends too early, or has changed since.
        """
        data = np.empty(stop - start, dtype=np.uint8) if scratch is None else scratch.take(stop - start)
        view = data.data
        done = 0
        try:
            now = path.stat()
            if (now.st_size, now.st_mtime_ns) != (size, mtime_ns):
                raise CheckpointError(
                    f"{path} changed while it was being read; run again when nothing writes to it"
                )
            file = self._opened(path)
            # One call hands out 2 GiB at most, and less where a signal comes in between.
            while done < len(data):
                count = file.fill(view[done:], start + done)
                if count == 0:
                    raise CheckpointError(
                        f"{path} ends at byte {start + done:,}, {size:,} were announced: it was cut short while it was "
                        "being read; download it again"
                    )
                done += count
        except OSError as error:
            raise CheckpointError(
                f"cannot read {path} at byte {start + done:,}: {error.strerror or error}; check the disk or network "
                "it lies on and run again"
            ) from error
        data.flags.writeable = False
        return data

    def _opened(self, path: Path) -> _OpenFile:
        with self._lock:
            file = self._open.get(path)
            if file is None:
                file = _OpenFile(path)
                self._open[path] = file
                # Whoever is reading from one that is dropped here keeps it open until done.
                while len(self._open) > MAX_OPEN:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(path)
            return file
