"""The table of tiny checkpoints: at least one entry for each family and config variant."""

from __future__ import annotations

from tests.tiny import established, newest, quantized, rarer
from tests.tiny.case import Case

CASES: tuple[Case, ...] = (*established.CASES, *newest.CASES, *quantized.CASES, *rarer.CASES)
