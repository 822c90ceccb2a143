"""What every family does: refusals, what is left out, defaults, names that gguf's table lacks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from ewq_gguf.arch import family_for
from ewq_gguf.arch.phi3 import load_phi3
from ewq_gguf.arch.pooling import pooling_type
from ewq_gguf.checkpoint.tensor import ArrayTensor, Tensor
from ewq_gguf.errors import CheckpointError, TokenizerError, UnsupportedModelError
from ewq_gguf.ggml.types import GGMLType
from ewq_gguf.pipeline.source import load_model
from ewq_gguf.vocab import TokenType
from tests.tiny.build import build
from tests.tiny.established import DEEPSEEK3, GEMMA3_MM, LLAMA, QWEN3MOE
from tests.tiny.vocabularies import write_phi


def zeros(*shape: int, dtype: type = np.float32) -> Tensor:
    return ArrayTensor(np.zeros(shape, dtype=dtype))


def llama(**values: Any) -> dict[str, Any]:
    return {**LLAMA.config, **values}


def test_a_foreign_tensor_is_refused_by_name() -> None:
    family = family_for(llama())(llama(), {"model.layers.0.mlp.wrong.weight": zeros(2, 2)})
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.0\.mlp\.wrong\.weight"):
        list(family.tensors())


def test_integers_are_refused_as_quantized() -> None:
    sources = {"model.layers.0.mlp.up_proj.weight": zeros(2, 2, dtype=np.int8)}
    with pytest.raises(UnsupportedModelError, match="already-quantized"):
        list(family_for(llama())(llama(), sources).tensors())


def test_small_tensors_stay_float() -> None:
    sources = {
        "model.norm.weight": zeros(4),
        "model.layers.0.mlp.gate.weight": zeros(4, 8),
        "model.layers.0.self_attn.q_proj.weight": zeros(4, 8),
    }
    tensors = {t.name: t.fixed for t in family_for(QWEN3MOE.config)(QWEN3MOE.config, sources).tensors()}
    assert tensors == {
        "output_norm.weight": GGMLType.F32,
        "blk.0.ffn_gate_inp.weight": GGMLType.F32,
        "blk.0.attn_q.weight": None,
    }


@pytest.mark.parametrize(
    "broken",
    [
        {"num_attention_heads": "four"},
        {"num_attention_heads": -4},
        {"hidden_size": None, "head_dim": None},
        {"num_hidden_layers": 0},
        {"rms_norm_eps": float("nan")},
        {"rope_scaling": ["yarn"]},
        {"rope_scaling": {"rope_type": "yarn", "factor": "big", "original_max_position_embeddings": 8}},
        {"num_key_value_heads": 10**12},
        {"scoring_func": "coin"},
    ],
)
def test_a_config_that_makes_no_sense_is_refused(broken: dict[str, Any]) -> None:
    config = llama(**broken)
    with pytest.raises(UnsupportedModelError, match=r"config\.json"):
        family_for(config)(config, {}).add_metadata(gguf.GGUFWriter(None, "llama"))


def test_projections_that_do_not_fit_the_config_are_refused() -> None:
    config = {**DEEPSEEK3.config, "v_head_dim": 7}
    sources = {"model.layers.0.self_attn.kv_b_proj.weight": zeros(160, 32)}
    with pytest.raises(UnsupportedModelError, match="160"):
        list(family_for(config)(config, sources).tensors())


def test_what_a_multimodal_checkpoint_loses_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = load_model(build(GEMMA3_MM, tmp_path / "model"))
    assert "2 tensors for images or sound are left out" in caplog.text
    assert not any("vision" in tensor.name for tensor in model.tensors)


def test_layers_that_look_ahead_are_dropped_where_llama_cpp_has_no_use_for_them() -> None:
    sources = {"model.layers.2.eh_proj.weight": zeros(4, 8), "model.norm.weight": zeros(4)}
    family = family_for(DEEPSEEK3.config)(DEEPSEEK3.config, sources)
    assert [tensor.name for tensor in family.tensors()] == ["output_norm.weight"]


def test_phi3_takes_added_tokens_from_both_files(tmp_path: Path) -> None:
    n = write_phi(tmp_path)
    vocabulary = load_phi3(tmp_path, {"vocab_size": 320})
    assert vocabulary.tokens[n - 3 : n] == [b"<|endoftext|>", b"<|assistant|>", b"<|user|>"]
    assert vocabulary.types[n - 3 : n] == [TokenType.CONTROL, TokenType.CONTROL, TokenType.USER_DEFINED]
    assert vocabulary.types[n] == TokenType.UNUSED


def test_phi3_refuses_a_damaged_list_of_added_tokens(tmp_path: Path) -> None:
    write_phi(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": "x", "content": "y"}]}))
    with pytest.raises(TokenizerError, match="added token"):
        load_phi3(tmp_path, {"vocab_size": 320})


def write_pooling(folder: Path, path: str, config: dict[str, Any]) -> None:
    modules = [{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": path}]
    (folder / "modules.json").write_text(json.dumps(modules))
    place = folder / path
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pooling_mode_mean_tokens": True}, gguf.PoolingType.MEAN),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, gguf.PoolingType.CLS),
        ({"pooling_mode": "lasttoken"}, gguf.PoolingType.LAST),
    ],
)
def test_pooling(config: dict[str, Any], expected: gguf.PoolingType, tmp_path: Path) -> None:
    assert pooling_type(tmp_path) is None
    write_pooling(tmp_path, "1_Pooling", config)
    assert pooling_type(tmp_path) is expected


def test_pooling_is_not_read_outside_the_folder(tmp_path: Path) -> None:
    inside = tmp_path / "checkpoint"
    inside.mkdir()
    write_pooling(inside, "../outside", {"pooling_mode_mean_tokens": True})
    with pytest.raises(CheckpointError, match="outside the checkpoint"):
        pooling_type(inside)


def test_unknown_pooling_is_refused(tmp_path: Path) -> None:
    write_pooling(tmp_path, "1_Pooling", {"pooling_mode_max_tokens": True})
    with pytest.raises(UnsupportedModelError, match="pools"):
        pooling_type(tmp_path)


def test_defaults_stand_in_only_for_what_config_is_silent_about() -> None:
    config = {key: value for key, value in LLAMA.config.items() if key != "rms_norm_eps"}
    writer = gguf.GGUFWriter(None, "llama")
    family_for(config)(config, {}).add_metadata(writer)
    values = {key: value.value for key, value in writer.kv_data[0].items()}
    assert values["llama.attention.layer_norm_rms_epsilon"] == 1e-6
    assert values["llama.context_length"] == LLAMA.config["max_position_embeddings"]


def test_duplicated_keys_are_never_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for case in (DEEPSEEK3, QWEN3MOE):
        load_model(build(replace(case, name=case.name), tmp_path / case.name))
    assert "Duplicated key" not in caplog.text
