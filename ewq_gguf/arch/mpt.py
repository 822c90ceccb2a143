"""MPT."""

from __future__ import annotations

from typing import ClassVar

import gguf

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.config import finite


class MPT(Family):
    """MPTForCausalLM (conversion/mpt.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("MPTForCausalLM",)
    arch: ClassVar[str] = "mpt"

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        config = self.config
        attention = config.section("attn_config")
        width = config.required("d_model")
        writer.add_context_length(config.required("max_seq_len"))
        writer.add_embedding_length(width)
        writer.add_block_count(self.n_blocks)
        writer.add_feed_forward_length(4 * width)
        writer.add_head_count(config.required("n_heads"))
        if groups := attention.get("kv_n_heads"):
            writer.add_head_count_kv(int(finite(groups, "kv_n_heads")))
        writer.add_layer_norm_eps(1e-5)
        if (clip := attention.get("clip_qkv")) is not None:
            writer.add_clamp_kqv(finite(clip, "clip_qkv"))
        alibi = finite(attention.get("alibi_bias_max", 8), "alibi_bias_max")
        writer.add_max_alibi_bias(alibi if attention.get("alibi", True) else 0.0)
