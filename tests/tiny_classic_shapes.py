"""Names and shapes of the tensors in checkpoints of the families before and beside Llama."""

from __future__ import annotations

from collections.abc import Iterable

from tests.tiny.shapes import Config, Shapes, attention, experts, head_dim, mlp, model, norms


def _heads(config: Config) -> int:
    heads: int = config.get("num_attention_heads") or config["n_head"]
    return heads


def _weights(shapes: Shapes) -> Shapes:
    return {f"{name}.weight": shape for name, shape in shapes.items()}


def _with_biases(shapes: Shapes) -> Shapes:
    return _weights(shapes) | {f"{name}.bias": shape[:1] for name, shape in shapes.items()}


def _blocks(prefix: str, n: int, shapes: Shapes) -> Shapes:
    return {f"{prefix}.{i}.{name}": shape for i in range(n) for name, shape in shapes.items()}


def _fused_block(width: int, qkv: int, inner: int, at: str) -> Shapes:
    """The projections of GPT-NeoX, Falcon and Bloom."""
    return {
        f"{at}.query_key_value": (qkv, width),
        f"{at}.dense": (width, width),
        "mlp.dense_h_to_4h": (inner, width),
        "mlp.dense_4h_to_h": (width, inner),
    }


def gpt2(c: Config, *, prefix: str = "transformer.", masks: bool = False) -> Shapes:
    """Conv1D weights are (inputs, outputs)."""
    width, n = c["n_embd"], c["n_layer"]
    block: Shapes = _with_biases({"ln_1": (width,), "ln_2": (width,)})
    for name, rows, columns in (
        ("attn.c_attn", width, 3 * width),
        ("attn.c_proj", width, width),
        ("mlp.c_fc", width, 4 * width),
        ("mlp.c_proj", 4 * width, width),
    ):
        block |= {f"{name}.weight": (rows, columns), f"{name}.bias": (columns,)}
    if masks:
        block |= {"attn.bias": (1, 1, c["n_positions"], c["n_positions"]), "attn.masked_bias": (1,)}
    return {
        f"{prefix}wte.weight": (c["vocab_size"], width),
        f"{prefix}wpe.weight": (c["n_positions"], width),
        **_blocks(f"{prefix}h", n, block),
        **_with_biases({f"{prefix}ln_f": (width,)}),
    }


