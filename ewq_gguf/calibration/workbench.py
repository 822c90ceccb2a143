"""A running model whose weights can be changed and put back, without loading it again.

The way in: a scratch copy of the GGUF file on a memory-backed file system is loaded with mmap and without
repacking, so that the model computes on the file's own pages; whoever writes into the file writes into the
running model. No native structure is touched. Whether that holds on the machine at hand is tried before
anything is measured: a tensor is changed, the logits must change, and come back when it is restored.

Other ways (through ggml's backend API, into GPU buffers) can stand beside this one: whatever measures asks
only for `Workbench`.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ewq_gguf.checkpoint.gguf_file import read_gguf
from ewq_gguf.errors import CheckpointError, EvaluationError, UnsupportedModelError
from ewq_gguf.evaluation.engine import Engine, F32Array
from ewq_gguf.ggml import GGMLType, ggml

_SIZES = {int(t): (t.block_size, t.block_bytes) for t in GGMLType}
_FLOATS = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)
# float32 elements that are worked on at a time.
_SLAB = 1 << 24


@dataclass(frozen=True)
class Slot:
    """Where a tensor lies in the scratch file; `shape` outermost first."""

    name: str
    type: GGMLType
    shape: tuple[int, ...]
    offset: int
    n_bytes: int

    @property
    def columns(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def n_rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def n_matrices(self) -> int:
        """Experts of a stacked weight, 1 for a plain matrix."""
        return math.prod(self.shape[:-2])

    def slabs(self) -> Iterator[tuple[int, int]]:
        """Row ranges small enough to be decoded at once, none across two matrices."""
        per_matrix = self.n_rows // max(1, self.n_matrices)
        step = max(1, _SLAB // max(1, self.columns))
        for first in range(0, self.n_rows, max(1, per_matrix)):
            for start in range(first, first + per_matrix, step):
                yield start, min(start + step, first + per_matrix)


class Workbench(Protocol):
    """What a measurement needs from a running model."""

    @property
    def engine(self) -> Engine: ...

    @property
    def slots(self) -> dict[str, Slot]: ...

    def rows(self, name: str, start: int, stop: int) -> F32Array:
        """Original weights, float32 (stop - start, columns), whatever is written at the moment."""
        ...

    def write(self, name: str, start: int, rows: F32Array) -> None:
        """Put rows into the running model."""
        ...

    def stored(self, name: str) -> npt.NDArray[np.uint8]:
        """A copy of a tensor's bytes as the running model has them."""
        ...

    def store(self, name: str, stored: npt.NDArray[np.uint8]) -> None:
        """Put bytes that `stored` returned into the running model."""
        ...

    def restore(self, name: str) -> None:
        """Put a tensor's original bytes back and check that they are back."""
        ...


