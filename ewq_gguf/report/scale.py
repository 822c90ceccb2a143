"""From values to places in a picture: linear and logarithmic scales, and ticks at round numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] to [start, stop] in picture units; logarithmic where `log` is set (low > 0 then)."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def at(self, value: float) -> float:
        """The place of a value; values outside are put on the edge."""
        inside = min(max(value, self.low), self.high)
        low, high, v = (math.log(x) if self.log else x for x in (self.low, self.high, inside))
        return self.start + (self.stop - self.start) * (v - low) / (high - low)

    def ticks(self, wanted: int = 6) -> list[float]:
        """Round values inside the range, about `wanted` of them."""
        return (
            log_ticks(self.low, self.high, wanted) if self.log else linear_ticks(self.low, self.high, wanted)
        )


def linear_ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten inside [low, high]."""
    step = _round_step((high - low) / max(1, wanted))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def log_ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    """Powers of ten inside [low, high]; their multiples by 2 and 5 too where there is room."""
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for factors in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
        ticks = [t for e in exponents for f in factors if low <= (t := float(f"{f}e{e}")) <= high]
        if found and len(ticks) > 1.5 * wanted:
            break
        found = ticks
        if len(found) >= wanted:
            break
    if len(found) > 2 * wanted:
        found = found[:: math.ceil(len(found) / wanted)]
    return found if len(found) >= 2 else linear_ticks(low, high, wanted)


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def span(values: Iterable[float], log: bool = False, margin: float = 0.06) -> tuple[float, float]:
    """A range around values with some air; never empty, positive where `log` is set."""
    kept = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    if not kept:
        return (0.1, 1.0) if log else (0.0, 1.0)
    low, high = min(kept), max(kept)
    if log:
        air = max((high / low) ** margin, 1.1)
        return low / air, high * air
    air = (high - low) * margin or abs(high) * 0.05 or 1.0
    return low - air, high + air


def number(value: float) -> str:
    """A figure for an axis or a label: four significant digits, no exponent between 1e-4 and 1e6."""
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{value:.4g}" if abs(value) < 10000 else f"{value:,.0f}"


def byte_unit(largest: float) -> tuple[str, int]:
    """The unit in which sizes up to `largest` bytes are shown: its name, and its bytes."""
    return (
        ("GiB", 1 << 30)
        if largest >= 4 << 30
        else ("MiB", 1 << 20)
        if largest >= 1 << 20
        else ("KiB", 1 << 10)
    )


def size(nbytes: int) -> str:
    """Bytes as people read them: "6.3 MiB"."""
    name, unit = byte_unit(nbytes)
    return f"{nbytes / unit:,.1f} {name}"


def count(n: int) -> str:
    """A number of parameters as people say it: "10.5 M", "669 B"."""
    for name, unit in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if n >= unit:
            return f"{n / unit:.3g} {name}"
    return str(n)
