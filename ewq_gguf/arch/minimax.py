"""MiniMax M2: a mixture of experts with norms over all query and key heads together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.byte_level import ByteLevelFamily
from ewq_gguf.arch.config import finite


class MiniMaxM2(ByteLevelFamily):
    """MiniMaxM2ForCausalLM (conversion/minimax.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("MiniMaxM2ForCausalLM",)
    arch: ClassVar[str] = "minimax-m2"
    defaults: ClassVar[Mapping[str, Any]] = {
        "head_dim": 128,
        "max_position_embeddings": 196608,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 8,
        "num_local_experts": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5000000.0,
    }

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        config = self.config
        writer.add_expert_feed_forward_length(config.required("intermediate_size"))
        rotated = config.integer("rotary_dim", minimum=1)
        if rotated is None:
            share = finite(self.rope.get("partial_rotary_factor", 1.0), "partial_rotary_factor")
            rotated = int(config.required("head_dim") * share)
        writer.add_rope_dimension_count(rotated)
