"""Bloom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.byte_level import ByteLevelFamily
from ewq_gguf.arch.fused_qkv import regroup
from ewq_gguf.checkpoint.tensor import Tensor


class Bloom(ByteLevelFamily):
    """BloomForCausalLM and BloomModel (conversion/bloom.py): alibi positions, projections fused by head."""

    architectures: ClassVar[tuple[str, ...]] = ("BloomForCausalLM", "BloomModel")
    arch: ClassVar[str] = "bloom"
    defaults: ClassVar[Mapping[str, Any]] = {"layer_norm_epsilon": 1e-5}

    @property
    def n_head(self) -> int:
        return self.config.required("n_head", "num_attention_heads")

    def rename(self, name: str) -> str | None:
        return super().rename(name.removeprefix("transformer."))

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        config = self.config
        width = config.required("n_embed", "hidden_size")
        # Alibi has no length limit; what the model was trained with is the best to say.
        writer.add_context_length(config.integer("seq_length", minimum=1) or width)
        writer.add_embedding_length(width)
        writer.add_feed_forward_length(4 * width)
        writer.add_block_count(self.n_blocks)
        writer.add_head_count(self.n_head)
        writer.add_head_count_kv(self.n_head)
        writer.add_layer_norm_eps(config.required_number("layer_norm_epsilon"))

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if "self_attention.query_key_value" in name:
            tensor = regroup(tensor, self.n_head)
        return [(name, tensor)]
