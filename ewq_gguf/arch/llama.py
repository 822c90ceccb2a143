"""Llama and the models that share its layout: Llama 1 to 3.x, Mistral, Mixtral, SmolLM2 and 3."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.rope import llama3_factors
from ewq_gguf.arch.views import permute_heads
from ewq_gguf.checkpoint.tensor import ArrayTensor, Tensor
from ewq_gguf.vocab import Vocabulary

# Two vocabulary sizes stand for known models: CodeLlama's infilling tokens, and Granite small (no BOS).
_CODELLAMA_VOCAB = 32016
_GRANITE_VOCAB = 49152
_INFILL = {"prefix": 32007, "suffix": 32008, "middle": 32009, "eot": 32010}


class Llama(Family):
    """LlamaForCausalLM (conversion/llama.py), and the text parts of Llava and Voxtral."""

    architectures: ClassVar[tuple[str, ...]] = (
        "LlamaForCausalLM",
        "LLaMAForCausalLM",
        "LlavaForConditionalGeneration",
        "VoxtralForConditionalGeneration",
    )
    arch: ClassVar[str] = "llama"
    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 2048,
        "num_key_value_heads": None,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
    }
    permutes: ClassVar[bool] = True
    fills_head_dim: ClassVar[bool] = True

    @property
    def head_dim(self) -> int:
        """Elements of an attention head."""
        return (
            self.config.integer("head_dim", minimum=1) or self.config.required("hidden_size") // self.n_head
        )

    @property
    def n_head(self) -> int:
        return self.config.required("n_heads", "num_attention_heads")

    @property
    def n_head_kv(self) -> int:
        """Key-value heads; a config without them shares none."""
        return self.config.integer("n_kv_heads", "num_key_value_heads", minimum=1) or self.n_head

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        writer.add_vocab_size(self.config.required("vocab_size"))
        writer.add_rope_dimension_count(self.head_dim)

    def adjust_vocabulary(self, vocabulary: Vocabulary) -> Vocabulary:
        size = self.config.required("vocab_size")
        if size == _CODELLAMA_VOCAB:
            return replace(vocabulary, special_ids={**_INFILL, **vocabulary.special_ids})
        if size == _GRANITE_VOCAB:
            return replace(vocabulary, add_special={**vocabulary.add_special, "bos": False})
        return vocabulary

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if self.permutes:
            if name.endswith(("q_proj.weight", "q_proj.bias")):
                tensor = permute_heads(tensor, self.n_head)
            elif name.endswith(("k_proj.weight", "k_proj.bias")):
                tensor = permute_heads(tensor, self.n_head_kv)
        return [(name, tensor)]

    def extra_tensors(self) -> Iterable[tuple[str, Tensor]]:
        factors = llama3_factors(self.rope, self.head_dim)
        return [] if factors is None else [("rope_freqs.weight", ArrayTensor(factors))]


class VLlama3(Llama):
    """VLlama3ForCausalLM: the text part of SmolVLM."""

    architectures: ClassVar[tuple[str, ...]] = ("VLlama3ForCausalLM",)
    defaults: ClassVar[Mapping[str, Any]] = {**Llama.defaults, "num_attention_heads": 32}

    def rename(self, name: str) -> str | None:
        return super().rename(name.replace("text_model.", ""))


class Mistral(Llama):
    """MistralForCausalLM: Llama with other defaults."""

    architectures: ClassVar[tuple[str, ...]] = ("MistralForCausalLM",)
    defaults: ClassVar[Mapping[str, Any]] = {
        **Llama.defaults,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
    }


class Mixtral(Llama):
    """MixtralForCausalLM: experts named w1 (gate), w2 (down) and w3 (up) in each layer."""

    architectures: ClassVar[tuple[str, ...]] = ("MixtralForCausalLM",)
    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 131072,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
    }
    fills_head_dim: ClassVar[bool] = False


class SmolLM3(Llama):
    """SmolLM3ForCausalLM: every fourth layer without rotary embedding, which llama.cpp knows by itself."""

    architectures: ClassVar[tuple[str, ...]] = ("SmolLM3ForCausalLM",)
    arch: ClassVar[str] = "smollm3"
    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 2000000.0,
    }
    fills_head_dim: ClassVar[bool] = False
