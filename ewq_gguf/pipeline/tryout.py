"""Types tried out before their file is made: written to a scratch file and measured on the calibration text.

Which plans are tried, and what follows from it, is for `pipeline.rd_plan` and `pipeline.levels`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ewq_gguf.allocation.facts import Assignment
from ewq_gguf.allocation.plan import make_plan, raw_type
from ewq_gguf.calibration.journal import Journal, fingerprint
from ewq_gguf.calibration.meter import Meter
from ewq_gguf.evaluation.engine import Settings
from ewq_gguf.ggml import GGMLType
from ewq_gguf.model import Model
from ewq_gguf.pipeline.convert import write_model
from ewq_gguf.pipeline.importance import Importance
from ewq_gguf.pipeline.scratch import ScratchCopies

Progress = Callable[[int, int], None]

# Contexts of 512 tokens; the mean of 32 has a standard error of some 5 % where contexts differ by 30 %, the ratio of
# two files on the same contexts less.
CONTEXTS = 32


class Tryout:
    """Writes files of given types and measures them; what an earlier run measured is taken from the record.

    A context manager: the original runs once, when a first file is measured, and its distributions are kept in memory
    (at most 1 GiB; see `Meter`).

    Args:
        scratch: where the original lies and the files are written.
        text: calibration text.
        importance: what the files are quantized with.
    """

    def __init__(
        self,
        model: Model,
        scratch: ScratchCopies,
        text: Path,
        importance: Importance | None,
        record: Journal,
        threads: int,
    ) -> None:
        self.model = model
        self.importance = importance
        self.contexts = CONTEXTS
        self._scratch = scratch
        self._text = text
        self._record = record
        self._settings = Settings(n_threads=threads)
        self._threads = threads
        self._meter: Meter | None = None

    def __enter__(self) -> Tryout:
        return self

    def __exit__(self, *_: object) -> None:
        if self._meter is not None:
            self._meter.close()
            self._meter = None

    def kld(self, types: Mapping[str, GGMLType], progress: Progress | None = None) -> float:
        """Mean divergence from the original of a file with these types, in nats per token; inf where it breaks down.

        Args:
            types: by tensor; those not named stay as they are in every file.

        Raises:
            EvaluationError: llama.cpp cannot run a file, or the text is unusable.
        """
        raw = raw_type(self.model)
        whole = {t.name: types.get(t.name, raw if t.fixed is None else t.fixed) for t in self.model.tensors}
        key = f"file on {self.contexts} contexts " + fingerprint(
            {name: kind.name for name, kind in whole.items()}
        )
        known = self._record.get(key)
        if known is None:
            known = {"kld": self._measured(whole, progress)}
            self._record.add(key, known)
        return float(known["kld"])

    def _measured(self, types: Mapping[str, GGMLType], progress: Progress | None) -> float:
        original = self._scratch.original()
        if self._meter is None:
            with self._settings.engine(original) as engine:
                self._meter = Meter(engine, self._text, self.contexts, compact=True, spread=True)
        # One file after the other: several beside the original may be more than the memory holds.
        file = original.with_name("tryout.gguf")
        try:
            self._write(types, file)
            with self._settings.engine(file) as engine:
                return self._meter.read(engine, progress).mean.value
        finally:
            file.unlink(missing_ok=True)

    def _write(self, types: Mapping[str, GGMLType], out: Path) -> None:
        assignments = {name: Assignment(kind, kind, "to try out") for name, kind in types.items()}
        plan = make_plan(self.model, "rd", {}, assignments)
        write_model(self.model, plan, out, threads=self._threads, importance=self.importance)
