"""Cases: mixtures of experts of 2025 and later, and models of few users."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests.tiny.case import Case, Config, bare, config_of, modern
from tests.tiny.newest import GLM47_FLASH
from tests.tiny.shapes import Shapes, attention, experts, head_dim, mlp, model, norms
from tests.tiny.shapes_newest import glm47_flash

_AROUND = ("input_layernorm", "post_attention_layernorm", "pre_mlp_layernorm", "post_mlp_layernorm")


def _afmoe(config: Config) -> Shapes:
    def layer(c: Mapping[str, Any], i: int) -> Shapes:
        width, n, inner = c["hidden_size"], c["num_experts"], c["moe_intermediate_size"]
        shapes = {
            **attention(c, qk_norm="head"),
            "self_attn.gate_proj.weight": (head_dim(c) * c["num_attention_heads"], width),
            **norms(width, *_AROUND),
        }
        if i < c["num_dense_layers"]:
            return {**shapes, **mlp(width, c["intermediate_size"])}
        return {
            **shapes,
            "mlp.router.gate.weight": (n, width),
            "mlp.expert_bias": (n,),
            **experts(n, width, inner),
            **mlp(width, inner * c["num_shared_experts"], "mlp.shared_experts."),
        }

    return model(config, layer)


AFMOE = Case(
    "afmoe",
    config_of(
        "AfmoeForCausalLM",
        "afmoe",
        num_hidden_layers=5,
        head_dim=32,
        num_dense_layers=2,
        num_experts=4,
        num_experts_per_tok=2,
        num_shared_experts=1,
        moe_intermediate_size=32,
        n_group=1,
        topk_group=1,
        score_func="sigmoid",
        route_norm=True,
        route_scale=2.826,
        sliding_window=128,
        global_attn_every_n_layers=4,
        mup_enabled=True,
    ),
    _afmoe,
)


def _jais2(config: Config) -> Shapes:
    def layer(c: Mapping[str, Any], i: int) -> Shapes:
        width, inner = c["hidden_size"], c["intermediate_size"]
        both = norms(width)
        return {
            **attention(c, bias="qkvo"),
            "mlp.up_proj.weight": (inner, width),
            "mlp.up_proj.bias": (inner,),
            "mlp.down_proj.weight": (width, inner),
            "mlp.down_proj.bias": (width,),
            **both,
            **{name.replace("weight", "bias"): shape for name, shape in both.items()},
        }

    return {**model(config, layer), "model.norm.bias": (config["hidden_size"],)}


JAIS2 = Case(
    "jais2",
    config_of(
        "Jais2ForCausalLM",
        "jais2",
        rms_norm_eps=...,
        layer_norm_eps=1e-5,
        hidden_act="relu2",
        rope_theta=500000.0,
    ),
    _jais2,
)


def _grok(config: Config) -> Shapes:
    def layer(c: Mapping[str, Any], i: int) -> Shapes:
        width, n, at = c["hidden_size"], c["num_local_experts"], "block_sparse_moe."
        return {
            **attention(c),
            **norms(width, "pre_attn_norm", "post_attn_norm", "pre_moe_norm", "post_moe_norm"),
            **mlp(width, c["intermediate_size"]),
            f"{at}gate.weight": (n, width),
            **experts(n, width, c["moe_intermediate_size"], f"{at}experts.", "w1 w3 w2"),
        }

    return model(config, layer)


GROK2 = Case(
    "grok2",
    config_of(
        "Grok1ForCausalLM",
        "git",
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=48,
        embedding_multiplier_scale=8.0,
        output_multiplier_scale=0.5,
        attn_logit_softcapping=30.0,
        router_logit_softcapping=30.0,
        final_logit_softcapping=50,
        attn_temperature_len=1024,
        rope_type="original",
        original_max_position_embeddings=128,
        scaling_factor=16.0,
        extrapolation_factor=1.0,
        attn_factor=1.0,
        beta_fast=8,
        beta_slow=1,
    ),
    _grok,
    files={"chat_template.jinja": "{{ messages }}"},
    differs=("grok.attention.layer_norm_epsilon",),
    why="the published model calls itself a git, whose defaults the reference's library then adds",
)


def _grok1(config: Config) -> Shapes:
    width, inner, n = config["hidden_size"], config["intermediate_size"], config["num_local_experts"]
    found: Shapes = {"transformer.in_out_embed.weight": (config["vocab_size"], width)}
    for i in range(config["num_hidden_layers"]):
        at = f"transformer.decoder_layer.{i}."
        found |= {f"{at}rms_norm{k}.weight": (width,) for k in ("", "_1", "_2", "_3")}
        for name, rows in (("query", width), ("key", width // 2), ("value", width // 2), ("linear", width)):
            found |= {f"{at}multi_head_attention.{name}.weight": (rows, width)}
        found |= {f"{at}router.weight": (n, width)}
        found |= experts(n, width, inner, f"{at}moe.", "linear linear_v linear_1")
    return {**found, "transformer.rms_norm.weight": (width,)}


GROK1 = Case(
    "grok1",
    config_of(
        "GrokForCausalLM",
        "grok-1",
        num_local_experts=4,
        num_experts_per_tok=2,
        embedding_multiplier_scale=8.0,
        output_multiplier_scale=0.5,
    ),
    _grok1,
    "spm",
)


def _mimo(config: Config, *, fused: bool = False) -> Shapes:
    def layer(c: Mapping[str, Any], i: int) -> Shapes:
        width, heads, head, value = (
            c["hidden_size"],
            c["num_attention_heads"],
            c["head_dim"],
            c["v_head_dim"],
        )
        last = c["num_hidden_layers"]
        window = i >= last or c["hybrid_layer_pattern"][i] == 1
        shared = c["swa_num_key_value_heads"] if window else c["num_key_value_heads"]
        rows = {"q": heads * head, "k": shared * head, "v": shared * value}
        shapes = {f"self_attn.{letter}_proj.weight": (n, width) for letter, n in rows.items()}
        if fused:
            shapes = {"self_attn.qkv_proj.weight": (sum(rows.values()), width)}
        shapes["self_attn.o_proj.weight"] = (width, heads * value)
        if window:
            shapes["self_attn.attention_sink_bias"] = (heads,)
        if i >= last:
            return {
                **shapes,
                **norms(width, "input_layernorm", "pre_mlp_layernorm", "final_layernorm", "enorm", "hnorm"),
                **mlp(width, c["intermediate_size"]),
                "eh_proj.weight": (width, 2 * width),
            }
        shapes |= norms(width)
        if i == 0:
            return {**shapes, **mlp(width, c["intermediate_size"])}
        n = c["n_routed_experts"]
        return {
            **shapes,
            "mlp.gate.weight": (n, width),
            "mlp.gate.e_score_correction_bias": (n,),
            **experts(n, width, c["moe_intermediate_size"]),
        }

    found = model(config, layer)
    for i in range(3):
        found |= {
            f"model.mtp.layers.{i}.{k}": v for k, v in layer(config, config["num_hidden_layers"]).items()
        }
    return found


MIMO2 = Case(
    "mimo2-flash",
    config_of(
        "MiMoV2FlashForCausalLM",
        "mimo_v2",  # under its published name the reference's library makes what its converter cannot read
        num_hidden_layers=4,
        hybrid_layer_pattern=[0, 1, 1, 0],
        head_dim=32,
        v_head_dim=16,
        swa_head_dim=32,
        swa_v_head_dim=16,
        swa_num_attention_heads=4,
        swa_num_key_value_heads=4,
        sliding_window=128,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        rms_norm_eps=...,
        layernorm_epsilon=1e-5,
        attention_value_scale=0.707,
        partial_rotary_factor=0.334,
        rope_theta=5000000,
        swa_rope_theta=10000,
    ),
    _mimo,
)
_SLICED = {
    "architectures": ["MiMoV2ForCausalLM"],
    "v_head_dim": 32,
    "swa_v_head_dim": 32,
    "num_key_value_heads": 4,
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
}
MIMO25_FP8 = replace(
    MIMO2,
    name="mimo2.5-fp8",
    config={**MIMO2.config, **_SLICED},
    shapes=lambda c: _mimo(c, fused=True),
    storage="fp8-sliced",
)

MIMO25_MXFP4 = replace(
    MIMO2,
    name="mimo2.5-mxfp4",
    config={**MIMO2.config, "quantization_config": {"quant_method": "fp8", "store_dtype": "mxfp4"}},
    storage="mxfp4-experts",
)


def _step(config: Config) -> Shapes:
    def layer(c: Mapping[str, Any], i: int) -> Shapes:
        width, n, inner = c["hidden_size"], c["moe_num_experts"], c["moe_intermediate_size"]
        sliding = [*c["layer_types"], "full_attention"][i] == "sliding_attention"
        at = c["attention_other_setting"] if sliding else c
        heads = at["num_attention_heads"]
        counts = {**c, "num_attention_heads": heads, "num_key_value_heads": at["num_attention_groups"]}
        shapes = {
            **attention(counts, qk_norm="head"),
            "self_attn.g_proj.weight": (heads, width),
            **norms(width),
        }
        if i >= c["num_hidden_layers"]:
            shapes |= norms(width, "enorm", "hnorm", "transformer.shared_head.norm")
            shapes |= {
                "eh_proj.weight": (width, 2 * width),
                "transformer.shared_head.output.weight": (c["vocab_size"], width),
            }
        if i == 0 or i >= c["num_hidden_layers"]:
            return {**shapes, **mlp(width, c["intermediate_size"])}
        return {
            **shapes,
            "moe.gate.weight": (n, width),
            "moe.router_bias": (n,),
            "moe.gate_proj.weight": (n, inner, width),
            "moe.up_proj.weight": (n, inner, width),
            "moe.down_proj.weight": (n, width, inner),
            **mlp(width, c["share_expert_dim"], "share_expert."),
        }

    return model(config, layer)


STEP35 = Case(
    "step35",
    config_of(
        "Step3p5ForCausalLM",
        "step3p5_flash",  # under its published name the reference's library makes what its converter cannot read
        num_hidden_layers=4,
        num_key_value_heads=...,
        num_attention_groups=2,
        head_dim=32,
        attention_other_setting={
            "attention_type": "sliding_attention",
            "num_attention_heads": 6,
            "num_attention_groups": 2,
            "head_dim": 32,
        },
        # The reference's library takes no list for the layer that looks ahead, though published configs have one.
        layer_types=["full_attention", *["sliding_attention"] * 3],
        partial_rotary_factors=[0.5, 1.0, 1.0, 1.0],
        rope_theta=[5000000.0, 10000.0, 10000.0, 10000.0, 10000.0],
        rope_scaling={
            "rope_type": "llama3",
            "factor": 2.0,
            "original_max_position_embeddings": 256,
            "low_freq_factor": 1.0,
            "high_freq_factor": 32.0,
        },
        sliding_window=128,
        moe_layers_enum="1,2,3",
        moe_every_n_layer=1,
        moe_num_experts=4,
        moe_top_k=2,
        moe_intermediate_size=32,
        share_expert_dim=32,
        moe_router_activation="sigmoid",
        moe_router_scaling_factor=3.0,
        norm_expert_weight=True,
        swiglu_limits=[None, 7.0, None, 7, None],
        swiglu_limits_shared=[0, 16, 0],
        num_nextn_predict_layers=1,
    ),
    _step,
)
STEP35_PLAIN = replace(
    STEP35,
    name="step35-plain",
    config={
        **{
            k: v for k, v in STEP35.config.items() if not k.startswith(("rope_scaling", "swiglu", "num_next"))
        },
        "layer_types": ["full_attention", *["sliding_attention"] * 3],
        "partial_rotary_factors": [0.5, 1.0, 1.0, 1.0],
    },
)


def _glm5(config: Config) -> Shapes:
    found = glm47_flash(config)
    for name in [name for name in found if name.endswith("q_a_proj.weight")]:
        at, rank = name.replace("q_a_proj.weight", "indexer."), config["q_lora_rank"]
        heads, head, width = config["index_n_heads"], config["index_head_dim"], config["hidden_size"]
        found |= {f"{at}wq_b.weight": (heads * head, rank), f"{at}wk.weight": (head, width)}
        found |= {f"{at}k_norm.weight": (head,), f"{at}k_norm.bias": (head,)}
        found |= {f"{at}weights_proj.weight": (heads, width)}
    return found


GLM5 = replace(
    GLM47_FLASH,
    name="glm5",
    config={
        **GLM47_FLASH.config,
        "architectures": ["GlmMoeDsaForCausalLM"],
        "model_type": "glm_moe_dsa",
        "index_n_heads": 4,
        "index_head_dim": 64,
        "index_topk": 16,
    },
    shapes=_glm5,
)

CASES = (
    AFMOE,
    modern(AFMOE),
    bare(AFMOE, "rope_theta", "sliding_window", "rms_norm_eps"),
    JAIS2,
    modern(JAIS2),
    GROK2,
    GROK1,
    MIMO2,
    MIMO25_FP8,
    MIMO25_MXFP4,
    STEP35,
    STEP35_PLAIN,
    GLM5,
)
