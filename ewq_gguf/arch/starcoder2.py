"""StarCoder2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ewq_gguf.arch.byte_level import ByteLevelFamily


class StarCoder2(ByteLevelFamily):
    """Starcoder2ForCausalLM (conversion/starcoder.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("Starcoder2ForCausalLM",)
    arch: ClassVar[str] = "starcoder2"
    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 4096,
        "num_key_value_heads": 2,
        "norm_epsilon": 1e-5,
        "rope_theta": 10000.0,
    }
