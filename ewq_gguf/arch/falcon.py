"""Falcon in its two decoder architectures; checkpoints of 2023 call it RefinedWeb."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.byte_level import ByteLevelFamily
from ewq_gguf.arch.config import Config
from ewq_gguf.arch.fused_qkv import regroup
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.errors import UnsupportedModelError

_CONTEXT = 2048  # in no config.json; the length that all published models were trained with


class Falcon(ByteLevelFamily):
    """FalconForCausalLM and RWForCausalLM (conversion/falcon.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("FalconForCausalLM", "RWForCausalLM")
    arch: ClassVar[str] = "falcon"
    defaults: ClassVar[Mapping[str, Any]] = {"layer_norm_epsilon": 1e-5}

    def prepare_config(self, config: Config) -> Config:
        if config.find("alibi") is True or config.find("bias") is True:
            raise UnsupportedModelError(
                "this Falcon has alibi positions or biases (falcon-rw); llama.cpp runs only those with "
                "rotary positions and without biases"
            )
        # Only the new decoder architecture groups its heads; the old one has one key-value head (multi_query)
        # whatever num_kv_heads says, or as many as query heads.
        heads = config.required("num_attention_heads", "n_head")
        groups = config.integer("num_kv_heads", "n_head_kv", minimum=1)
        if config.find("new_decoder_architecture") is not True and config.find("n_head_kv") is None:
            groups = heads if config.find("multi_query") is False else 1
        return config.updated(num_attention_heads=heads, num_kv_heads=groups or heads)

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        config = self.config
        width = config.required("hidden_size")
        writer.add_context_length(_CONTEXT)
        writer.add_tensor_data_layout("jploski")
        writer.add_embedding_length(width)
        writer.add_feed_forward_length(4 * width)
        writer.add_block_count(self.n_blocks)
        writer.add_head_count(config.required("num_attention_heads"))
        writer.add_head_count_kv(config.required("num_kv_heads"))
        writer.add_layer_norm_eps(config.required_number("layer_norm_epsilon"))

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if "query_key_value" in name:
            groups = self.config.required("num_kv_heads")
            tensor = regroup(tensor, groups, self.config.required("num_attention_heads") // groups)
        return [(name, tensor)]
