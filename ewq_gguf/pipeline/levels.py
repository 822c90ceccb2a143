"""What the damages of a table come to in files and on more text than the probes saw.

A probe runs few contexts, and how much a model diverges differs from context to context: two of them may lie a
quarter above the text at large, for every tensor alike. A probe also leaves the arithmetic alone, while llama.cpp
rounds activations to 8 bits before they meet quantized weights. So two files are written and measured on contexts
spread over the whole text, one of middle size and the finest of the table; a line through the two says what a unit of
damage costs (the level) and what is there besides (the floor). Which types are chosen for a size does not depend on
either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from ewq_gguf.allocation.facts import Assignment
from ewq_gguf.allocation.plan import make_plan, raw_type
from ewq_gguf.allocation.scores import ScoreTable
from ewq_gguf.allocation.solver import size_range
from ewq_gguf.calibration.journal import Journal, fingerprint
from ewq_gguf.evaluation.divergence import divergence
from ewq_gguf.evaluation.engine import Settings
from ewq_gguf.ggml import GGMLType
from ewq_gguf.model import Model
from ewq_gguf.pipeline.convert import write_model
from ewq_gguf.pipeline.importance import Importance
from ewq_gguf.pipeline.scratch import ScratchCopies

# Contexts of 512 tokens; the mean of 16 has a standard error of some 7 % where contexts differ by 30 %.
CONTEXTS = 16
# Bits per weight of the file of middle size: small enough to stand far above the floor, large enough for errors to add up.
_MIDDLE = 4.5
# A level beyond this factor would say that the probes went wrong, not that the text differs.
_MOST = 4.0

_Types = Mapping[str, GGMLType]


class Levels:
    """Writes and measures the two files; what an earlier run measured is taken from the record.

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
        self._model = model
        self._scratch = scratch
        self._text = text
        self._importance = importance
        self._record = record
        self._threads = threads

    def applied_to(self, table: ScoreTable, progress: Callable[[int, int], None] | None = None) -> ScoreTable:
        """The table with its level and floor.

        Raises:
            EvaluationError: llama.cpp cannot run a file, or the text is unusable.
        """
        finest = {name: max(row, key=lambda kind: row[kind].bytes) for name, row in table.options.items()}
        middle = _middle(table, self._model.n_parameters)
        fine, coarse = (self._measured(types, progress) for types in (finest, middle))
        level, floor = line(table.predict(finest)[1], fine, table.predict(middle)[1], coarse)
        return replace(table, level=level, floor=floor)

    def _measured(self, types: _Types, progress: Callable[[int, int], None] | None) -> float:
        key = "level " + fingerprint({name: kind.name for name, kind in types.items()})
        known = self._record.get(key)
        if known is None:
            original = self._scratch.original()
            file = original.with_name("level.gguf")
            # One after the other: two files beside the original may be more than the memory holds.
            try:
                self._write(types, file)
                [result] = divergence(
                    file,
                    original,
                    self._text,
                    settings=Settings(n_threads=self._threads),
                    chunks=CONTEXTS,
                    spread=True,
                    progress=progress,
                )
            finally:
                file.unlink(missing_ok=True)
            known = {"kld": result.mean_kld}
            self._record.add(key, known)
        return float(known["kld"])

    def _write(self, types: _Types, out: Path) -> None:
        raw = raw_type(self._model)
        assignments = {}
        for t in self._model.tensors:
            kind = types.get(t.name, raw if t.fixed is None else t.fixed)
            assignments[t.name] = Assignment(kind, kind, "to predict from")
        plan = make_plan(self._model, "rd", {}, assignments)
        write_model(self._model, plan, out, threads=self._threads, importance=self._importance)


def line(fine: float, fine_kld: float, coarse: float, coarse_kld: float) -> tuple[float, float]:
    """Level and floor of the line through two files' (predicted, measured) divergences; the floor is never negative.

    Two files whose predictions hardly differ give no level; it is 1 then.
    """
    if coarse <= 1.5 * fine:
        return 1.0, max(0.0, fine_kld - fine)
    level = (coarse_kld - fine_kld) / (coarse - fine)
    if fine_kld < level * fine:
        level = coarse_kld / coarse
    level = min(max(level, 1 / _MOST), _MOST)
    return level, max(0.0, fine_kld - level * fine)


def _middle(table: ScoreTable, n_parameters: int) -> _Types:
    """The best choice at about 4.5 bits per weight, or as near to that as the table reaches."""
    lowest, highest = (table.fixed_bytes + n for n in size_range(table.items()))
    wanted = int(_MIDDLE * n_parameters / 8)
    return table.allocate(min(max(wanted, lowest), highest)).types
