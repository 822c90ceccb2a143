"""AI21 Jamba: Mamba layers with attention now and then, and experts in every other feed-forward part."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.mamba import decay, squeezed
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.vocab import Vocabulary, has_sentencepiece, load_llama_hf, load_sentencepiece

_LAYER = re.compile(r"^model\.layers\.(\d{1,5})\.")


def load_jamba(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """tokenizer.model, else tokenizer.json with byte fallback and no space before the text.

    Raises:
        TokenizerError: the files are missing or damaged.
    """
    if has_sentencepiece(folder):
        return load_sentencepiece(folder, config)
    return replace(load_llama_hf(folder, config), add_space_prefix=False)


class Jamba(Family):
    """JambaForCausalLM (conversion/jamba.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("JambaForCausalLM",)
    arch: ClassVar[str] = "jamba"
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(load_jamba)
    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 262144,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "num_experts": 16,
        "num_experts_per_tok": 2,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "attn_layer_period": 8,
        "attn_layer_offset": 4,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
    }

    def _every(self, what: str, block: int) -> bool:
        """Whether a block is one of those that `{what}_layer_period` and `{what}_layer_offset` choose."""
        offset = self.config.required(f"{what}_layer_offset", minimum=0)
        return block >= offset and (block - offset) % self.config.required(f"{what}_layer_period") == 0

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        config = self.config
        width = config.required("hidden_size", "mamba_d_model")
        heads = config.required("num_key_value_heads")
        rank = None if config.find("mamba_dt_rank") == "auto" else config.integer("mamba_dt_rank")
        writer.add_block_count(self.n_blocks)
        writer.add_context_length(config.required("max_position_embeddings", "n_ctx"))
        writer.add_embedding_length(width)
        writer.add_feed_forward_length(config.required("intermediate_size"))
        writer.add_head_count(config.required("num_attention_heads"))
        writer.add_head_count_kv([heads if self._every("attn", i) else 0 for i in range(self.n_blocks)])
        writer.add_ssm_conv_kernel(config.required("mamba_d_conv"))
        writer.add_ssm_inner_size(config.required("mamba_expand") * width)
        writer.add_ssm_state_size(config.required("mamba_d_state"))
        writer.add_ssm_time_step_rank(rank or -(width // -16))
        writer.add_layer_norm_rms_eps(config.required_number("layer_norm_epsilon", "rms_norm_eps"))
        writer.add_expert_count(config.required("num_local_experts", "num_experts"))
        writer.add_expert_used_count(config.required("num_experts_per_tok", "num_experts_per_token"))

    def rename(self, name: str) -> str | None:
        match = _LAYER.match(name)
        if match is not None:
            name = name.replace(".moe.", ".feed_forward.")
            if self._every("expert", int(match[1])):
                name = name.replace(".feed_forward.experts.", ".mlp.experts.")
            else:
                name = name.replace(".experts.0.", ".")
        return super().rename(name)

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if name.endswith(".A_log"):
            return [(name, decay(tensor))]
        return [(name, squeezed(tensor) if name.endswith(".conv1d.weight") else tensor)]
