"""GLM-4 9B of 2024 and ChatGLM: the models before Glm4ForCausalLM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.config import Config, finite
from ewq_gguf.arch.vocabularies import with_default_ids
from ewq_gguf.vocab import Vocabulary, load_bpe

_DEFAULT_TOKENS = {"eos": "<|endoftext|>", "eot": "<|user|>", "unk": "<|endoftext|>"}
_ROPE_BASE = 10000.0


def load_chatglm(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """Byte-level BPE with GLM's special tokens (conversion/chatglm.py, set_vocab).

    Raises:
        TokenizerError: the files are missing or damaged.
    """
    vocabulary = with_default_ids(load_bpe(folder, config), _DEFAULT_TOKENS)
    return replace(vocabulary, add_special={"bos": False, **vocabulary.add_special})


class ChatGLM(Family):
    """GlmForCausalLM and ChatGLMModel (conversion/chatglm.py); gate and up projections stay fused."""

    architectures: ClassVar[tuple[str, ...]] = (
        "GlmForCausalLM",
        "ChatGLMModel",
        "ChatGLMForConditionalGeneration",
    )
    arch: ClassVar[str] = "chatglm"
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(load_chatglm)

    def prepare_config(self, config: Config) -> Config:
        return config.updated(vocab_size=config.required("padded_vocab_size", "vocab_size"))

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        config = self.config
        width = config.required("hidden_size", "n_embed")
        heads = config.required("n_head", "num_attention_heads")
        head = config.integer("attention_dim", minimum=1) or width // heads
        share = finite(self.rope.get("partial_rotary_factor", 0.5), "partial_rotary_factor")
        writer.add_context_length(config.integer("seq_length", minimum=1) or width)
        writer.add_embedding_length(width)
        writer.add_feed_forward_length(config.integer("ffn_hidden_size", "intermediate_size") or 4 * width)
        writer.add_block_count(self.n_blocks)
        writer.add_head_count(heads)
        writer.add_head_count_kv(config.integer("multi_query_group_num", "num_key_value_heads") or heads)
        writer.add_layer_norm_rms_eps(config.number("layernorm_epsilon") or 1e-5)
        writer.add_rope_dimension_count(int(head * share))
        writer.add_rope_freq_base(_ROPE_BASE * (config.number("rope_ratio") or 1))

    def rename(self, name: str) -> str | None:
        if name.endswith(".rotary_pos_emb.inv_freq"):
            return None
        return super().rename(name.removeprefix("transformer."))
