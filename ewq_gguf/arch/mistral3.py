"""The text parts of Mistral Small 3.1 and later, and Ministral 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.config import Config, finite
from ewq_gguf.arch.llama import Llama, Mistral
from ewq_gguf.errors import UnsupportedModelError

_MISTRAL = {
    **Mistral.defaults,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
}
_MINISTRAL = {
    "head_dim": 128,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 262144,
    "num_attention_heads": 32,
    "num_hidden_layers": 34,
    "rms_norm_eps": 1e-5,
    "vocab_size": 131072,
}
_MINISTRAL_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


class Mistral3(Llama):
    """Mistral3ForConditionalGeneration and Ministral3ForCausalLM (conversion/mistral3.py).

    The text model is a Mistral, or a Ministral 3 with attention scaled by position.
    """

    architectures: ClassVar[tuple[str, ...]] = ("Mistral3ForConditionalGeneration", "Ministral3ForCausalLM")
    arch: ClassVar[str] = "mistral3"
    # Everything else depends on which of the two the text model is.
    defaults: ClassVar[Mapping[str, Any]] = {"num_key_value_heads": 8}

    def prepare_config(self, config: Config) -> Config:
        kind = config.find("model_type")
        if kind == "mistral4":
            raise UnsupportedModelError("config.json describes a Mistral 4, which is not supported yet")
        self._is_ministral = kind == "ministral3"
        config = Config({**(_MINISTRAL if self._is_ministral else _MISTRAL), **config})
        if self._is_ministral and config.find("rope_parameters", "rope_scaling") is None:
            config = config.updated(rope_parameters=_MINISTRAL_ROPE)
        return super().prepare_config(config)

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        if not self._is_ministral:
            return
        if self.rope.get("rope_type") != "yarn":
            raise UnsupportedModelError(
                "config.json describes a Ministral 3 without yarn rope; its files are damaged"
            )
        writer.add_rope_scaling_yarn_log_mul(finite(self.rope.get("mscale_all_dim"), "mscale_all_dim"))
        writer.add_attn_temperature_scale(
            finite(self.rope.get("llama_4_scaling_beta"), "llama_4_scaling_beta")
        )
