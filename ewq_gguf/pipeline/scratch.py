"""Copies of a model that are only written to be run, for llama.cpp runs nothing but files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ewq_gguf.allocation.methods import uniform_plan
from ewq_gguf.allocation.plan import raw_type
from ewq_gguf.ggml import GGMLType
from ewq_gguf.model import Model
from ewq_gguf.pipeline.convert import write_model

# float32 weights looked at together.
_AT_ONCE = 1 << 22


class ScratchCopies:
    """The model as GGUF files of one type each, written when first asked for and removed at the end."""

    def __init__(self, model: Model, threads: int, progress: Callable[[int, int], None] | None) -> None:
        self._model, self._threads, self._progress = model, threads, progress
        self._folder = tempfile.TemporaryDirectory(prefix="ewq-gguf-", dir=_scratch_folder(model))

    def path(self, kind: GGMLType) -> Path:
        """The file of that type, complete."""
        out = Path(self._folder.name) / f"{kind.name}.gguf"
        if not out.is_file():
            plan = uniform_plan(self._model, kind)
            write_model(self._model, plan, out, threads=self._threads, progress=self._progress)
        return out

    def original(self) -> Path:
        """In the model's own 16-bit type: what the quantized file will be compared with."""
        return self.path(raw_type(self._model))

    def for_probes(self) -> Path:
        """In the type that probes want.

        llama.cpp rounds activations to the type of the weights they meet. With bfloat16 that rounding answers any
        disturbance, however small, with a divergence of 1e-4 nats on a model of 30 blocks (seen), a third of what
        many probes measure; with float16 it is some 20 times less.
        """
        return self.path(GGMLType.F16 if _fits_half(self._model) else GGMLType.F32)

    def __enter__(self) -> ScratchCopies:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


def _fits_half(model: Model) -> bool:
    """Whether float16 holds every weight matrix; its largest number is 65504."""
    for tensor in model.tensors:
        step = max(1, _AT_ONCE // max(1, tensor.row_length))
        for start in range(0, tensor.n_rows if len(tensor.shape) > 1 else 0, step):
            rows = tensor.source.rows(start, min(start + step, tensor.n_rows))
            if max(float(rows.max(initial=0)), -float(rows.min(initial=0))) > np.finfo(np.float16).max:
                return False
    return True


def _scratch_folder(model: Model) -> Path | None:
    """A memory-backed folder where the scratch copy fits twice, else the system's own."""
    shared = Path("/dev/shm")
    need = 2 * sum(t.n_elements for t in model.tensors) * 2
    if shared.is_dir() and os.access(shared, os.W_OK):
        status = os.statvfs(shared)
        if status.f_bavail * status.f_frsize > 2 * need:
            return shared
    return None
