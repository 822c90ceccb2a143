"""Further rounds of probing: the table follows what was measured, and a plan is replaced by a better one only."""

from __future__ import annotations

import pytest

from ewq_gguf.allocation.scores import ScoreTable
from ewq_gguf.allocation.solver import Option
from ewq_gguf.ggml import GGMLType
from ewq_gguf.pipeline.refine import corrected

Q2, Q4 = GGMLType.Q2_K, GGMLType.Q4_K


def table() -> ScoreTable:
    options = {
        "a": {Q2: Option("Q2_K", 100, 0.08), Q4: Option("Q4_K", 200, 0.02)},
        "b": {Q2: Option("Q2_K", 100, 0.04), Q4: Option("Q4_K", 200, 0.01)},
    }
    return ScoreTable("probe", "nats per token", options, {"a": 256, "b": 256}, 0)


def test_rows_are_scaled_to_what_was_measured_around_the_plan() -> None:
    # Around the plan, b costs twice what its probe said, a half; the whole is 0.05.
    found = corrected(table(), {"a": Q2, "b": Q4}, 0.05, {"a": 0.04, "b": 0.02})
    assert found.predict({"a": Q2, "b": Q4})[1] == pytest.approx(0.05)
    a, b = found.options["a"], found.options["b"]
    assert b[Q4].damage / a[Q2].damage == pytest.approx(0.02 / 0.04)
    assert a[Q2].damage / a[Q4].damage == pytest.approx(4.0), "types keep their ratio within a tensor"
    assert a[Q2].bytes == 100


def test_noise_moves_a_row_by_no_more_than_a_factor_of_four() -> None:
    found = corrected(table(), {"a": Q2, "b": Q2}, 1.0, {"a": -0.5, "b": 40.0})
    a, b = found.options["a"][Q2].damage, found.options["b"][Q2].damage
    assert b / a == pytest.approx((0.04 * 4) / (0.08 / 4))


def test_tensors_that_the_plan_leaves_alone_follow_the_whole() -> None:
    found = corrected(table(), {"a": Q2}, 0.04, {"a": 0.08})
    assert found.options["b"][Q4].damage == pytest.approx(0.01 * 0.5)
