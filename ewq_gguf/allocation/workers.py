"""Processes that measure matrices, because counting values in numpy keeps one interpreter's lock.

np.add.at holds the lock while it counts, and np.bincount most of the time (two threads count 1.2 times as fast
as one), so that the threads of one process share one core. Each worker is a plain subprocess that gets a tensor
(views and file names, no weights) and row ranges over a pipe, reads the weights itself, and answers with the
statistics. This process measures too, from the start and one matrix at a time; whatever cannot be sent is
measured here anyway.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache
from typing import IO, Any

from ewq_gguf.allocation.entropy import Distribution, Part, WeightStatistics, measure
from ewq_gguf.checkpoint.gguf_file import GGUFFile
from ewq_gguf.checkpoint.reading import SourceFiles
from ewq_gguf.checkpoint.safetensors import Shard
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.errors import CheckpointError

Measured = tuple[WeightStatistics, Distribution | None]
# Starting an interpreter with numpy takes about as long as counting half of so many weights.
WORTH_IT = 400_000_000
# Each takes some 45 MB; eight read more bytes a second than disks deliver.
MOST = 8
_LENGTH = struct.Struct("<Q")
_START = "import sys; sys.path[:] = {path!r}; from ewq_gguf.allocation.workers import serve; serve()"


@cache
def _files() -> SourceFiles:
    """One set of open files per worker, whatever the number of tensors."""
    return SourceFiles()


class _Pickler(pickle.Pickler):
    """Leaves out what a tensor does not need to read its rows: other tensors' entries, metadata, open files."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, SourceFiles):
            return _files, ()
        if isinstance(obj, Shard):
            return Shard, (obj.path.absolute(), obj.size, obj.mtime_ns, (), {})
        if isinstance(obj, GGUFFile):
            file = (obj.path.absolute(), obj.size, obj.mtime_ns, obj.version, obj.alignment)
            return GGUFFile, (*file, {}, ())
        return NotImplemented


def _packed(tensor: Tensor) -> bytes | None:
    """A tensor as bytes, or None where it holds what cannot be sent (functions made on the spot)."""
    buffer = io.BytesIO()
    try:
        _Pickler(buffer, protocol=5).dump(tensor)
    except (pickle.PicklingError, AttributeError, TypeError):
        return None
    return buffer.getvalue()


def _send(stream: IO[bytes], message: Any) -> None:
    data = pickle.dumps(message, protocol=5)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def _receive(stream: IO[bytes]) -> Any:
    """The next message, or None at the end."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    return pickle.loads(stream.read(_LENGTH.unpack(head)[0]))


class _Worker:
    """One subprocess and what it knows."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", _START.format(path=sys.path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._tensor: Tensor | None = None

    def is_up(self) -> bool:
        """Wait for its first word; False where it ended without one."""
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError, EOFError, pickle.UnpicklingError):
            return bool(_receive(self._process.stdout))
        return False

    def measure(self, part: Part, packed: bytes, epsilon: float) -> Measured | None:
        """None when the worker cannot answer; the caller measures the part itself then, errors included."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        news = packed if part.tensor is not self._tensor else None
        _send(stdin, (news, part.start, part.stop, part.name, epsilon))
        self._tensor = part.tensor
        answer: Measured | None = _receive(stdout)
        return answer

    def stop(self) -> None:
        """End it at once: it keeps nothing that would be lost, and may still be starting."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


class Workers:
    """Measures matrices in processes of its own and in this one. Safe to call from threads."""

    def __init__(self, count: int) -> None:
        # Whoever takes something out may measure: a worker, or None for the one place in this process.
        self._free: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        self._free.put(None)
        self._all = [_Worker() for _ in range(count)]
        self._packed: tuple[Tensor | None, bytes | None] = (None, None)
        for worker in self._all:
            threading.Thread(target=self._welcome, args=(worker,), daemon=True).start()

    def _welcome(self, worker: _Worker) -> None:
        if worker.is_up():
            self._free.put(worker)

    def measure(self, part: Part, epsilon: float) -> Measured:
        """As `entropy.measure`.

        Raises:
            CheckpointError: a weight is NaN or infinite, or the source cannot be read.
        """
        if not self._all:
            return measure(part, epsilon)
        tensor, packed = self._packed
        if tensor is not part.tensor:
            packed = _packed(part.tensor)
            self._packed = (part.tensor, packed)
        worker = self._free.get()
        try:
            if worker is not None and packed is not None:
                answer = worker.measure(part, packed, epsilon)
                if answer is not None:
                    return answer
            return measure(part, epsilon)
        except (OSError, EOFError, pickle.UnpicklingError):
            # It was killed, most likely for want of memory; the others go on.
            worker = None
            return measure(part, epsilon)
        finally:
            self._free.put(worker)

    def close(self) -> None:
        """End the processes."""
        for worker in self._all:
            worker.stop()


@contextlib.contextmanager
def workers(threads: int, weights: int) -> Iterator[Workers]:
    """Workers for all threads but one; none for little work or in a frozen program."""
    count = min(threads - 1, MOST) if weights >= WORTH_IT and sys.executable else 0
    if getattr(sys, "frozen", False):
        count = 0
    pool = Workers(count)
    try:
        yield pool
    finally:
        pool.close()


def serve() -> None:
    """What a worker does: answer until its input ends."""
    # Ctrl-C reaches the whole group of processes; the one that was started by a person decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    tensor: Tensor | None = None
    _send(stdout, True)
    while (message := _receive(stdin)) is not None:
        packed, start, stop, name, epsilon = message
        try:
            if packed is not None:
                tensor = pickle.loads(packed)
            assert tensor is not None
            answer: Measured | None = measure(Part(tensor, start, stop, name), epsilon)
        except (CheckpointError, OSError, AssertionError):
            answer = None
        _send(stdout, answer)
