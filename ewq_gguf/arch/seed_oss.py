"""ByteDance Seed-OSS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ewq_gguf.arch.byte_level import ByteLevelFamily


class SeedOss(ByteLevelFamily):
    """SeedOssForCausalLM (conversion/olmo.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("SeedOssForCausalLM",)
    arch: ClassVar[str] = "seed_oss"
    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 524288,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
    }
