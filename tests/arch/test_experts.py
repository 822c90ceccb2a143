"""Stacking experts and splitting fused projections."""

from __future__ import annotations

import numpy as np
import pytest

from ewq_gguf.arch.experts import merge_experts, split_gate_up
from ewq_gguf.checkpoint.tensor import ArrayTensor, Tensor
from ewq_gguf.errors import UnsupportedModelError


def expert(value: float, rows: int = 2) -> Tensor:
    return ArrayTensor(np.full((rows, 3), value, dtype=np.float32))


def test_experts_are_stacked_by_number_not_by_order_of_appearance() -> None:
    names = [f"model.layers.0.mlp.experts.{i}.up_proj.weight" for i in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9)]
    sources = {name: expert(float(name.split(".")[5])) for name in names}
    merged = merge_experts({**sources, "model.norm.weight": expert(-1)})
    assert list(merged) == ["model.layers.0.mlp.experts.up_proj.weight", "model.norm.weight"]
    stacked = merged["model.layers.0.mlp.experts.up_proj.weight"]
    assert stacked.shape == (11, 2, 3)
    assert stacked.rows(0, 22)[::2, 0].tolist() == list(range(11))


def test_a_missing_expert_is_named() -> None:
    sources = {f"mlp.experts.{i}.up_proj.weight": expert(i) for i in (0, 2)}
    with pytest.raises(UnsupportedModelError, match="expert 1 is missing"):
        merge_experts(sources)


def test_experts_of_different_shapes_are_refused() -> None:
    sources = {f"mlp.experts.{i}.up_proj.weight": expert(i, rows=i + 1) for i in (0, 1)}
    with pytest.raises(UnsupportedModelError, match="differ in shape"):
        merge_experts(sources)


@pytest.mark.parametrize("interleaved", [False, True])
def test_gate_and_up(interleaved: bool) -> None:
    array = np.arange(2 * 6 * 2, dtype=np.float32).reshape(2, 6, 2)
    parts = dict(split_gate_up("x.gate_up_proj.weight", ArrayTensor(array), interleaved=interleaved))
    gate, up = (array[:, ::2], array[:, 1::2]) if interleaved else (array[:, :3], array[:, 3:])
    np.testing.assert_array_equal(parts["x.gate_proj.weight"].rows(0, 6).reshape(2, 3, 2), gate)
    np.testing.assert_array_equal(parts["x.up_proj.weight"].rows(0, 6).reshape(2, 3, 2), up)


def test_an_odd_number_of_rows_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="halved"):
        split_gate_up("x.gate_up_proj", ArrayTensor(np.zeros((1, 5, 2), dtype=np.float32)))
