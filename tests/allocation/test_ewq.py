"""EWQ's classes and plans."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ewq_gguf import api
from ewq_gguf.allocation.analysis import analyze_model
from ewq_gguf.allocation.ewq import (
    ClassTypes,
    Precision,
    Variant,
    classify,
    parse_classes,
    variant_classes,
)
from ewq_gguf.allocation.methods import ewq_plan, preset_plan, uniform_plan
from ewq_gguf.allocation.pins import parse_pin
from ewq_gguf.allocation.plan import load_plan
from ewq_gguf.checkpoint.safetensors import FileTensor
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


@given(st.floats(1e-6, 20), st.integers(1, 60), st.floats(0, 5))
def test_equal_entropies_leave_nobody_behind_whatever_their_value(h: float, n: int, x: float) -> None:
    assert set(classify([h] * n, x).classes) == {EIGHT}


@given(st.floats(0, 20), st.floats(0, 20))
def test_of_two_blocks_the_lower_is_exactly_at_the_threshold(a: float, b: float) -> None:
    # T = mu - sigma is the lower entropy itself: H <= T must hold whatever the rounding.
    expected = {(True, False): (FOUR, RAW), (False, True): (RAW, FOUR), (False, False): (EIGHT, EIGHT)}
    spread = abs(a - b)
    if spread == 0 or spread > 1e-150:  # squares of less underflow
        assert classify([a, b]).classes == expected[a < b, b < a]


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


def test_variants(model: Model) -> None:
    analysis = analyze_model(model, only_blocks=True)
    found = classify([b.entropy for b in analysis.blocks]).classes
    assert variant_classes(found, Variant.MIXED_4BIT_8BIT) == found
    assert variant_classes(found, Variant.MIXED_8BIT) == (RAW,) * 5 + (EIGHT,) * 7
    assert set(variant_classes(found, Variant.RAW)) == {RAW}
    assert set(variant_classes(found, Variant.UNIFORM_8BIT)) == {EIGHT}
    assert set(variant_classes(found, Variant.UNIFORM_4BIT)) == {FOUR}
    sizes = {}
    for variant in Variant:
        plan = ewq_plan(model, analysis, variant=variant)
        assert plan.parameters["variant"] == variant.value
        sizes[variant] = plan.data_bytes
        types = {t.type for t in plan.tensors if ".ffn_up." in t.name}
        assert (
            types
            == {
                Variant.RAW: {GGMLType.BF16},
                Variant.UNIFORM_8BIT: {GGMLType.Q8_0},
                Variant.UNIFORM_4BIT: {GGMLType.Q4_K},
                Variant.MIXED_8BIT: {GGMLType.BF16, GGMLType.Q8_0},
                Variant.MIXED_4BIT_8BIT: {GGMLType.BF16, GGMLType.Q8_0, GGMLType.Q4_K},
            }[variant]
        )
    assert sizes[Variant.RAW] > sizes[Variant.MIXED_8BIT] > sizes[Variant.MIXED_4BIT_8BIT]
    assert sizes[Variant.UNIFORM_8BIT] > sizes[Variant.UNIFORM_4BIT]


@pytest.mark.parametrize("variant", ["raw", "uniform-8bit", "uniform-4bit"])
def test_uniform_variants_read_no_weight(
    reference: Path, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileTensor, "raw_rows", None)
    plan = api.plan(reference, api.Decision(variant=variant))
    assert plan.types() == ewq_types(reference, variant)


def ewq_types(reference: Path, variant: str) -> dict[str, GGMLType]:
    wanted = {"raw": "BF16", "uniform-8bit": "Q8_0", "uniform-4bit": "Q4_K"}[variant]
    found = {}
    for t in load_model(reference).tensors:
        if t.fixed is not None:
            found[t.name] = t.fixed
        else:
            found[t.name] = GGMLType.BF16 if t.block is None else GGMLType[wanted]
    return found


def test_gguf_reading_of_the_classes(reference: Path) -> None:
    decision = api.Decision(classes="Q8_0,Q6_K,Q4_K", embedding="Q6_K")
    types = api.plan(reference, decision).types()
    assert [types[f"blk.{b}.ffn_up.weight"].name for b in (0, 4, 5, 10, 11)] == [
        *("Q8_0", "Q8_0", "Q6_K", "Q6_K", "Q4_K")
    ]
    assert types["token_embd.weight"] is GGMLType.Q6_K


def test_types_behind_the_classes() -> None:
    assert parse_classes("raw, q8_0,Q5_K") == ClassTypes(None, GGMLType.Q8_0, GGMLType.Q5_K, GGMLType.TQ1_0)
    assert parse_classes("Q8_0,Q6_K,Q4_K,IQ2_S").ternary is GGMLType.IQ2_S
    assert list(ClassTypes().resolve(GGMLType.F16).values()) == [
        *(GGMLType.F16, GGMLType.Q8_0, GGMLType.Q4_K, GGMLType.TQ1_0)
    ]
    for text, says in (
        ("Q8_0", "names 1"),
        ("a,b,c", "'a'"),
        ("Q8_0,raw,Q4_K", "first class"),
        ("", "names 1"),
    ):
        with pytest.raises(PlanError, match=says):
            parse_classes(text)


@pytest.mark.parametrize(
    ("decision", "says"),
    [
        (api.Decision(size=10**7, classes="Q4_K,Q8_0,Q6_K"), "falling size"),
        (api.Decision(method="ewq", size=10**7, eight_bit="Q4_K", four_bit="Q8_0"), "falling size"),
        (api.Decision(size=10**7, type="Q8_0"), "without a plan or a type"),
        (api.Decision(variant="7bit"), "7bit"),
        (api.Decision(block_entropy="median"), "median"),
        (api.Decision(lowest="2-bit"), "2-bit"),
        (api.Decision(ternary="TQ3"), "TQ3"),
        (api.Decision(method="ewq", size=4_000_000), "cannot be reached"),
    ],
)
def test_wishes_that_cannot_be_met(reference: Path, decision: api.Decision, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        api.plan(reference, decision)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"embedding": "Q6_K", "classes": "Q8_0,Q6_K,Q4_K"},
        {"variant": "4bit-8bit-mixed"},
        {"pins": (parse_pin("ffn_down=q8_0"),)},
        {"keep_embedding": True, "embedding": "Q4_K"},
        {"lowest": "4-bit", "embedding": "Q8_0"},
    ],
)
def test_a_size_holds_for_the_written_file_with_pins_and_checksums(
    reference: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    out = tmp_path / "m.gguf"
    size = 9_000_000
    api.convert(reference, out, api.Decision(method="ewq", size=size, **more), checksums=True)
    assert size - 900_000 < out.stat().st_size <= size


def test_a_variant_with_a_size_starts_from_its_classes(reference: Path) -> None:
    start = api.plan(reference, api.Decision(variant="8bit-mixed"))
    same = api.plan(reference, api.Decision(variant="8bit-mixed", size=10**9))
    assert same.types() == start.types()
    less = api.plan(reference, api.Decision(variant="8bit-mixed", size=13_000_000))
    assert less.data_bytes < start.data_bytes
    for block in range(5, 12):
        assert less.types()[f"blk.{block}.ffn_up.weight"] is not GGMLType.BF16


def test_quantized_sources_are_not_blown_up(reference: Path, tmp_path: Path) -> None:
    api.convert(reference, tmp_path / "q8.gguf", api.Decision(type="Q8_0"))
    again = api.plan(tmp_path / "q8.gguf", api.Decision()).types()
    assert again["blk.0.ffn_up.weight"] is GGMLType.Q8_0
    assert again["blk.11.ffn_up.weight"] is GGMLType.Q4_K
    assert again["token_embd.weight"] is GGMLType.Q8_0


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
