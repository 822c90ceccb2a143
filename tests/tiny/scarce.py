"""Cases: models of few users."""

from __future__ import annotations

from dataclasses import replace

from tests.tiny.case import Case, Config, config_of
from tests.tiny.shapes import Shapes, norms

_NORMS = ("pre_mixer_norm", "post_mixer_norm", "pre_mlp_norm", "post_mlp_norm")


def _plamo3(config: Config) -> Shapes:
    width, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    found: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], width)}
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.layers.{i}."
        found |= {f"{at}mixer.qkv_proj.weight": ((heads + 2 * shared) * head, width)}
        found |= {f"{at}mixer.o_proj.weight": (width, heads * head)}
        found |= {f"{at}mixer.{letter}_norm.weight": (head,) for letter in "qk"}
        found |= {f"{at}{name}": shape for name, shape in norms(width, *_NORMS).items()}
        found |= {
            f"{at}mlp.gate_up_proj.weight": (2 * inner, width),
            f"{at}mlp.down_proj.weight": (width, inner),
        }
    return {**found, "model.norm.weight": (width,)}


PLAMO3 = Case(
    "plamo3",
    config_of(
        "Plamo3ForCausalLM",
        "plamo3",
        num_hidden_layers=4,
        head_dim=32,
        window_size=128,
        sliding_window_pattern=2,
        rope_theta=1000000,
        rope_local_theta=10000,
        rope_scaling_factor=4,
        initial_context_length=128,
        tie_word_embeddings=True,
    ),
    _plamo3,
    "plamo",
)
PLAMO3_PLAIN = replace(
    PLAMO3,
    name="plamo3-plain",
    config={
        **{key: value for key, value in PLAMO3.config.items() if key != "window_size"},
        "rope_scaling_factor": 1,
        "sliding_window": 64,
        "sliding_window_pattern": [True, True, False, True],
    },
    dtype="F16",
    types=("f16",),
)


def _rwkv7(config: Config, *, fla: bool) -> Shapes:
    width, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    ranks = {"w": "decay", "a": "a", "v": "v", "g": "gate"}
    found: Shapes = {"model.embeddings.weight": (config["vocab_size"], width)}
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        for name in ["attn_norm", "ffn_norm", "attn.g_norm", *(["pre_norm"] if i == 0 else [])]:
            found |= {f"{at}{name}.weight": (width,), f"{at}{name}.bias": (width,)}
        found |= {f"{at}attn.{letter}_proj.weight": (width, width) for letter in "rkvo"}
        found |= {
            f"{at}attn.k_k": (width,),
            f"{at}attn.k_a": (width,),
            f"{at}attn.r_k": (width // head, head),
        }
        if fla:
            found |= {f"{at}attn.x_{letter}": (1, 1, width) for letter in "rwkvag"}
        else:
            found |= {f"{at}attn.x_x": (6, width)}
        for letter, name in ranks.items():
            if letter == "v" and i == 0 and fla:
                continue
            rank = config[f"{name}_low_rank_dim"]
            first, second = (
                f"{letter}_lora.lora.{n}.weight" if fla else f"{letter}{n // 2 + 1}" for n in (0, 2)
            )
            found |= {f"{at}attn.{first}": (rank, width) if fla else (width, rank)}
            found |= {f"{at}attn.{second}": (width, rank) if fla else (rank, width)}
            if letter != "g":
                found |= {f"{at}attn.{letter}_lora.lora.2.bias" if fla else f"{at}attn.{letter}0": (width,)}
        found |= {f"{at}ffn.x_k": (width,), f"{at}ffn.key.weight": (inner, width)}
        found |= {f"{at}ffn.value.weight": (width, inner)}
    ends: Shapes = {"model.norm.weight": (width,), "model.norm.bias": (width,)}
    return {**found, **ends, "lm_head.weight": (config["vocab_size"], width)}


RWKV7 = Case(
    "rwkv7",
    config_of(
        "RWKV7ForCausalLM",
        "rwkv7",
        num_attention_heads=...,
        num_key_value_heads=...,
        rms_norm_eps=...,
        rope_theta=...,
        head_dim=64,  # with others llama.cpp's own result changes from run to run
        norm_eps=1e-5,
        decay_low_rank_dim=32,
        a_low_rank_dim=32,
        v_low_rank_dim=32,
        gate_low_rank_dim=64,
    ),
    lambda c: _rwkv7(c, fla=True),
    "rwkv",
    differs=("tokenizer.chat_template",),
    why="the reference copies a template that comes with llama.cpp, we write one of our own for the same turns",
)
RWKV7_OTHER = replace(
    RWKV7,
    name="rwkv7-other",
    config={
        **{key: value for key, value in RWKV7.config.items() if key not in ("head_dim", "norm_eps")},
        "architectures": ["Rwkv7ForCausalLM"],
        "head_size": 64,
        "layer_norm_epsilon": 1e-5,
        "lora_rank_decay": None,
        "lora_rank_iclr": 32,
        "lora_rank_value_residual_mix": 32,
        "lora_rank_gate": 64,
        "intermediate_size": None,
    },
    shapes=lambda c: _rwkv7({**RWKV7.config, "intermediate_size": 256}, fla=False),
)

CASES = (PLAMO3, PLAMO3_PLAIN, RWKV7, RWKV7_OTHER)
