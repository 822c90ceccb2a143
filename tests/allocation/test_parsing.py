"""Sizes and type names as people write them."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ewq_gguf.allocation.parsing import parse_size, parse_type
from ewq_gguf.errors import EwqError, PlanError
from ewq_gguf.ggml.types import GGMLType

UNITS = {
    **{"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40},
    **{"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12},
    **{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40},
}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4.2GiB", 4509715660),
        ("4200MB", 4_200_000_000),
        ("900 MiB", 943_718_400),
        ("123456", 123_456),
        ("1_000_000", 1_000_000),
        (" 4.2gib ", 4509715660),
        (".5k", 512),
        ("7.G", 7 << 30),
        ("1.0000000001B", 1),
        ("0.3KB", 300),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "GiB",
            "-1GiB",
            "+1GiB",
            "4,2GiB",
            "4 2GiB",
            "1e9",
            "nan",
            "inf",
            "0x10",
            "4.2.1GB",
            "1__0",
            "_1",
        ),
        *("4.2GiBs", "4iB", "4i", "4Gi", "4Mi", "4bit", "4PB", "4BB", "4GBB", "4bG", "٤GiB", "4GiB\0"),
        *("0", "0.0GiB", "0.9", "0.9B"),
    ],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match=r"size|unit|byte"):
        parse_size(text)


@given(
    st.integers(0, 10**9),
    st.text("0123456789", max_size=20),
    st.sampled_from(sorted(UNITS)),
    st.sampled_from(["", " ", "\t"]),
)
def test_sizes_are_exact_and_cut_off(whole: int, digits: str, unit: str, blank: str) -> None:
    text = f"{whole}.{digits}"
    exact = (whole + (Fraction(int(digits), 10 ** len(digits)) if digits else 0)) * UNITS[unit]
    spellings = (unit, unit.lower(), unit.upper())
    if exact < 1:
        with pytest.raises(PlanError):
            parse_size(text + unit)
    else:
        assert {parse_size(text + blank + spelling) for spelling in spellings} == {int(exact)}


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_a_plan_error(text: str) -> None:
    try:
        size = parse_size(text)
    except PlanError as error:
        size, said = 1, str(error)
    else:
        said = repr(text)
    assert size >= 1
    assert repr(text) in said


@given(
    st.sampled_from([kind for kind in GGMLType if kind.is_quantized or kind.name in ("F32", "F16", "BF16")])
)
def test_every_stored_type_is_read_in_any_case(kind: GGMLType) -> None:
    for text in (kind.name, kind.name.lower(), kind.name.title(), f" {kind.name}\n"):
        assert parse_type(text) is kind


@pytest.mark.parametrize("text", ["i8", "I32", "f64", "q8_k", "q9_0", "", "Q4_0_4_4", "copy"])
def test_types_that_no_weight_is_stored_in_are_refused(text: str) -> None:
    with pytest.raises(PlanError, match=r"is not a tensor type; (did you mean|types are)"):
        parse_type(text)


def test_a_preset_in_place_of_a_type_is_named() -> None:
    with pytest.raises(
        PlanError, match="'Q4_K_M' is a preset for a whole model, not the type of a tensor; use Q4_K"
    ):
        parse_type("Q4_K_M")


def test_a_near_miss_gets_a_hint() -> None:
    with pytest.raises(PlanError, match=r"did you mean .*IQ4_XS"):
        parse_type("iq4_x")


@given(st.text(max_size=10))
@example("\U00018cd6" * 10)
def test_any_text_is_a_type_or_one_of_our_errors(text: str) -> None:
    try:
        name, said = parse_type(text).name, repr(text)
    except EwqError as error:
        name, said = text.strip().upper(), str(error)
    assert name == text.strip().upper()
    assert repr(text) in said
