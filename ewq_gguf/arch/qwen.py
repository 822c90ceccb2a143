"""Qwen, Qwen2, Qwen2.5 and Qwen3, dense and with experts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.experts import split_gate_up
from ewq_gguf.arch.pooling import pooling_type
from ewq_gguf.arch.vocabularies import sentencepiece_or_bpe
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.vocab import Vocabulary, load_bpe, load_qwen_tiktoken


class Qwen(Family):
    """QWenLMHeadModel (conversion/qwen.py): the models of 2023, with fused query, key and value."""

    architectures: ClassVar[tuple[str, ...]] = ("QWenLMHeadModel",)
    arch: ClassVar[str] = "qwen"
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(
        load_qwen_tiktoken
    )

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        if self.config.number("rms_norm_eps", "norm_eps") is None:
            # Its norms are RMS norms and llama.cpp wants their epsilon under that name; published configs call it
            # layer_norm_epsilon, and the pinned converter's files then do not load.
            writer.add_layer_norm_rms_eps(self.config.required_number("layer_norm_epsilon"))


class Qwen2(Family):
    """Qwen2ForCausalLM, which serves Qwen 1.5 to 2.5 (conversion/qwen.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("Qwen2ForCausalLM",)
    arch: ClassVar[str] = "qwen2"
    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
    }
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(
        sentencepiece_or_bpe
    )

    def add_folder_metadata(self, writer: gguf.GGUFWriter, folder: Path) -> None:
        if (pooling := pooling_type(folder)) is not None:
            writer.add_pooling_type(pooling)


class Qwen2Bare(Qwen2):
    """Qwen2Model: an embedding model without an output matrix, whose tensors lack the common prefix."""

    architectures: ClassVar[tuple[str, ...]] = ("Qwen2Model",)

    def rename(self, name: str) -> str | None:
        new = super().rename(name)
        return None if new is None else f"model.{new}"


class Qwen3(Qwen2):
    """Qwen3ForCausalLM."""

    architectures: ClassVar[tuple[str, ...]] = ("Qwen3ForCausalLM",)
    arch: ClassVar[str] = "qwen3"
    defaults: ClassVar[Mapping[str, Any]] = {**Qwen2.defaults, "head_dim": 128}


class Qwen2Moe(Family):
    """Qwen2MoeForCausalLM: experts one by one, or fused over experts and gate/up."""

    architectures: ClassVar[tuple[str, ...]] = ("Qwen2MoeForCausalLM",)
    arch: ClassVar[str] = "qwen2moe"
    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 32768,
        "moe_intermediate_size": 1408,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "num_key_value_heads": 16,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "shared_expert_intermediate_size": 5632,
    }
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(load_bpe)

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        if (size := self.config.integer("moe_intermediate_size")) is not None:
            writer.add_expert_feed_forward_length(size)
        if (size := self.config.integer("shared_expert_intermediate_size")) is not None:
            writer.add_expert_shared_feed_forward_length(size)

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
            name += ".weight"
        if name.endswith(".experts.gate_up_proj.weight"):
            return split_gate_up(name, tensor)
        return [(name, tensor)]


class Qwen3Moe(Qwen2Moe):
    """Qwen3MoeForCausalLM."""

    architectures: ClassVar[tuple[str, ...]] = ("Qwen3MoeForCausalLM",)
    arch: ClassVar[str] = "qwen3moe"
    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 32768,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
    }
