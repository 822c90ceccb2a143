"""EWQ's classes and plans."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ewq_gguf.allocation.analysis import analyze_model
from ewq_gguf.allocation.ewq import Precision, classify
from ewq_gguf.allocation.methods import ewq_plan, preset_plan, uniform_plan
from ewq_gguf.allocation.plan import load_plan
from ewq_gguf.errors import PlanError
from ewq_gguf.ggml import GGMLType
from ewq_gguf.model import Model
from ewq_gguf.pipeline.source import load_model

RAW, EIGHT, FOUR = Precision.RAW, Precision.EIGHT_BIT, Precision.FOUR_BIT


@pytest.fixture(scope="module")
def model(reference: Path) -> Model:
    return load_model(reference)


def test_thresholds_by_hand() -> None:
    # mu = 3, sigma = sqrt(2): T = 3 - 1.414 = 1.586
    found = classify([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.mu, found.sigma) == (3.0, pytest.approx(2**0.5))
    assert found.classes == (FOUR, EIGHT, EIGHT, RAW, RAW)


def test_equal_entropies_leave_nobody_behind() -> None:
    assert classify([2.5, 2.5, 2.5]).classes == (EIGHT, EIGHT, EIGHT)
    assert classify([1.0]).classes == (EIGHT,)


@given(st.lists(st.floats(0, 20), min_size=1, max_size=60), st.floats(0, 5))
def test_lower_entropy_never_gets_more_bits(entropies: list[float], x: float) -> None:
    bits = {RAW: 16, EIGHT: 8, FOUR: 4}
    classes = classify(entropies, x).classes
    ordered = sorted(zip(entropies, (bits[c] for c in classes)))
    assert all(b0 <= b1 for (h0, b0), (h1, b1) in itertools.pairwise(ordered) if h0 < h1)


@pytest.mark.parametrize("x", [-1.0, float("nan"), float("inf")])
def test_bad_x(x: float) -> None:
    with pytest.raises(PlanError, match="--x"):
        classify([1.0, 2.0], x)


def test_no_blocks() -> None:
    with pytest.raises(PlanError, match="no transformer blocks"):
        classify([])


def test_reference_classes(model: Model) -> None:
    plan = ewq_plan(model, analyze_model(model))
    classes = [b["class"] for b in plan.parameters["blocks"]]
    assert classes == ["raw"] * 5 + ["8-bit"] * 6 + ["4-bit"]
    types = plan.types()
    assert types["blk.0.attn_q.weight"] is GGMLType.BF16
    assert types["blk.5.ffn_down.weight"] is GGMLType.Q8_0
    assert types["blk.11.ffn_up.weight"] is GGMLType.Q4_K
    assert types["token_embd.weight"] is GGMLType.BF16
    assert types["blk.11.attn_norm.weight"] is GGMLType.F32
    smaller = ewq_plan(model, analyze_model(model), embedding=GGMLType.Q8_0)
    assert smaller.types()["token_embd.weight"] is GGMLType.Q8_0
    assert smaller.data_bytes < plan.data_bytes


def test_plans_round_trip(model: Model, tmp_path: Path) -> None:
    plan = ewq_plan(model, analyze_model(model))
    path = tmp_path / "plan.json"
    path.write_text(plan.to_json())
    again = load_plan(path, model)
    assert again.types() == plan.types()
    assert again.parameters == plan.parameters
    assert again.to_json() == plan.to_json()


def edited(model: Model, tmp_path: Path, change: object) -> Path:
    data = json.loads(uniform_plan(model, GGMLType.Q8_0).to_json())
    change(data)  # type: ignore[operator]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(format="recipe"), "not a version 1 plan"),
        (lambda d: d.update(tensors={}), "no list of tensors"),
        (lambda d: d["tensors"].pop(), "no type for tensor"),
        (lambda d: d["tensors"].append({"name": "ghost", "type": "Q8_0"}), "ghost"),
        (lambda d: d["tensors"].append(d["tensors"][0]), "twice"),
        (lambda d: d["tensors"][0].update(type="Q9_K"), "Q9_K"),
        (lambda d: d["tensors"][0].pop("type"), "no name or no type"),
        (lambda d: [t.update(type="Q8_0") for t in d["tensors"] if "norm" in t["name"]], "only as F32"),
    ],
)
def test_plans_that_cannot_be_followed(model: Model, tmp_path: Path, change: object, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        load_plan(edited(model, tmp_path, change), model)


def test_edited_plan_is_followed(model: Model, tmp_path: Path) -> None:
    def change(d: dict) -> None:  # type: ignore[type-arg]
        next(t for t in d["tensors"] if t["name"] == "blk.3.ffn_up.weight")["type"] = "q4_k"

    plan = load_plan(edited(model, tmp_path, change), model)
    assert plan.types()["blk.3.ffn_up.weight"] is GGMLType.Q4_K
    assert plan.types()["blk.4.ffn_up.weight"] is GGMLType.Q8_0


def test_preset_plan(model: Model) -> None:
    types = preset_plan(model, "Q4_K_M").types()
    assert types["token_embd.weight"] is GGMLType.Q6_K
    assert types["blk.5.attn_q.weight"] is GGMLType.Q4_K
    with pytest.raises(PlanError):
        preset_plan(model, "Q4_K_XXL")
