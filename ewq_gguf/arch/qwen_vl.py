"""The text parts of Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.config import Config
from ewq_gguf.arch.experts import split_gate_up
from ewq_gguf.arch.qwen import Qwen2, Qwen3Moe
from ewq_gguf.arch.views import Transpose
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.errors import UnsupportedModelError

# Layers of the vision part that feed the text model's first layers, unless the config says otherwise.
_DEEP_LAYERS = (8, 16, 24)


class Qwen2VL(Qwen2):
    """Qwen2VLForConditionalGeneration and Qwen2_5_VLForConditionalGeneration (conversion/qwenvl.py)."""

    architectures: ClassVar[tuple[str, ...]] = (
        "Qwen2VLForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration",
    )
    arch: ClassVar[str] = "qwen2vl"
    defaults: ClassVar[Mapping[str, Any]] = {
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "max_position_embeddings": 32768,
        "num_attention_heads": 64,
        "num_hidden_layers": 80,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "vocab_size": 152064,
    }


def add_deep_layers(writer: gguf.GGUFWriter, config: Config) -> None:
    """The number of the vision part's layers that the text model expects input from."""
    layers = config.section("vision_config").get("deepstack_visual_indexes", _DEEP_LAYERS)
    if not isinstance(layers, (list, tuple)):
        raise UnsupportedModelError(
            f"config.json gives deepstack_visual_indexes = {layers!r:.60}; expected a list"
        )
    writer.add_num_deepstack_layers(len(layers))


class Qwen3VL(Qwen2):
    """Qwen3VLForConditionalGeneration (conversion/qwen3vl.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("Qwen3VLForConditionalGeneration",)
    arch: ClassVar[str] = "qwen3vl"
    defaults: ClassVar[Mapping[str, Any]] = {
        "head_dim": 128,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "max_position_embeddings": 128000,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-6,
        "rope_theta": 500000.0,
        "vocab_size": 151936,
    }

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        add_deep_layers(writer, self.config)


class Qwen3VLMoe(Qwen3Moe):
    """Qwen3VLMoeForConditionalGeneration; fused experts are stored transposed here."""

    architectures: ClassVar[tuple[str, ...]] = ("Qwen3VLMoeForConditionalGeneration",)
    arch: ClassVar[str] = "qwen3vlmoe"
    defaults: ClassVar[Mapping[str, Any]] = {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "max_position_embeddings": 128000,
        "moe_intermediate_size": 1408,
        "num_attention_heads": 16,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 24,
        "num_key_value_heads": 16,
        "rms_norm_eps": 1e-6,
        "rope_theta": 500000.0,
        "vocab_size": 151936,
    }
    fills_head_dim: ClassVar[bool] = True

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        add_deep_layers(writer, self.config)

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if name.endswith(".experts.gate_up_proj"):
            return split_gate_up(f"{name}.weight", Transpose(tensor))
        if name.endswith(".experts.down_proj"):
            return [(f"{name}.weight", Transpose(tensor))]
        return super().transform(name, tensor, block)
