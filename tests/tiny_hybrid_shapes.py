"""Names and shapes of the tensors in the checkpoints of `tiny_hybrid`."""

from __future__ import annotations

from tests.tiny.shapes import Config, Shapes, attention, experts, head_dim, llama, mlp, model, norms


def baichuan(c: Config) -> Shapes:
    def layer(c: Config, i: int) -> Shapes:
        width = c["hidden_size"]
        own = {"self_attn.W_pack.weight": (3 * width, width), "self_attn.o_proj.weight": (width, width)}
        return {**own, **mlp(width, c["intermediate_size"]), **norms(width)}

    return model(c, layer)


def orion(c: Config) -> Shapes:
    shapes = llama(c)
    return shapes | {name.replace("weight", "bias"): s for name, s in shapes.items() if "norm" in name}


def arcee(c: Config) -> Shapes:
    return {name: shape for name, shape in llama(c).items() if "gate_proj" not in name}


def apertus(c: Config) -> Shapes:
    def layer(c: Config, i: int) -> Shapes:
        width, head = c["hidden_size"], (head_dim(c),)
        up_down = {k: s for k, s in mlp(width, c["intermediate_size"]).items() if "gate" not in k}
        own: Shapes = {f"mlp.act_fn.{key}": (1,) for key in ("alpha_n", "alpha_p", "beta", "eps")}
        own |= {"self_attn.q_norm.weight": head, "self_attn.k_norm.weight": head}
        return {
            **attention(c),
            **up_down,
            **own,
            **norms(width, "attention_layernorm", "feedforward_layernorm"),
        }

    return model(c, layer)


def mixer(width: int, inner: int, heads: int, state: int, at: str) -> Shapes:
    """A Mamba 2 mixer; `state`: groups times state size."""
    rows = inner + 2 * state
    return {
        f"{at}A_log": (heads,),
        f"{at}D": (heads,),
        f"{at}dt_bias": (heads,),
        f"{at}conv1d.weight": (rows, 1, 4),
        f"{at}conv1d.bias": (rows,),
        f"{at}in_proj.weight": (inner + rows + heads, width),
        f"{at}norm.weight": (inner,),
        f"{at}out_proj.weight": (width, inner),
    }


def _granite_mixer(c: Config, inner: int) -> Shapes:
    state = c["mamba_n_groups"] * c["mamba_d_state"]
    return mixer(c["hidden_size"], inner, c["mamba_n_heads"], state, "mamba.")


def granite_hybrid(c: Config) -> Shapes:
    def layer(c: Config, i: int) -> Shapes:
        width, n, inner = c["hidden_size"], c["num_local_experts"], c["intermediate_size"]
        shared = c["shared_intermediate_size"]
        mixes = c["layer_types"][i] == "mamba"
        shapes = _granite_mixer(c, c["mamba_expand"] * width) if mixes else attention(c)
        if n:
            shapes |= {
                "block_sparse_moe.input_linear.weight": (n, 2 * inner, width),
                "block_sparse_moe.output_linear.weight": (n, width, inner),
                "block_sparse_moe.router.layer.weight": (n, width),
            }
        return {
            **shapes,
            "shared_mlp.input_linear.weight": (2 * shared, width),
            "shared_mlp.output_linear.weight": (width, shared),
            **norms(width),
        }

    return model(c, layer)


def bamba(c: Config) -> Shapes:
    def layer(c: Config, i: int) -> Shapes:
        width = c["hidden_size"]
        mixes = i not in c["attn_layer_indices"]
        shapes = _granite_mixer(c, c["mamba_expand"] * width) if mixes else attention(c)
        return {
            **shapes,
            **mlp(width, c["intermediate_size"], "feed_forward."),
            **norms(width, "input_layernorm", "pre_ff_layernorm"),
        }

    return model(c, layer, norm="final_layernorm.weight")


def falcon_h1(c: Config) -> Shapes:
    def layer(c: Config, i: int) -> Shapes:
        width = c["hidden_size"]
        return {
            **_granite_mixer(c, c["mamba_d_ssm"]),
            **attention(c),
            **mlp(width, c["intermediate_size"], "feed_forward."),
            **norms(width, "input_layernorm", "pre_ff_layernorm"),
        }

    return model(c, layer, norm="final_layernorm.weight")


