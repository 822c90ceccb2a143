"""The solver against brute force, against HiGHS, and against its own certificate."""

from __future__ import annotations

import itertools
import math
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from ewq_gguf.allocation.solver import Item, Option, size_range, solve, solve_for_damage, total
from ewq_gguf.errors import PlanError

BPW = (2.0625, 2.5625, 2.625, 3.4375, 3.4375, 4.25, 4.5, 5.5, 6.5625, 8.5, 16.0, 32.0)


def item(name: str, *options: tuple[int, float]) -> Item:
    return Item(name, tuple(Option(f"T{k}", b, d) for k, (b, d) in enumerate(options)))


def small_case(rng: random.Random) -> list[Item]:
    """Up to seven items of up to four options: ties, dominated options, pins and noise included."""
    style = rng.randrange(3)
    items = []
    for i in range(rng.randint(1, 7)):
        options = []
        for _ in range(rng.randint(1, 4)):
            size = rng.randint(0, 6) * 32 if style == 0 else rng.randint(0, 1000)
            damage = rng.randint(0, 5) / 4 if style == 0 else rng.uniform(-0.1, 3)
            options.append((size, 1000 / (size + 10) * damage if style == 2 else damage))
        items.append(item(f"t{i}", *options))
    return items


def model_like(
    n: int, seed: int, sizes: tuple[int, ...] = (262144, 1048576, 2883584, 12582912)
) -> list[Item]:
    """Tensors of a few shapes with 12 types each, damage falling by about 6 dB per bit with noise."""
    rng = np.random.default_rng(seed)
    items = []
    for i in range(n):
        elements = sizes[int(rng.integers(len(sizes)))]
        strength = math.exp(rng.normal(0, 1.5)) * elements * 1e-9
        noise = np.exp(rng.normal(0, 0.2, len(BPW)))
        options = [(int(elements * b / 8), float(strength * 4**-b * e)) for b, e in zip(BPW, noise)]
        items.append(item(f"blk.{i}", *options))
    return items


def brute_force(items: list[Item]) -> list[tuple[int, float]]:
    choices = itertools.product(*(range(len(i.options)) for i in items))
    return [total(items, choice) for choice in choices]


def highs(items: list[Item], budget: int) -> float:
    """The optimum by another solver; sizes in units of their common divisor keep its tolerances out."""
    cost = np.array([o.damage for i in items for o in i.options])
    size = np.array([o.bytes for i in items for o in i.options])
    unit = int(np.gcd.reduce(size))
    group = np.repeat(np.arange(len(items)), [len(i.options) for i in items])
    pick = csr_matrix((np.ones(len(cost)), (group, np.arange(len(cost)))))
    scale = float(np.median(cost))
    result = milp(
        cost / scale,
        integrality=np.ones(len(cost)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(pick, 1, 1),
            LinearConstraint(size[None, :] // unit, -np.inf, budget // unit),
        ],
        options={"mip_rel_gap": 1e-9, "time_limit": 20},
    )
    assert result.status == 0, result.message
    taken = np.round(result.x)
    assert float(taken @ size) <= budget
    return float(taken @ cost)


def test_equals_brute_force_on_500_cases() -> None:
    rng = random.Random(7)
    for _ in range(500):
        items = small_case(rng)
        floor, ceiling = size_range(items)
        budget = rng.randint(floor, ceiling)
        solution = solve(items, budget)
        best = min(damage for size, damage in brute_force(items) if size <= budget)
        assert solution.bytes <= budget
        assert (solution.bytes, solution.damage) == total(items, solution.choice)
        assert solution.damage == pytest.approx(best, rel=1e-9, abs=1e-12)
        assert solution.optimal
        assert solution.bound <= best + 1e-9


def test_fixed_damage_equals_brute_force() -> None:
    rng = random.Random(8)
    for _ in range(300):
        items = small_case(rng)
        every = brute_force(items)
        limit = rng.uniform(min(d for _, d in every), max(d for _, d in every))
        solution = solve_for_damage(items, limit)
        assert solution.damage <= limit
        assert solution.bytes == min(size for size, damage in every if damage <= limit)
        assert solution.bound <= solution.bytes


def test_equals_highs_on_a_model_of_200_tensors() -> None:
    for seed in range(3):
        items = model_like(200, seed)
        floor, ceiling = size_range(items)
        budget = floor + (ceiling - floor) // 7
        solution = solve(items, budget)
        assert solution.optimal
        best = highs(items, budget)
        assert solution.bytes <= budget
        assert solution.damage <= best * (1 + 1e-9)
        assert solution.bound <= best * (1 + 1e-9)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.2, 0.4, 0.8])
