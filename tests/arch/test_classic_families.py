"""The families before and beside Llama: bytes that agreed with the reference converter's, and what is refused.

python -m tests.arch.test_classic_families      take the digests anew, after `make parity` agreed
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest

from ewq_gguf.arch import family_for, supported_architectures
from ewq_gguf.arch.config import Config as FamilyConfig
from ewq_gguf.arch.falcon_h1 import scaled
from ewq_gguf.arch.fused_qkv import regroup, split_groups
from ewq_gguf.arch.granite_hybrid import attention_blocks
from ewq_gguf.arch.internlm2 import load_internlm2
from ewq_gguf.arch.mamba import decay, equal, load_mamba
from ewq_gguf.arch.mpt import load_mpt
from ewq_gguf.checkpoint.tensor import ArrayTensor, Tensor
from ewq_gguf.errors import TokenizerError, UnsupportedModelError
from ewq_gguf.model import ModelTensor
from ewq_gguf.pipeline.source import load_model
from ewq_gguf.vocab import TokenType
from tests.tiny.build import build
from tests.tiny.digests import digest
from tests.tiny.vocabularies import write_bpe, write_sentencepiece
from tests.tiny.weights import weights
from tests.tiny_classic import (
    CLASSIC_CASES,
    COHERE2,
    FALCON,
    FALCON_NEW,
    GPT2,
    GPT2_MASKS,
    GPT2_V5,
    MAMBA,
    OLMO,
    STABLELM2_12B,
    ClassicCase,
    Config,
)
from tests.tiny_hybrid import (
    APERTUS,
    BAICHUAN,
    DECILM,
    GRANITE4_MICRO,
    GRANITE4_MOE,
    GRANITE_H_DENSE,
    GRANITE_HYBRID,
    HYBRID_CASES,
    LING,
    NEMOTRON_3,
    NEMOTRON_3_DRAFT,
    NEMOTRON_H,
)

FILE = Path(__file__).with_name("classic_digests.json")
ALL = (*CLASSIC_CASES, *HYBRID_CASES)
PINNED: dict[str, str] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_conversion_is_what_agreed_with_the_reference(case: ClassicCase, tmp_path: Path) -> None:
    assert digest(case, tmp_path) == PINNED[case.name]


def test_every_case_is_pinned_once_and_names_a_supported_architecture() -> None:
    names = [case.name for case in ALL]
    assert sorted(names) == sorted(PINNED)
    assert {case.config["architectures"][0] for case in ALL} <= set(supported_architectures())


def _tensors(case: ClassicCase, folder: Path, **config: object) -> dict[str, ModelTensor]:
    changed = {key: value for key, value in {**case.config, **config}.items() if value is not ...}
    sources = {name: ArrayTensor(weights(name, shape)) for name, shape in case.shapes(case.config).items()}
    return {t.name: t for t in family_for(changed)(changed, sources).tensors()}


def _values(tensor: Tensor) -> np.ndarray:
    return tensor.rows(0, tensor.n_rows).reshape(tensor.shape)


def test_gpt2_transposes_and_drops_the_causal_masks(tmp_path: Path) -> None:
    plain, masked = _tensors(GPT2, tmp_path), _tensors(GPT2_MASKS, tmp_path)
    assert plain.keys() == masked.keys()
    expected = weights("h.1.mlp.c_fc.weight", (64, 256)).T
    np.testing.assert_array_equal(_values(plain["blk.1.ffn_up.weight"].source), expected)


def test_gpt2_without_n_ctx_takes_n_positions(tmp_path: Path) -> None:
    found = load_model(build(GPT2_V5, tmp_path / "m")).metadata["gpt2.context_length"].value
    assert found == GPT2_V5.config["n_positions"]


@pytest.mark.parametrize(("groups", "per_group"), [(4, 1), (2, 3), (1, 8)])
@pytest.mark.parametrize("biases", [False, True])
def test_fused_projections_come_apart_group_by_group(groups: int, per_group: int, biases: bool) -> None:
    head, width = 6, 5
    rows = groups * (per_group + 2) * head
    data = np.arange(rows * width, dtype=np.float32).reshape(rows, width)
    data = data[:, 0] if biases else data
    grouped = data.reshape(groups, per_group + 2, head, *data.shape[1:])
    parts = [grouped[:, :per_group], grouped[:, per_group], grouped[:, per_group + 1]]
    expected = [part.reshape(-1, *data.shape[1:]) for part in parts]
    for found, wanted in zip(split_groups(ArrayTensor(data), groups, per_group), expected, strict=True):
        np.testing.assert_array_equal(_values(found), wanted)
    whole = regroup(ArrayTensor(data), groups, per_group)
    np.testing.assert_array_equal(_values(whole), np.concatenate(expected))
    if not biases:
        for start in range(0, rows, 7):
            stop = min(start + 7, rows)
            np.testing.assert_array_equal(whole.rows(start, stop), np.concatenate(expected)[start:stop])


def test_a_fused_projection_that_does_not_fit_the_heads_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="16 rows cannot hold 3 groups"):
        split_groups(ArrayTensor(np.zeros((16, 2), np.float32)), 3, 1)


@pytest.mark.parametrize(
    ("case", "config", "heads"),
    [(FALCON, {"num_kv_heads": 4}, 1), (FALCON, {}, 1), (FALCON_NEW, {}, 2)],
    ids=["old, as published", "old", "new"],
)
def test_falcon_has_one_key_value_head_unless_the_new_architecture_groups(
    case: ClassicCase, config: Config, heads: int, tmp_path: Path
) -> None:
    folder = build(case, tmp_path / "m")
    (folder / "config.json").write_text(json.dumps({**case.config, **config}), encoding="utf-8")
    assert load_model(folder).metadata["falcon.attention.head_count_kv"].value == heads


@pytest.mark.parametrize("key", ["alibi", "bias"])
def test_falcon_rw_is_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="falcon-rw"):
        _tensors(FALCON, tmp_path, **{key: True})


def test_stablelm_stacks_the_norms_of_the_heads(tmp_path: Path) -> None:
    found = _tensors(STABLELM2_12B, tmp_path)["blk.1.attn_k_norm.weight"]
    names = [f"model.layers.1.self_attn.k_layernorm.norms.{head}.weight" for head in range(2)]
    np.testing.assert_array_equal(_values(found.source), np.stack([weights(name, (16,)) for name in names]))


def test_stablelm_misses_the_norm_of_a_head(tmp_path: Path) -> None:
    shapes = STABLELM2_12B.shapes(STABLELM2_12B.config)
    lost = "model.layers.0.self_attn.q_layernorm.norms.3.weight"
    sources = {name: ArrayTensor(weights(name, shape)) for name, shape in shapes.items() if name != lost}
    family = family_for(STABLELM2_12B.config)(STABLELM2_12B.config, sources)
    with pytest.raises(UnsupportedModelError, match=r"norms\.3"):
        list(family.tensors())


def test_cohere2_drops_biases_of_zeros_and_refuses_others() -> None:
    sources = {name: ArrayTensor(weights(name, s)) for name, s in COHERE2.shapes(COHERE2.config).items()}
    bias = "model.layers.0.self_attn.q_proj.bias"
    family = family_for(COHERE2.config)
    for value in (0.0, 0.5):
        made = family(COHERE2.config, {**sources, bias: ArrayTensor(np.full(64, value, np.float32))})
        if value:
            with pytest.raises(UnsupportedModelError, match="not all zeros"):
                list(made.tensors())
        else:
            assert "blk.0.attn_q.bias" not in [t.name for t in made.tensors()]


def test_mamba_omits_an_output_matrix_that_repeats_the_embedding() -> None:
    sources = {name: ArrayTensor(weights(name, s)) for name, s in MAMBA.shapes(MAMBA.config).items()}
    embedding = _values(sources["backbone.embeddings.weight"])
    other = embedding.copy()
    other[-1, -1] += 1
    for output, kept in ((embedding, False), (other, True)):
        family = family_for(MAMBA.config)(MAMBA.config, {**sources, "lm_head.weight": ArrayTensor(output)})
        assert ("output.weight" in [t.name for t in family.tensors()]) is kept


def test_equality_sees_shapes_and_every_band_of_rows() -> None:
    a = np.zeros((2500, 2), np.float32)
    b = a.copy()
    b[2499, 1] = 1
    assert equal(ArrayTensor(a), ArrayTensor(a.copy()))
    assert not equal(ArrayTensor(a), ArrayTensor(b))
    assert not equal(ArrayTensor(a), ArrayTensor(a[:-1]))


def test_mamba_decay_is_minus_the_exponential_rounded_like_its_source() -> None:
    logs = np.log(np.arange(1, 17, dtype=np.float32)).reshape(1, 16)
    np.testing.assert_array_equal(
        _values(decay(ArrayTensor(logs))), -np.exp(logs.astype(np.float64)).astype("f4")
    )
    halves = logs.astype(np.float16)
    found = _values(decay(ArrayTensor(halves)))
    np.testing.assert_array_equal(found, found.astype(np.float16).astype(np.float32))


def test_mamba_with_another_expansion_is_refused(tmp_path: Path) -> None:
    folder = build(MAMBA, tmp_path / "m")
    config = {**MAMBA.config, "intermediate_size": 192}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UnsupportedModelError, match="expansion of 2"):
        load_model(folder)


def test_internlm2_takes_added_tokens_as_they_are_and_ends_with_the_turn(tmp_path: Path) -> None:
    size = write_sentencepiece(tmp_path)
    added = {
        str(size - 2): {"content": "<|im_end|>", "special": True},
        str(size - 1): {"content": "[UNUSED_TOKEN_9]", "special": False},
        str(size + 5): {"content": "beyond", "special": True},
    }
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": added}), encoding="utf-8"
    )
    found = load_internlm2(tmp_path, {"vocab_size": size})
    assert found.tokens[-2:] == [b"<|im_end|>", b"[UNUSED_TOKEN_9]"]
    assert found.types[-2:] == [TokenType.CONTROL, TokenType.USER_DEFINED]
    assert found.scores is not None
    assert found.scores[-2:] == [-1000.0, -1000.0]
    assert found.special_ids["eos"] == size - 2
    assert found.add_space_prefix is True


def test_a_tensor_of_another_family_is_named_in_the_refusal(tmp_path: Path) -> None:
    sources = {"model.layers.0.mixer.weight": ArrayTensor(np.zeros((320, 64), np.float32))}
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\.mixer\.weight.*olmo"):
        list(family_for(OLMO.config)(OLMO.config, sources).tensors())


@pytest.mark.parametrize(
    ("case", "arch"),
    [
        (GRANITE_HYBRID, "granitehybrid"),
        (GRANITE_H_DENSE, "granitehybrid"),
        (GRANITE4_MICRO, "granite"),
        (GRANITE4_MOE, "granitemoe"),
        (NEMOTRON_H, "nemotron_h"),
        (NEMOTRON_3, "nemotron_h_moe"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_the_config_decides_the_architecture(case: ClassicCase, arch: str, tmp_path: Path) -> None:
    model = load_model(build(case, tmp_path / "m"))
    assert model.arch == arch
    assert model.metadata["general.architecture"].value == arch


def test_granite_hybrid_counts_key_value_heads_block_by_block(tmp_path: Path) -> None:
    metadata = load_model(build(GRANITE_HYBRID, tmp_path / "m")).metadata
    assert metadata["granitehybrid.attention.head_count_kv"].value == [0, 2, 0]
    assert metadata["granitehybrid.rope.scaling.finetuned"].value is False


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"layer_types": ["mamba", "attention", "attention"]}, [1, 2]),
        ({"attn_layer_indices": [0, 2]}, [0, 2]),
        ({"attn_layer_period": 2, "attn_layer_offset": 1}, [1]),
    ],
)
def test_attention_blocks_are_found_in_each_spelling(config: Config, found: list[int]) -> None:
    assert attention_blocks(FamilyConfig(config), 3) == found


@pytest.mark.parametrize("config", [{}, {"attn_layer_indices": ["one"]}, {"attn_layer_period": 0}])
def test_attention_blocks_that_config_does_not_tell_are_refused(config: Config) -> None:
    with pytest.raises(UnsupportedModelError):
        attention_blocks(FamilyConfig(config), 3)


@pytest.mark.parametrize("pattern", [..., 7, "MX*", ["mamba", 3]], ids=repr)
def test_nemotron_h_needs_a_pattern_it_knows(pattern: object, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="hybrid_override_pattern"):
        _tensors(NEMOTRON_H, tmp_path, hybrid_override_pattern=pattern)


def test_nemotron_h_writes_widths_and_heads_for_the_blocks_that_have_them(tmp_path: Path) -> None:
    metadata = load_model(build(NEMOTRON_3_DRAFT, tmp_path / "m")).metadata
    assert metadata["nemotron_h_moe.feed_forward_length"].value == [0, 64, 0, 0, 64, 64]
    assert metadata["nemotron_h_moe.attention.head_count_kv"].value == [0, 0, 0, 2, 0, 2]
    assert metadata["nemotron_h_moe.nextn_predict_layers"].value == 1


def test_factors_go_into_weights_row_by_row_and_round_like_their_source() -> None:
    data = weights("w", (6, 4))
    factors = np.arange(1, 7, dtype=np.float32) / 7
    exact = scaled(ArrayTensor(data), factors)
    np.testing.assert_array_equal(exact.rows(2, 5), data[2:5] * factors[2:5, None])
    halves = data.astype(np.float16)
    found = _values(scaled(ArrayTensor(halves), 0.3))
    wanted = (halves.astype(np.float32) * np.float32(0.3)).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(found, wanted)
    with pytest.raises(UnsupportedModelError, match="6 rows"):
        scaled(ArrayTensor(data), factors[:5])


def test_apertus_keeps_its_activation_as_metadata(tmp_path: Path) -> None:
    model = load_model(build(APERTUS, tmp_path / "m"))
    assert not [t.name for t in model.tensors if "act_fn" in t.name]
    assert len(model.metadata["xielu.alpha_p"].value) == 2


def test_baichuan_unpacks_three_projections(tmp_path: Path) -> None:
    found = _tensors(BAICHUAN, tmp_path)
    packed = weights("model.layers.0.self_attn.W_pack.weight", (192, 64))
    np.testing.assert_array_equal(_values(found["blk.0.attn_v.weight"].source), packed[128:])
    heads = packed[:64].reshape(4, 2, 8, 64).swapaxes(1, 2).reshape(64, 64)
    np.testing.assert_array_equal(_values(found["blk.0.attn_q.weight"].source), heads)


def test_ling_with_a_normalised_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="norm_head"):
        _tensors(LING, tmp_path, norm_head=True)


def test_mpt_reads_sea_lions_sentencepiece_model(tmp_path: Path) -> None:
    size = write_sentencepiece(tmp_path)
    found = load_mpt(tmp_path, {"vocab_size": size})
    assert found.model == "llama"
    assert {"pad": 3, "eos": 1, "unk": 0}.items() <= found.special_ids.items()
    assert found.add_special["bos"] is False


def test_mamba_prefers_tokenizer_json_and_says_which_tokenizer_is_missing(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="gpt-neox-20b"):
        load_mamba(tmp_path, {})
    write_sentencepiece(tmp_path)
    assert load_mamba(tmp_path, {}).model == "llama"
    write_bpe(tmp_path)
    assert load_mamba(tmp_path, {}).model == "gpt2"


@pytest.mark.parametrize(
    "config", [{"block_configs": [{}]}, {"num_key_value_heads_per_layer": [4]}, {"block_configs": 5}]
)
def test_deci_needs_an_entry_for_each_block(config: Config, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="per block"):
        _tensors(DECILM, tmp_path, **config)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = {case.name: digest(case, Path(folder)) for case in ALL}
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
