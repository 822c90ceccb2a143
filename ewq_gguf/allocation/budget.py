"""EWQ under a budget of bytes: demote block after block until the file fits (arXiv 2503.04704).

All blocks start raw. In sweeps, first from raw to 8-bit, then to 4-bit, then to 1.58-bit, blocks are
demoted one at a time in a given order: ascending entropy for EWQ, descending exec_index for FastEWQ. The
answer is the first state whose file fits. Since the states do not depend on the budget, a larger budget
never demotes more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ewq_gguf.allocation.ewq import LADDER, Precision
from ewq_gguf.allocation.plan import Plan
from ewq_gguf.errors import PlanError
from ewq_gguf.model import block_of

PlanFor = Callable[[Mapping[int, Precision]], Plan]
SizeOf = Callable[[Plan], int]


@dataclass(frozen=True)
class Demotion:
    """One block lowered to the class `to`."""

    block: int
    to: Precision


@dataclass(frozen=True)
class Goal:
    """What a plan must fit into.

    Attributes:
        limit: bytes that no fitting plan's tensor data exceed.
        fits: whether a plan fits.
        refusal: what to say of a plan that does not; the class is the lowest that blocks went down to, None
            where nothing was demoted.
    """

    limit: int
    fits: Callable[[Plan], bool]
    refusal: Callable[[Plan, Precision | None], str]


@dataclass(frozen=True)
class GoalFit:
    """What fits.

    Attributes:
        plan: the first plan of the sweeps that fits.
        demotions: how many single demotions it took.
        classes: block index -> class.
    """

    plan: Plan
    demotions: int
    classes: Mapping[int, Precision]


def lowered(lowest: Precision | None) -> str:
    """The condition under which a smallest plan is the smallest, for messages."""
    return "" if lowest is None else f"with every block at {lowest.value} "


def file_goal(size: int, size_of: SizeOf) -> Goal:
    """A file of at most `size` bytes; `size_of` tells a plan's file exactly, header and padding included."""

    def refusal(smallest: Plan, lowest: Precision | None) -> str:
        outside = sum(t.nbytes for t in smallest.tensors if block_of(t.name) is None)
        kinds = {t.type.name for t in smallest.tensors if block_of(t.name) is None and len(t.shape) > 1}
        return (
            f"a file of {size:,} bytes cannot be reached: {lowered(lowest)}the smallest is "
            f"{size_of(smallest):,} bytes, of which {outside:,} lie outside the blocks "
            f"({'/'.join(sorted(kinds)) or 'no matrices'}); allow more, or choose smaller types with --embedding "
            "and --classes"
        )

    return Goal(size, lambda plan: size_of(plan) <= size, refusal)


def demotions(
    start: Mapping[int, Precision], order: Sequence[int], lowest: Precision = Precision.TERNARY
) -> list[Demotion]:
    """Every demotion from the classes `start` down to `lowest`, in the order in which they are made.

    Raises:
        PlanError: `order` does not name each block once.
    """
    if sorted(order) != sorted(start):
        raise PlanError("the order of demotion must name every block once")
    rank = {c: i for i, c in enumerate(LADDER)}
    return [
        Demotion(block, level)
        for level in LADDER[1 : rank[lowest] + 1]
        for block in order
        if rank[start[block]] < rank[level]
    ]


def apply(start: Mapping[int, Precision], steps: Sequence[Demotion]) -> dict[int, Precision]:
    """The classes after some demotions."""
    classes = dict(start)
    for step in steps:
        classes[step.block] = step.to
    return classes


def fit_goal(
    start: Mapping[int, Precision],
    order: Sequence[int],
    goal: Goal,
    plan_for: PlanFor,
    lowest: Precision = Precision.TERNARY,
) -> GoalFit:
    """The first state of the sweeps that fits.

    Args:
        start: the classes before any demotion.
        order: block indices, first to demote first.
        plan_for: the plan that gives blocks these classes.
        lowest: the class below which no block goes.

    Raises:
        PlanError: even the smallest state does not fit; the message says what it takes.
    """
    steps = demotions(start, order, lowest)
    data = _data_bytes(start, steps, plan_for)
    for count, nbytes in enumerate(data):
        # Building a plan costs time, and a plan takes more room than its data.
        if nbytes > goal.limit:
            continue
        classes = apply(start, steps[:count])
        plan = plan_for(classes)
        if goal.fits(plan):
            return GoalFit(plan, count, classes)
    smallest = min(range(len(data)), key=lambda k: (data[k], k))
    raise PlanError(goal.refusal(plan_for(apply(start, steps[:smallest])), lowest))


def _data_bytes(start: Mapping[int, Precision], steps: Sequence[Demotion], plan_for: PlanFor) -> list[int]:
    """Bytes of tensor data after 0, 1, 2, ... demotions."""
    table: dict[Precision, dict[int, int]] = {}
    for level in {*start.values(), *(s.to for s in steps)}:
        held = dict.fromkeys(start, 0)
        for t in plan_for(dict.fromkeys(start, level)).tensors:
            block = block_of(t.name)
            if block in held:
                held[block] += t.nbytes
        table[level] = held
    total = plan_for(start).data_bytes
    classes = dict(start)
    sums = [total]
    for step in steps:
        total += table[step.to][step.block] - table[classes[step.block]][step.block]
        classes[step.block] = step.to
        sums.append(total)
    return sums