def nemotron_h(c: Config) -> Shapes:
    def layer(c: Config, kind: str) -> Shapes:
        width, at = c["hidden_size"], "mixer."
        if kind == "M":
            inner, state = c["mamba_num_heads"] * c["mamba_head_dim"], c["n_groups"] * c["ssm_state_size"]
            return mixer(width, inner, c["mamba_num_heads"], state, at)
        if kind == "*":
            return attention(c, at=at)
        if kind == "-":
            inner = c["intermediate_size"]
            return {f"{at}up_proj.weight": (inner, width), f"{at}down_proj.weight": (width, inner)}
        n, inner, shared = (
            c["n_routed_experts"],
            c["moe_intermediate_size"],
            c["moe_shared_expert_intermediate_size"],
        )
        routed = experts(n, width, inner, f"{at}experts.")
        return {
            f"{at}gate.weight": (n, width),
            f"{at}gate.e_score_correction_bias": (n,),
            **{name: shape for name, shape in routed.items() if "gate_proj" not in name},
            f"{at}shared_experts.up_proj.weight": (shared, width),
            f"{at}shared_experts.down_proj.weight": (width, shared),
        }

    width, vocab = c["hidden_size"], c["vocab_size"]
    shapes: Shapes = {"backbone.embeddings.weight": (vocab, width), "backbone.norm_f.weight": (width,)}
    for i, kind in enumerate(c["hybrid_override_pattern"]):
        at = f"backbone.layers.{i}."
        shapes |= {f"{at}{name}": shape for name, shape in layer(c, kind).items()}
        shapes[f"{at}norm.weight"] = (width,)
    if c.get("num_nextn_predict_layers"):
        shapes |= {f"mtp.layers.0.{name}": shape for name, shape in layer(c, "*").items()}
        shapes |= {f"mtp.layers.1.{name}": shape for name, shape in layer(c, "E").items()}
        shapes |= {f"mtp.layers.0.{name}.weight": (width,) for name in ("enorm", "hnorm", "norm")}
        shapes |= {f"mtp.layers.1.{name}.weight": (width,) for name in ("norm", "final_layernorm")}
        shapes["mtp.layers.0.eh_proj.weight"] = (width, 2 * width)
    return {**shapes, "lm_head.weight": (vocab, width)}


def dots1(c: Config, *, at: str = "mlp.") -> Shapes:
    def layer(c: Config, i: int) -> Shapes:
        width, n, inner = c["hidden_size"], c["n_routed_experts"], c["moe_intermediate_size"]
        shapes = {**attention(c, qk_norm="head"), **norms(width)}
        if i < c["first_k_dense_replace"]:
            return {**shapes, **mlp(width, c["intermediate_size"])}
        own = {f"{at}gate.weight": (n, width), f"{at}gate.e_score_correction_bias": (n,)}
        shared = mlp(width, inner * c["n_shared_experts"], f"{at}shared_experts.")
        return {**shapes, **own, **experts(n, width, inner), **shared}

    return model(c, layer)


def _bailing_feed_forward(c: Config, i: int) -> Shapes:
    width, n, inner = c["hidden_size"], c["num_experts"], c["moe_intermediate_size"]
    if i < c["first_k_dense_replace"]:
        return mlp(width, c["intermediate_size"])
    shared = mlp(width, inner * c["num_shared_experts"], "mlp.shared_experts.")
    return {"mlp.gate.weight": (n, width), **experts(n, width, inner), **shared}


def bailing(c: Config, *, second: bool = False) -> Shapes:
    def layer(c: Config, i: int) -> Shapes:
        width, head = c["hidden_size"], head_dim(c)
        rows = (c["num_attention_heads"] + 2 * c["num_key_value_heads"]) * head
        shapes: Shapes = {
            "attention.query_key_value.weight": (rows, width),
            "attention.dense.weight": (width, c["num_attention_heads"] * head),
            **norms(width),
            **_bailing_feed_forward(c, i),
        }
        if second:
            shapes |= {f"attention.{name}_layernorm.weight": (head,) for name in ("query", "key")}
            if i >= c["first_k_dense_replace"]:
                shapes["mlp.gate.expert_bias"] = (c["num_experts"],)
        return shapes

    shapes = model(c, layer)
    return {name.replace("embed_tokens", "word_embeddings"): shape for name, shape in shapes.items()}


