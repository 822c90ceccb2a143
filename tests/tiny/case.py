"""What a tiny checkpoint is, and ways to vary its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tests.tiny import shapes
from tests.tiny.vocabularies import PRE

Config = dict[str, Any]
BASE: Config = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
}


@dataclass(frozen=True)
class Case:
    """A tiny checkpoint.

    Attributes:
        name: file-system friendly, unique.
        config: config.json.
        shapes: tensor names and shapes out of the config.
        tokenizer: "bpe", "gpt2", "spm", "phi", "gemma", "gemma4", "plamo", "rwkv", "unigram", "wordpiece", or the name of a tiktoken file (see `build`).
        dtype: storage type of the weights.
        storage: "" or a way of quantizing (see `build`).
        types: `--outtype`s to compare under.
        added: added tokens of a BPE tokenizer.
        files: more files of the folder and their content, written as JSON.
        pre: the pre-tokenizer that the reference is told.
        differs: metadata keys that differ from the reference's file, or that only one of the two has.
        embeds: whether the model makes vectors of texts, not logits.
        loads: whether llama.cpp takes the reference's file.
        why: what the differences come from.
    """

    name: str
    config: Config
    shapes: Callable[[Mapping[str, Any]], shapes.Shapes]
    tokenizer: str = "bpe"
    dtype: str = "BF16"
    storage: str = ""
    types: tuple[str, ...] = ("bf16",)
    added: tuple[str, ...] = ("<|endoftext|>",)
    files: Mapping[str, Any] = field(default_factory=dict)
    pre: str = PRE
    differs: tuple[str, ...] = ()
    embeds: bool = False
    loads: bool = True
    why: str = ""


def config_of(architecture: str, model_type: str, **values: Any) -> Config:
    config = {"architectures": [architecture], "model_type": model_type, **BASE, **values}
    return {key: value for key, value in config.items() if value is not ...}


def modern(case: Case) -> Case:
    """The same model with the config that transformers 5 writes: `rope_parameters`, `dtype`."""

    def change(config: Config) -> Config:
        config = dict(config)
        rope = config.pop("rope_scaling", None) or {"rope_type": "default"}
        rope = {"rope_type": rope.get("type", "default"), **rope}
        rope.pop("type", None)
        for key in ("rope_theta", "partial_rotary_factor"):
            if key in config:
                rope[key] = config.pop(key)
        config["rope_parameters"] = rope
        config["dtype"] = config.pop("torch_dtype", "bfloat16")
        return config

    config = change(case.config)
    if "text_config" in config:
        config = {**case.config, "text_config": change(case.config["text_config"])}
    return replace(case, name=f"{case.name}-v5", config=config)


def bare(case: Case, *keys: str) -> Case:
    """The same model with a config that leaves keys to the reference library's defaults."""
    config = {key: value for key, value in case.config.items() if key not in keys}
    full = dict(case.config)
    build = case.shapes
    return replace(case, name=f"{case.name}-bare", config=config, shapes=lambda c: build({**full, **c}))
