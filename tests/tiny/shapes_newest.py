"""Names and shapes of the newest families' tensors."""

from __future__ import annotations

from tests.tiny.shapes import Config, Shapes, attention, deepseek, experts, head_dim, mlp, model, norms


def qwen_next(config: Config, *, split: bool, ahead: bool = True, fused: bool = False) -> Shapes:
    """Qwen3-Next and Qwen3.5; `split` names the inputs of linear attention one by one, as Qwen3.5 does."""

    def feed_forward(c: Config) -> Shapes:
        width = c["hidden_size"]
        if "num_experts" not in c:
            return mlp(width, c["intermediate_size"])
        n, inner = c["num_experts"], c["moe_intermediate_size"]
        if fused:
            routed: Shapes = {
                "mlp.experts.gate_up_proj": (n, 2 * inner, width),
                "mlp.experts.down_proj": (n, width, inner),
            }
        else:
            routed = experts(n, width, inner)
        return {
            **routed,
            "mlp.gate.weight": (n, width),
            **mlp(width, c["shared_expert_intermediate_size"], "mlp.shared_expert."),
            "mlp.shared_expert_gate.weight": (1, width),
        }

    def full(c: Config) -> Shapes:
        shapes = attention(c, qk_norm="head")
        rows, width = shapes["self_attn.q_proj.weight"]
        return {**shapes, "self_attn.q_proj.weight": (2 * rows, width)}

    def linear(c: Config) -> Shapes:
        width, at = c["hidden_size"], "linear_attn."
        keys = c["linear_num_key_heads"] * c["linear_key_head_dim"]
        values = c["linear_num_value_heads"] * c["linear_value_head_dim"]
        heads = c["linear_num_value_heads"]
        shapes: Shapes = {
            f"{at}A_log": (heads,),
            f"{at}dt_bias": (heads,),
            f"{at}conv1d.weight": (2 * keys + values, 1, c["linear_conv_kernel_dim"]),
            f"{at}norm.weight": (c["linear_value_head_dim"],),
            f"{at}out_proj.weight": (width, values),
        }
        if split:
            shapes[f"{at}in_proj_qkv.weight"] = (2 * keys + values, width)
            shapes[f"{at}in_proj_z.weight"] = (values, width)
            shapes |= {f"{at}in_proj_a.weight": (heads, width), f"{at}in_proj_b.weight": (heads, width)}
        else:
            shapes[f"{at}in_proj_qkvz.weight"] = (2 * (keys + values), width)
            shapes[f"{at}in_proj_ba.weight"] = (2 * heads, width)
        return shapes

    def layer(c: Config, i: int) -> Shapes:
        own = full(c) if (i + 1) % 4 == 0 else linear(c)
        return {**own, **feed_forward(c), **norms(c["hidden_size"])}

    shapes = model(config, layer)
    if ahead:
        width = config["hidden_size"]
        block = {**full(config), **feed_forward(config), **norms(width)}
        shapes |= {f"mtp.layers.0.{name}": shape for name, shape in block.items()}
        shapes["mtp.fc.weight"] = (width, 2 * width)
        shapes |= norms(width, "mtp.norm", "mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden")
    return shapes


def gemma4(config: Config) -> Shapes:
    def layer(c: Config, i: int) -> Shapes:
        width, inner = c["hidden_size"], c["intermediate_size"]
        full = c["layer_types"][i] == "full_attention"
        shared = i >= c["num_hidden_layers"] - c["num_kv_shared_layers"]
        if full:
            heads = c["num_key_value_heads"]
            if c.get("attention_k_eq_v"):
                heads = c["num_global_key_value_heads"]
            c = {**c, "head_dim": c["global_head_dim"], "num_key_value_heads": heads}
        shapes = attention(c, qk_norm="head")
        if full and c.get("attention_k_eq_v"):
            del shapes["self_attn.v_proj.weight"]
        if shared:
            inner *= 2 if c.get("use_double_wide_mlp") else 1
            for name in ("k_proj", "v_proj", "k_norm"):
                shapes.pop(f"self_attn.{name}.weight", None)
        shapes |= mlp(width, inner)
        shapes |= norms(
            width,
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        )
        shapes["layer_scalar"] = (1,)
        if small := c["hidden_size_per_layer_input"]:
            shapes |= {
                "per_layer_input_gate.weight": (small, width),
                "per_layer_projection.weight": (width, small),
            }
            shapes |= norms(width, "post_per_layer_input_norm")
        if c.get("enable_moe_block"):
            n, e = c["num_experts"], c["moe_intermediate_size"]
            shapes |= {
                "router.proj.weight": (n, width),
                "router.scale": (width,),
                "router.per_expert_scale": (n,),
            }
            shapes |= {"experts.gate_up_proj": (n, 2 * e, width), "experts.down_proj": (n, width, e)}
            shapes |= norms(
                width,
                "pre_feedforward_layernorm_2",
                "post_feedforward_layernorm_1",
                "post_feedforward_layernorm_2",
            )
        return shapes

    shapes = model({**config, "tie_word_embeddings": True}, layer)
    if small := config["hidden_size_per_layer_input"]:
        rows = small * config["num_hidden_layers"]
        shapes["model.embed_tokens_per_layer.weight"] = (config["vocab_size"], rows)
        shapes["model.per_layer_model_projection.weight"] = (rows, config["hidden_size"])
        shapes["model.per_layer_projection_norm.weight"] = (small,)
    return shapes


