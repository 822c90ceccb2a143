"""MPT."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.config import finite
from ewq_gguf.vocab import Vocabulary, has_sentencepiece, load_bpe, load_sentencepiece


def load_mpt(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """Byte-level BPE; SEA-LION's SentencePiece model, which names its special tokens nowhere.

    Raises:
        TokenizerError: the files are missing or damaged.
    """
    if not has_sentencepiece(folder) or (folder / "tokenizer.json").is_file():
        return load_bpe(folder, config)
    vocabulary = load_sentencepiece(folder, config)
    return replace(
        vocabulary,
        special_ids={**vocabulary.special_ids, "pad": 3, "eos": 1, "unk": 0},
        add_special={**vocabulary.add_special, "bos": False},
    )


class MPT(Family):
    """MPTForCausalLM (conversion/mpt.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("MPTForCausalLM",)
    arch: ClassVar[str] = "mpt"
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(load_mpt)

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        config = self.config
        attention = config.section("attn_config")
        width = config.required("d_model")
        writer.add_context_length(config.required("max_seq_len"))
        writer.add_embedding_length(width)
        writer.add_block_count(self.n_blocks)
        writer.add_feed_forward_length(4 * width)
        writer.add_head_count(config.required("n_heads"))
        if groups := attention.get("kv_n_heads"):
            writer.add_head_count_kv(int(finite(groups, "kv_n_heads")))
        writer.add_layer_norm_eps(1e-5)
        if (clip := attention.get("clip_qkv")) is not None:
            writer.add_clamp_kqv(finite(clip, "clip_qkv"))
        alibi = finite(attention.get("alibi_bias_max", 8), "alibi_bias_max")
        writer.add_max_alibi_bias(alibi if attention.get("alibi", True) else 0.0)
