"""DeciLM and Nvidia's Llama-Nemotron models found by architecture search: heads and widths differ by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.config import Config, finite
from ewq_gguf.arch.rope import llama3_factors
from ewq_gguf.arch.views import permute_heads
from ewq_gguf.checkpoint.tensor import ArrayTensor, Tensor
from ewq_gguf.errors import UnsupportedModelError
from ewq_gguf.vocab import Vocabulary, load_bpe, load_llama_hf

_LLAMA3_VOCAB = 128256
_WIDTH_MULTIPLE = 256


def load_deci(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """Llama 3's tokenizer for the Nemotrons, one with byte fallback for DeciLM (conversion/deci.py, set_vocab).

    Raises:
        TokenizerError: the files are missing or damaged.
    """
    llama3 = config.get("vocab_size", _LLAMA3_VOCAB) == _LLAMA3_VOCAB
    return load_bpe(folder, config) if llama3 else load_llama_hf(folder, config)


class Deci(Family):
    """DeciLMForCausalLM (conversion/deci.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("DeciLMForCausalLM",)
    arch: ClassVar[str] = "deci"
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(load_deci)

    def prepare_config(self, config: Config) -> Config:
        self.n_heads, self.n_kv_heads, self.widths = _blocks(config)
        return config

    @property
    def head_dim(self) -> int:
        stated = self.config.integer("head_dim", minimum=1)
        return stated or self.config.required("hidden_size") // self.config.required("num_attention_heads")

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        config = self.config
        if config.find("block_configs") is None:
            super().add_metadata(writer)
            if config.find("num_key_value_heads_per_layer") is not None:
                del writer.kv_data[0][f"{self.arch}.attention.head_count_kv"]
                writer.add_head_count_kv(self.n_kv_heads)
        else:
            if (theta := self.rope.get("rope_theta")) is not None:
                writer.add_rope_freq_base(finite(theta, "rope_theta"))
            writer.add_head_count_kv(self.n_kv_heads)
            writer.add_head_count(self.n_heads)
            writer.add_feed_forward_length(self.widths)
            writer.add_block_count(self.n_blocks)
            writer.add_context_length(config.required("max_position_embeddings"))
            writer.add_embedding_length(config.required("hidden_size"))
            writer.add_layer_norm_rms_eps(config.required_number("rms_norm_eps"))
            width = config.required("hidden_size") // config.required("num_attention_heads")
            writer.add_key_length(width)
            writer.add_value_length(width)
        writer.add_vocab_size(config.required("vocab_size"))
        writer.add_rope_dimension_count(self.head_dim)

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if block is not None and block < self.n_blocks:
            if name.endswith(("q_proj.weight", "q_proj.bias")):
                tensor = permute_heads(tensor, self.n_heads[block])
            elif name.endswith(("k_proj.weight", "k_proj.bias")):
                tensor = permute_heads(tensor, self.n_kv_heads[block])
        return [(name, tensor)]

    def extra_tensors(self) -> Iterable[tuple[str, Tensor]]:
        factors = llama3_factors(self.rope, self.head_dim)
        return [] if factors is None else [("rope_freqs.weight", ArrayTensor(factors))]


def _blocks(config: Config) -> tuple[list[int], list[int], list[int]]:
    """Query heads, key-value heads and feed-forward width of each block; 0 for parts that a block lacks."""
    n_blocks, heads = config.required("num_hidden_layers"), config.required("num_attention_heads")
    blocks = config.find("block_configs")
    if blocks is None:
        shared = config.integer("num_key_value_heads", minimum=1) or heads
        per_block = config.find("num_key_value_heads_per_layer") or [shared] * n_blocks
        if not isinstance(per_block, list) or len(per_block) != n_blocks:
            raise UnsupportedModelError(
                "config.json's num_key_value_heads_per_layer is no list with one per block"
            )
        return [heads] * n_blocks, [Config({"n": n}).required("n") for n in per_block], []
    if not isinstance(blocks, list) or len(blocks) != n_blocks:
        raise UnsupportedModelError("config.json's block_configs is no list with one entry per block")
    n_heads, n_kv_heads, widths = [], [], []
    for block in blocks:
        entry = Config(block if isinstance(block, Mapping) else {})
        attention, ffn = Config(entry.section("attention")), Config(entry.section("ffn"))
        sharing = attention.integer("n_heads_in_group", minimum=1)
        linear = attention.find("replace_with_linear") is True
        n_kv_heads.append(heads // sharing if sharing else 0)
        n_heads.append(heads if sharing or linear else 0)
        width = int(2 * (ffn.number("ffn_mult") or 0.0) * config.required("hidden_size") / 3)
        widths.append(-(width // -_WIDTH_MULTIPLE) * _WIDTH_MULTIPLE)
    return n_heads, n_kv_heads, widths
