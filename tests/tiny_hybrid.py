"""Tiny checkpoints of more families beside Llama: national and company models, and state spaces with attention."""

from __future__ import annotations

from dataclasses import replace

from tests import tiny_hybrid_shapes as shapes
from tests.tiny.case import bare, config_of, modern
from tests.tiny.shapes import llama
from tests.tiny_classic import _LLAMA3, _SCALES, _USUAL, ClassicCase

_OLD = {"rms_norm_eps": 1e-6, "num_key_value_heads": ..., "bos_token_id": 1, "eos_token_id": 2}
_BAICHUAN_LOOPS = "the reference calls itself without end on every tensor but W_pack"
SEED_OSS = ClassicCase(
    "seed-oss",
    config_of("SeedOssForCausalLM", "seed_oss", head_dim=32, attention_bias=True, rope_theta=1e7),
    lambda c: llama(c, bias="qkv"),
)
ARCEE = ClassicCase("arcee", config_of("ArceeForCausalLM", "arcee", head_dim=16), shapes.arcee)
APERTUS = ClassicCase(
    "apertus",
    config_of("ApertusForCausalLM", "apertus", rope_theta=12000000, rope_scaling=_LLAMA3),
    shapes.apertus,
)
ORION = ClassicCase("orion", config_of("OrionForCausalLM", "orion", **_OLD), shapes.orion, "spm")
BAICHUAN = ClassicCase(
    "baichuan",
    config_of("BaichuanForCausalLM", "baichuan", model_max_length=4096, **_OLD),
    shapes.baichuan,
    "spm",
    reference=None,
    why=_BAICHUAN_LOOPS,
)
XVERSE = ClassicCase("xverse", config_of("XverseForCausalLM", "xverse", vocab_size=274, **_OLD), llama)
INTERNLM3 = ClassicCase(
    "internlm3",
    config_of("InternLM3ForCausalLM", "internlm3", head_dim=16, bos_token_id=1, eos_token_id=2),
    llama,
    "spm",
)
_MIXER = {
    "mamba_d_conv": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_n_heads": 8,
}
GRANITE_HYBRID = ClassicCase(
    "granite4-h-tiny",
    config_of(
        "GraniteMoeHybridForCausalLM",
        "granitemoehybrid",
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=64,
        layer_types=["mamba", "attention", "mamba"],
        num_hidden_layers=3,
        position_embedding_type="nope",
        tie_word_embeddings=True,
        **_MIXER,
        **_SCALES,
    ),
    shapes.granite_hybrid,
    types=("bf16", "q8_0"),
)
GRANITE_H_DENSE = replace(
    GRANITE_HYBRID,
    name="granite4-h-micro",
    config={
        **GRANITE_HYBRID.config,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "intermediate_size": 64,
    },
    types=("bf16",),
)
GRANITE4_MICRO = replace(
    GRANITE_H_DENSE,
    name="granite4-micro",
    config={**GRANITE_H_DENSE.config, "layer_types": ["attention"] * 3, "position_embedding_type": "rope"},
)
GRANITE4_MOE = replace(
    GRANITE_HYBRID,
    name="granite4-moe-attention",
    config={**GRANITE_HYBRID.config, "layer_types": ["attention"] * 3},
)
BAMBA = ClassicCase(
    "bamba",
    config_of(
        "BambaForCausalLM",
        "bamba",
        attn_layer_indices=[1],
        attn_rotary_emb=8,
        num_hidden_layers=3,
        **_MIXER,
    ),
    shapes.bamba,
)

FALCON_H1 = ClassicCase(
    "falcon-h1",
    config_of(
        "FalconH1ForCausalLM",
        "falcon_h1",
        head_dim=16,
        mamba_d_ssm=128,
        attention_in_multiplier=1.25,
        attention_out_multiplier=0.9375,
        embedding_multiplier=5.656854249492381,
        key_multiplier=0.39062499999999994,
        lm_head_multiplier=0.01953125,
        mlp_multipliers=[0.8838834764831844, 0.5859375],
        ssm_in_multiplier=1.1,
        ssm_multipliers=[0.3535533905932738, 0.25, 0.3535533905932738, 0.5, 0.3535533905932738],
        ssm_out_multiplier=0.23570226039551587,
        **{**_MIXER, "mamba_n_groups": 2},
    ),
    shapes.falcon_h1,
    types=("bf16", "f16"),
)
_NANO = {
    "head_dim": 16,
    "mamba_head_dim": 16,
    "mamba_num_heads": 8,
    "n_groups": 2,
    "ssm_state_size": 16,
    "conv_kernel": 4,
    "expand": 2,
    "layer_norm_epsilon": 1e-5,
    "mlp_hidden_act": "relu2",
}
NEMOTRON_H = ClassicCase(
    "nemotron-nano-2",
    config_of(
        "NemotronHForCausalLM",
        "nemotron_h",
        hybrid_override_pattern="M-*-M",
        num_hidden_layers=5,
        vocab_size=318,
        **_NANO,
    ),
    lambda c: shapes.nemotron_h({**c, "vocab_size": 320}),
    reference={"model_type": "nemotron_h_as_written"},
    why="transformers 5 adds numbers of experts to the config, which the reference takes for a mixture",
)
NEMOTRON_3 = replace(
    NEMOTRON_H,
    name="nemotron-3",
    config={
        **NEMOTRON_H.config,
        "vocab_size": 320,
        "hybrid_override_pattern": "MEM*E",
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "moe_shared_expert_intermediate_size": 96,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "n_group": 1,
        "topk_group": 1,
    },
    types=("bf16", "q8_0"),
)
NEMOTRON_3_DRAFT = replace(
    NEMOTRON_3,
    name="nemotron-3-draft",
    config={**NEMOTRON_3.config, "num_nextn_predict_layers": 1},
    exact=("blk.5.ffn_gate_inp.weight",),
    why=NEMOTRON_H.why + "; it forgets that the draft head's router is to stay F32",
)
_EXPERTS = {
    "head_dim": 16,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "n_group": 2,
    "topk_group": 1,
}
DOTS1 = ClassicCase(
    "dots1",
    config_of(
        "Dots1ForCausalLM",
        "dots1",
        n_routed_experts=4,
        n_shared_experts=2,
        scoring_func="noaux_tc",
        num_key_value_heads=4,
        **_EXPERTS,
    ),
    shapes.dots1,
    reference={"scoring_func": "sigmoid"},
    why="the reference does not know the published scoring_func; llama.cpp's runs it as sigmoid",
)
_LING = {**_EXPERTS, "num_experts": 4, "num_shared_experts": 2}
LING = ClassicCase(
    "ling-lite",
    config_of(
        "BailingMoeForCausalLM", "bailing_moe", norm_head=False, **{**_LING, "first_k_dense_replace": 0}
    ),
    shapes.bailing,
)
LING2 = ClassicCase(
    "ling-mini-2",
    config_of(
        "BailingMoeV2ForCausalLM",
        "bailing_moe_v2",
        partial_rotary_factor=0.5,
        score_function="sigmoid",
        **{**_LING, "num_shared_experts": 1},
    ),
    lambda c: shapes.bailing(c, second=True),
)
K_EXAONE = ClassicCase(
    "k-exaone",
    config_of(
        "ExaoneMoeForCausalLM",
        "exaone_moe",
        num_hidden_layers=4,
        scoring_func="sigmoid",
        sliding_window=16,
        layer_types=[*["sliding_attention"] * 3, "full_attention"],
        **{**_LING, "num_shared_experts": 1},
    ),
    shapes.exaone_moe,
)
K_EXAONE_DRAFT = replace(
    K_EXAONE, name="k-exaone-draft", config={**K_EXAONE.config, "num_nextn_predict_layers": 1}
)

