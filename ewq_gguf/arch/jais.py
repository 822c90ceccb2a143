"""Jais 2: layer norms with biases, a feed-forward part without a gate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.byte_level import ByteLevelFamily


class Jais2(ByteLevelFamily):
    """Jais2ForCausalLM (conversion/jais.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("Jais2ForCausalLM",)
    arch: ClassVar[str] = "jais2"
    fills_head_dim: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "num_key_value_heads": None,
        "rope_theta": 10000.0,
    }

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        writer.add_rope_dimension_count(self.config.required("head_dim"))
