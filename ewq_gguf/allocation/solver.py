"""Which option each item takes so that the whole fits: exact bytes in, a choice and a certificate out.

An item is one tensor, or several that must share a type. Each of its options has exact bytes and a damage;
exactly one is chosen per item, and damages add (linearity theorem, arXiv 2411.17525). The method, CVXQ's
slope rule made exact, is in `knapsack.py`; here are the two questions asked of it: the least damage that
fits a size, and the smallest size that keeps a damage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ewq_gguf.allocation.knapsack import F64Array, minimise
from ewq_gguf.errors import PlanError

_EXACT_BYTES = 2**53


@dataclass(frozen=True)
class Option:
    """One way to store an item: ggml type name, exact bytes, expected damage (any unit, the same for all)."""

    type: str
    bytes: int
    damage: float


@dataclass(frozen=True)
class Item:
    """Tensors that share one type; an item with a single option is a pin."""

    name: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Solution:
    """A choice and its certificate.

    Attributes:
        choice: index into `items[i].options` for each item, in the order given.
        bytes: exact total.
        damage: total damage (correctly rounded sum).
        objective: what was minimised, "damage" or "bytes".
        bound: no choice that satisfies the constraint has a smaller objective (the Lagrangian dual).
        price: damage per byte at the optimum of the dual (CVXQ's V).
        optimal: True if the search was exhaustive, so that `choice` is an optimum and not merely near it.
    """

    choice: tuple[int, ...]
    bytes: int
    damage: float
    objective: Literal["damage", "bytes"]
    bound: float
    price: float
    optimal: bool

    @property
    def gap(self) -> float:
        """How far from optimal at most, as a fraction of the objective (a bound; see `optimal`)."""
        value = self.damage if self.objective == "damage" else float(self.bytes)
        distance = max(0.0, value - self.bound)
        return distance / abs(value) if value else distance


def total(items: Sequence[Item], choice: Sequence[int]) -> tuple[int, float]:
    """Exact bytes and summed damage of any choice, a stock preset's for instance."""
    taken = [item.options[index] for item, index in zip(items, choice, strict=True)]
    return sum(option.bytes for option in taken), math.fsum(option.damage for option in taken)


def size_range(items: Sequence[Item]) -> tuple[int, int]:
    """Floor and ceiling in bytes: every item at its smallest and at its largest option.

    Raises:
        PlanError: an item has no option, or an option has negative bytes or a damage that is not finite.
    """
    _check(items)
    return (
        sum(min(option.bytes for option in item.options) for item in items),
        sum(max(option.bytes for option in item.options) for item in items),
    )


def solve(items: Sequence[Item], budget: int) -> Solution:
    """Least damage within `budget` bytes.

    Raises:
        PlanError: the budget lies outside [floor, ceiling] of `size_range`, or the items are malformed.
    """
    floor, ceiling = size_range(items)
    if not floor <= budget <= ceiling:
        side = "below the smallest" if budget < floor else "above the largest"
        raise PlanError(
            f"a budget of {budget:,} bytes is {side} possible size: with the types allowed these "
            f"{len(items)} items take between {floor:,} and {ceiling:,} bytes; choose a size in that range "
            f"or widen the type pool"
        )
    size, damage = _tables(items)
    choice, bound, price, optimal = minimise(damage, size, float(budget))
    n_bytes, value = total(items, choice)
    return Solution(tuple(choice), n_bytes, value, "damage", min(bound, value), price, optimal)


def solve_for_damage(items: Sequence[Item], max_damage: float) -> Solution:
    """Fewest bytes with a total damage of at most `max_damage` (Radio, arXiv 2505.03031: fix the accuracy).

    Raises:
        PlanError: even the least damaging options exceed `max_damage`, or the items are malformed.
    """
    _check(items)
    least = math.fsum(min(option.damage for option in item.options) for item in items)
    most = math.fsum(max(option.damage for option in item.options) for item in items)
    if not least <= max_damage:
        raise PlanError(
            f"a damage of at most {max_damage:g} cannot be reached: with the types allowed it lies between "
            f"{least:g} and {most:g}; raise the limit or add more precise types to the pool"
        )
    size, damage = _tables(items)
    limit = max_damage
    while True:
        choice, bound, price, optimal = minimise(size, damage, limit)
        n_bytes, value = total(items, choice)
        if value <= max_damage:
            break
        # Running sums inside the search round differently from fsum: give way by the overshoot.
        limit -= 2 * (value - max_damage)
    slope = 1.0 / price if price > 0 else 0.0
    return Solution(
        tuple(choice), n_bytes, value, "bytes", min(math.ceil(bound - 1e-6), n_bytes), slope, optimal
    )


def _check(items: Sequence[Item]) -> None:
    largest = 0
    for item in items:
        if not item.options:
            raise PlanError(f"no type is left for {item.name}: loosen its pin or widen the type pool")
        for option in item.options:
            if option.bytes < 0 or not math.isfinite(option.damage):
                raise PlanError(
                    f"{item.name} as {option.type} has {option.bytes} bytes and damage {option.damage}; "
                    f"the score table is damaged, compute it again"
                )
        largest += max(option.bytes for option in item.options)
    if largest >= _EXACT_BYTES:
        raise PlanError(f"{largest:,} bytes are more than can be added exactly; split the model")


def _tables(items: Sequence[Item]) -> tuple[F64Array, F64Array]:
    """Bytes and damage as [items, most options], missing options infinite in both."""
    width = max((len(item.options) for item in items), default=1)
    size = np.full((len(items), width), np.inf)
    damage = np.full((len(items), width), np.inf)
    for row, item in enumerate(items):
        size[row, : len(item.options)] = [option.bytes for option in item.options]
        damage[row, : len(item.options)] = [option.damage for option in item.options]
    return size, damage
