"""What the damages of a table come to in files and on more text than the probes saw.

A probe runs few contexts, and how much a model diverges differs from context to context: two of them may lie a
quarter above the text at large, for every tensor alike. A probe also leaves the arithmetic alone, while llama.cpp
rounds activations to 8 bits before they meet quantized weights. So two files are written and measured on contexts
spread over the whole text, one of middle size and the finest of the table; a line through the two says what a unit of
damage costs (the level) and what is there besides (the floor). Which types are chosen for a size does not depend on
either.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from ewq_gguf.allocation.scores import ScoreTable
from ewq_gguf.allocation.solver import size_range
from ewq_gguf.ggml import GGMLType
from ewq_gguf.pipeline.tryout import Progress, Tryout

# Bits per weight of the file of middle size: small enough to stand far above the floor, large enough for errors to add up.
_MIDDLE = 4.5
# A level beyond this factor would say that the probes went wrong, not that the text differs.
_MOST = 4.0

_Types = Mapping[str, GGMLType]


def leveled(table: ScoreTable, tryout: Tryout, progress: Progress | None = None) -> ScoreTable:
    """The table with its level and floor.

    Raises:
        EvaluationError: llama.cpp cannot run a file, or the text is unusable.
    """
    finest = {name: max(row, key=lambda kind: row[kind].bytes) for name, row in table.options.items()}
    middle = _middle(table, tryout.model.n_parameters)
    fine, coarse = (tryout.kld(types, progress) for types in (finest, middle))
    if not math.isfinite(fine + coarse):
        return table
    level, floor = line(table.predict(finest)[1], fine, table.predict(middle)[1], coarse)
    return replace(table, level=level, floor=floor)


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