def exaone_moe(c: Config) -> Shapes:
    def block(c: Config, i: int) -> Shapes:
        width, n, head = c["hidden_size"], c["num_experts"], (head_dim(c),)
        shapes = {**attention(c), **norms(width), **_bailing_feed_forward(c, i)}
        shapes |= {"self_attn.q_norm.weight": head, "self_attn.k_norm.weight": head}
        if i >= c["first_k_dense_replace"]:
            shapes["mlp.e_score_correction_bias"] = (n,)
        return shapes

    drafts = c.get("num_nextn_predict_layers", 0)
    shapes = model({**c, "num_nextn_predict_layers": 0}, block)
    if drafts:
        width, dense = c["hidden_size"], block(c, 0)
        shapes |= {f"mtp.layers.{i}.{name}": shape for i in range(drafts) for name, shape in dense.items()}
        shapes |= {
            f"mtp.{n}.weight": (width,) for n in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")
        }
        shapes["mtp.fc.weight"] = (width, 2 * width)
    return shapes


def glm(c: Config) -> Shapes:
    def layer(c: Config, i: int) -> Shapes:
        width, inner = c["hidden_size"], c["intermediate_size"]
        return {
            **attention(c, bias="qkv"),
            "mlp.gate_up_proj.weight": (2 * inner, width),
            "mlp.down_proj.weight": (width, inner),
            **norms(width),
        }

    return model(c, layer)


def chatglm(c: Config) -> Shapes:
    width, inner, head = c["hidden_size"], c["ffn_hidden_size"], c["kv_channels"]
    rows = width + 2 * c["multi_query_group_num"] * head
    block = {
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
        "self_attention.query_key_value.weight": (rows, width),
        "self_attention.query_key_value.bias": (rows,),
        "self_attention.dense.weight": (width, width),
        "mlp.dense_h_to_4h.weight": (2 * inner, width),
        "mlp.dense_4h_to_h.weight": (width, inner),
    }
    shapes: Shapes = {"embedding.word_embeddings.weight": (c["padded_vocab_size"], width)}
    for i in range(c["num_layers"]):
        shapes |= {f"encoder.layers.{i}.{name}": shape for name, shape in block.items()}
    shapes |= {
        "encoder.final_layernorm.weight": (width,),
        "output_layer.weight": (c["padded_vocab_size"], width),
    }
    return {f"transformer.{name}": s for name, s in shapes.items()} | {
        "transformer.rotary_pos_emb.inv_freq": (4,)
    }


def deci(c: Config) -> Shapes:
    def layer(c: Config, i: int) -> Shapes:
        width = c["hidden_size"]
        if "block_configs" not in c:
            kv_heads = c["num_key_value_heads_per_layer"][i]
            return {
                **attention({**c, "num_key_value_heads": kv_heads}),
                **mlp(width, c["intermediate_size"]),
                **norms(width),
            }
        block = c["block_configs"][i]
        group, shapes = block["attention"]["n_heads_in_group"], mlp(width, 256)
        if group:
            shapes |= attention({**c, "num_key_value_heads": c["num_attention_heads"] // group})
            shapes |= norms(width)
        elif block["attention"]["replace_with_linear"]:
            shapes |= {"self_attn.linear_attn.weight": (width, width), **norms(width)}
        else:
            shapes |= norms(width, "post_attention_layernorm")
        return shapes

    return model(c, layer)


def jamba(c: Config) -> Shapes:
    def layer(c: Config, i: int) -> Shapes:
        width, n, inner = c["hidden_size"], c["num_experts"], c["intermediate_size"]
        wide, state, rank = 2 * width, c["mamba_d_state"], c["mamba_dt_rank"]
        if i % c["attn_layer_period"] == c["attn_layer_offset"]:
            shapes = attention(c)
        else:
            shapes = {
                "mamba.A_log": (wide, state),
                "mamba.D": (wide,),
                "mamba.conv1d.weight": (wide, 1, 4),
                "mamba.conv1d.bias": (wide,),
                "mamba.in_proj.weight": (2 * wide, width),
                "mamba.x_proj.weight": (rank + 2 * state, wide),
                "mamba.dt_proj.weight": (wide, rank),
                "mamba.dt_proj.bias": (wide,),
                "mamba.out_proj.weight": (width, wide),
                "mamba.dt_layernorm.weight": (rank,),
                "mamba.b_layernorm.weight": (state,),
                "mamba.c_layernorm.weight": (state,),
            }
        if i % c["expert_layer_period"] == c["expert_layer_offset"]:
            shapes |= {"feed_forward.router.weight": (n, width)}
            shapes |= experts(n, width, inner, "feed_forward.experts.")
        else:
            shapes |= mlp(width, inner, "feed_forward.")
        return {**shapes, **norms(width, "input_layernorm", "pre_ff_layernorm")}

    return model(c, layer, norm="final_layernorm.weight")
