"""Names and shapes of the tensors that checkpoints of each layout hold, out of their config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Config = Mapping[str, Any]
Shapes = dict[str, tuple[int, ...]]
Layer = Callable[[Config, int], Shapes]


def model(config: Config, layer: Layer, *, prefix: str = "model.", norm: str = "norm.weight") -> Shapes:
    """Embedding, layers, final norm, and an output matrix unless it is tied."""
    width, vocab = config["hidden_size"], config["vocab_size"]
    shapes: Shapes = {f"{prefix}embed_tokens.weight": (vocab, width)}
    for i in range(config["num_hidden_layers"] + config.get("num_nextn_predict_layers", 0)):
        shapes.update({f"{prefix}layers.{i}.{name}": shape for name, shape in layer(config, i).items()})
    shapes[f"{prefix}{norm}"] = (width,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (vocab, width)
    return shapes


def head_dim(config: Config) -> int:
    value: int = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return value


def attention(
    config: Config, *, bias: str = "", qk_norm: str = "", out: str = "o_proj", at: str = "self_attn."
) -> Shapes:
    """Projections; `bias` lists the letters of those with a bias, `qk_norm` is "head" or "" (none)."""
    width, head = config["hidden_size"], head_dim(config)
    queries = head * config["num_attention_heads"]
    keys = head * (config.get("num_key_value_heads") or config["num_attention_heads"])
    shapes: Shapes = {
        f"{at}q_proj.weight": (queries, width),
        f"{at}k_proj.weight": (keys, width),
        f"{at}v_proj.weight": (keys, width),
        f"{at}{out}.weight": (width, queries),
    }
    for letter, rows in (("q", queries), ("k", keys), ("v", keys), ("o", width)):
        if letter in bias:
            shapes[f"{at}{letter}_proj.bias"] = (rows,)
    if qk_norm:
        shapes |= {f"{at}q_norm.weight": (head,), f"{at}k_norm.weight": (head,)}
    return shapes


def mlp(width: int, inner: int, at: str = "mlp.") -> Shapes:
    return {
        f"{at}gate_proj.weight": (inner, width),
        f"{at}up_proj.weight": (inner, width),
        f"{at}down_proj.weight": (width, inner),
    }


def experts(
    n: int, width: int, inner: int, at: str = "mlp.experts.", names: str = "gate_proj up_proj down_proj"
) -> Shapes:
    """One entry per expert and projection, gate, up and down in this order."""
    gate, up, down = names.split()
    shapes: Shapes = {}
    for i in range(n):
        shapes[f"{at}{i}.{gate}.weight"] = (inner, width)
        shapes[f"{at}{i}.{up}.weight"] = (inner, width)
        shapes[f"{at}{i}.{down}.weight"] = (width, inner)
    return shapes


def norms(width: int, *names: str) -> Shapes:
    return {f"{name}.weight": (width,) for name in names or ("input_layernorm", "post_attention_layernorm")}


def llama(config: Config, *, bias: str = "", qk_norm: str = "") -> Shapes:
    """The layout of Llama, Qwen 2 and 3, and many more."""

    def layer(c: Config, i: int) -> Shapes:
        width = c["hidden_size"]
        return {
            **attention(c, bias=bias, qk_norm=qk_norm),
            **mlp(width, c["intermediate_size"]),
            **norms(width),
        }

    return model(config, layer)


def mixtral(config: Config) -> Shapes:
    def layer(c: Config, i: int) -> Shapes:
        width, n = c["hidden_size"], c["num_local_experts"]
        at = "block_sparse_moe."
        return {
            **attention(c),
            f"{at}gate.weight": (n, width),
            **experts(n, width, c["intermediate_size"], f"{at}experts.", "w1 w3 w2"),
            **norms(width),
        }

    return model(config, layer)


def qwen_moe(config: Config, *, bias: str = "", qk_norm: str = "", fused: bool = False) -> Shapes:
    """Qwen2-MoE and Qwen3-MoE; `fused` puts all experts of a layer into two tensors."""

    def layer(c: Config, i: int) -> Shapes:
        width, n, inner = c["hidden_size"], c["num_experts"], c["moe_intermediate_size"]
        shapes = {**attention(c, bias=bias, qk_norm=qk_norm), **norms(width), "mlp.gate.weight": (n, width)}
        if fused:
            shapes["mlp.experts.gate_up_proj"] = (n, 2 * inner, width)
            shapes["mlp.experts.down_proj"] = (n, width, inner)
        else:
            shapes |= experts(n, width, inner)
        if shared := c.get("shared_expert_intermediate_size"):
            shapes |= {
                **mlp(width, shared, "mlp.shared_expert."),
                "mlp.shared_expert_gate.weight": (1, width),
            }
        return shapes

    return model(config, layer)


def gemma(config: Config, *, post: bool = False, qk_norm: str = "") -> Shapes:
    """Gemma; `post` adds the norms behind attention and feed-forward of Gemma 2 and 3."""

    def layer(c: Config, i: int) -> Shapes:
        width = c["hidden_size"]
        extra = ("pre_feedforward_layernorm", "post_feedforward_layernorm") if post else ()
        return {
            **attention(c, qk_norm=qk_norm),
            **mlp(width, c["intermediate_size"]),
            **norms(width, "input_layernorm", "post_attention_layernorm", *extra),
        }

    return model({**config, "tie_word_embeddings": True}, layer)


def phi3(config: Config) -> Shapes:
    def layer(c: Config, i: int) -> Shapes:
        width, inner, head = c["hidden_size"], c["intermediate_size"], head_dim(c)
        rows = head * (c["num_attention_heads"] + 2 * c["num_key_value_heads"])
        return {
            "self_attn.qkv_proj.weight": (rows, width),
            "self_attn.o_proj.weight": (width, head * c["num_attention_heads"]),
            "mlp.gate_up_proj.weight": (2 * inner, width),
            "mlp.down_proj.weight": (width, inner),
            **norms(width),
        }

    return model(config, layer)


def phimoe(config: Config) -> Shapes:
    def layer(c: Config, i: int) -> Shapes:
        width, n, at = c["hidden_size"], c["num_local_experts"], "block_sparse_moe."
        both = norms(width)
        return {
            **attention(c, bias="qkvo"),
            f"{at}gate.weight": (n, width),
            **experts(n, width, c["intermediate_size"], f"{at}experts.", "w1 w3 w2"),
            **both,
            **{name.replace("weight", "bias"): shape for name, shape in both.items()},
        }

    shapes = model(config, layer)
    return {**shapes, "model.norm.bias": (config["hidden_size"],), "lm_head.bias": (config["vocab_size"],)}


def glm4(config: Config) -> Shapes:
    def layer(c: Config, i: int) -> Shapes:
        width, inner = c["hidden_size"], c["intermediate_size"]
        return {
            **attention(c, bias="qkv" if c.get("attention_bias") else ""),
            "mlp.gate_up_proj.weight": (2 * inner, width),
            "mlp.down_proj.weight": (width, inner),
            **norms(
                width,
                "input_layernorm",
                "post_attention_layernorm",
                "post_mlp_layernorm",
                "post_self_attn_layernorm",
            ),
        }

    return model(config, layer)


def glm4_moe(config: Config) -> Shapes:
    def layer(c: Config, i: int) -> Shapes:
        width, inner, n = c["hidden_size"], c["moe_intermediate_size"], c["n_routed_experts"]
        qk = "head" if c.get("use_qk_norm") else ""
        shapes = {**attention(c, bias="qkv", qk_norm=qk), **norms(width)}
        if i < c["first_k_dense_replace"]:
            shapes |= mlp(width, c["intermediate_size"])
        else:
            shapes |= {"mlp.gate.weight": (n, width), "mlp.gate.e_score_correction_bias": (n,)}
            shapes |= {
                **experts(n, width, inner),
                **mlp(width, inner * c["n_shared_experts"], "mlp.shared_experts."),
            }
        if i >= c["num_hidden_layers"]:
            shapes |= {"eh_proj.weight": (width, 2 * width)}
            shapes |= norms(width, "enorm", "hnorm", "shared_head.norm")
            shapes |= {
                "embed_tokens.weight": (c["vocab_size"], width),
                "shared_head.head.weight": (c["vocab_size"], width),
            }
        return shapes

    return model(config, layer)


def deepseek(config: Config) -> Shapes:
    def layer(c: Config, i: int) -> Shapes:
        width, heads, rank = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"]
        nope, rope, value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
        shapes: Shapes = {
            "self_attn.kv_a_proj_with_mqa.weight": (rank + rope, width),
            "self_attn.kv_a_layernorm.weight": (rank,),
            "self_attn.kv_b_proj.weight": (heads * (nope + value), rank),
            "self_attn.o_proj.weight": (width, heads * value),
            **norms(width),
        }
        if q_rank := c.get("q_lora_rank"):
            shapes["self_attn.q_a_proj.weight"] = (q_rank, width)
            shapes["self_attn.q_a_layernorm.weight"] = (q_rank,)
            shapes["self_attn.q_b_proj.weight"] = (heads * (nope + rope), q_rank)
        else:
            shapes["self_attn.q_proj.weight"] = (heads * (nope + rope), width)
        if i < c["first_k_dense_replace"]:
            return {**shapes, **mlp(width, c["intermediate_size"])}
        n, inner = c["n_routed_experts"], c["moe_intermediate_size"]
        shapes["mlp.gate.weight"] = (n, width)
        if c.get("topk_method") == "noaux_tc":
            shapes["mlp.gate.e_score_correction_bias"] = (n,)
        shapes |= {
            **experts(n, width, inner),
            **mlp(width, inner * c["n_shared_experts"], "mlp.shared_experts."),
        }
        return shapes

    return model(config, layer)


def gpt_oss(config: Config, *, packed: bool) -> Shapes:
    """`packed`: experts in MXFP4 blocks and scales instead of 16-bit matrices."""

    def layer(c: Config, i: int) -> Shapes:
        width, inner, n = c["hidden_size"], c["intermediate_size"], c["num_local_experts"]
        at = "mlp.experts."
        shapes = {
            **attention(c, bias="qkvo"),
            "self_attn.sinks": (c["num_attention_heads"],),
            **norms(width),
            "mlp.router.weight": (n, width),
            "mlp.router.bias": (n,),
            f"{at}gate_up_proj_bias": (n, 2 * inner),
            f"{at}down_proj_bias": (n, width),
        }
        if packed:
            shapes[f"{at}gate_up_proj_blocks"] = (n, 2 * inner, width // 32, 16)
            shapes[f"{at}gate_up_proj_scales"] = (n, 2 * inner, width // 32)
            shapes[f"{at}down_proj_blocks"] = (n, width, inner // 32, 16)
            shapes[f"{at}down_proj_scales"] = (n, width, inner // 32)
        else:
            shapes[f"{at}gate_up_proj"] = (n, width, 2 * inner)
            shapes[f"{at}down_proj"] = (n, inner, width)
        return shapes

    return model(config, layer)


def llama4(config: Config) -> Shapes:
    def layer(c: Config, i: int) -> Shapes:
        width, inner, n = c["hidden_size"], c["intermediate_size"], c["num_local_experts"]
        shapes = {**attention(c), **norms(width)}
        if (i + 1) % c["interleave_moe_layer_step"]:
            return {**shapes, **mlp(width, c["intermediate_size_mlp"], "feed_forward.")}
        return {
            **shapes,
            "feed_forward.router.weight": (n, width),
            "feed_forward.experts.gate_up_proj": (n, width, 2 * inner),
            "feed_forward.experts.down_proj": (n, inner, width),
            **mlp(width, inner, "feed_forward.shared_expert."),
        }

    return model(config, layer)
