"""The multiple-choice knapsack behind the solver: one option per item, least cost under one capacity.

1. Slope rule (CVXQ, arXiv 2409.02026): at a price V every item takes the option that minimises
   cost + V * weight. Only corners of an item's lower convex hull are ever taken, so the dual function bends
   at hull slopes only; the best V is found by bisection over those slopes and is exact. The dual value
   bounds every solution.
2. Greedy fill of the weight left over, in the order of cost removed per weight.
3. Swaps: one item moves to more weight and another to less, until neither a move nor a pair helps.
4. Search of what is left. With reduced costs r = cost + V*weight - min(cost + V*weight) every solution's
   distance from the dual bound is sum(r) + V*(unused weight), so options with r above the current distance
   are out. Dynamic programming over undominated (weight, cost) states of the remaining options finds the
   optimum, or, when the number of states passes a fixed limit, continues with the most promising ones: then
   the result is no longer proven optimal but is still bounded by the dual.

Nothing depends on time or on hashing: the same numbers give the same choice.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]

_MAX_STATES = 20_000
_MAX_WORK = 3_000_000
_EPS = 1e-13


@dataclass(frozen=True)
class _Edges:
    """Steps along the lower convex hulls of all items, steepest (most cost removed per weight) first."""

    slope: F64Array
    item: IntArray
    target: IntArray


def _hull(cost: F64Array, weight: F64Array) -> list[int]:
    """Indices of one item's lower convex hull, from the lightest option to the least costly one."""
    order = sorted((k for k in range(len(cost)) if cost[k] < np.inf), key=lambda k: (weight[k], cost[k], k))
    corners: list[int] = []
    for k in order:
        if corners and cost[k] >= cost[corners[-1]]:
            continue
        while len(corners) >= 2:
            a, b = corners[-2], corners[-1]
            bend = (cost[b] - cost[a]) * (weight[k] - weight[a]) - (cost[k] - cost[a]) * (
                weight[b] - weight[a]
            )
            if bend < 0:
                break
            corners.pop()
        corners.append(k)
    return corners


def _edges(cost: F64Array, weight: F64Array) -> tuple[IntArray, _Edges]:
    """The lightest hull corner of every item, and all hull steps in the order the slope rule takes them."""
    start = np.zeros(len(cost), dtype=np.intp)
    steps: list[tuple[float, int, int, int]] = []
    for row in range(len(cost)):
        corners = _hull(cost[row], weight[row])
        start[row] = corners[0]
        slope = math.inf
        for rank, (a, b) in enumerate(itertools.pairwise(corners)):
            # Slopes fall along a hull; rounding must not let a later step of an item overtake an earlier one.
            slope = min(slope, float((cost[row, a] - cost[row, b]) / (weight[row, b] - weight[row, a])))
            steps.append((-slope, row, rank, b))
    steps.sort()
    return start, _Edges(
        np.array([-step[0] for step in steps], dtype=np.float64),
        np.array([step[1] for step in steps], dtype=np.intp),
        np.array([step[3] for step in steps], dtype=np.intp),
    )


def _priced(price: float, cost: F64Array, weight: F64Array) -> F64Array:
    return cost + price * np.where(np.isfinite(weight), weight, 0.0)


