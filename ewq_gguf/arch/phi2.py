"""Phi-1, Phi-1.5 and Phi-2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.byte_level import ByteLevelFamily
from ewq_gguf.arch.config import finite
from ewq_gguf.vocab import Vocabulary


class Phi2(ByteLevelFamily):
    """PhiForCausalLM (conversion/phi.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("PhiForCausalLM",)
    arch: ClassVar[str] = "phi2"
    defaults: ClassVar[Mapping[str, Any]] = {"max_position_embeddings": 2048, "layer_norm_eps": 1e-5}

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        config = self.config
        width = config.required("hidden_size", "n_embd")
        heads = config.required("num_attention_heads", "n_head")
        share = finite(self.rope.get("partial_rotary_factor", 0.5), "partial_rotary_factor")
        writer.add_context_length(config.required("n_positions", "max_position_embeddings"))
        writer.add_embedding_length(width)
        writer.add_feed_forward_length(4 * width)
        writer.add_block_count(self.n_blocks)
        writer.add_head_count(heads)
        writer.add_head_count_kv(heads)
        writer.add_layer_norm_eps(config.required_number("layer_norm_epsilon", "layer_norm_eps"))
        writer.add_rope_dimension_count(int(share * width) // heads)

    def adjust_vocabulary(self, vocabulary: Vocabulary) -> Vocabulary:
        return replace(vocabulary, add_special={"bos": False, **vocabulary.add_special})
