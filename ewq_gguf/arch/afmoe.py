"""Arcee's Trinity (AfMoE): gated attention, norms before and behind each part, routed and shared experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.llama import Llama


class Afmoe(Llama):
    """AfmoeForCausalLM (conversion/afmoe.py); llama.cpp knows by itself that every fourth block sees all."""

    architectures: ClassVar[tuple[str, ...]] = ("AfmoeForCausalLM",)
    arch: ClassVar[str] = "afmoe"
    permutes: ClassVar[bool] = False
    fills_head_dim: ClassVar[bool] = False
    defaults: ClassVar[Mapping[str, Any]] = {
        "head_dim": 128,
        "max_position_embeddings": 16384,
        "moe_intermediate_size": 1408,
        "num_dense_layers": 1,
        "num_experts": 64,
        "num_experts_per_tok": 6,
        "num_key_value_heads": None,
        "num_shared_experts": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "route_scale": 1.0,
        "sliding_window": 1024,
    }

    def rename(self, name: str) -> str | None:
        return super().rename(f"{name}.bias" if name.endswith(".expert_bias") else name)

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        config = self.config
        numbers: tuple[tuple[str, Callable[[int], None]], ...] = (
            ("num_shared_experts", writer.add_expert_shared_count),
            ("moe_intermediate_size", writer.add_expert_feed_forward_length),
            ("num_dense_layers", writer.add_leading_dense_block_count),
            ("sliding_window", writer.add_sliding_window),
        )
        for key, add in numbers:
            if (value := config.integer(key)) is not None:
                add(value)
        if (norm := config.find("route_norm")) is not None:
            writer.add_expert_weights_norm(norm is True)
        if (scale := config.number("route_scale")) is not None:
            writer.add_expert_weights_scale(scale)
