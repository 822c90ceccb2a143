"""StableLM: the 3B of 2023, StableLM 2 in 1.6B and 12B."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.byte_level import ByteLevelFamily
from ewq_gguf.arch.config import Config, finite
from ewq_gguf.arch.views import stack
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.errors import UnsupportedModelError

# The 12B normalises each attention head with weights of its own.
_HEAD_NORM = re.compile(r"^(.*\.self_attn\.[qk]_layernorm)\.norms\.(\d+)\.weight$")
_REMOTE_CODE = "stablelm_epoch"


class StableLM(ByteLevelFamily):
    """StableLmForCausalLM and its names from before transformers knew it (conversion/stablelm.py)."""

    architectures: ClassVar[tuple[str, ...]] = (
        "StableLmForCausalLM",
        "StableLMEpochForCausalLM",
        "LlavaStableLMEpochForCausalLM",
    )
    arch: ClassVar[str] = "stablelm"
    defaults: ClassVar[Mapping[str, Any]] = {"num_key_value_heads": None, "layer_norm_eps": 1e-5}

    def prepare_config(self, config: Config) -> Config:
        filled = dict(config)
        if config.find("use_parallel_residual") is None:
            # The library's own class says no, the older models' remote code said yes.
            filled["use_parallel_residual"] = config.find("model_type") == _REMOTE_CODE
        if config.find("norm_eps") is not None and config.find("model_type") == _REMOTE_CODE:
            filled["layer_norm_eps"] = config["norm_eps"]
        return super().prepare_config(Config(filled))

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        config = self.config
        width, heads = config.required("hidden_size"), config.required("num_attention_heads")
        share = finite(self.rope.get("partial_rotary_factor", 0.25), "partial_rotary_factor")
        writer.add_context_length(config.required("max_position_embeddings"))
        writer.add_embedding_length(width)
        writer.add_block_count(self.n_blocks)
        writer.add_feed_forward_length(config.required("intermediate_size"))
        writer.add_rope_dimension_count(int(share * (width // heads)))
        writer.add_head_count(heads)
        writer.add_head_count_kv(config.required("num_key_value_heads"))
        writer.add_parallel_residual(config["use_parallel_residual"] is True)
        writer.add_layer_norm_eps(config.required_number("layer_norm_eps"))

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        match = _HEAD_NORM.match(name)
        if match is None:
            return [(name, tensor)]
        if match[2] != "0":
            return []  # stacked when the first head's norm came along
        heads = self.config.required(
            "num_attention_heads" if match[1].endswith("q_layernorm") else "num_key_value_heads"
        )
        names = [f"{match[1]}.norms.{head}.weight" for head in range(heads)]
        missing = [n for n in names if n not in self.sources]
        if missing:
            raise UnsupportedModelError(f"the checkpoint has no {missing[0]!r}, one of {heads} heads' norms")
        return [(f"{match[1]}.weight", stack([self.sources[n] for n in names]))]
