"""MiniCPM (1 and 2) and MiniCPM3."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import gguf
import numpy as np

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.config import finite
from ewq_gguf.arch.views import permute_heads
from ewq_gguf.checkpoint.tensor import ArrayTensor, Tensor
from ewq_gguf.errors import UnsupportedModelError
from ewq_gguf.vocab import Vocabulary, load_sentencepiece


class MiniCPM(Family):
    """MiniCPMForCausalLM (conversion/minicpm.py): Llama's layout with three scales."""

    architectures: ClassVar[tuple[str, ...]] = ("MiniCPMForCausalLM",)
    arch: ClassVar[str] = "minicpm"
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(
        load_sentencepiece
    )

    @property
    def rope_dimensions(self) -> int:
        """Elements of each head that are rotated."""
        return self.config.required("hidden_size") // self.config.required("num_attention_heads")

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        config = self.config
        writer.add_embedding_scale(config.required_number("scale_emb"))
        writer.add_residual_scale(config.required_number("scale_depth") / self.n_blocks**0.5)
        writer.add_logit_scale(config.required("hidden_size") / config.required("dim_model_base"))

    def extra_tensors(self) -> Iterable[tuple[str, Tensor]]:
        factors = {kind: self.rope.get(f"{kind}_factor") for kind in ("long", "short")}
        if not any(factors.values()):
            return []
        for kind, values in factors.items():
            if not isinstance(values, list) or len(values) != self.rope_dimensions / 2:
                raise UnsupportedModelError(
                    f"config.json gives {kind}_factor without one number for each rotated pair"
                )
        return [
            (
                f"rope_factors_{kind}.weight",
                ArrayTensor(np.array([finite(v, f"{kind}_factor") for v in values or ()], dtype=np.float32)),
            )
            for kind, values in factors.items()
        ]

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        heads = self.config.required("num_attention_heads")
        if name.endswith("q_proj.weight"):
            tensor = permute_heads(tensor, heads)
        elif name.endswith("k_proj.weight"):
            tensor = permute_heads(tensor, self.config.integer("num_key_value_heads", minimum=1) or heads)
        return [(name, tensor)]


class MiniCPM3(MiniCPM):
    """MiniCPM3ForCausalLM: latent attention, with keys and values kept joined."""

    architectures: ClassVar[tuple[str, ...]] = ("MiniCPM3ForCausalLM",)
    arch: ClassVar[str] = "minicpm3"
    defaults: ClassVar[Mapping[str, Any]] = {
        "kv_lora_rank": 256,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 40,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    }

    @property
    def rope_dimensions(self) -> int:
        return self.config.required("qk_rope_head_dim")

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        config = self.config
        writer.add_context_length(config.required("max_position_embeddings"))
        writer.add_embedding_length(config.required("hidden_size"))
        writer.add_block_count(self.n_blocks)
        writer.add_feed_forward_length(config.required("intermediate_size"))
        writer.add_head_count(config.required("num_attention_heads"))
        writer.add_head_count_kv(config.required("num_key_value_heads"))
        writer.add_layer_norm_rms_eps(config.required_number("rms_norm_eps"))
        writer.add_vocab_size(config.required("vocab_size"))
        if (rank := config.integer("q_lora_rank")) is not None:
            writer.add_q_lora_rank(rank)
        writer.add_kv_lora_rank(config.required("kv_lora_rank"))
        writer.add_key_length(config.required("qk_nope_head_dim") + self.rope_dimensions)
        writer.add_rope_dimension_count(self.rope_dimensions)

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        return [(name, tensor)]
