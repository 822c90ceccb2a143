"""Memory-mapped files whose pages are handed back as reading goes on.

Pages of a mapped file count as resident memory until somebody drops them. `MappedFiles` counts the
bytes that were asked for and, each time a budget is used up, tells the kernel to drop them all; views
that are still alive stay valid, their pages are read again when touched.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ewq_gguf.errors import CheckpointError

# Large enough that dropping pages costs nothing, small against any memory budget.
DEFAULT_WINDOW = 64 << 20
# Each map holds a file descriptor; a common limit is 1024, some systems have 256.
MAX_OPEN = 96


class MappedFiles:
    """Maps of many files, opened when first read, at most `MAX_OPEN` at a time.

    Attributes:
        window: bytes that may be touched before all pages are dropped.
    """

    def __init__(self, window: int = DEFAULT_WINDOW) -> None:
        self.window = window
        self._touched = 0
        self._maps: OrderedDict[Path, tuple[mmap.mmap, npt.NDArray[np.uint8]]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: Path, start: int, stop: int, size: int, mtime_ns: int) -> npt.NDArray[np.uint8]:
        """Bytes start..stop of a file as a read-only view of the mapped memory.

        Args:
            size, mtime_ns: what the file had when its header was read.

        Raises:
            CheckpointError: the file cannot be opened or has changed since.
        """
        try:
            # Reading past the end of a file that was cut short under us would be a SIGBUS, not an error.
            now = path.stat()
            if (now.st_size, now.st_mtime_ns) != (size, mtime_ns):
                raise CheckpointError(
                    f"{path} changed while it was being read; run again when nothing writes to it"
                )
            with self._lock:
                view = self._map(path)
                self._touched += stop - start
                if self._touched > self.window:
                    self._drop_pages()
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
        return view[start:stop]

    def _map(self, path: Path) -> npt.NDArray[np.uint8]:
        entry = self._maps.get(path)
        if entry is None:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            entry = (mapped, np.frombuffer(mapped, dtype=np.uint8))
            self._maps[path] = entry
            while len(self._maps) > MAX_OPEN:
                # Arrays that still point into it keep the map itself alive.
                self._maps.popitem(last=False)
        else:
            self._maps.move_to_end(path)
        return entry[1]

    def _drop_pages(self) -> None:
        self._touched = 0
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        for mapped, _ in self._maps.values():
            with contextlib.suppress(OSError):
                mapped.madvise(mmap.MADV_DONTNEED)
