"""DBRX: experts in three matrices per layer, one above the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import gguf

from ewq_gguf.arch.byte_level import ByteLevelFamily
from ewq_gguf.arch.config import Config
from ewq_gguf.arch.views import Reshape, Transpose
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.ggml.types import GGMLType

_EXPERTS = ("ffn.experts.mlp.w1", "ffn.experts.mlp.v1", "ffn.experts.mlp.w2")


class Dbrx(ByteLevelFamily):
    """DbrxForCausalLM (conversion/dbrx.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("DbrxForCausalLM",)
    arch: ClassVar[str] = "dbrx"

    @property
    def _feed_forward(self) -> Config:
        return Config(
            self.config.section("ffn_config"),
            {"ffn_hidden_size": 3584, "moe_num_experts": 4, "moe_top_k": 1},
        )

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        config, inner = self.config, self._feed_forward
        attention = Config(config.section("attn_config"), {"kv_n_heads": 1, "rope_theta": 10000.0})
        writer.add_block_count(self.n_blocks)
        writer.add_context_length(config.required("max_seq_len", "max_position_embeddings"))
        writer.add_embedding_length(config.required("d_model", "hidden_size"))
        writer.add_feed_forward_length(inner.required("ffn_hidden_size"))
        writer.add_head_count(config.required("n_heads", "num_attention_heads"))
        writer.add_head_count_kv(attention.required("kv_n_heads"))
        writer.add_rope_freq_base(attention.required_number("rope_theta"))
        writer.add_clamp_kqv(attention.required_number("clip_qkv"))
        writer.add_expert_count(inner.required("moe_num_experts"))
        writer.add_expert_used_count(inner.required("moe_top_k"))
        writer.add_layer_norm_eps(1e-5)

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if not name.endswith(_EXPERTS):
            return [(name, tensor)]
        inner = self._feed_forward
        shape = (
            inner.required("moe_num_experts"),
            inner.required("ffn_hidden_size"),
            self.config.required("d_model", "hidden_size"),
        )
        experts: Tensor = Reshape(tensor, shape)
        return [(f"{name}.weight", Transpose(experts) if name.endswith("w2") else experts)]

    def fixed_type(self, name: str, tensor: Tensor) -> GGMLType | None:
        # Here llama.cpp's converter leaves no matrix out, the router included.
        return GGMLType.F32 if len(tensor.shape) <= 1 else None
