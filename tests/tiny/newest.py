"""Cases: families of 2025 and 2026."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests.tiny import shapes, shapes_newest
from tests.tiny.case import Case, bare, config_of, modern

_LINEAR: dict[str, Any] = {
    "num_hidden_layers": 4,
    "head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "full_attention_interval": 4,
    "partial_rotary_factor": 0.25,
    "rope_theta": 10000000.0,
    "rms_norm_eps": 1e-6,
}
_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
QWEN3_NEXT = Case(
    "qwen3-next",
    config_of("Qwen3NextForCausalLM", "qwen3_next", norm_topk_prob=True, **_LINEAR, **_EXPERTS),
    lambda c: shapes_newest.qwen_next(c, split=False),
)
_ROPE = {
    "rope_type": "default",
    "rope_theta": 10000000.0,
    "partial_rotary_factor": 0.25,
    "mrope_interleaved": True,
    "mrope_section": [2, 1, 1],
}
_TEXT35 = {
    **{k: v for k, v in _LINEAR.items() if k not in ("rope_theta", "partial_rotary_factor")},
    "rope_theta": ...,
    "rope_parameters": _ROPE,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "mtp_num_hidden_layers": 1,
    "attn_output_gate": True,
}
QWEN35 = Case(
    "qwen35",
    config_of("Qwen3_5ForCausalLM", "qwen3_5_text", **_TEXT35),
    lambda c: shapes_newest.qwen_next(c, split=True),
    types=("bf16", "q8_0"),
)
QWEN35_MOE_MM = Case(
    "qwen35moe-multimodal",
    {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "model_type": "qwen3_5_moe",
        "text_config": {
            k: v
            for k, v in config_of("", "qwen3_5_moe_text", **_TEXT35, **_EXPERTS).items()
            if k != "architectures"
        },
        "vision_config": {"hidden_size": 32, "depth": 1, "num_heads": 2, "model_type": "qwen3_5_moe"},
    },
    lambda c: {
        **{
            name.replace("model.", "model.language_model.") if name.startswith("model.") else name: shape
            for name, shape in shapes_newest.qwen_next(c["text_config"], split=True, fused=True).items()
        },
        "model.visual.patch_embed.proj.weight": (32, 48),
    },
)
_GEMMA4: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "head_dim": 32,
    "global_head_dim": 64,
    "num_global_key_value_heads": None,
    "attention_k_eq_v": False,
    "hidden_size_per_layer_input": 16,
    "vocab_size": 294,
    "vocab_size_per_layer_input": 294,
    "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True,
    "sliding_window": 128,
    "final_logit_softcapping": 30.0,
    "rms_norm_eps": 1e-6,
    "rope_theta": ...,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "enable_moe_block": False,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {
            "rope_type": "proportional",
            "partial_rotary_factor": 0.25,
            "rope_theta": 1000000.0,
        },
    },
}
_CHANNEL = ("<|channel>", "<channel|>")
GEMMA4 = Case(
    "gemma4",
    config_of("Gemma4ForCausalLM", "gemma4_text", **_GEMMA4),
    shapes_newest.gemma4,
    "gemma4",
    added=_CHANNEL,
)
GEMMA4_MOE_MM = Case(
    "gemma4-moe-multimodal",
    {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "model_type": "gemma4",
        "text_config": {
            k: v
            for k, v in config_of(
                "",
                "gemma4_text",
                **{
                    **_GEMMA4,
                    "num_global_key_value_heads": 1,
                    "attention_k_eq_v": True,
                    "hidden_size_per_layer_input": 0,
                    "num_kv_shared_layers": 0,
                    "use_double_wide_mlp": False,
                    "enable_moe_block": True,
                    "num_experts": 4,
                    "top_k_experts": 2,
                    "moe_intermediate_size": 32,
                },
            ).items()
            if k != "architectures"
        },
        "vision_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        "audio_config": None,
    },
    lambda c: {
        **{
            name.replace("model.", "model.language_model."): shape
            for name, shape in shapes_newest.gemma4(c["text_config"]).items()
        },
        "model.vision_tower.patch_embedder.input_proj.weight": (32, 48),
        "model.embed_vision.embedding_projection.weight": (64, 32),
    },
    "gemma4",
    added=_CHANNEL,
)
_LFM2: dict[str, Any] = {
    "num_hidden_layers": 3,
    "conv_L_cache": 3,
    "conv_bias": False,
    "norm_eps": 1e-5,
    "rms_norm_eps": ...,
    "rope_theta": 1000000.0,
}
LFM2 = Case(
    "lfm2",
    config_of(
        "Lfm2ForCausalLM",
        "lfm2",
        layer_types=["conv", "full_attention", "conv"],
        block_auto_adjust_ff_dim=True,
        block_ffn_dim_multiplier=1.0,
        block_multiple_of=32,
        **_LFM2,
    ),
    shapes_newest.lfm2,
)
LFM2_OLD = replace(
    LFM2,
    name="lfm2-indices",
    config={
        **{k: v for k, v in LFM2.config.items() if k not in ("layer_types", "intermediate_size")},
        "full_attn_idxs": [1],
        "block_ff_dim": 128,
        "block_auto_adjust_ff_dim": False,
        "tie_embedding": True,
    },
    shapes=lambda c: shapes_newest.lfm2(
        {**c, "layer_types": ["conv", "full_attention", "conv"], "intermediate_size": 128}
    ),
)
LFM2MOE = Case(
    "lfm2moe",
    config_of(
        "Lfm2MoeForCausalLM",
        "lfm2_moe",
        layer_types=["conv", "full_attention", "conv"],
        num_dense_layers=1,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        norm_topk_prob=True,
        use_expert_bias=True,
        **_LFM2,
    ),
    shapes_newest.lfm2,
)
ERNIE = Case(
    "ernie45",
    config_of("Ernie4_5ForCausalLM", "ernie4_5", head_dim=32, rope_theta=500000.0, tie_word_embeddings=True),
    shapes.llama,
    "spm",
)
ERNIE_MOE = Case(
    "ernie45-moe",
    config_of(
        "Ernie4_5_MoeForCausalLM",
        "ernie4_5_moe",
        moe_num_experts=4,
        moe_k=2,
        moe_intermediate_size=24,
        moe_layer_start_index=1,
        moe_layer_end_index=1,
        moe_layer_interval=1,
        moe_num_shared_experts=2,
        rope_theta=500000.0,
        tie_word_embeddings=True,
    ),
    shapes_newest.ernie_moe,
    "spm",
)
HUNYUAN = Case(
    "hunyuan-dense",
    config_of(
        "HunYuanDenseV1ForCausalLM",
        "hunyuan_v1_dense",
        head_dim=32,
        max_position_embeddings=32768,
        use_qk_norm=True,
        eod_token_id=273,
        pad_token_id=-1,
        rope_scaling={
            "type": "dynamic",
            "alpha": 1000.0,
            "factor": 1.0,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
        tie_word_embeddings=True,
    ),
    shapes_newest.hunyuan,
)
SMALLTHINKER = Case(
    "smallthinker",
    config_of(
        "SmallThinkerForCausalLM",
        "smallthinker",
        num_hidden_layers=4,
        head_dim=32,
        intermediate_size=...,
        moe_num_primary_experts=4,
        moe_num_active_primary_experts=2,
        moe_ffn_hidden_size=32,
        moe_primary_router_apply_softmax=False,
        sliding_window_layout=[0, 1, 1, 1],
        sliding_window_size=128,
        rope_layout=[0, 1, 1, 1],
        rope_scaling=None,
    ),
    shapes_newest.smallthinker,
)
MINICPM = Case(
    "minicpm",
    config_of("MiniCPMForCausalLM", "minicpm", scale_emb=12, scale_depth=1.4, dim_model_base=32),
    shapes.llama,
    "spm",
)
MINICPM3 = Case(
    "minicpm3",
    config_of(
        "MiniCPM3ForCausalLM",
        "minicpm3",
        num_key_value_heads=4,
        q_lora_rank=48,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        scale_emb=12,
        scale_depth=1.4,
        dim_model_base=32,
        rope_scaling={
            "type": "longrope",
            "long_factor": [1.0, 1.5, 2.0, 4.0],
            "short_factor": [1.0, 1.25, 1.5, 2.0],
            "original_max_position_embeddings": 256,
        },
    ),
    shapes_newest.minicpm3,
    "spm",
)


def _multimodal(case: Case, name: str, architecture: str, kind: str, **vision: Any) -> Case:
    """The same text model inside a multimodal checkpoint, named as transformers 5 names it."""
    text = {key: value for key, value in case.config.items() if key != "architectures"}
    config = {
        "architectures": [architecture],
        "model_type": kind,
        "text_config": text,
        "vision_config": {"hidden_size": 32, "intermediate_size": 32, **vision},
    }
    build = case.shapes

    def named(c: Mapping[str, Any]) -> shapes.Shapes:
        inner = build(c["text_config"])
        found = {name.replace("model.", "model.language_model."): shape for name, shape in inner.items()}
        return {
            **found,
            "model.visual.merger.norm.weight": (32,),
            "model.multi_modal_projector.norm.weight": (32,),
        }

    return replace(case, name=name, config=config, shapes=named)


QWEN2VL = Case(
    "qwen2vl",
    config_of(
        "Qwen2VLForConditionalGeneration",
        "qwen2_vl",
        rope_theta=1000000.0,
        rope_scaling={"type": "mrope", "mrope_section": [2, 3, 3]},
        use_sliding_window=False,
        sliding_window=512,
        max_window_layers=2,
        vision_config={"depth": 1, "embed_dim": 32, "num_heads": 2, "model_type": "qwen2_vl"},
    ),
    lambda c: {**shapes.llama(c, bias="qkv"), "visual.patch_embed.proj.weight": (32, 48)},
)
QWEN25VL = _multimodal(
    Case(
        "qwen2",
        config_of(
            "",
            "qwen2_5_vl_text",
            rope_theta=...,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [2, 3, 3]},
        ),
        lambda c: shapes.llama(c, bias="qkv"),
    ),
    "qwen25vl-v5",
    "Qwen2_5_VLForConditionalGeneration",
    "qwen2_5_vl",
    depth=1,
    num_heads=2,
)
_TEXT3: dict[str, Any] = {
    "head_dim": 16,
    "rope_theta": 5000000.0,
    "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [4, 2, 2]},
}
QWEN3VL = _multimodal(
    Case("", config_of("", "qwen3_vl_text", **_TEXT3), lambda c: shapes.llama(c, qk_norm="head")),
    "qwen3vl",
    "Qwen3VLForConditionalGeneration",
    "qwen3_vl",
    depth=2,
    num_heads=2,
    deepstack_visual_indexes=[0],
)


def _fused_transposed(config: Mapping[str, Any]) -> shapes.Shapes:
    found = shapes.qwen_moe(config, qk_norm="head", fused=True)
    return {
        name: (shape[0], shape[2], shape[1]) if ".experts." in name else shape
        for name, shape in found.items()
    }


QWEN3VLMOE = _multimodal(
    Case(
        "",
        config_of(
            "", "qwen3_vl_moe_text", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, **_TEXT3
        ),
        _fused_transposed,
    ),
    "qwen3vlmoe",
    "Qwen3VLMoeForConditionalGeneration",
    "qwen3_vl_moe",
    depth=2,
    num_heads=2,
    deepstack_visual_indexes=[0],
)
MISTRAL3 = _multimodal(
    Case("", config_of("", "mistral", head_dim=16, rope_theta=1000000000.0), shapes.llama),
    "mistral3",
    "Mistral3ForConditionalGeneration",
    "mistral3",
    num_hidden_layers=1,
    num_attention_heads=2,
    model_type="pixtral",
)
MINISTRAL3 = _multimodal(
    Case(
        "",
        config_of(
            "",
            "ministral3",
            head_dim=32,
            rope_theta=...,
            rope_parameters={
                "type": "yarn",
                "rope_type": "yarn",
                "rope_theta": 1000000.0,
                "factor": 16.0,
                "original_max_position_embeddings": 128,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            },
        ),
        shapes.llama,
    ),
    "ministral3",
    "Mistral3ForConditionalGeneration",
    "mistral3",
    num_hidden_layers=1,
    num_attention_heads=2,
    model_type="pixtral",
)
MINISTRAL3_BARE = Case(
    "ministral3-bare",
    config_of(
        "Ministral3ForCausalLM",
        "ministral3",
        head_dim=32,
        rope_theta=...,
        max_position_embeddings=...,
        rms_norm_eps=...,
    ),
    shapes.llama,
)
GLM47_FLASH = Case(
    "glm47-flash",
    config_of(
        "Glm4MoeLiteForCausalLM",
        "glm4_moe_lite",
        num_key_value_heads=4,
        q_lora_rank=48,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=24,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
        topk_method="noaux_tc",
        norm_topk_prob=True,
        routed_scaling_factor=1.8,
        num_nextn_predict_layers=1,
    ),
    shapes_newest.glm47_flash,
    added=("<|endoftext|>", "[gMASK]", "<|user|>", "<|observation|>"),
)

CASES: tuple[Case, ...] = (
    QWEN3_NEXT,
    modern(QWEN3_NEXT),
    bare(
        QWEN3_NEXT, "full_attention_interval", "partial_rotary_factor", "rope_theta", "linear_conv_kernel_dim"
    ),
    QWEN35,
    QWEN35_MOE_MM,
    GEMMA4,
    GEMMA4_MOE_MM,
    LFM2,
    modern(LFM2),
    LFM2_OLD,
    LFM2MOE,
    ERNIE,
    modern(ERNIE),
    ERNIE_MOE,
    HUNYUAN,
    modern(HUNYUAN),
    SMALLTHINKER,
    MINICPM,
    MINICPM3,
    QWEN2VL,
    QWEN25VL,
    QWEN3VL,
    QWEN3VLMOE,
    MISTRAL3,
    MINISTRAL3,
    MINISTRAL3_BARE,
    GLM47_FLASH,
)
