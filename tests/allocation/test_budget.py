"""Demotion under a budget: never over it, the first state that fits, and sensible at the edges."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ewq_gguf.allocation.analysis import Analysis, analyze_model
from ewq_gguf.allocation.budget import apply, demotions, file_goal, fit_goal
from ewq_gguf.allocation.ewq import LADDER, BlockStatistics, ClassTypes, Precision, ascending_entropy
from ewq_gguf.allocation.methods import class_plan
from ewq_gguf.allocation.plan import Plan
from ewq_gguf.checkpoint import ArrayTensor
from ewq_gguf.errors import PlanError
from ewq_gguf.ggml import GGMLType
from ewq_gguf.model import Model, ModelTensor
from ewq_gguf.pipeline.convert import file_size, write_model
from ewq_gguf.pipeline.source import load_model

RAW, EIGHT, FOUR, TERNARY = LADDER


def made_up(rows: list[int], *, experts: int = 0, dense_first: bool = False, width: int = 256) -> Model:
    """A model of one matrix (or stack of experts) per block, with `rows[i]` rows of `width` weights."""
    V = gguf.GGUFValueType
    metadata = {
        "general.architecture": gguf.GGUFValue("llama", V.STRING),
        "llama.block_count": gguf.GGUFValue(len(rows), V.UINT32),
        "llama.attention.head_count": gguf.GGUFValue(1, V.UINT32),
        "llama.expert_count": gguf.GGUFValue(experts, V.UINT32),
    }
    rng = np.random.default_rng(len(rows))

    def tensor(name: str, *shape: int, fixed: GGMLType | None = None) -> ModelTensor:
        values = rng.normal(scale=0.02, size=shape)
        kind = np.float32 if fixed is GGMLType.F32 else np.float16
        return ModelTensor(name, ArrayTensor(values.astype(kind)), fixed)

    tensors = [tensor("token_embd.weight", 8, width)]
    for i, n in enumerate(rows):
        tensors.append(tensor(f"blk.{i}.attn_norm.weight", width, fixed=GGMLType.F32))
        if experts and not (dense_first and i == 0):
            tensors.append(tensor(f"blk.{i}.ffn_gate_inp.weight", experts, width, fixed=GGMLType.F32))
            tensors.append(tensor(f"blk.{i}.ffn_up_exps.weight", experts, n, width))
        else:
            tensors.append(tensor(f"blk.{i}.ffn_up.weight", n, width))
    return Model("llama", metadata, tuple(tensors), "made up")


def fit(
    model: Model, order: list[int], budget: int, lowest: Precision = TERNARY
) -> tuple[int, Mapping[int, Precision]]:
    """Bytes and classes of what fits."""
    found = fit_goal(
        dict.fromkeys(range(model.n_blocks), RAW),
        order,
        file_goal(budget, lambda plan: file_size(model, plan)),
        lambda classes: class_plan(model, classes, ClassTypes()),
        lowest,
    )
    return file_size(model, found.plan), found.classes


def size(model: Model, classes: Mapping[int, Precision]) -> int:
    return file_size(model, class_plan(model, classes, ClassTypes()))


def states(n: int, order: list[int]) -> list[dict[int, Precision]]:
    """All states of the sweeps, written out with plain loops."""
    current = dict.fromkeys(range(n), RAW)
    found = [dict(current)]
    for level in (EIGHT, FOUR, TERNARY):
        for block in order:
            current[block] = level
            found.append(dict(current))
    return found


models = st.builds(
    made_up,
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
    experts=st.sampled_from([0, 0, 3]),
    dense_first=st.booleans(),
    width=st.sampled_from([256, 256, 96, 40]),
)


@settings(max_examples=40, deadline=None)
@given(models, st.randoms(use_true_random=False), st.lists(st.floats(0, 1), min_size=2, max_size=4))
def test_first_state_that_fits_and_monotone(model: Model, random: object, shares: list[float]) -> None:
    order = list(range(model.n_blocks))
    random.shuffle(order)  # type: ignore[attr-defined]
    every = [(size(model, s), s) for s in states(model.n_blocks, order)]
    low, high = min(n for n, _ in every), max(n for n, _ in every)
    before = -1
    for budget in sorted(low + int(share * (high - low)) for share in shares):
        nbytes, classes = fit(model, order, budget)
        assert nbytes <= budget
        expected = next((n, s) for n, s in every if n <= budget)
        assert (nbytes, dict(classes)) == expected
        rank = [LADDER.index(classes[b]) for b in range(model.n_blocks)]
        if before != -1:
            # A larger budget takes no bits from any block.
            assert all(now <= then for now, then in zip(rank, before))  # type: ignore[call-overload]
        before = rank  # type: ignore[assignment]
    with pytest.raises(PlanError, match="cannot be reached"):
        fit(model, order, low - 1)


def test_order_of_the_sweeps() -> None:
    start = dict.fromkeys(range(3), RAW)
    steps = [(d.block, d.to) for d in demotions(start, [2, 0, 1])]
    assert steps == [(b, level) for level in (EIGHT, FOUR, TERNARY) for b in (2, 0, 1)]
    assert [d.to for d in demotions(start, [0, 1, 2], FOUR)] == [EIGHT] * 3 + [FOUR] * 3
    mixed = {0: FOUR, 1: RAW, 2: EIGHT}
    assert [(d.block, d.to) for d in demotions(mixed, [0, 1, 2], FOUR)] == [(1, EIGHT), (1, FOUR), (2, FOUR)]
    with pytest.raises(PlanError, match="every block once"):
        demotions(start, [0, 1])


def block(index: int, entropy: float) -> BlockStatistics:
    return BlockStatistics(index, entropy, 1.0, 0.0, -1.0, 1.0, 0.0, 10)


def test_ties_go_by_block_index() -> None:
    assert ascending_entropy([block(i, 4.6) for i in (2, 0, 1)]) == (0, 1, 2)
    assert ascending_entropy([block(0, 2.0), block(1, 1.0), block(2, 2.0), block(3, 1.0)]) == (1, 3, 0, 2)


def test_one_block_goes_down_step_by_step() -> None:
    model = made_up([64])
    sizes = [size(model, {0: level}) for level in LADDER]
    assert sizes == sorted(sizes, reverse=True)
    for level, budget in zip(LADDER, sizes):
        assert fit(model, [0], budget) == (budget, {0: level})


def test_a_huge_budget_changes_nothing() -> None:
    model = made_up([4, 4])
    _, classes = fit(model, [1, 0], 10**12)
    assert set(classes.values()) == {RAW}


def test_the_floor_is_respected_and_told() -> None:
    model = made_up([64, 64])
    floor = size(model, {0: FOUR, 1: FOUR})
    with pytest.raises(PlanError, match=re.escape(f"{floor:,} bytes")):
        fit(model, [0, 1], floor - 1, lowest=FOUR)
    assert fit(model, [0, 1], floor, lowest=FOUR)[0] == floor


def test_experts_move_as_one_block() -> None:
    model = made_up([32, 32, 32], experts=4, dense_first=True)
    analysis = analyze_model(model)
    # One entry per expert in a stack, one for the dense first layer.
    assert [len([m for t in analysis.tensors if t.block == b and "up" in t.name for m in t.matrices]) for b in range(3)] == [1, 4, 4]  # fmt: skip
    plan = class_plan(model, {0: RAW, 1: FOUR, 2: EIGHT}, ClassTypes())
    types = plan.types()
    assert types["blk.0.ffn_up.weight"] is GGMLType.F16
    assert types["blk.1.ffn_up_exps.weight"] is GGMLType.Q4_K
    assert types["blk.2.ffn_up_exps.weight"] is GGMLType.Q8_0
    assert types["blk.1.ffn_gate_inp.weight"] is GGMLType.F32


@pytest.fixture(scope="module")
def model(reference: Path) -> Model:
    return load_model(reference)


@pytest.fixture(scope="module")
def analysis(model: Model) -> Analysis:
    return analyze_model(model, only_blocks=True)


def test_reference_model_file_is_exactly_as_large_as_said(
    model: Model, analysis: Analysis, tmp_path: Path
) -> None:
    order = ascending_entropy(analysis.blocks)
    budget = 9_000_000

    def plan_for(classes: Mapping[int, Precision]) -> Plan:
        return class_plan(model, classes, ClassTypes(), embedding=GGMLType.Q8_0)

    goal = file_goal(budget, lambda plan: file_size(model, plan))
    found = fit_goal(dict.fromkeys(order, RAW), order, goal, plan_for)
    written = write_model(model, found.plan, tmp_path / "m.gguf")
    assert written.nbytes == (tmp_path / "m.gguf").stat().st_size <= budget
    # One demotion less would not fit.
    less = plan_for(
        apply(dict.fromkeys(order, RAW), demotions(dict.fromkeys(order, RAW), order)[: found.demotions - 1])
    )
    assert file_size(model, less) > budget
    json.dumps(found.plan.parameters)