def starcoder(c: Config) -> Shapes:
    """GPT-2 with linear layers and one key-value head."""
    width, head = c["n_embd"], c["n_embd"] // c["n_head"]
    block = {
        "ln_1": (width,),
        "ln_2": (width,),
        "attn.c_attn": (width + 2 * head, width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (4 * width, width),
        "mlp.c_proj": (width, 4 * width),
    }
    return {
        "transformer.wte.weight": (c["vocab_size"], width),
        "transformer.wpe.weight": (c["n_positions"], width),
        **_blocks("transformer.h", c["n_layer"], _with_biases(block)),
        **_with_biases({"transformer.ln_f": (width,)}),
        "lm_head.weight": (c["vocab_size"], width),
    }


def gptneox(c: Config, *, buffers: bool = False) -> Shapes:
    width, n = c["hidden_size"], c["num_hidden_layers"]
    block = _with_biases(
        {
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
            **_fused_block(width, 3 * width, c["intermediate_size"], "attention"),
        }
    )
    if buffers:
        block |= {
            "attention.bias": (1, 1, 8, 8),
            "attention.masked_bias": (1,),
            "attention.rotary_emb.inv_freq": (2,),
        }
    return {
        "gpt_neox.embed_in.weight": (c["vocab_size"], width),
        **_blocks("gpt_neox.layers", n, block),
        **_with_biases({"gpt_neox.final_layer_norm": (width,)}),
        "embed_out.weight": (c["vocab_size"], width),
    }


def falcon(c: Config, *, groups: int, two_norms: bool = False) -> Shapes:
    width, heads = c["hidden_size"], _heads(c)
    block = _fused_block(width, (heads + 2 * groups) * width // heads, 4 * width, "self_attention")
    names = ("ln_attn", "ln_mlp") if two_norms else ("input_layernorm",)
    return {
        "transformer.word_embeddings.weight": (c["vocab_size"], width),
        **_blocks(
            "transformer.h",
            c.get("num_hidden_layers") or c["n_layer"],
            _weights(block) | _with_biases(dict.fromkeys(names, (width,))),
        ),
        **_with_biases({"transformer.ln_f": (width,)}),
        "lm_head.weight": (c["vocab_size"], width),
    }


def bloom(c: Config, *, prefix: str = "") -> Shapes:
    width = c.get("n_embed") or c["hidden_size"]
    block = {
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
        **_fused_block(width, 3 * width, 4 * width, "self_attention"),
    }
    return {
        f"{prefix}word_embeddings.weight": (c["vocab_size"], width),
        **_with_biases({f"{prefix}word_embeddings_layernorm": (width,)}),
        **_blocks(f"{prefix}h", c["n_layer"], _with_biases(block)),
        **_with_biases({f"{prefix}ln_f": (width,)}),
    }


def mpt(c: Config) -> Shapes:
    width = c["d_model"]
    block = {
        "norm_1": (width,),
        "norm_2": (width,),
        "attn.Wqkv": (3 * width, width),
        "attn.out_proj": (width, width),
        "ffn.up_proj": (4 * width, width),
        "ffn.down_proj": (width, 4 * width),
    }
    return {
        "transformer.wte.weight": (c["vocab_size"], width),
        **_blocks("transformer.blocks", c["n_layers"], _weights(block)),
        "transformer.norm_f.weight": (width,),
    }


def _attention_with_biases(c: Config, out: str) -> Shapes:
    shapes = attention(c, out=out)
    return shapes | {name.replace("weight", "bias"): shape[:1] for name, shape in shapes.items()}


def phi2(c: Config) -> Shapes:
    def layer(c: Config, i: int) -> Shapes:
        width, inner = c["hidden_size"], c["intermediate_size"]
        rest = {"input_layernorm": (width,), "mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
        return _attention_with_biases(c, "dense") | _with_biases(rest)

    width, vocab = c["hidden_size"], c["vocab_size"]
    shapes = model(c, layer, norm="final_layernorm.weight")
    return {**shapes, "model.final_layernorm.bias": (width,), "lm_head.bias": (vocab,)}


def starcoder2(c: Config) -> Shapes:
    def layer(c: Config, i: int) -> Shapes:
        width, inner = c["hidden_size"], c["intermediate_size"]
        both = {name.removesuffix(".weight"): shape for name, shape in norms(width).items()}
        return _attention_with_biases(c, "o_proj") | _with_biases(
            {**both, "mlp.c_fc": (inner, width), "mlp.c_proj": (width, inner)}
        )

    return model(c, layer) | {"model.norm.bias": (c["hidden_size"],)}


def stablelm(c: Config, *, parallel: bool = False, bias: str = "", head_norms: bool = False) -> Shapes:
    def layer(c: Config, i: int) -> Shapes:
        width = c["hidden_size"]
        names = ("input_layernorm",) if parallel else ("input_layernorm", "post_attention_layernorm")
        shapes = attention(c, bias=bias) | mlp(width, c["intermediate_size"])
        shapes |= _with_biases(dict.fromkeys(names, (width,)))
        if head_norms:
            for letter, heads in (("q", c["num_attention_heads"]), ("k", c["num_key_value_heads"])):
                at = f"self_attn.{letter}_layernorm.norms"
                shapes |= {f"{at}.{head}.weight": (head_dim(c),) for head in range(heads)}
        return shapes

    return model(c, layer) | {"model.norm.bias": (c["hidden_size"],)}


def llama_with_norms(c: Config, *names: str, qk_norm: Iterable[tuple[int, ...]] = ()) -> Shapes:
    """Llama's projections with the norms named; `qk_norm` gives the shapes of the query and the key norm."""

    def layer(c: Config, i: int) -> Shapes:
        width = c["hidden_size"]
        own = dict(zip(("self_attn.q_norm.weight", "self_attn.k_norm.weight"), qk_norm, strict=False))
        shapes = attention(c) | mlp(width, c["intermediate_size"]) | own
        return shapes | (norms(width, *names) if names else {})

    return model(c, layer)


def olmo(c: Config) -> Shapes:
    """No norm has weights."""
    return {name: shape for name, shape in llama_with_norms(c).items() if name != "model.norm.weight"}


def olmo2(c: Config) -> Shapes:
    widths = [head_dim(c) * c[f"num_{kind}_heads"] for kind in ("attention", "key_value")]
    return llama_with_norms(
        c, "post_attention_layernorm", "post_feedforward_layernorm", qk_norm=[(n,) for n in widths]
    )


def olmoe(c: Config) -> Shapes:
    def layer(c: Config, i: int) -> Shapes:
        width, n = c["hidden_size"], c["num_experts"]
        own = {"self_attn.q_norm": (width,), "self_attn.k_norm": (width,), "mlp.gate": (n, width)}
        return {**attention(c), **norms(width), **_weights(own), **experts(n, width, c["intermediate_size"])}

    return model(c, layer)


def granite_moe(c: Config) -> Shapes:
    def layer(c: Config, i: int) -> Shapes:
        width, n, inner = c["hidden_size"], c.get("num_local_experts") or 0, c["intermediate_size"]
        shapes = attention(c) | norms(width)
        if n:
            shapes |= {
                "block_sparse_moe.input_linear.weight": (n, 2 * inner, width),
                "block_sparse_moe.output_linear.weight": (n, width, inner),
                "block_sparse_moe.router.layer.weight": (n, width),
            }
        if shared := c.get("shared_intermediate_size"):
            shapes |= {
                "shared_mlp.input_linear.weight": (2 * shared, width),
                "shared_mlp.output_linear.weight": (width, shared),
            }
        return shapes

    return model(c, layer)


def cohere(c: Config) -> Shapes:
    heads = c["num_attention_heads"], c["num_key_value_heads"]
    qk_norm = [(n, head_dim(c)) for n in heads] if c.get("use_qk_norm") else []
    return llama_with_norms(c, "input_layernorm", qk_norm=qk_norm)


def nemotron(c: Config) -> Shapes:
    def layer(c: Config, i: int) -> Shapes:
        width, inner = c["hidden_size"], c["intermediate_size"]
        both = {name.removesuffix(".weight"): shape for name, shape in norms(width).items()}
        rest = {"mlp.up_proj.weight": (inner, width), "mlp.down_proj.weight": (width, inner)}
        return attention(c) | rest | _with_biases(both)

    return model(c, layer) | {"model.norm.bias": (c["hidden_size"],)}


def exaone(c: Config) -> Shapes:
    width, inner = c["hidden_size"], c["intermediate_size"]
    block = attention(c, out="out_proj", at="attn.attention.") | {
        "mlp.c_fc_0.weight": (inner, width),
        "mlp.c_fc_1.weight": (inner, width),
        "mlp.c_proj.weight": (width, inner),
        **norms(width, "ln_1", "ln_2"),
    }
    return {
        "transformer.wte.weight": (c["vocab_size"], width),
        **_blocks("transformer.h", c["num_layers"], block),
        "transformer.ln_f.weight": (width,),
        "lm_head.weight": (c["vocab_size"], width),
    }


def exaone4(c: Config) -> Shapes:
    head = (head_dim(c),)
    return llama_with_norms(c, "post_attention_layernorm", "post_feedforward_layernorm", qk_norm=[head, head])


def internlm2(c: Config) -> Shapes:
    width, inner = c["hidden_size"], c["intermediate_size"]
    rows = (c["num_attention_heads"] + 2 * c["num_key_value_heads"]) * head_dim(c)
    block = {
        "attention.wqkv": (rows, width),
        "attention.wo": (width, width),
        "feed_forward.w1": (inner, width),
        "feed_forward.w2": (width, inner),
        "feed_forward.w3": (inner, width),
        "attention_norm": (width,),
        "ffn_norm": (width,),
    }
    return {
        "model.tok_embeddings.weight": (c["vocab_size"], width),
        **_blocks("model.layers", c["num_hidden_layers"], _weights(block)),
        "model.norm.weight": (width,),
        "output.weight": (c["vocab_size"], width),
    }


def mamba(c: Config, *, embedding: str = "embeddings", output: bool = False) -> Shapes:
    width, state = c.get("hidden_size") or c["d_model"], c.get("state_size", 16)
    inner, rank, rows = 2 * width, c.get("time_step_rank", -(width // -16)), -(c["vocab_size"] // -8) * 8
    block = {
        "norm.weight": (width,),
        "mixer.A_log": (inner, state),
        "mixer.D": (inner,),
        "mixer.conv1d.weight": (inner, 1, 4),
        "mixer.conv1d.bias": (inner,),
        "mixer.in_proj.weight": (2 * inner, width),
        "mixer.x_proj.weight": (rank + 2 * state, inner),
        "mixer.dt_proj.weight": (inner, rank),
        "mixer.dt_proj.bias": (inner,),
        "mixer.out_proj.weight": (width, inner),
    }
    n = c.get("num_hidden_layers") or c["n_layer"]
    shapes = {f"backbone.{embedding}.weight": (rows, width), **_blocks("backbone.layers", n, block)}
    return (
        shapes | {"backbone.norm_f.weight": (width,)} | ({"lm_head.weight": (rows, width)} if output else {})
    )


def mamba2(c: Config, *, prefix: str = "") -> Shapes:
    width, heads = c["hidden_size"], c["num_heads"]
    inner, state = 2 * width, 2 * c["n_groups"] * c["state_size"]
    block = {
        "norm.weight": (width,),
        "mixer.A_log": (heads,),
        "mixer.D": (heads,),
        "mixer.dt_bias": (heads,),
        "mixer.conv1d.weight": (inner + state, 1, 4),
        "mixer.conv1d.bias": (inner + state,),
        "mixer.in_proj.weight": (2 * inner + state + heads, width),
        "mixer.norm.weight": (inner,),
        "mixer.out_proj.weight": (width, inner),
    }
    return {
        f"{prefix}backbone.embeddings.weight": (c["vocab_size"], width),
        **_blocks(f"{prefix}backbone.layers", c["num_hidden_layers"], block),
        f"{prefix}backbone.norm_f.weight": (width,),
        f"{prefix}lm_head.weight": (c["vocab_size"], width),
    }
