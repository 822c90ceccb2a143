"""GPT-NeoX and Pythia."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.byte_level import ByteLevelFamily
from ewq_gguf.arch.config import Config, finite
from ewq_gguf.arch.fused_qkv import regroup
from ewq_gguf.checkpoint.tensor import Tensor

_FUSED = (".attention.query_key_value.weight", ".attention.query_key_value.bias")


class GPTNeoX(ByteLevelFamily):
    """GPTNeoXForCausalLM (conversion/gptneox.py); rope_parameters say `rotary_pct` in newer configs."""

    architectures: ClassVar[tuple[str, ...]] = ("GPTNeoXForCausalLM",)
    arch: ClassVar[str] = "gptneox"
    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 2048,
        "use_parallel_residual": True,
        "layer_norm_eps": 1e-5,
    }

    def prepare_config(self, config: Config) -> Config:
        share = config.number("rotary_pct")
        if share is None:
            rope = config.section("rope_parameters")
            share = finite(rope.get("partial_rotary_factor", 0.25), "partial_rotary_factor")
        return config.updated(rotary_pct=share)

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        config = self.config
        heads = config.required("num_attention_heads")
        width = config.required("hidden_size")
        writer.add_context_length(config.required("max_position_embeddings"))
        writer.add_embedding_length(width)
        writer.add_block_count(self.n_blocks)
        writer.add_feed_forward_length(config.required("intermediate_size"))
        writer.add_rope_dimension_count(int(config.required_number("rotary_pct") * (width // heads)))
        writer.add_head_count(heads)
        writer.add_parallel_residual(config.find("use_parallel_residual") is not False)
        writer.add_layer_norm_eps(config.required_number("layer_norm_eps"))

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if name.endswith(_FUSED):
            tensor = regroup(tensor, self.config.required("num_attention_heads"))
        return [(name, tensor)]