_GLM_TOKENS = ("<|endoftext|>", "[gMASK]", "<|user|>")
GLM = ClassicCase(
    "glm4-9b-hf",
    config_of("GlmForCausalLM", "glm", head_dim=16, partial_rotary_factor=0.5, attention_bias=True),
    shapes.glm,
    added=_GLM_TOKENS,
)
CHATGLM = ClassicCase(
    "glm4-9b",
    {
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        "hidden_size": 64,
        "ffn_hidden_size": 96,
        "kv_channels": 16,
        "layernorm_epsilon": 1.5625e-07,
        "multi_query_group_num": 2,
        "num_attention_heads": 4,
        "num_layers": 2,
        "padded_vocab_size": 320,
        "vocab_size": 320,
        "rope_ratio": 500,
        "seq_length": 512,
    },
    shapes.chatglm,
    added=_GLM_TOKENS,
)
_DECI = config_of("DeciLMForCausalLM", "deci_as_written", num_hidden_layers=3, vocab_size=293)
_ATTENTION = {"n_heads_in_group": None, "replace_with_linear": False}
NEMOTRON_SUPER = ClassicCase(
    "nemotron-super-49b",
    {
        **{
            key: value
            for key, value in _DECI.items()
            if key not in ("num_key_value_heads", "intermediate_size")
        },
        "block_configs": [
            {"attention": {**_ATTENTION, "n_heads_in_group": 2}, "ffn": {"ffn_mult": 6.0}},
            {"attention": _ATTENTION, "ffn": {"ffn_mult": 5.5}},
            {"attention": {**_ATTENTION, "replace_with_linear": True}, "ffn": {"ffn_mult": 6.0}},
        ],
    },
    shapes.deci,
    "gemma4",
)
DECILM = ClassicCase(
    "decilm-7b", {**_DECI, "num_key_value_heads_per_layer": [4, 2, 1]}, shapes.deci, "gemma4"
)
JAMBA = ClassicCase(
    "jamba",
    config_of(
        "JambaForCausalLM",
        "jamba",
        num_hidden_layers=4,
        num_experts=4,
        num_experts_per_tok=2,
        expert_layer_period=2,
        expert_layer_offset=1,
        attn_layer_period=4,
        attn_layer_offset=2,
        mamba_d_conv=4,
        mamba_d_state=8,
        mamba_dt_rank=4,
        mamba_expand=2,
    ),
    shapes.jamba,
    "spm",
)

HYBRID_CASES: tuple[ClassicCase, ...] = (
    SEED_OSS,
    modern(SEED_OSS),
    bare(SEED_OSS, *_USUAL),
    ARCEE,
    modern(ARCEE),
    bare(ARCEE, *_USUAL, "head_dim"),
    APERTUS,
    modern(APERTUS),
    ORION,
    BAICHUAN,
    XVERSE,
    INTERNLM3,
    GRANITE_HYBRID,
    GRANITE_H_DENSE,
    GRANITE4_MICRO,
    GRANITE4_MOE,
    BAMBA,
    FALCON_H1,
    NEMOTRON_H,
    NEMOTRON_3,
    NEMOTRON_3_DRAFT,
    DOTS1,
    LING,
    LING2,
    K_EXAONE,
    K_EXAONE_DRAFT,
    GLM,
    CHATGLM,
    NEMOTRON_SUPER,
    DECILM,
    JAMBA,
    bare(JAMBA, "max_position_embeddings", "rms_norm_eps", "mamba_d_conv", "mamba_expand", "mamba_dt_rank"),
)