def minimise(cost: F64Array, weight: F64Array, capacity: float) -> tuple[list[int], float, float, bool]:
    """One option per item, least total cost, total weight <= capacity.

    Args:
        cost: float64 (items, options), inf where an item has fewer options.
        weight: float64 (items, options), inf where `cost` is; whole numbers are added exactly below 2^53.
        capacity: the caller has checked that the lightest choice fits.

    Returns:
        The option of every item, the dual bound on the cost, the price V at which the dual is largest, and
        whether the search was exhaustive.
    """
    rows = np.arange(len(cost))
    if not len(rows):
        return [], 0.0, 0.0, True
    start, edges = _edges(cost, weight)

    def weight_of(choice: IntArray) -> float:
        return float(weight[rows, choice].sum())

    def dual(price: float) -> float:
        return math.fsum(_priced(price, cost, weight).min(axis=1)) - price * capacity

    # Bisection over the slopes at which the slope rule changes its mind: `low` is the first that overflows.
    low, high = 0, len(edges.slope)
    while low < high:
        middle = (low + high) // 2
        taken = start.copy()
        taken[edges.item[: middle + 1]] = edges.target[: middle + 1]
        if weight_of(taken) <= capacity:
            low = middle + 1
        else:
            high = middle
    choice = start.copy()
    choice[edges.item[:low]] = edges.target[:low]
    price = float(edges.slope[low]) if low < len(edges.slope) else 0.0
    bound = dual(price)
    if low == len(edges.slope):
        return choice.tolist(), bound, price, True

    _fill(choice, cost, weight, capacity, edges, low)
    _swap(choice, cost, weight, capacity)
    optimal = _search(choice, cost, weight, capacity, price, bound)
    return choice.tolist(), bound, price, optimal


def _fill(
    choice: IntArray, cost: F64Array, weight: F64Array, capacity: float, edges: _Edges, begin: int
) -> None:
    """Spend what is left, one hull step after another, skipping steps that do not fit; in place."""
    left = capacity - float(weight[np.arange(len(choice)), choice].sum())
    for step in range(begin, len(edges.slope)):
        item, target = int(edges.item[step]), int(edges.target[step])
        here = int(choice[item])
        extra = float(weight[item, target] - weight[item, here])
        if extra <= left and cost[item, target] < cost[item, here]:
            choice[item] = target
            left -= extra


def _swap(choice: IntArray, cost: F64Array, weight: F64Array, capacity: float) -> None:
    """Single and paired moves until none helps; in place. Every round takes the best of all moves."""
    rows = np.arange(len(choice))
    n_options = cost.shape[1]
    item = np.repeat(rows, n_options)
    target = np.tile(np.arange(n_options), len(rows))
    for _ in range(4 * len(rows) + 64):
        gain = (cost[rows, choice][:, None] - cost).ravel()
        extra = (weight - weight[rows, choice][:, None]).ravel()
        left = capacity - float(weight[rows, choice].sum())
        real = np.isfinite(gain)
        # Lighter moves sorted by the room they make, with the cheapest so far and the cheapest of another.
        down = np.flatnonzero(real & (extra < 0))
        down = down[np.lexsort((-gain[down], extra[down]))]
        first, second = _best_two(gain[down], item[down])
        up = np.flatnonzero(real & (gain > 0) & (extra > 0))
        fit = np.searchsorted(extra[down], left - extra[up], side="right") - 1
        alone = np.where(extra[up] <= left, gain[up], -np.inf)
        paired: F64Array = np.full(len(up), -np.inf)
        partner: IntArray = np.full(len(up), -1, dtype=np.intp)
        for candidates in (first, second):
            usable = fit >= 0
            other = np.where(usable, candidates[np.maximum(fit, 0)] if len(down) else -1, -1)
            usable &= other >= 0
            if not usable.any():
                continue
            move = down[np.maximum(other, 0)]
            usable &= item[move] != item[up]
            value = np.where(usable, gain[up] + gain[move], -np.inf)
            better = value > paired
            paired = np.where(better, value, paired)
            partner = np.where(better, move, partner)
        best = np.maximum(alone, paired)
        scale = float(np.abs(cost[rows, choice]).sum())
        free = np.flatnonzero(real & (gain > 0) & (extra <= 0))
        if len(free):
            move = int(free[gain[free].argmax()])
            choice[item[move]] = target[move]
            continue
        if not len(up) or best.max() <= _EPS * scale:
            return
        k = int(best.argmax())
        choice[item[up[k]]] = target[up[k]]
        if paired[k] > alone[k]:
            choice[item[partner[k]]] = target[partner[k]]


def _best_two(gain: F64Array, item: IntArray) -> tuple[IntArray, IntArray]:
    """For each prefix: position of the largest gain, and of the largest gain of any other item (-1: none)."""
    first = np.full(len(gain), -1, dtype=np.intp)
    second = np.full(len(gain), -1, dtype=np.intp)
    a = b = -1
    for k in range(len(gain)):
        if a < 0 or gain[k] > gain[a]:
            if a >= 0 and item[a] != item[k]:
                b = a
            a = k
        elif item[k] != item[a] and (b < 0 or gain[k] > gain[b]):
            b = k
        first[k], second[k] = a, b
    return first, second


