"""The text part of Llama 4."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.config import Config
from ewq_gguf.arch.experts import split_gate_up
from ewq_gguf.arch.llama import Llama
from ewq_gguf.arch.views import Transpose
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.vocab import Vocabulary, load_bpe


class Llama4(Llama):
    """Llama4ForConditionalGeneration and Llama4ForCausalLM (conversion/llama.py); experts are stored transposed."""

    architectures: ClassVar[tuple[str, ...]] = ("Llama4ForCausalLM", "Llama4ForConditionalGeneration")
    arch: ClassVar[str] = "llama4"
    defaults: ClassVar[Mapping[str, Any]] = {
        "head_dim": 128,
        "hidden_size": 5120,
        "intermediate_size": 8192,
        "interleave_moe_layer_step": 1,
        "intermediate_size_mlp": 16384,
        "max_position_embeddings": 131072,
        "num_attention_heads": 40,
        "num_hidden_layers": 48,
        "num_experts_per_tok": 1,
        "num_key_value_heads": 8,
        "num_local_experts": 16,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "vocab_size": 202048,
    }
    permutes: ClassVar[bool] = False
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(load_bpe)

    def prepare_config(self, config: Config) -> Config:
        config = super().prepare_config(config)
        # "intermediate_size" means the experts here; dense layers have their own.
        return config.updated(
            moe_intermediate_size=config.required("intermediate_size"),
            intermediate_size=config.required("intermediate_size_mlp"),
        )

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        config = self.config
        writer.add_interleave_moe_layer_step(config.required("interleave_moe_layer_step"))
        writer.add_expert_feed_forward_length(config.required("moe_intermediate_size"))
        kinds = config.find("layer_types")
        if isinstance(kinds, list) and all(kind == "full_attention" for kind in kinds):
            writer.add_sliding_window(0)

    def adjust_vocabulary(self, vocabulary: Vocabulary) -> Vocabulary:
        return vocabulary

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if name.endswith("experts.gate_up_proj"):
            return split_gate_up(f"{name}.weight", Transpose(tensor))
        if name.endswith("experts.down_proj"):
            return [(f"{name}.weight", Transpose(tensor))]
        return super().transform(name, tensor, block)
