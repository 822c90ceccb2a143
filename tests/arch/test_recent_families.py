"""Mixtures of experts of 2025, encoders, and others: what configs ask for, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from ewq_gguf.allocation.methods import uniform_plan
from ewq_gguf.arch import family_for
from ewq_gguf.arch.views import plus
from ewq_gguf.checkpoint.tensor import ArrayTensor, DType
from ewq_gguf.errors import EvaluationError, EwqError, UnsupportedModelError
from ewq_gguf.evaluation.engine import Engine
from ewq_gguf.ggml.types import GGMLType
from ewq_gguf.pipeline.convert import write_model
from ewq_gguf.pipeline.source import load_model
from tests.tiny.build import build
from tests.tiny.case import Case
from tests.tiny.encoders import BERT, EMBEDDING_GEMMA, NOMIC, XLM_ROBERTA
from tests.tiny.ranked import HUNYUAN_MOE, KIMI_LINEAR, QWEN
from tests.tiny.recent import AFMOE, GLM5, GROK2, MIMO2, MIMO25_FP8, MIMO25_MXFP4, STEP35
from tests.tiny.scarce import PLAMO3, RWKV7


def changed(case: Case, **values: Any) -> Case:
    """The case with other config entries; its tensors stay as they are."""
    shapes = case.shapes(case.config)
    full = {key: value for key, value in {**case.config, **values}.items() if value is not ...}
    return replace(case, config=full, shapes=lambda _: shapes)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (changed(HUNYUAN_MOE, moe_topk=[2, 1]), "blocks unlike moe_topk"),
        (changed(HUNYUAN_MOE, moe_topk=[]), "blocks unlike moe_topk"),
        (changed(HUNYUAN_MOE, num_shared_expert=["x", "x"]), "num_shared_expert"),
        (changed(HUNYUAN_MOE, num_attention_heads=4), "heads of 64"),
        (changed(HUNYUAN_MOE, rope_scaling={"type": "dynamic", "alpha": 50}), "dynamic rope"),
        (changed(HUNYUAN_MOE, max_position_embeddings=4096), "dynamic rope"),
        (changed(QWEN, layer_norm_epsilon=...), "layer_norm_epsilon"),
        (changed(MIMO2, hybrid_layer_pattern=[0, 1, 1]), "0 or 1 for each of 4 blocks"),
        (changed(MIMO2, hybrid_layer_pattern=[0, 1, 2, 0]), "0 or 1 for each of 4 blocks"),
        (changed(MIMO2, hybrid_layer_pattern=...), "0 or 1 for each of 4 blocks"),
        (changed(MIMO2, swa_head_dim=16), "swa_head_dim other than head_dim"),
        (changed(MIMO2, topk_method="greedy"), "noaux_tc"),
        (changed(MIMO2, partial_rotary_factor=...), "partial_rotary_factor"),
        (changed(MIMO25_FP8, num_key_value_heads=2), "sliced for 8 or 4 devices"),
        (changed(STEP35, rope_theta=[1.0]), "fewer than two blocks"),
        (changed(STEP35, layer_types=["sliding_attention"]), "partial_rotary_factors 0.5"),
        (changed(STEP35, layer_types=["linear"]), "layer_types 'linear'"),
        (changed(STEP35, layer_types="full_attention"), "expected a list"),
        (changed(STEP35, moe_layers_enum="1,x"), "moe_layers_enum"),
        (changed(STEP35, swiglu_limits=["x"]), "swiglu_limits"),
        (changed(STEP35, head_dim=1 << 20), "head is that wide"),
        (changed(STEP35, rope_scaling={"rope_type": "llama3", "high_freq_factor": 0}), "make no sense"),
        (changed(GROK2, embedding_multiplier_scale=...), "embedding_multiplier_scale"),
        (changed(GROK2, beta_fast=...), "beta_fast"),
        (changed(AFMOE, score_func="coin"), "expert gating"),
        (changed(PLAMO3, sliding_window_pattern=[True]), "sliding_window_pattern"),
        (changed(PLAMO3, initial_context_length=...), "initial_context_length"),
        (changed(GLM5, indexer_types=["full"]), "full or shared for each of 2 blocks"),
        (changed(GLM5, indexer_types=["full", "half"]), "full or shared for each of 2 blocks"),
        (changed(GLM5, index_n_heads="x"), "index_n_heads"),
        (changed(KIMI_LINEAR, linear_attn_config={}), "full_attn_layers"),
        (changed(KIMI_LINEAR, num_key_value_heads=2), "2 heads of 16"),
        (changed(XLM_ROBERTA, lora_adaptations=["a"]), "lora_adaptations"),
        (changed(XLM_ROBERTA, max_position_embeddings=2), "max_position_embeddings"),
        (changed(NOMIC, moe_every_n_layers=2), "mixture of experts"),
        (changed(NOMIC, n_positions=2048), "n_positions"),
        (changed(NOMIC, prenorm=True), "prenorm"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_configs_that_are_refused(case: Case, message: str, tmp_path: Path) -> None:
    with pytest.raises(EwqError, match=message) as caught:
        load_model(build(case, tmp_path / case.name))
    assert "\n" not in str(caught.value)


def metadata(case: Case) -> dict[str, Any]:
    sources = {name: ArrayTensor(np.zeros(shape, "f4")) for name, shape in case.shapes(case.config).items()}
    family = family_for(case.config)(case.config, sources)
    writer = gguf.GGUFWriter(None, family.arch)
    family.add_metadata(writer)
    return {key: value.value for key, value in writer.kv_data[0].items()}


def test_step_takes_published_lists_that_also_speak_of_the_layer_ahead() -> None:
    kinds = ["full_attention", *["sliding_attention"] * 4]
    found = metadata(changed(STEP35, layer_types=kinds, partial_rotary_factors=[0.5, 1.0, 1.0, 1.0, 1.0]))
    assert found["step35.attention.head_count"] == [4, 6, 6, 6, 6]
    assert found["step35.attention.sliding_window_pattern"] == [False, True, True, True, True]
    assert found["step35.swiglu_clamp_shexp"] == [0.0, 16.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, [True, True]),
        ({"index_topk_freq": 2, "index_skip_topk_offset": 1}, [True, False]),
        ({"index_topk_pattern": "FS"}, [True, False]),
        ({"indexer_types": ["full", "shared"]}, [True, False]),
    ],
)
def test_glm5_says_which_blocks_choose(values: dict[str, Any], expected: list[bool]) -> None:
    assert metadata(changed(GLM5, **values))["glm-dsa.attention.indexer.types"] == expected


def test_hunyuan_takes_one_number_for_all_blocks() -> None:
    single = {
        key: HUNYUAN_MOE.config[key][0] for key in ("moe_topk", "num_shared_expert", "moe_intermediate_size")
    }
    assert metadata(changed(HUNYUAN_MOE, **single)) == metadata(HUNYUAN_MOE)


def test_mimo_rotates_a_share_of_each_head_in_either_config_generation() -> None:
    rope = {
        "full_attention": {"rope_type": "default", "rope_theta": 5000000, "partial_rotary_factor": 0.334},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000, "partial_rotary_factor": 0.334},
    }
    modern = changed(
        MIMO2, rope_parameters=rope, rope_theta=..., swa_rope_theta=..., partial_rotary_factor=...
    )
    assert metadata(modern) == metadata(MIMO2)
    assert metadata(MIMO2)["mimo2.rope.dimension_count"] == int(32 * 0.334)


@pytest.mark.parametrize("missing", ["1.down_proj.weight", "1.down_proj.weight_scale"])
def test_packed_experts_must_be_complete(missing: str, tmp_path: Path) -> None:
    lost = f"model.layers.2.mlp.experts.{missing}"
    folder = build(MIMO25_MXFP4, tmp_path / "m")
    file = folder / "model.safetensors"
    data = file.read_bytes()
    assert lost.encode() in data
    # The same length under a name that no family knows.
    file.write_bytes(data.replace(f'"{lost}"'.encode(), f'"{"x" * len(lost)}"'.encode(), 1))
    with pytest.raises(UnsupportedModelError, match="experts"):
        load_model(folder)


def test_an_encoder_does_not_look_ahead_only_and_says_how_it_pools(tmp_path: Path) -> None:
    model = load_model(build(BERT, tmp_path / "m"))
    assert model.metadata["bert.attention.causal"].value is False
    assert model.metadata["bert.pooling_type"].value == gguf.PoolingType.MEAN
    assert not any("pooler" in tensor.name for tensor in model.tensors)


def test_embedding_gemma_says_that_its_projections_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = build(EMBEDDING_GEMMA, tmp_path / "m")
    load_model(folder)
    assert "2_Dense" not in caplog.text
    (folder / "3_Dense").mkdir()
    (folder / "3_Dense" / "model.safetensors").write_bytes(b"")
    load_model(folder)
    assert "2_Dense and 3_Dense are left out" in caplog.text


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_an_offset_is_added_in_the_precision_of_its_source(dtype: type) -> None:
    data = np.linspace(-1, 1, 33, dtype=dtype)
    found = plus(ArrayTensor(data), 0.2)
    assert found.dtype is DType.F32
    expected = (data.astype("f4") + np.float32(0.2)).astype(dtype).astype("f4")
    np.testing.assert_array_equal(found.rows(0, 1)[0], expected, strict=True)


def test_rwkv_works_out_the_ranks_that_its_config_leaves_out() -> None:
    silent = {key: None for key in RWKV7.config if key.endswith("_low_rank_dim")}
    found = metadata(changed(RWKV7, hidden_size=2048, **silent))
    ranks = [
        found[f"rwkv7.attention.{name}_lora_rank"] for name in ("decay", "iclr", "value_residual_mix", "gate")
    ]
    assert ranks == [96, 96, 64, 256]


def test_rwkv_needs_every_mix() -> None:
    shapes = RWKV7.shapes(RWKV7.config)
    del shapes["model.layers.1.attn.x_g"]
    sources = {name: ArrayTensor(np.zeros(shape, "f4")) for name, shape in shapes.items()}
    with pytest.raises(UnsupportedModelError, match="one x_ tensor"):
        family_for(RWKV7.config)(RWKV7.config, sources)


@pytest.mark.parametrize("case", [BERT, EMBEDDING_GEMMA], ids=lambda case: case.name)
def test_an_encoder_is_not_measured_as_a_writer_of_texts(case: Case, tmp_path: Path) -> None:
    model = load_model(build(case, tmp_path / "m"))
    write_model(model, uniform_plan(model, GGMLType.F16), tmp_path / "m.gguf", threads=1)
    with pytest.raises(EvaluationError, match="makes vectors of texts"):
        Engine(tmp_path / "m.gguf")
