"""Cases: families up to early 2025."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.tiny import shapes
from tests.tiny.case import Case, bare, config_of, modern

_QKV: Any = "qkv"
LLAMA = Case(
    "llama", config_of("LlamaForCausalLM", "llama"), shapes.llama, "spm", types=("bf16", "f32", "f16", "q8_0")
)
LLAMA31 = Case(
    "llama31",
    config_of(
        "LlamaForCausalLM",
        "llama",
        rope_theta=500000.0,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        },
        tie_word_embeddings=True,
        head_dim=32,
    ),
    shapes.llama,
)
MISTRAL = Case("mistral", config_of("MistralForCausalLM", "mistral", sliding_window=256), shapes.llama, "spm")
MIXTRAL = Case(
    "mixtral",
    config_of(
        "MixtralForCausalLM", "mixtral", num_local_experts=4, num_experts_per_tok=2, sliding_window=None
    ),
    shapes.mixtral,
    "spm",
    types=("bf16", "q8_0"),
)
SMOLLM3 = Case(
    "smollm3",
    config_of(
        "SmolLM3ForCausalLM",
        "smollm3",
        num_hidden_layers=4,
        no_rope_layers=[1, 1, 1, 0],
        no_rope_layer_interval=4,
        tie_word_embeddings=True,
    ),
    shapes.llama,
)
_QWEN2 = {"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 2, "rms_norm_eps": 1e-6}
QWEN2 = Case(
    "qwen2",
    config_of("Qwen2ForCausalLM", "qwen2", rope_theta=1000000.0, **_QWEN2),
    lambda c: shapes.llama(c, bias=_QKV),
)
QWEN2_YARN = replace(
    QWEN2,
    name="qwen2-yarn",
    config={
        **QWEN2.config,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        "tie_word_embeddings": True,
    },
)
QWEN2MOE = Case(
    "qwen2moe",
    config_of(
        "Qwen2MoeForCausalLM",
        "qwen2_moe",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        shared_expert_intermediate_size=96,
        decoder_sparse_step=1,
        norm_topk_prob=False,
        **_QWEN2,
    ),
    lambda c: shapes.qwen_moe(c, bias=_QKV),
)
QWEN3 = Case(
    "qwen3",
    config_of(
        "Qwen3ForCausalLM", "qwen3", head_dim=32, rope_theta=1000000.0, tie_word_embeddings=True, **_QWEN2
    ),
    lambda c: shapes.llama(c, qk_norm="head"),
    types=("bf16", "q8_0"),
)
_POOLING = {
    "modules.json": [
        {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ],
    "1_Pooling/config.json": {"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True},
}
QWEN3_EMBEDDING = replace(QWEN3, name="qwen3-embedding", files=_POOLING, types=("bf16",))
QWEN3_FP8 = replace(
    QWEN3,
    name="qwen3-fp8",
    storage="fp8-block",
    config={
        **QWEN3.config,
        "quantization_config": {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "weight_block_size": [24, 40],
        },
    },
)
QWEN3MOE = Case(
    "qwen3moe",
    config_of(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        head_dim=32,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        norm_topk_prob=True,
        **_QWEN2,
    ),
    lambda c: shapes.qwen_moe(c, qk_norm="head"),
    types=("bf16", "q8_0"),
)
QWEN3MOE_FUSED = replace(
    QWEN3MOE, name="qwen3moe-fused", shapes=lambda c: shapes.qwen_moe(c, qk_norm="head", fused=True)
)
_GEMMA = {
    "head_dim": 32,
    "hidden_act": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
GEMMA = Case("gemma", config_of("GemmaForCausalLM", "gemma", **_GEMMA), shapes.gemma, "gemma")
GEMMA2 = Case(
    "gemma2",
    config_of(
        "Gemma2ForCausalLM",
        "gemma2",
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        query_pre_attn_scalar=32,
        sliding_window=256,
        **_GEMMA,
    ),
    lambda c: shapes.gemma(c, post=True),
    "gemma",
)
_GEMMA3 = {
    "num_hidden_layers": 7,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "sliding_window": 128,
    "sliding_window_pattern": 6,
    "query_pre_attn_scalar": 32,
    **_GEMMA,
}
GEMMA3 = Case(
    "gemma3",
    config_of("Gemma3ForCausalLM", "gemma3_text", **_GEMMA3),
    lambda c: shapes.gemma(c, post=True, qk_norm="head"),
    "gemma",
    types=("bf16", "q8_0"),
)
GEMMA3_V5 = replace(
    GEMMA3,
    name="gemma3-v5",
    config={
        **{k: v for k, v in GEMMA3.config.items() if k not in ("rope_theta", "rope_local_base_freq")},
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
)
GEMMA3_MM = Case(
    "gemma3-multimodal",
    {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": {
            **{k: v for k, v in GEMMA3.config.items() if k != "architectures"},
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        "vision_config": {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        },
        "mm_tokens_per_image": 16,
    },
    lambda c: {
        **{
            f"language_model.{name}": shape
            for name, shape in shapes.gemma(c["text_config"], post=True, qk_norm="head").items()
        },
        "vision_tower.vision_model.post_layernorm.weight": (32,),
        "multi_modal_projector.mm_input_projection_weight": (32, 64),
    },
    "gemma",
)
PHI3 = Case(
    "phi3",
    config_of(
        "Phi3ForCausalLM",
        "phi3",
        sliding_window=255,
        original_max_position_embeddings=512,
        rope_scaling=None,
    ),
    shapes.phi3,
    "phi",
)
_LONG = {"short_factor": [1.0 + i / 10 for i in range(8)], "long_factor": [1.5 + i for i in range(8)]}
PHI35 = replace(
    PHI3,
    name="phi35-longrope",
    config={
        **PHI3.config,
        "original_max_position_embeddings": 128,
        "rope_scaling": {"type": "longrope", **_LONG},
    },
)
PHI4 = replace(
    PHI3,
    name="phi4-mini",
    tokenizer="gpt2",
    config={
        **PHI3.config,
        "sliding_window": None,
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 128,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0] * 6,
            "long_factor": [1.0, 1.25, 2.0, 4.0, 8.0, 32.0],
        },
        "tie_word_embeddings": True,
    },
)
PHIMOE = Case(
    "phimoe",
    config_of(
        "PhiMoEForCausalLM",
        "phimoe",
        num_local_experts=4,
        num_experts_per_tok=2,
        original_max_position_embeddings=128,
        sliding_window=512,
        attention_bias=True,
        lm_head_bias=True,
        rope_scaling={
            "type": "longrope",
            "short_mscale": 1.2,
            "long_mscale": 1.2,
            "original_max_position_embeddings": 128,
            **_LONG,
        },
    ),
    shapes.phimoe,
    "phi",
)
_GLM_TOKENS = ("<|endoftext|>", "[gMASK]", "<|user|>", "<|observation|>")
GLM4 = Case(
    "glm4",
    config_of(
        "Glm4ForCausalLM",
        "glm4",
        head_dim=32,
        partial_rotary_factor=0.5,
        attention_bias=True,
    ),
    shapes.glm4,
    added=_GLM_TOKENS,
)
GLM4MOE = Case(
    "glm4moe",
    config_of(
        "Glm4MoeForCausalLM",
        "glm4_moe",
        head_dim=32,
        partial_rotary_factor=0.5,
        attention_bias=True,
        use_qk_norm=True,
        first_k_dense_replace=1,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        norm_topk_prob=True,
        routed_scaling_factor=1.5,
        n_group=1,
        topk_group=1,
        num_nextn_predict_layers=1,
    ),
    shapes.glm4_moe,
    added=_GLM_TOKENS,
)
_MLA = {
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 24,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
_YARN = {
    "type": "yarn",
    "factor": 40,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
    "original_max_position_embeddings": 128,
}
DEEPSEEK2 = Case(
    "deepseek2-lite",
    config_of(
        "DeepseekV2ForCausalLM",
        "deepseek_v2",
        num_hidden_layers=27,  # llama.cpp tells the Lite model by this number
        q_lora_rank=None,
        n_shared_experts=2,
        n_group=1,
        topk_group=1,
        topk_method="greedy",
        scoring_func="softmax",
        norm_topk_prob=False,
        routed_scaling_factor=1.0,
        rope_scaling=_YARN,
        **_MLA,
    ),
    shapes.deepseek,
)
DEEPSEEK3 = Case(
    "deepseek3",
    config_of(
        "DeepseekV3ForCausalLM",
        "deepseek_v3",
        q_lora_rank=48,
        n_shared_experts=1,
        n_group=2,
        topk_group=1,
        topk_method="noaux_tc",
        scoring_func="sigmoid",
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
        num_nextn_predict_layers=1,
        rope_scaling={**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        **_MLA,
    ),
    shapes.deepseek,
)
DEEPSEEK3_FP8 = replace(
    DEEPSEEK3,
    name="deepseek3-fp8",
    storage="fp8-block",
    config={
        **DEEPSEEK3.config,
        "quantization_config": {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "weight_block_size": [16, 16],
        },
    },
)
_OSS = config_of(
    "GptOssForCausalLM",
    "gpt_oss",
    head_dim=32,
    intermediate_size=64,
    num_local_experts=4,
    num_experts_per_tok=2,
    experts_per_token=2,
    sliding_window=128,
    rope_theta=150000,
    attention_bias=True,
    swiglu_limit=7.0,
    rope_scaling={
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 128,
    },
)
GPT_OSS = Case(
    "gpt-oss-mxfp4",
    {**_OSS, "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}},
    lambda c: shapes.gpt_oss(c, packed=True),
    types=("bf16", "f16", "q8_0"),
)
GPT_OSS_BF16 = Case("gpt-oss-bf16", _OSS, lambda c: shapes.gpt_oss(c, packed=False), types=("bf16", "q8_0"))
_LLAMA4 = config_of(
    "Llama4ForCausalLM",
    "llama4_text",
    head_dim=32,
    num_hidden_layers=4,
    intermediate_size=64,
    intermediate_size_mlp=96,
    interleave_moe_layer_step=2,
    num_local_experts=4,
    num_experts_per_tok=1,
    attention_chunk_size=256,
    use_qk_norm=True,
    rope_theta=500000.0,
    rope_scaling={
        "rope_type": "llama3",
        "factor": 16.0,
        "high_freq_factor": 1.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 128,
    },
)
LLAMA4 = Case("llama4", _LLAMA4, shapes.llama4)
LLAMA4_MM = Case(
    "llama4-multimodal",
    {
        "architectures": ["Llama4ForConditionalGeneration"],
        "model_type": "llama4",
        "text_config": {k: v for k, v in _LLAMA4.items() if k != "architectures"},
        "vision_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    },
    lambda c: {
        **{f"language_model.{n}": s for n, s in shapes.llama4(c["text_config"]).items()},
        "vision_model.patch_embedding.linear.weight": (32, 32),
        "multi_modal_projector.linear_1.weight": (64, 32),
    },
)

CASES: tuple[Case, ...] = (
    LLAMA,
    modern(LLAMA),
    bare(LLAMA, "max_position_embeddings", "rms_norm_eps", "rope_theta"),
    replace(LLAMA, name="llama-f16", dtype="F16", types=("f16", "q8_0")),
    replace(LLAMA, name="llama-f32", dtype="F32", types=("f32", "f16", "bf16")),
    LLAMA31,
    modern(LLAMA31),
    MISTRAL,
    bare(MISTRAL, "max_position_embeddings", "rms_norm_eps", "rope_theta"),
    MIXTRAL,
    modern(MIXTRAL),
    bare(MIXTRAL, "max_position_embeddings", "rms_norm_eps", "rope_theta", "num_experts_per_tok"),
    SMOLLM3,
    bare(SMOLLM3, "max_position_embeddings", "rms_norm_eps", "rope_theta"),
    QWEN2,
    modern(QWEN2),
    QWEN2_YARN,
    replace(QWEN2, name="qwen2-spm", tokenizer="spm"),
    bare(QWEN2, "max_position_embeddings", "rms_norm_eps", "rope_theta"),
    QWEN2MOE,
    modern(QWEN2MOE),
    bare(QWEN2MOE, "max_position_embeddings", "rms_norm_eps", "rope_theta"),
    QWEN3,
    modern(QWEN3),
    QWEN3_EMBEDDING,
    QWEN3_FP8,
    QWEN3MOE,
    modern(QWEN3MOE),
    bare(QWEN3MOE, "max_position_embeddings", "rms_norm_eps", "rope_theta"),
    QWEN3MOE_FUSED,
    GEMMA,
    modern(GEMMA),
    bare(GEMMA, "max_position_embeddings", "rms_norm_eps", "rope_theta"),
    replace(GEMMA, name="gemma-f16", dtype="F16", types=("f16",)),
    GEMMA2,
    modern(GEMMA2),
    bare(
        GEMMA2,
        "max_position_embeddings",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "sliding_window",
    ),
    GEMMA3,
    GEMMA3_V5,
    bare(GEMMA3, "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_local_base_freq"),
    GEMMA3_MM,
    PHI3,
    modern(PHI3),
    PHI35,
    modern(PHI35),
    PHI4,
    modern(PHI4),
    PHIMOE,
    GLM4,
    modern(GLM4),
    bare(GLM4, "max_position_embeddings", "rms_norm_eps", "partial_rotary_factor", "rope_theta"),
    GLM4MOE,
    modern(GLM4MOE),
    DEEPSEEK2,
    modern(DEEPSEEK2),
    DEEPSEEK3,
    modern(DEEPSEEK3),
    DEEPSEEK3_FP8,
    GPT_OSS,
    modern(GPT_OSS),
    GPT_OSS_BF16,
    bare(GPT_OSS, "rope_scaling", "rope_theta", "sliding_window"),
    LLAMA4,
    modern(LLAMA4),
    LLAMA4_MM,
)
