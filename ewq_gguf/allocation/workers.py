"""Processes that measure matrices, because counting values in numpy keeps one interpreter's lock.

np.add.at holds the lock while it counts, and np.bincount most of the time (two threads count 1.2 times as fast
as one), so that the threads of one process share one core. Each worker is a plain subprocess that gets a tensor
(views and file names, no weights) and row ranges over a pipe, reads the weights itself, and answers with the
statistics. This process measures too, from the start and one matrix at a time; whatever cannot be sent is
measured here anyway.

While this process counts, its own threads wait for the lock before they can hand out or take in anything, and the
counting waits for them. Ranges are therefore handed out many at a time, and a worker gets its next ones before it
has answered for the last.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from ewq_gguf.allocation.entropy import Distribution, Part, WeightStatistics, measure
from ewq_gguf.checkpoint.reading import SourceFiles
from ewq_gguf.checkpoint.safetensors import Shard
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.errors import CheckpointError

Measured = tuple[WeightStatistics, Distribution | None]
# Starting an interpreter with numpy takes about as long as counting half of so many weights.
WORTH_IT = 400_000_000
# Each takes some 45 MB; eight read more bytes a second than disks deliver.
MOST = 8
# Questions that a worker has at a time: the one that it works on and the one that it takes up at once after it.
AHEAD = 2
_LENGTH = struct.Struct("<Q")
# Without `site`, whose work is done by handing over this process's path, a worker starts a tenth sooner.
_START = "import sys; sys.path[:] = {path!r}; from ewq_gguf.allocation.workers import serve; serve()"
_PACKAGE = Path(__file__).parents[2]


@cache
def _files() -> SourceFiles:
    """One set of open files per worker, whatever the number of tensors."""
    return SourceFiles()


class _Pickler(pickle.Pickler):
    """Leaves out what a tensor does not need to read its rows: other tensors' entries, metadata, open files."""

    def reducer_override(self, obj: Any) -> Any:
        # Imported here because a worker does without: it spares it the time to load the gguf package.
        from ewq_gguf.checkpoint.gguf_file import GGUFFile

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


@dataclass(frozen=True)
class _Question:
    """Tensors as `_packed` gives them, and (tensor, start, stop, name) of the ranges to measure."""

    tensors: list[bytes]
    ranges: list[tuple[int, int, int, str]]
    epsilon: float
    counts: bool


def _question(parts: Sequence[Part], epsilon: float, counts: bool) -> _Question | None:
    """None where a tensor cannot be sent."""
    places: dict[int, int] = {}
    tensors: list[bytes] = []
    for part in parts:
        if id(part.tensor) not in places:
            packed = _packed(part.tensor)
            if packed is None:
                return None
            places[id(part.tensor)] = len(tensors)
            tensors.append(packed)
    ranges = [(places[id(part.tensor)], part.start, part.stop, part.name) for part in parts]
    return _Question(tensors, ranges, epsilon, counts)


class _Worker:
    """One subprocess and what it knows."""

    def __init__(self) -> None:
        command = [sys.executable, "-S", "-c", _START.format(path=[str(_PACKAGE), *sys.path])]
        # numpy's linear algebra would start threads that nobody here needs.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment)
        self._asking = threading.Lock()
        # Set once the answer to the last question has been read: answers come in the order of the questions.
        self._answered = threading.Event()
        self._answered.set()

    def is_up(self) -> bool:
        """Wait for its first word; False where it ended without one."""
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError, EOFError, pickle.UnpicklingError):
            return bool(_receive(self._process.stdout))
        return False

    def ask(self, question: _Question) -> list[Measured] | None:
        """None when the worker cannot answer; the caller measures the parts itself then, errors included."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with self._asking:
            mine = threading.Event()
            before, self._answered = self._answered, mine
            try:
                _send(stdin, question)
            except BaseException:
                # No answer will come; whoever is next must not wait for one.
                self._process.kill()
                mine.set()
                raise
        try:
            before.wait()
            answer: list[Measured] | None = _receive(stdout)
        finally:
            mine.set()
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
        for worker in self._all:
            threading.Thread(target=self._welcome, args=(worker,), daemon=True).start()

    def _welcome(self, worker: _Worker) -> None:
        if worker.is_up():
            for _ in range(AHEAD):
                self._free.put(worker)

    @property
    def places(self) -> int:
        """Calls of `measure` that go on at the same time."""
        return 1 + AHEAD * len(self._all)

    def measure(self, parts: Sequence[Part], epsilon: float, *, counts: bool = True) -> list[Measured]:
        """As `entropy.measure` for each; without `counts` the counted values may be left out, which spares sending
        them.

        Raises:
            CheckpointError: a weight is NaN or infinite, or the source cannot be read.
        """
        if not self._all:
            return [measure(part, epsilon) for part in parts]
        question = _question(parts, epsilon, counts)
        worker, lost = self._free.get(), False
        try:
            if worker is not None and question is not None:
                try:
                    answer = worker.ask(question)
                except (OSError, EOFError, pickle.UnpicklingError):
                    # It was killed, most likely for want of memory; the others go on, and nobody asks it again.
                    answer, lost = None, True
                if answer is not None:
                    return answer
            return [measure(part, epsilon) for part in parts]
        finally:
            if not lost:
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
    _send(stdout, True)
    while (question := _receive(stdin)) is not None:
        measured: list[Measured] = []
        answer: list[Measured] | None = measured
        try:
            tensors = [pickle.loads(packed) for packed in question.tensors]
            for tensor, start, stop, name in question.ranges:
                found, distribution = measure(Part(tensors[tensor], start, stop, name), question.epsilon)
                measured.append((found, distribution if question.counts else None))
        except (CheckpointError, OSError):
            answer = None
        _send(stdout, answer)
