"""OLMo, OLMo 2, OLMo 3 and OLMoE."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.byte_level import ByteLevelFamily
from ewq_gguf.arch.config import Config
from ewq_gguf.arch.rope import rope_parameters
from ewq_gguf.arch.views import permute_heads
from ewq_gguf.checkpoint.tensor import Tensor

_OLMO3 = "olmo3"


class Olmo(ByteLevelFamily):
    """OlmoForCausalLM (conversion/olmo.py): norms without weights, rotary pairs as in Llama."""

    architectures: ClassVar[tuple[str, ...]] = ("OlmoForCausalLM", "OLMoForCausalLM")
    arch: ClassVar[str] = "olmo"
    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 2048,
        "num_key_value_heads": None,
        "rope_theta": 10000.0,
    }

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        writer.add_layer_norm_eps(1e-5)
        if (clip := self.config.number("clip_qkv")) is not None:
            writer.add_clamp_kqv(clip)

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if name.endswith("q_proj.weight"):
            tensor = permute_heads(tensor, self.config.required("num_attention_heads"))
        elif name.endswith("k_proj.weight"):
            tensor = permute_heads(tensor, self.config.required("num_key_value_heads"))
        return [(name, tensor)]


class Olmo2(ByteLevelFamily):
    """Olmo2ForCausalLM and Olmo3ForCausalLM, which attends within a window in three layers of four."""

    architectures: ClassVar[tuple[str, ...]] = ("Olmo2ForCausalLM", "Olmo3ForCausalLM")
    arch: ClassVar[str] = "olmo2"
    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 2048,
        "num_key_value_heads": None,
        "rms_norm_eps": 1e-5,
    }

    def prepare_config(self, config: Config) -> Config:
        config = super().prepare_config(config)
        if config.find("model_type") != _OLMO3:
            return Config(config, {"rope_theta": 10000.0})
        return _with_nested_rope(Config(config, {"sliding_window": 4096, "rope_theta": 500000.0}))

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        window = self.config.integer("sliding_window")
        if window is None:
            return
        writer.add_sliding_window(window)
        kinds = self.config.find("layer_types")
        if kinds is None:
            kinds = ["full_attention" if i % 4 == 3 else "sliding_attention" for i in range(self.n_blocks)]
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in kinds])


def _with_nested_rope(config: Config) -> Config:
    """The rope parameters apart for full and windowed layers, as newer configs have them: only full ones scale."""
    rope = rope_parameters(config)
    if "full_attention" in rope:
        return config
    windowed = {"rope_type": "default", "rope_theta": rope.get("rope_theta")}
    return config.updated(rope_parameters={"full_attention": rope, "sliding_attention": windowed})


class OlmoE(ByteLevelFamily):
    """OlmoeForCausalLM: OLMo 2's attention, a mixture of experts."""

    architectures: ClassVar[tuple[str, ...]] = ("OlmoeForCausalLM",)
    arch: ClassVar[str] = "olmoe"
    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 4096,
        "num_key_value_heads": None,
        "rope_theta": 10000.0,
        "num_experts": 64,
        "num_experts_per_tok": 8,
    }

    def prepare_config(self, config: Config) -> Config:
        return super().prepare_config(config.updated(rms_norm_eps=1e-5))
