"""Cohere's Command R, Command R+, Aya, and Command R7B."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import gguf
import numpy as np

from ewq_gguf.arch.byte_level import ByteLevelFamily
from ewq_gguf.arch.config import Config
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.errors import UnsupportedModelError

_DEFAULTS: Mapping[str, Any] = {
    "max_position_embeddings": 8192,
    "num_key_value_heads": None,
    "layer_norm_eps": 1e-5,
    "logit_scale": 0.0625,
}


class CommandR(ByteLevelFamily):
    """CohereForCausalLM (conversion/command_r.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("CohereForCausalLM",)
    arch: ClassVar[str] = "command-r"
    defaults: ClassVar[Mapping[str, Any]] = {**_DEFAULTS, "rope_theta": 500000.0}

    def prepare_config(self, config: Config) -> Config:
        # Command R says 8192 positions and was trained with model_max_length of them.
        length = config.required("model_max_length", "max_position_embeddings")
        return super().prepare_config(config.updated(max_position_embeddings=length))

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        writer.add_logit_scale(self.config.required_number("logit_scale"))
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)


class Cohere2(ByteLevelFamily):
    """Cohere2ForCausalLM: three layers of four attend within a window and rotate, the fourth does neither."""

    architectures: ClassVar[tuple[str, ...]] = ("Cohere2ForCausalLM",)
    arch: ClassVar[str] = "cohere2"
    defaults: ClassVar[Mapping[str, Any]] = {
        **_DEFAULTS,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "rotary_pct": 1.0,
    }

    fills_head_dim: ClassVar[bool] = True

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        config = self.config
        head = config.required("hidden_size") // config.required("num_attention_heads")
        writer.add_logit_scale(config.required_number("logit_scale"))
        writer.add_sliding_window(config.required("sliding_window"))
        writer.add_vocab_size(config.required("vocab_size"))
        writer.add_rope_dimension_count(int(config.required_number("rotary_pct") * head))
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if not name.endswith(".bias"):
            return [(name, tensor)]
        # llama.cpp has no place for them; the published checkpoints hold zeros.
        if np.any(tensor.rows(0, tensor.n_rows) != 0):
            raise UnsupportedModelError(
                f"{name!r} is not all zeros, and llama.cpp runs this family without biases"
            )
        return []
