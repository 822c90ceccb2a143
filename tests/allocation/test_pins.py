"""Pins: reading them and what they do; test_presets.py compares their patterns with llama-quantize."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ewq_gguf.allocation.facts import Assignment, ModelFacts, TensorFacts
from ewq_gguf.allocation.pins import (
    apply_pins,
    exact_pin,
    make_pin,
    matching_pin,
    parse_pin,
    read_pins,
)
from ewq_gguf.errors import PlanError
from ewq_gguf.ggml.types import GGMLType

MODEL = ModelFacts(arch="llama", n_layer=2, n_layer_all=2)
TENSORS = [
    TensorFacts("token_embd.weight", (8, 256), GGMLType.BF16),
    TensorFacts("output_norm.weight", (256,), GGMLType.F32),
    *(
        TensorFacts(f"blk.{i}.{name}.weight", (8, 96 if name == "ffn_down" else 256), GGMLType.BF16)
        for i in range(2)
        for name in ("attn_q", "attn_v", "ffn_down")
    ),
]
BEFORE = {t.name: Assignment(GGMLType.Q8_0, GGMLType.Q8_0, "before") for t in TENSORS}
QUANTIZED = [kind for kind in GGMLType if kind.is_quantized]


def pinned(*texts: str) -> dict[str, Assignment]:
    after = apply_pins(BEFORE, [parse_pin(text) for text in texts], TENSORS, MODEL)
    assert list(after) == list(BEFORE)
    return {name: assignment for name, assignment in after.items() if assignment != BEFORE[name]}


def test_a_pin_is_read_in_any_case() -> None:
    pin = parse_pin(" FFN_Down = q6_K ")
    assert (pin.pattern, pin.type, str(pin)) == ("ffn_down", GGMLType.Q6_K, "ffn_down=q6_k")
    assert pin == make_pin("ffn_down", GGMLType.Q6_K)


def test_the_last_equals_sign_divides() -> None:
    assert parse_pin(r"blk\.(?=1)=q4_0").pattern == r"blk\.(?=1)"


@pytest.mark.parametrize("text", ["", "=", "q6_k", "ffn_down=", "=q6_k", "  = "])
def test_what_is_no_pair_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="is not a pin; write PATTERN=TYPE"):
        parse_pin(text)


@pytest.mark.parametrize("pattern", ["a**", "a*+", "a?+", "(a|b)+*", "a{2}+"])
def test_repeated_repeats_are_refused_on_every_python(pattern: str) -> None:
    with pytest.raises(PlanError, match="repeats a repeat"):
        parse_pin(f"{pattern}=q4_0")


@pytest.mark.parametrize("pattern", ["[*+]+", r"a\*+", r"\[a+", "a+?", "a*?b+"])
def test_stars_and_pluses_that_repeat_nothing_pass(pattern: str) -> None:
    assert parse_pin(f"{pattern}=q4_0").pattern == pattern


def test_unknown_character_classes_are_refused() -> None:
    with pytest.raises(PlanError, match=r"\[:letter:\] is not a character class; classes are alnum, "):
        parse_pin("[[:letter:]]=q4_0")


def test_the_first_match_wins() -> None:
    after = pinned(r"blk\.0=q4_k", "attn_v=q5_k")
    assert {name: a.type for name, a in after.items()} == {
        "blk.0.attn_q.weight": GGMLType.Q4_K,
        "blk.0.attn_v.weight": GGMLType.Q4_K,
        "blk.0.ffn_down.weight": GGMLType.Q5_0,
        "blk.1.attn_v.weight": GGMLType.Q5_K,
    }
    assert after["blk.1.attn_v.weight"].reason == "pin attn_v=q5_k"
    assert after["blk.0.ffn_down.weight"].wanted == GGMLType.Q4_K


def test_a_pin_that_comes_too_late_is_no_error() -> None:
    assert set(pinned("attn=q4_k", "attn_v=q5_k")) == {n for n in BEFORE if "attn" in n}


def test_norms_stay_and_a_dot_matches_everything_else() -> None:
    assert set(pinned(".=q4_0")) == set(BEFORE) - {"output_norm.weight"}


def test_a_pin_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(PlanError, match=r"^pin ffn_sideways=q4_k: no tensor's name contains a match"):
        pinned("attn_q=q4_k", "ffn_sideways=q4_k")


def test_a_pin_that_matches_only_norms_is_an_error() -> None:
    with pytest.raises(PlanError, match=r"never quantized, such as output_norm\.weight"):
        pinned("norm=q4_k")


def test_a_row_that_fits_no_stand_in_is_an_error() -> None:
    with pytest.raises(
        PlanError, match=r"blk\.0\.ffn_down\.weight has rows of 96 weights, but a block of Q1_0"
    ):
        pinned("ffn_down=q1_0")


def test_pins_that_need_an_importance_matrix_say_so() -> None:
    after = pinned("attn_v=iq2_s", "token_embd=iq2_s", "attn_q=q2_k")
    assert {name: a.requires_imatrix for name, a in after.items()} == {
        "token_embd.weight": False,
        "blk.0.attn_q.weight": False,
        "blk.1.attn_q.weight": False,
        "blk.0.attn_v.weight": True,
        "blk.1.attn_v.weight": True,
    }
    assert pinned("token_embd=iq2_xs")["token_embd.weight"].requires_imatrix  # ggml cannot make it without


def test_a_file_of_pins(tmp_path: Path) -> None:
    path = tmp_path / "types.txt"
    path.write_text("attn_v=q6_k  ffn_down=q5_k\n\n\tblk.0=BF16\n", encoding="utf-8")
    assert [str(pin) for pin in read_pins(path)] == ["attn_v=q6_k", "ffn_down=q5_k", "blk.0=bf16"]


def test_a_bad_entry_is_found_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "types.txt"
    path.write_text("attn_v=q6_k\nffn_down=q5_k attn_q=q9_k\n", encoding="utf-8")
    with pytest.raises(PlanError, match=r"types\.txt, line 2: 'q9_k' is not a tensor type"):
        read_pins(path)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_cannot_be_read(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "types.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PlanError, match="cannot read pins from"):
        read_pins(path)


@given(
    st.lists(
        st.tuples(st.text("ab.[](){}*+?|^$\\-_09=xXYZ", min_size=1), st.sampled_from(QUANTIZED)), max_size=8
    )
)
def test_exact_pins_survive_a_file(entries: list[tuple[str, GGMLType]]) -> None:
    pins = [exact_pin(name, kind) for name, kind in entries]
    again = [parse_pin(text) for text in " ".join(map(str, pins)).split()]
    assert again == pins
    for (name, _), pin in zip(entries, again):
        assert pin.matches(name)
        assert not pin.matches(name + "0")
        assert not pin.matches("0" + name)


@given(st.lists(st.sampled_from(["attn", "attn_q", "blk", "0", "1", "ffn_down"]), min_size=1, max_size=4))
def test_first_match_is_the_first_that_matches(patterns: list[str]) -> None:
    pins = [make_pin(pattern, QUANTIZED[i]) for i, pattern in enumerate(patterns)]
    for tensor in TENSORS:
        fitting = [pin for pin in pins if pin.pattern in tensor.name]
        assert matching_pin(pins, tensor.name) == (fitting[0] if fitting else None)