def lfm2(config: Config) -> Shapes:
    def layer(c: Config, i: int) -> Shapes:
        width = c["hidden_size"]
        shapes = norms(width, "operator_norm", "ffn_norm")
        if c["layer_types"][i] == "conv":
            shapes["conv.conv.weight"] = (width, 1, c["conv_L_cache"])
            shapes |= {"conv.in_proj.weight": (3 * width, width), "conv.out_proj.weight": (width, width)}
        else:
            shapes |= attention(c, out="out_proj")
            shapes |= norms(head_dim(c), "self_attn.q_layernorm", "self_attn.k_layernorm")
        if i < c.get("num_dense_layers", c["num_hidden_layers"]):
            inner = c["intermediate_size"]
            if c.get("block_auto_adjust_ff_dim"):
                multiple = c["block_multiple_of"]
                inner = -(-int(2 * inner / 3) // multiple) * multiple
            names = {"w1": (inner, width), "w3": (inner, width), "w2": (width, inner)}
            return {**shapes, **{f"feed_forward.{name}.weight": shape for name, shape in names.items()}}
        n = c["num_experts"]
        return {
            **shapes,
            "feed_forward.gate.weight": (n, width),
            "feed_forward.expert_bias": (n,),
            **experts(n, width, c["moe_intermediate_size"], "feed_forward.experts.", "w1 w3 w2"),
        }

    return model({**config, "tie_word_embeddings": True}, layer, norm="embedding_norm.weight")


def ernie_moe(config: Config) -> Shapes:
    def layer(c: Config, i: int) -> Shapes:
        width, n, inner = c["hidden_size"], c["moe_num_experts"], c["moe_intermediate_size"]
        shapes = {**attention(c), **norms(width)}
        if i < c["moe_layer_start_index"]:
            return {**shapes, **mlp(width, c["intermediate_size"])}
        return {
            **shapes,
            "mlp.gate.weight": (n, width),
            "mlp.moe_statics.e_score_correction_bias": (1, n),
            **experts(n, width, inner),
            **mlp(width, inner * c["moe_num_shared_experts"], "mlp.shared_experts."),
        }

    shapes = model(config, layer)
    return {**shapes, "model.mtp_emb_norm.0.weight": (config["hidden_size"],)}


def hunyuan(config: Config) -> Shapes:
    def layer(c: Config, i: int) -> Shapes:
        width = c["hidden_size"]
        return {
            **attention(c),
            **norms(head_dim(c), "self_attn.query_layernorm", "self_attn.key_layernorm"),
            **mlp(width, c["intermediate_size"]),
            **norms(width),
        }

    return model(config, layer)


def smallthinker(config: Config) -> Shapes:
    def layer(c: Config, i: int) -> Shapes:
        width, n, at = c["hidden_size"], c["moe_num_primary_experts"], "block_sparse_moe."
        return {
            **attention(c),
            **norms(width),
            f"{at}primary_router.weight": (n, width),
            **experts(n, width, c["moe_ffn_hidden_size"], f"{at}experts.", "gate up down"),
        }

    return model(config, layer)


def minicpm3(config: Config) -> Shapes:
    def layer(c: Config, i: int) -> Shapes:
        width, heads, rank, q_rank = (
            c["hidden_size"],
            c["num_attention_heads"],
            c["kv_lora_rank"],
            c["q_lora_rank"],
        )
        nope, rope, value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], width // heads
        return {
            "self_attn.q_a_proj.weight": (q_rank, width),
            "self_attn.q_a_layernorm.weight": (q_rank,),
            "self_attn.q_b_proj.weight": (heads * (nope + rope), q_rank),
            "self_attn.kv_a_proj_with_mqa.weight": (rank + rope, width),
            "self_attn.kv_a_layernorm.weight": (rank,),
            "self_attn.kv_b_proj.weight": (heads * (nope + value), rank),
            "self_attn.o_proj.weight": (width, heads * value),
            **mlp(width, c["intermediate_size"]),
            **norms(width),
        }

    return model(config, layer)


def glm47_flash(config: Config) -> Shapes:
    """DeepSeek's layout, with a layer behind the last that looks ahead."""
    shapes = deepseek(config)
    at, width, vocab = (
        f"model.layers.{config['num_hidden_layers']}.",
        config["hidden_size"],
        config["vocab_size"],
    )
    shapes |= {f"{at}eh_proj.weight": (width, 2 * width), f"{at}embed_tokens.weight": (vocab, width)}
    shapes |= {f"{at}shared_head.head.weight": (vocab, width)}
    return {**shapes, **norms(width, f"{at}enorm", f"{at}hnorm", f"{at}shared_head.norm")}
