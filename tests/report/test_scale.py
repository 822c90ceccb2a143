"""Scales and ticks."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ewq_gguf.report.scale import Scale, linear_ticks, log_ticks, number, span

sizes = st.floats(min_value=1e-9, max_value=1e9)


def test_ticks_are_round() -> None:
    assert linear_ticks(0.0, 10.0) == [0, 2, 4, 6, 8, 10]
    assert linear_ticks(-0.32, 0.31) == [-0.2, 0, 0.2]
    assert log_ticks(0.001, 1.0) == [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0]
    assert log_ticks(0.021, 0.049) == [0.03, 0.04]
    assert [number(v) for v in (0.0, 1e-5, 0.00123, 12.5, 123456.0, 2e9)] == [
        "0", "1e-05", "0.00123", "12.5", "123,456", "2e+09",
    ]  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(sizes, sizes)
def test_ticks_lie_inside_and_are_few(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assume(high > low * 1.001)
    for ticks in (linear_ticks(low, high), log_ticks(low, high)):
        assert len(ticks) <= 14
        assert ticks == sorted(set(ticks))
        slack = 1e-8 * (high - low)
        assert all(low - slack <= t <= high + slack for t in ticks)


@settings(deadline=None, max_examples=40)
@given(st.lists(sizes, min_size=1, max_size=5), st.booleans())
def test_everything_lies_on_the_scale(values: list[float], log: bool) -> None:
    scale = Scale(*span(values, log), 10, 110, log)
    places = [scale.at(v) for v in sorted(values)]
    assert places == sorted(places)
    assert all(10 <= p <= 110 for p in places)


def test_logarithms_are_evenly_spaced() -> None:
    scale = Scale(0.01, 1.0, 0, 200, True)
    assert scale.at(0.1) == pytest.approx(100)
    assert scale.at(5.0) == 200


def test_a_range_is_never_empty() -> None:
    for values in ([], [0.0], [3.0], [math.nan, math.inf]):
        low, high = span(values)
        assert low < high
    low, high = span([0.0, -1.0], log=True)
    assert 0 < low < high
