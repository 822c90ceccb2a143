"""Cases: models that make vectors of texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests.tiny.case import Case, Config, config_of
from tests.tiny.established import GEMMA3
from tests.tiny.shapes import Shapes, gemma

_ANY_SPLIT = "jina-v2-en"
_POOLING: Mapping[str, Any] = {
    "modules.json": [{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "1_Pooling"}],
    "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
}


def _pair(name: str, rows: int, *columns: int) -> Shapes:
    return {f"{name}.weight": (rows, *columns), f"{name}.bias": (rows,)}


def _bert(config: Config, prefix: str = "") -> Shapes:
    width, inner = config["hidden_size"], config["intermediate_size"]
    found: Shapes = {
        f"{prefix}embeddings.word_embeddings.weight": (config["vocab_size"], width),
        f"{prefix}embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
        f"{prefix}embeddings.token_type_embeddings.weight": (config["type_vocab_size"], width),
        **_pair(f"{prefix}embeddings.LayerNorm", width),
    }
    for i in range(config["num_hidden_layers"]):
        at = f"{prefix}encoder.layer.{i}."
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            found |= _pair(f"{at}attention.{name}", width, width)
        found |= _pair(f"{at}attention.output.LayerNorm", width)
        found |= _pair(f"{at}intermediate.dense", inner, width)
        found |= _pair(f"{at}output.dense", width, inner)
        found |= _pair(f"{at}output.LayerNorm", width)
    return {**found, **_pair(f"{prefix}pooler.dense", width, width)}


BERT = Case(
    "bert",
    config_of(
        "BertModel",
        "bert",
        num_key_value_heads=...,
        rms_norm_eps=...,
        rope_theta=...,
        layer_norm_eps=1e-12,
        type_vocab_size=2,
        pad_token_id=0,
        hidden_act="gelu",
    ),
    _bert,
    "wordpiece",
    dtype="F32",
    types=("f32", "f16"),
    files=_POOLING,
    pre=_ANY_SPLIT,
    embeds=True,
)


def _masked(config: Config) -> Shapes:
    old = {"weight": "gamma", "bias": "beta"}
    found = {}
    for name, shape in _bert(config, "bert.").items():
        stem, _, end = name.rpartition(".")
        found[f"{stem}.{old[end]}" if stem.endswith("LayerNorm") else name] = shape
    width = config["hidden_size"]
    return {
        **found,
        **_pair("cls.predictions.transform.dense", width, width),
        "cls.predictions.bias": (config["vocab_size"],),
        "cls.seq_relationship.weight": (2, width),
    }


BERT_MASKED = replace(
    BERT,
    name="bert-masked",
    config={**BERT.config, "architectures": ["BertForMaskedLM"]},
    shapes=_masked,
    types=("f16",),
    files={**_POOLING, "1_Pooling/config.json": {"pooling_mode": "cls"}},
)


def _nomic(config: Config) -> Shapes:
    width, inner = config["n_embd"], config["n_inner"]
    found: Shapes = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], width),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], width),
        **_pair("emb_ln", width),
    }
    for i in range(config["n_layer"]):
        at = f"encoder.layers.{i}."
        found |= {f"{at}attn.Wqkv.weight": (3 * width, width), f"{at}attn.out_proj.weight": (width, width)}
        found |= {f"{at}mlp.fc{n}.weight": (inner, width) for n in ("11", "12")}
        found |= {f"{at}mlp.fc2.weight": (width, inner)}
        found |= {**_pair(f"{at}norm1", width), **_pair(f"{at}norm2", width)}
    return found


NOMIC = Case(
    "nomic-bert",
    {
        "architectures": ["NomicBertModel"],
        "model_type": "nomic_bert_v1",  # under its own name the reference's library renames what its converter wants
        "vocab_size": 320,
        "n_embd": 64,
        "n_head": 4,
        "n_inner": 96,
        "n_layer": 2,
        "n_positions": 8192,
        "max_trained_positions": 2048,
        "activation_function": "swiglu",
        "causal": False,
        "layer_norm_epsilon": 1e-12,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "prenorm": False,
        "qkv_proj_bias": False,
        "rotary_emb_base": 1000,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "type_vocab_size": 2,
        "torch_dtype": "float32",
    },
    _nomic,
    "wordpiece",
    dtype="F32",
    types=("f16",),
    files=_POOLING,
    pre=_ANY_SPLIT,
    embeds=True,
)
EMBEDDING_GEMMA = replace(
    GEMMA3,
    name="embedding-gemma",
    config={**GEMMA3.config, "architectures": ["Gemma3TextModel"], "use_bidirectional_attention": True},
    shapes=lambda c: {
        name.removeprefix("model."): shape for name, shape in gemma(c, post=True, qk_norm="head").items()
    },
    types=("bf16",),
    files=_POOLING,
    embeds=True,
)
XLM_ROBERTA = replace(
    BERT,
    name="xlm-roberta",
    config={
        **BERT.config,
        "architectures": ["XLMRobertaModel"],
        "model_type": "xlm-roberta",
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
    tokenizer="unigram",
    types=("f16",),
    files={**_POOLING, "1_Pooling/config.json": {"pooling_mode_cls_token": True}},
)

CASES = (BERT, BERT_MASKED, XLM_ROBERTA, NOMIC, EMBEDDING_GEMMA)