def test_thousand_tensors_gap_and_time(share: float) -> None:
    items = model_like(1000, 3)
    floor, ceiling = size_range(items)
    budget = int(floor + share * (ceiling - floor))
    began = time.perf_counter()
    solution = solve(items, budget)
    seconds = time.perf_counter() - began
    assert solution.bytes <= budget
    assert solution.gap <= 1e-3
    assert solution.bound <= solution.damage
    assert seconds < 4.0  # one second on an idle machine; test machines are not idle
    assert solve(items, budget) == solution


def test_unlike_sizes_still_fill_the_budget() -> None:
    rng = random.Random(1)
    sizes = tuple(rng.randrange(1000, 10_000_000) * 32 for _ in range(60))
    items = model_like(400, 5, sizes)
    floor, ceiling = size_range(items)
    solution = solve(items, (floor + ceiling) // 5)
    assert solution.gap <= 1e-4
    assert solution.damage <= highs(items, (floor + ceiling) // 5) * (1 + 1e-6)


def test_price_separates_what_was_taken_from_what_was_left() -> None:
    """The slope rule: away from the one item that straddles the budget, D + V*bytes is minimal."""
    items = model_like(300, 11)
    floor, ceiling = size_range(items)
    solution = solve(items, floor + (ceiling - floor) // 10)
    off = 0
    for entry, index in zip(items, solution.choice):
        priced = [o.damage + solution.price * o.bytes for o in entry.options]
        off += priced[index] > min(priced) * (1 + 1e-9)
    assert off <= 10


def test_pins_and_extremes() -> None:
    items = [item("a", (100, 1.0)), item("b", (10, 5.0), (20, 1.0)), item("c", (10, 2.0), (40, 0.5))]
    assert size_range(items) == (120, 160)
    assert solve(items, 120).choice == (0, 0, 0)
    assert solve(items, 160).choice == (0, 1, 1)
    assert solve(items, 130).choice == (0, 1, 0)
    assert solve(items, 130).damage == 4.0


def test_an_option_that_is_larger_and_worse_is_never_taken() -> None:
    items = [item("a", (10, 1.0), (20, 3.0)), item("b", (10, 1.0), (20, 0.5))]
    assert solve(items, 40).choice == (0, 1)


def test_ties_go_to_the_first_item() -> None:
    items = [item(f"t{i}", (10, 2.0), (20, 1.0)) for i in range(4)]
    assert solve(items, 60).choice == (1, 1, 0, 0)


def test_no_items() -> None:
    solution = solve([], 0)
    assert (solution.choice, solution.bytes, solution.damage, solution.gap) == ((), 0, 0.0, 0.0)


@pytest.mark.parametrize("budget", [119, 161])
def test_budget_outside_the_range_names_both_ends(budget: int) -> None:
    items = [item("a", (100, 1.0)), item("b", (20, 5.0), (60, 1.0))]
    with pytest.raises(PlanError, match=r"120.*160"):
        solve(items, budget)


def test_unreachable_damage_names_both_ends() -> None:
    items = [item("a", (100, 1.0)), item("b", (20, 5.0), (60, 1.5))]
    with pytest.raises(PlanError, match=r"2\.5.*6"):
        solve_for_damage(items, 2.0)
    assert solve_for_damage(items, 100.0).bytes == 120


@pytest.mark.parametrize(
    "bad",
    [
        Item("a", ()),
        item("a", (10, math.nan)),
        item("a", (10, math.inf)),
        item("a", (-1, 0.0)),
        item("a", (2**53, 0.0)),
    ],
)
def test_malformed_items_are_refused(bad: Item) -> None:
    with pytest.raises(PlanError):
        solve([bad], 10)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 50), st.floats(0, 1e3, allow_nan=False)), min_size=1, max_size=4),
        min_size=1,
        max_size=5,
    ),
    st.floats(0, 1),
)
def test_never_over_budget_and_never_beaten(raw: list[list[tuple[int, float]]], share: float) -> None:
    items = [item(f"t{i}", *options) for i, options in enumerate(raw)]
    floor, ceiling = size_range(items)
    budget = int(floor + share * (ceiling - floor))
    solution = solve(items, budget)
    best = min(damage for size, damage in brute_force(items) if size <= budget)
    assert solution.bytes <= budget
    assert solution.damage <= best + 1e-9 * (1 + abs(best))
    assert solution.bound <= best + 1e-9 * (1 + abs(best))
