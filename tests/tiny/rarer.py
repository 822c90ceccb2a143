"""Cases: families that fewer people use, and names under which others are published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests.tiny import shapes
from tests.tiny.case import Case, Config, config_of
from tests.tiny.shapes import Shapes, attention, experts, head_dim, mlp, model, norms


def _minimax(config: Config) -> Shapes:
    def layer(c: Mapping[str, Any], i: int) -> Shapes:
        width, n, at = c["hidden_size"], c["num_local_experts"], "block_sparse_moe."
        heads = head_dim(c) * c["num_attention_heads"], head_dim(c) * c["num_key_value_heads"]
        return {
            **attention(c),
            "self_attn.q_norm.weight": heads[:1],
            "self_attn.k_norm.weight": heads[1:],
            f"{at}gate.weight": (n, width),
            f"{at}e_score_correction_bias": (n,),
            **experts(n, width, c["intermediate_size"], f"{at}experts.", "w1 w3 w2"),
            **norms(width),
        }

    return model(config, layer)


MINIMAX_M2 = Case(
    "minimax-m2",
    config_of(
        "MiniMaxM2ForCausalLM",
        "minimax_m2",
        head_dim=32,
        rotary_dim=16,
        intermediate_size=64,
        num_local_experts=4,
        num_experts_per_tok=2,
        scoring_func="sigmoid",
        use_qk_norm=True,
        rope_theta=5000000.0,
    ),
    _minimax,
)


def _gemma3n(config: Config) -> Shapes:
    def layer(c: Mapping[str, Any], i: int) -> Shapes:
        width, small, rank = c["hidden_size"], c["hidden_size_per_layer_input"], c["laurel_rank"]
        return {
            **attention(c, qk_norm="head"),
            **mlp(width, c["intermediate_size"][i]),
            **norms(width),
            **norms(width, "pre_feedforward_layernorm", "post_feedforward_layernorm"),
            **norms(width, "post_per_layer_input_norm", "laurel.post_laurel_norm", "altup.router_norm"),
            "altup.correct_output_scale": (width,),
            "altup.correction_coefs.weight": (4, 4),
            "altup.prediction_coefs.weight": (16, 4),
            "altup.modality_router.weight": (4, width),
            "laurel.linear_left.weight": (rank, width),
            "laurel.linear_right.weight": (width, rank),
            "per_layer_input_gate.weight": (small, width),
            "per_layer_projection.weight": (width, small),
        }

    width, rows = config["hidden_size"], config["num_hidden_layers"] * config["hidden_size_per_layer_input"]
    found = model({**config, "tie_word_embeddings": True}, layer)
    for i in range(3):
        found[f"model.altup_projections.{i}.weight"] = (width, width)
        found[f"model.altup_unembed_projections.{i}.weight"] = (width, width)
    found["model.embed_tokens_per_layer.weight"] = (config["vocab_size_per_layer_input"], rows)
    found["model.per_layer_model_projection.weight"] = (rows, width)
    found["model.per_layer_projection_norm.weight"] = (config["hidden_size_per_layer_input"],)
    return found


# Width per layer and rank of the side path are built into llama.cpp.
GEMMA3N = Case(
    "gemma3n",
    config_of(
        "Gemma3nForCausalLM",
        "gemma3n_text",
        head_dim=32,
        num_hidden_layers=5,
        intermediate_size=[96] * 5,
        layer_types=["sliding_attention"] * 4 + ["full_attention"],
        activation_sparsity_pattern=[0.95, 0.95, 0.0, 0.0, 0.0],
        hidden_size_per_layer_input=256,
        vocab_size_per_layer_input=310,
        num_kv_shared_layers=2,
        laurel_rank=64,
        altup_num_inputs=4,
        altup_active_idx=0,
        sliding_window=128,
        final_logit_softcapping=30.0,
        rms_norm_eps=1e-6,
        rope_theta=1000000.0,
        rope_local_base_freq=10000.0,
        tie_word_embeddings=True,
    ),
    _gemma3n,
    "gemma",
)
GEMMA3N_MM = replace(
    GEMMA3N,
    name="gemma3n-multimodal",
    config={
        "architectures": ["Gemma3nForConditionalGeneration"],
        "model_type": "gemma3n",
        "text_config": {k: v for k, v in GEMMA3N.config.items() if k != "architectures"},
        "vision_config": {"hidden_size": 32, "model_type": "gemma3n_vision"},
        "audio_config": {"hidden_size": 32, "model_type": "gemma3n_audio"},
    },
    shapes=lambda c: {
        **{
            name.replace("model.", "model.language_model.", 1): shape
            for name, shape in _gemma3n(c["text_config"]).items()
        },
        "model.vision_tower.timm_model.conv_stem.conv.weight": (8, 3, 3, 3),
        "model.audio_tower.conformer.0.norm.weight": (32,),
        "model.embed_vision.embedding_projection.weight": (64, 32),
        "model.embed_audio.embedding_projection.weight": (64, 32),
    },
)


def _dbrx(config: Config) -> Shapes:
    width, inner, n = (
        config["d_model"],
        config["ffn_config"]["ffn_hidden_size"],
        config["ffn_config"]["moe_num_experts"],
    )
    head = width // config["n_heads"]
    found: Shapes = {"transformer.wte.weight": (config["vocab_size"], width)}
    for i in range(config["n_layers"]):
        at = f"transformer.blocks.{i}."
        rows = width + 2 * head * config["attn_config"]["kv_n_heads"]
        found |= {f"{at}norm_attn_norm.attn.Wqkv.weight": (rows, width)}
        found |= {f"{at}norm_attn_norm.attn.out_proj.weight": (width, width)}
        found |= {f"{at}norm_attn_norm.norm_{k}.weight": (width,) for k in (1, 2)}
        found |= {f"{at}ffn.experts.mlp.{name}": (n * inner, width) for name in ("w1", "v1", "w2")}
        found |= {f"{at}ffn.router.layer.weight": (n, width)}
    return {
        **found,
        "transformer.norm_f.weight": (width,),
        "lm_head.weight": (config["vocab_size"], width),
    }


DBRX = Case(
    "dbrx",
    {
        "architectures": ["DbrxForCausalLM"],
        "model_type": "dbrx",
        "d_model": 64,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 512,
        "vocab_size": 320,
        "attn_config": {"model_type": "", "clip_qkv": 8, "kv_n_heads": 2, "rope_theta": 500000},
        "ffn_config": {
            "model_type": "",
            "ffn_hidden_size": 96,
            "moe_num_experts": 4,
            "moe_top_k": 2,
            "moe_normalize_expert_weights": 1.0,
        },
        "torch_dtype": "bfloat16",
    },
    _dbrx,
)


def _openelm(config: Config) -> Shapes:
    width, head = config["model_dim"], config["head_dim"]
    found: Shapes = {"transformer.token_embeddings.weight": (config["vocab_size"], width)}
    for i, inner in enumerate((64, 128)):
        at = f"transformer.layers.{i}."
        q, k = config["num_query_heads"][i], config["num_kv_heads"][i]
        found |= {f"{at}attn.qkv_proj.weight": ((q + 2 * k) * head, width)}
        found |= {f"{at}attn.out_proj.weight": (width, q * head)}
        found |= norms(head, f"{at}attn.q_norm", f"{at}attn.k_norm")
        found |= norms(width, f"{at}attn_norm", f"{at}ffn_norm")
        found |= {
            f"{at}ffn.proj_1.weight": (2 * inner, width),
            f"{at}ffn.proj_2.weight": (width, inner),
        }
    return {**found, "transformer.norm.weight": (width,)}


OPENELM = Case(
    "openelm",
    {
        "architectures": ["OpenELMForCausalLM"],
        "model_type": "openelm",
        "model_dim": 64,
        "head_dim": 16,
        "num_transformer_layers": 2,
        "num_query_heads": [2, 4],
        "num_kv_heads": [1, 2],
        "ffn_multipliers": [1.0, 2.0],
        "ffn_dim_divisor": 32,
        "max_context_length": 512,
        "rope_freq_constant": 10000,
        "vocab_size": 294,
        "torch_dtype": "bfloat16",
    },
    _openelm,
    "spm",
)
QWEN2_BARE = Case(
    "qwen2-bare-model",
    config_of("Qwen2Model", "qwen2", rope_theta=1000000.0, tie_word_embeddings=True),
    lambda c: {name.removeprefix("model."): shape for name, shape in shapes.llama(c, bias="qkv").items()},
)


def _around(case: Case, name: str, architecture: str, kind: str, prefix: str, **parts: Any) -> Case:
    """The same text model inside a multimodal checkpoint, its tensors under `prefix`."""
    text = {key: value for key, value in case.config.items() if key != "architectures"}
    build = case.shapes
    return replace(
        case,
        name=name,
        config={"architectures": [architecture], "model_type": kind, "text_config": text, **parts},
        shapes=lambda c: {
            **{f"{prefix}{tensor}": size for tensor, size in build(c["text_config"]).items()},
            "multi_modal_projector.linear_1.weight": (64, 32),
        },
    )


_LLAMA = Case("", config_of("", "llama", head_dim=16), shapes.llama)
VOXTRAL = _around(
    _LLAMA,
    "voxtral",
    "VoxtralForConditionalGeneration",
    "voxtral",
    "language_model.",
    audio_config={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
)
LLAVA = _around(
    _LLAMA,
    "llava",
    "LlavaForConditionalGeneration",
    "llava",
    "language_model.",
    vision_config={
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "model_type": "clip_vision_model",
    },
)
GLM45V = Case(
    "glm45v",
    {
        "architectures": ["Glm4vMoeForConditionalGeneration"],
        "model_type": "glm4v_moe",
        "text_config": {
            k: v
            for k, v in config_of(
                "",
                "glm4v_moe_text",
                head_dim=32,
                partial_rotary_factor=0.5,
                attention_bias=True,
                use_qk_norm=False,
                first_k_dense_replace=1,
                n_routed_experts=4,
                n_shared_experts=1,
                num_experts_per_tok=2,
                moe_intermediate_size=64,
                norm_topk_prob=True,
                routed_scaling_factor=1.5,
                n_group=1,
                topk_group=1,
                rope_scaling={"rope_type": "default", "mrope_section": [2, 3, 3]},
            ).items()
            if k != "architectures"
        },
        "vision_config": {"hidden_size": 32, "depth": 1, "num_heads": 2},
    },
    lambda c: {
        **{
            name.replace("model.", "model.language_model."): shape
            for name, shape in shapes.glm4_moe(c["text_config"]).items()
        },
        "model.visual.patch_embed.proj.weight": (32, 48),
    },
    added=("<|endoftext|>", "[gMASK]", "<|user|>", "<|observation|>"),
)


def _named_inside(case: Case, name: str, section: str, prefix: str, **top: Any) -> Case:
    """A multimodal checkpoint whose own name says nothing of its text model's family."""
    build = case.shapes

    def named(c: Mapping[str, Any]) -> Shapes:
        return {
            **{tensor.replace("model.", prefix, 1): size for tensor, size in build(c[section]).items()},
            "model.vision_model.embeddings.patch_embedding.weight": (32, 48),
        }

    return replace(case, name=name, config={**top, section: case.config}, shapes=named)


SMOLVLM = _named_inside(
    Case("", config_of("VLlama3ForCausalLM", "llama", head_dim=16), shapes.llama),
    "smolvlm",
    "text_config",
    "model.text_model.",
    architectures=["Idefics3ForConditionalGeneration"],
    model_type="idefics3",
    vision_config={"hidden_size": 32, "model_type": "idefics3_vision", "num_attention_heads": 2},
)
INTERNVL = _named_inside(
    Case("", config_of("Qwen3ForCausalLM", "qwen3", head_dim=16), lambda c: shapes.llama(c, qk_norm="head")),
    "internvl",
    "llm_config",
    "language_model.model.",
    architectures=["InternVLChatModel"],
    model_type="internvl_chat",
    vision_config={"hidden_size": 32},
)

CASES: tuple[Case, ...] = (
    MINIMAX_M2,
    GEMMA3N,
    GEMMA3N_MM,
    DBRX,
    OPENELM,
    QWEN2_BARE,
    VOXTRAL,
    LLAVA,
    GLM45V,
    SMOLVLM,
    INTERNVL,
)