def _search(
    choice: IntArray, cost: F64Array, weight: F64Array, capacity: float, price: float, bound: float
) -> bool:
    """Dynamic programming over what reduced costs leave open; improves `choice`, True if exhaustive."""
    rows = np.arange(len(choice))
    value = _priced(price, cost, weight)
    reduced = value - value.min(axis=1, keepdims=True)
    scale = float(np.abs(cost[rows, choice]).sum()) + price * capacity
    tolerance = _EPS * scale
    distance = math.fsum(cost[rows, choice]) - bound
    if distance <= tolerance:
        return True
    keep = reduced <= distance + tolerance
    open_items = np.flatnonzero(keep.sum(axis=1) > 1)
    base = keep.argmax(axis=1)
    base_weight = float(weight[rows, base].sum()) - float(weight[open_items, base[open_items]].sum())

    # Items whose alternatives cost most come first: they prune while the lists are short.
    dearest = np.where(keep, reduced, -np.inf).max(axis=1)[open_items]
    open_items = open_items[np.lexsort((open_items, -dearest))]
    lightest = np.where(keep, weight, np.inf).min(axis=1)[open_items]
    heaviest = np.where(keep, weight, -np.inf).max(axis=1)[open_items]
    after_light = np.append(np.cumsum(lightest[::-1])[::-1][1:], 0.0)
    after_heavy = np.append(np.cumsum(heaviest[::-1])[::-1][1:], 0.0)

    states_w = np.array([base_weight])
    states_r, states_c = np.zeros(1), np.zeros(1)
    trail: list[tuple[IntArray, IntArray]] = []
    exhaustive, work = True, 0
    slack = 1e-12 * max(1.0, abs(capacity)) if not float(capacity).is_integer() else 0.0
    for stage, item in enumerate(open_items):
        options = np.flatnonzero(keep[item])
        new_w = (weight[item, options][:, None] + states_w[None, :]).ravel()
        new_r = (reduced[item, options][:, None] + states_r[None, :]).ravel()
        new_c = (cost[item, options][:, None] + states_c[None, :]).ravel()
        parent = np.tile(np.arange(len(states_w)), len(options))
        taken = np.repeat(options, len(states_w))
        # What stays unused in the end costs `price` per unit of weight, at least down to the heaviest finish.
        waste = price * np.maximum(0.0, capacity - (new_w + after_heavy[stage]))
        alive = (new_w + after_light[stage] <= capacity + slack) & (new_r + waste < distance - tolerance)
        index = np.flatnonzero(alive)
        index = index[np.lexsort((parent[index], taken[index], new_c[index], new_w[index]))]
        if len(index):
            floor = np.minimum.accumulate(new_c[index])
            index = index[np.append(True, floor[1:] < floor[:-1])]
        limit = _MAX_STATES if work < _MAX_WORK else 256
        if len(index) > limit:
            exhaustive = False
            finish = new_r[index] + waste[index]
            index = np.sort(index[np.argsort(finish, kind="stable")[:limit]])
            index = index[np.argsort(new_w[index], kind="stable")]
        if not len(index):
            return exhaustive
        work += len(new_w)
        trail.append((parent[index], taken[index]))
        states_w, states_r, states_c = new_w[index], new_r[index], new_c[index]

    final = np.where(states_w <= capacity, states_r + price * (capacity - states_w), np.inf)
    if not np.isfinite(final).any():
        return exhaustive
    state = int(final.argmin())
    found = base.copy()
    for (parents, options), item in zip(reversed(trail), reversed(open_items)):
        found[item] = options[state]
        state = int(parents[state])
    better = math.fsum(cost[rows, found]) < math.fsum(cost[rows, choice])
    if better and float(weight[rows, found].sum()) <= capacity:
        choice[:] = found
    return exhaustive
