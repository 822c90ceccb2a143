"""The table of tiny checkpoints: at least one entry for each family and config variant."""

from __future__ import annotations

from tests.tiny import encoders, established, newest, quantized, ranked, rarer, recent, scarce
from tests.tiny.case import Case

CASES: tuple[Case, ...] = (
    *established.CASES,
    *newest.CASES,
    *quantized.CASES,
    *rarer.CASES,
    *ranked.CASES,
    *recent.CASES,
    *encoders.CASES,
    *scarce.CASES,
)