class MappedWorkbench:
    """The workbench that writes into the mapped file; use as a context manager.

    Args:
        path: a GGUF file in F32, F16 or BF16 (norms and the like may be anything); it is only read.
        n_ctx, n_batch, n_threads: as for `Engine`.
        folder: where the scratch copy goes; None for a memory-backed file system with room, else the
            system's temporary folder.

    Raises:
        EvaluationError: the file cannot be loaded, there is no room for the copy, or writing into the file
            does not reach the running model.
    """

    def __init__(
        self,
        path: Path,
        *,
        n_ctx: int = 512,
        n_batch: int = 2048,
        n_threads: int | None = None,
        folder: Path | None = None,
    ) -> None:
        self.path = path
        self._engine: Engine | None = None
        self._source = _map(path, "r")
        self._scratch_folder: Path | None = None
        self._map: Any = None
        try:
            self._slots = _slots(path)
            scratch = self._copy(folder)
            self._engine = Engine(scratch, n_ctx=n_ctx, n_batch=n_batch, n_threads=n_threads)
            self._map = _map(scratch, "r+")
            # Both mappings outlive the name: should this process be killed, no copy stays behind.
            self._remove_scratch()
            self._try_out()
        except BaseException:
            self.close()
            raise

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            raise EvaluationError(f"the workbench for {self.path} is closed")
        return self._engine

    @property
    def slots(self) -> dict[str, Slot]:
        """Tensors that can be changed: matrices in a float type, by name."""
        return self._slots

    def rows(self, name: str, start: int, stop: int) -> F32Array:
        slot = self._slots[name]
        begin, end = _span(slot, start, stop)
        return ggml().dequantize(slot.type, self._source[begin:end], slot.columns)

    def current(self, name: str, start: int, stop: int) -> F32Array:
        """Weights as the running model has them, float32 (stop - start, columns)."""
        slot = self._slots[name]
        begin, end = _span(slot, start, stop)
        return ggml().dequantize(slot.type, self._map[begin:end], slot.columns)

    def write(self, name: str, start: int, rows: F32Array) -> None:
        slot = self._slots[name]
        begin, end = _span(slot, start, start + len(rows))
        self._map[begin:end] = ggml().quantize(slot.type, rows).reshape(-1)

    def stored(self, name: str) -> npt.NDArray[np.uint8]:
        slot = self._slots[name]
        return np.array(self._map[slot.offset : slot.offset + slot.n_bytes])

    def store(self, name: str, stored: npt.NDArray[np.uint8]) -> None:
        slot = self._slots[name]
        self._map[slot.offset : slot.offset + slot.n_bytes] = stored

    def restore(self, name: str) -> None:
        slot = self._slots[name]
        for start, stop in slot.slabs():
            begin, end = _span(slot, start, stop)
            self._map[begin:end] = self._source[begin:end]
            if not np.array_equal(self._map[begin:end], self._source[begin:end]):
                raise EvaluationError(f"{name} could not be restored in the scratch copy of {self.path}")

    def intact(self) -> bool:
        """Whether every byte of the scratch copy equals the original's."""
        if len(self._map) != len(self._source):
            return False
        for start in range(0, len(self._source), _SLAB):
            part = slice(start, start + _SLAB)
            if not np.array_equal(self._map[part], self._source[part]):
                return False
        return True

    def _copy(self, folder: Path | None) -> Path:
        size = self.path.stat().st_size
        tried = []
        for place in [folder] if folder is not None else _places():
            try:
                if shutil.disk_usage(place).free < size * 1.05:
                    tried.append(f"{place} (full)")
                    continue
                self._scratch_folder = Path(tempfile.mkdtemp(prefix="ewq-gguf-", dir=place))
                copy = self._scratch_folder / "scratch.gguf"
                shutil.copyfile(self.path, copy)
                return copy
            except OSError as error:
                tried.append(f"{place} ({error.strerror or error})")
                self._remove_scratch()
        raise EvaluationError(
            f"no room for a scratch copy of {self.path} ({size:,} bytes): tried {', '.join(tried)}; "
            f"free some memory or name another folder"
        )

    def _try_out(self) -> None:
        """Change one tensor, see the logits change and come back."""
        # A large one: some architectures carry small tensors that llama.cpp never uses (RWKV 7's first block).
        inside = [n for n in self._slots if n.startswith("blk.")]
        name = max(inside or self._slots, key=lambda n: self._slots[n].n_bytes, default=None)
        if name is None:
            raise EvaluationError(f"{self.path} holds no weight matrix in F32, F16 or BF16 to probe")
        before = self._few_logits()
        again = self._few_logits()
        for start, stop in self._slots[name].slabs():
            self.write(name, start, self.rows(name, start, stop) * np.float32(0.5))
        during = self._few_logits()
        self.restore(name)
        after = self._few_logits()
        if np.array_equal(before, during):
            raise EvaluationError(
                f"writing into the scratch copy of {self.path} does not reach the running model: this "
                f"llama.cpp keeps its own copy of the weights (a GPU build, or a file system without shared "
                f"mappings); set LLAMA_CPP_LIB_PATH to a CPU build, or allocate without probes"
            )
        if np.array_equal(before, again) and not np.array_equal(before, after):
            raise EvaluationError(
                f"the weights of {self.path} could not be restored in memory; it cannot be probed"
            )

    def _few_logits(self) -> F32Array:
        engine = self.engine
        n = min(engine.n_ctx, engine.n_batch, 16)
        tokens = np.arange(1, n + 1, dtype=np.int32) % engine.n_vocab
        engine.clear()
        outputs = np.zeros(n, dtype=bool)
        outputs[-1] = True
        places, sequences = np.arange(n, dtype=np.int32), np.zeros(n, dtype=np.int32)
        return engine.decode(tokens, places, sequences, outputs).copy()

    def close(self) -> None:
        """Free the model and delete the scratch copy; may be called twice."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        self._map = None
        self._remove_scratch()

    def _remove_scratch(self) -> None:
        if self._scratch_folder is not None:
            shutil.rmtree(self._scratch_folder, ignore_errors=True)
            self._scratch_folder = None

    def __enter__(self) -> MappedWorkbench:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _map(path: Path, mode: Any) -> npt.NDArray[np.uint8]:
    try:
        return np.memmap(path, dtype=np.uint8, mode=mode)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path} cannot be mapped into memory: {error}") from None


def _span(slot: Slot, start: int, stop: int) -> tuple[int, int]:
    row_bytes = slot.type.row_bytes(slot.columns)
    return slot.offset + start * row_bytes, slot.offset + stop * row_bytes


def _slots(path: Path) -> dict[str, Slot]:
    try:
        file = read_gguf(path, _SIZES)
    except (CheckpointError, UnsupportedModelError) as error:
        raise EvaluationError(str(error)) from None
    return {
        entry.name: Slot(entry.name, GGMLType(entry.type), entry.shape, entry.begin, entry.end - entry.begin)
        for entry in file.entries
        # Single vectors (norms, biases) are never quantized.
        if len(entry.shape) >= 2 and entry.type in _FLOATS
    }


def _places() -> list[Path]:
    """Folders for the scratch copy, memory-backed ones first."""
    shared = Path("/dev/shm")
    places = [shared] if shared.is_dir() and os.access(shared, os.W_OK) else []
    return [*places, Path(tempfile.gettempdir())]
