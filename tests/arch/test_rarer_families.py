"""Gemma 3n's and OpenELM's odder rules, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ewq_gguf.arch.gemma3n import threshold
from ewq_gguf.errors import EwqError
from ewq_gguf.pipeline.source import load_model
from tests.tiny.build import build
from tests.tiny.case import Case
from tests.tiny.rarer import DBRX, GEMMA3N, MINIMAX_M2, OPENELM


@pytest.mark.parametrize(
    ("share", "expected"),
    # As torch.distributions.Normal(0, 1).icdf gives them in float32.
    [(0.95, 1.6448535919189453), (0.5, 0.0), (0.3, -0.5244004726409912), (0.0, -math.inf)],
)
def test_the_threshold_of_sparse_activations(share: float, expected: float) -> None:
    assert threshold(share) == expected


def changed(case: Case, **values: Any) -> Case:
    full = {**case.config, **values}
    return replace(case, config={key: value for key, value in full.items() if value is not ...})


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (changed(GEMMA3N, altup_num_inputs=3), "altup_num_inputs"),
        (changed(GEMMA3N, layer_types=["full_attention"]), "layer_types without one value"),
        (changed(GEMMA3N, activation_sparsity_pattern=[0.95, "x", 0, 0, 0]), "finite number"),
        (changed(OPENELM, num_kv_heads=[1, 2, 2]), "num_kv_heads without one value"),
        (changed(DBRX, attn_config={"kv_n_heads": 2}), "clip_qkv"),
        (changed(MINIMAX_M2, scoring_func="lottery"), "expert gating"),
    ],
)
def test_configs_that_are_refused(case: Case, message: str, tmp_path: Path) -> None:
    with pytest.raises(EwqError, match=message):
        load_model(build(case, tmp_path / case.name))


def test_an_incomplete_stack_is_refused(tmp_path: Path) -> None:
    shapes = GEMMA3N.shapes
    case = replace(
        GEMMA3N,
        shapes=lambda c: {
            name: shape for name, shape in shapes(c).items() if name != "model.altup_projections.1.weight"
        },
    )
    with pytest.raises(EwqError, match="altup_projections is incomplete"):
        load_model(build(case, tmp_path / "m"))


def test_embeddings_per_layer_are_padded_to_the_vocabulary(tmp_path: Path) -> None:
    model = load_model(build(changed(GEMMA3N, vocab_size_per_layer_input=300), tmp_path / "m"))
    padded = next(t for t in model.tensors if t.name == "per_layer_token_embd.weight")
    assert padded.shape[0] == 320
    assert np.any(padded.source.rows(299, 300))
    assert not np.any(padded.source.rows(300, 320))


def test_rotated_dimensions_of_a_rewritten_config(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 5000000.0, "partial_rotary_factor": 0.5}
    case = changed(MINIMAX_M2, rotary_dim=..., rope_theta=..., rope_parameters=rope)
    model = load_model(build(case, tmp_path / "m"))
    assert model.metadata["minimax-m2.rope.dimension_count"].value == 16
