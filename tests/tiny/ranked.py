"""Cases: models whose tokenizer is published in tiktoken's form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests.tiny.case import Case, Config, config_of
from tests.tiny.established import DEEPSEEK3
from tests.tiny.newest import HUNYUAN
from tests.tiny.shapes import Shapes, attention, experts, head_dim, mlp, model, norms


def _hunyuan_moe(config: Config) -> Shapes:
    def layer(c: Mapping[str, Any], i: int) -> Shapes:
        width, n = c["hidden_size"], c["num_experts"]
        return {
            **attention(c),
            **norms(head_dim(c), "self_attn.query_layernorm", "self_attn.key_layernorm"),
            "mlp.gate.wg.weight": (n, width),
            **experts(n, width, c["intermediate_size"]),
            **mlp(width, c["intermediate_size"], "mlp.shared_mlp."),
            **norms(width),
        }

    return model({**config, "tie_word_embeddings": False}, layer)


HUNYUAN_MOE = Case(
    "hunyuan-moe",
    config_of(
        "HunYuanMoEV1ForCausalLM",
        "hunyuan_v1_moe",
        vocab_size=477,
        hidden_size=256,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=128,
        intermediate_size=32,
        max_position_embeddings=32768,
        num_experts=4,
        moe_topk=[2, 2],
        num_shared_expert=[1, 1],
        moe_intermediate_size=[32, 32],
        use_qk_norm=True,
        use_cla=False,
        bos_token_id=1,
        eos_token_id=270,
        pad_token_id=271,
        rope_scaling={
            "type": "dynamic",
            "alpha": 1000.0,
            "factor": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
        tie_word_embeddings=True,
    ),
    _hunyuan_moe,
    "hy.tiktoken",
    pre="hunyuan",
    differs=("tokenizer.ggml.bos_token_id",),
    why="the reference writes the number that the token has in the published vocabulary",
)
HUNYUAN_MOE_PLAIN = replace(
    HUNYUAN_MOE,
    name="hunyuan-moe-plain",
    config={
        **{k: v for k, v in HUNYUAN_MOE.config.items() if k not in ("rope_scaling", "head_dim")},
        "hidden_size": 64,
        "tie_word_embeddings": False,
    },
)
HUNYUAN_DENSE_RANKS = replace(
    HUNYUAN,
    name="hunyuan-dense-tiktoken",
    config={**HUNYUAN.config, "vocab_size": 477, "bos_token_id": 268, "pad_token_id": 271},
    tokenizer="hy.tiktoken",
    pre="hunyuan",
)
KIMI = replace(
    DEEPSEEK3,
    name="kimi-k2",
    config={
        **DEEPSEEK3.config,
        "model_type": "kimi_k2",
        "vocab_size": 528,
        "n_group": 1,
        "topk_group": 1,
        "bos_token_id": 267,
        "eos_token_id": 269,
    },
    tokenizer="tiktoken.model",
    pre="kimi-k2",
)


def _qwen(config: Config) -> Shapes:
    width, inner = config["hidden_size"], config["intermediate_size"] // 2
    found: Shapes = {"transformer.wte.weight": (config["vocab_size"], width)}
    for i in range(config["num_hidden_layers"]):
        at = f"transformer.h.{i}."
        found |= {f"{at}ln_{k}.weight": (width,) for k in (1, 2)}
        found |= {f"{at}attn.c_attn.weight": (3 * width, width), f"{at}attn.c_attn.bias": (3 * width,)}
        found |= {f"{at}attn.c_proj.weight": (width, width), f"{at}mlp.c_proj.weight": (width, inner)}
        found |= {f"{at}mlp.w{k}.weight": (inner, width) for k in (1, 2)}
    return {
        **found,
        "transformer.ln_f.weight": (width,),
        "lm_head.weight": (config["vocab_size"], width),
    }


QWEN = Case(
    "qwen",
    config_of(
        "QWenLMHeadModel",
        "qwen",
        vocab_size=478,
        intermediate_size=192,
        num_key_value_heads=...,
        rms_norm_eps=...,
        rope_theta=...,
        layer_norm_epsilon=1e-6,
        rotary_emb_base=10000,
        rotary_pct=1.0,
        seq_length=512,
    ),
    _qwen,
    "qwen.tiktoken",
    differs=("qwen.attention.layer_norm_rms_epsilon",),
    loads=False,
    why="the reference writes the norms' epsilon under a name that llama.cpp does not read for this family",
)


def _kimi_linear(config: Config) -> Shapes:
    def layer(c: Mapping[str, Any], i: int) -> Shapes:
        width, heads, n, at = c["hidden_size"], c["num_attention_heads"], c["num_experts"], "self_attn."
        inner = c["moe_intermediate_size"]
        if i + 1 in c["linear_attn_config"]["full_attn_layers"]:
            rank, nope, rope, value = (
                c["kv_lora_rank"],
                c["qk_nope_head_dim"],
                c["qk_rope_head_dim"],
                c["v_head_dim"],
            )
            shapes: Shapes = {
                f"{at}q_proj.weight": (heads * (nope + rope), width),
                f"{at}kv_a_proj_with_mqa.weight": (rank + rope, width),
                f"{at}kv_a_layernorm.weight": (rank,),
                f"{at}kv_b_proj.weight": (heads * (nope + value), rank),
                f"{at}o_proj.weight": (width, heads * value),
            }
        else:
            head = c["linear_attn_config"]["head_dim"]
            rows = heads * head
            shapes = {f"{at}{letter}_proj.weight": (rows, width) for letter in "qkv"}
            # Both ways in which the convolutions are kept.
            shapes |= {f"{at}{letter}_conv1d.weight": (rows, 1, 4) if i else (rows, 4) for letter in "qkv"}
            for letter in "fg":
                shapes |= {
                    f"{at}{letter}_a_proj.weight": (head, width),
                    f"{at}{letter}_b_proj.weight": (rows, head),
                }
            shapes |= {
                f"{at}A_log": (1, 1, heads, 1),
                f"{at}dt_bias": (rows,),
                f"{at}b_proj.weight": (heads, width),
                f"{at}o_norm.weight": (head,),
                f"{at}o_proj.weight": (width, rows),
            }
        shapes |= norms(width)
        if i < c["first_k_dense_replace"]:
            return {**shapes, **mlp(width, c["intermediate_size"])}
        at = "block_sparse_moe."
        return {
            **shapes,
            f"{at}gate.weight": (n, width),
            f"{at}gate.e_score_correction_bias": (n,),
            **experts(n, width, inner, f"{at}experts.", "w1 w3 w2"),
            **mlp(width, inner * c["num_shared_experts"], f"{at}shared_experts."),
        }

    return model(config, layer)


KIMI_LINEAR = Case(
    "kimi-linear",
    config_of(
        "KimiLinearForCausalLM",
        "kimi_linear_48b",  # under its own name the reference's library renames what its converter wants
        vocab_size=528,
        num_hidden_layers=4,
        num_key_value_heads=4,
        first_k_dense_replace=1,
        kv_lora_rank=32,
        q_lora_rank=None,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        linear_attn_config={
            "full_attn_layers": [4],
            "kda_layers": [1, 2, 3],
            "head_dim": 64,
            "num_heads": 4,
            "short_conv_kernel_size": 4,
        },
        num_experts=4,
        num_experts_per_token=2,
        num_shared_experts=1,
        moe_intermediate_size=32,
        moe_router_activation_func="sigmoid",
        moe_renormalize=True,
        routed_scaling_factor=2.446,
        bos_token_id=267,
        eos_token_id=269,
    ),
    _kimi_linear,
    "tiktoken.model",
    pre="kimi-k2",
)

CASES = (HUNYUAN_MOE, HUNYUAN_MOE_PLAIN, HUNYUAN_DENSE_RANKS, KIMI, KIMI_LINEAR, QWEN)
