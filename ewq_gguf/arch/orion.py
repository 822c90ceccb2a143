"""Orion, Baichuan and XVERSE: Chinese models of 2023 in the layout of the first Llama."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.views import SliceRows, permute_heads
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.errors import UnsupportedModelError
from ewq_gguf.vocab import TokenType, Vocabulary, load_sentencepiece, read_special_tokens
from ewq_gguf.vocab.files import encode
from ewq_gguf.vocab.hf import open_tokenizer

_LAYOUT = "Meta AI original pth"


class _SentencePieceFamily(Family):
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(
        load_sentencepiece
    )
    defaults: ClassVar[Mapping[str, Any]] = {"num_key_value_heads": None}


class Orion(_SentencePieceFamily):
    """OrionForCausalLM (conversion/orion.py): its rms_norm_eps belongs to layer norms."""

    architectures: ClassVar[tuple[str, ...]] = ("OrionForCausalLM",)
    arch: ClassVar[str] = "orion"

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        config = self.config
        writer.add_tensor_data_layout(_LAYOUT)
        writer.add_context_length(
            config.required("max_sequence_length", "max_position_embeddings", "model_max_length")
        )
        writer.add_embedding_length(config.required("hidden_size"))
        writer.add_block_count(self.n_blocks)
        writer.add_feed_forward_length(config.required("intermediate_size"))
        writer.add_head_count(config.required("num_attention_heads"))
        writer.add_head_count_kv(config.required("num_key_value_heads"))
        writer.add_layer_norm_eps(config.required_number("rms_norm_eps"))


class Baichuan(_SentencePieceFamily):
    """BaichuanForCausalLM (conversion/baichuan.py): W_pack holds query, key and value one after another."""

    architectures: ClassVar[tuple[str, ...]] = ("BaichuanForCausalLM", "BaiChuanForCausalLM")
    arch: ClassVar[str] = "baichuan"
    defaults: ClassVar[Mapping[str, Any]] = {}

    @property
    def n_head(self) -> int:
        return self.config.required("num_attention_heads")

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        writer.add_tensor_data_layout(_LAYOUT)
        writer.add_rope_dimension_count(self.config.required("hidden_size") // self.n_head)

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if not name.endswith(".self_attn.W_pack.weight"):
            return [(name, tensor)]
        rows = tensor.shape[0] // 3
        if tensor.shape[0] % 3:
            raise UnsupportedModelError(
                f"{name!r} has {tensor.shape[0]} rows, which cannot hold three projections"
            )
        prefix = name.removesuffix("W_pack.weight")
        q, k, v = (SliceRows(tensor, i * rows, (i + 1) * rows) for i in range(3))
        return [
            (f"{prefix}q_proj.weight", permute_heads(q, self.n_head)),
            (f"{prefix}k_proj.weight", permute_heads(k, self.n_head)),
            (f"{prefix}v_proj.weight", v),
        ]


def load_xverse(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """tokenizer.json's tokens as they are, without scores (conversion/xverse.py, set_vocab).

    Raises:
        TokenizerError: the file is missing, damaged or does not fit vocab_size.
    """
    tokenizer = open_tokenizer(folder, config)
    by_id = {token_id: token for token, token_id in tokenizer.vocab.items()}
    size = config.get("vocab_size", len(by_id))
    tokens, types = [], []
    for token_id in range(size):
        text = by_id.get(token_id, f"[PAD{token_id}]")
        added = tokenizer.added.get(token_id)
        if text == "\x00" or (len(text) == 6 and text.startswith("<0x") and text.endswith(">")):
            kind = TokenType.BYTE
        elif added is not None:
            kind = TokenType.CONTROL if added.special else TokenType.USER_DEFINED
        else:
            kind = TokenType.NORMAL if token_id in by_id else TokenType.UNUSED
        tokens.append(b"<b'\\x00'>" if text == "\x00" else encode(text, tokenizer.file, f"token {token_id}"))
        types.append(int(kind))
    vocabulary = Vocabulary(model="llama", pre="default", tokens=tokens, types=types)
    return vocabulary.with_special(read_special_tokens(folder, config, n_vocab=len(tokens)))


class Xverse(Family):
    """XverseForCausalLM (conversion/xverse.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("XverseForCausalLM",)
    arch: ClassVar[str] = "xverse"
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(load_xverse)

    @property
    def n_head(self) -> int:
        return self.config.required("num_attention_heads")

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        writer.add_tensor_data_layout(_LAYOUT)
        writer.add_rope_dimension_count(self.config.required("hidden_size") // self.n_head)

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if name.endswith("q_proj.weight"):
            tensor = permute_heads(tensor, self.n_head)
        elif name.endswith("k_proj.weight"):
            tensor = permute_heads(
                tensor, self.config.integer("num_key_value_heads", minimum=1) or self.n_head
            )
        return [(name, tensor)]
