"""Keeping native code from writing to the terminal past Python."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_depth = 0
_kept = -1


@contextlib.contextmanager
def native_stderr_off() -> Iterator[None]:
    """Send what is written to file descriptor 2 nowhere while the block lasts; blocks may overlap.

    A panic in Rust prints a backtrace before it becomes an exception; nothing else silences it.
    """
    global _depth, _kept
    with _lock:
        if _depth == 0:
            # Without a standard error there is nothing to silence.
            with contextlib.suppress(OSError):
                _kept = os.dup(2)
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, 2)
                os.close(nowhere)
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0 and _kept >= 0:
                os.dup2(_kept, 2)
                os.close(_kept)
                _kept = -1
