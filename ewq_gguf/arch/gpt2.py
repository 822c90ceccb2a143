"""GPT-2 and StarCoder 1 (GPTBigCode): learned positions, one fused attention projection."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.byte_level import ByteLevelFamily
from ewq_gguf.arch.views import Transpose
from ewq_gguf.checkpoint.tensor import Tensor

# Conv1D layers keep their weights as (inputs, outputs), the reverse of a linear layer.
_CONV1D = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
# The causal mask, which old checkpoints store in every block.
_MASKS = (".attn.bias", ".attn.masked_bias")


class GPT2(ByteLevelFamily):
    """GPT2LMHeadModel (conversion/gpt2.py). Newer configs have no `n_ctx`; `n_positions` says the same."""

    architectures: ClassVar[tuple[str, ...]] = ("GPT2LMHeadModel",)
    arch: ClassVar[str] = "gpt2"
    defaults: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "layer_norm_epsilon": 1e-5,
    }

    context_keys: ClassVar[tuple[str, ...]] = ("n_ctx", "n_positions")

    def rename(self, name: str) -> str | None:
        return None if name.endswith(_MASKS) else super().rename(name)

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        config = self.config
        width = config.required("n_embd")
        writer.add_block_count(self.n_blocks)
        writer.add_context_length(config.required(*self.context_keys))
        writer.add_embedding_length(width)
        writer.add_feed_forward_length(4 * width)
        writer.add_head_count(config.required("n_head"))
        writer.add_layer_norm_eps(config.required_number("layer_norm_epsilon"))

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        return [(name, Transpose(tensor) if name.endswith(_CONV1D) else tensor)]


class StarCoder(GPT2):
    """GPTBigCodeForCausalLM (conversion/starcoder.py): linear layers, one key-value head."""

    architectures: ClassVar[tuple[str, ...]] = ("GPTBigCodeForCausalLM",)
    arch: ClassVar[str] = "starcoder"
    context_keys: ClassVar[tuple[str, ...]] = ("n_positions",)

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        writer.add_head_count_kv(1)

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        return [(name, tensor)]
