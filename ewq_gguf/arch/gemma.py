"""Gemma 1, 2 and the text part of Gemma 3."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.config import Config, object_in
from ewq_gguf.arch.pooling import pooling_type
from ewq_gguf.arch.views import SliceRows, plus_one
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.errors import UnsupportedModelError
from ewq_gguf.vocab import Vocabulary, has_sentencepiece, load_bpe, load_sentencepiece

# CodeGemma's fill-in-the-middle tokens and the end of turn; the converter gives them to every Gemma 1.
_GEMMA_IDS = {"prefix": 67, "suffix": 69, "middle": 68, "fsep": 70, "eot": 107}
# Where sentence-transformers keeps what follows the pooling.
_DENSE = ("2_Dense", "3_Dense")


def load_gemma(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """SentencePiece without a space put before the text.

    Raises:
        TokenizerError: no tokenizer.model, or it is damaged.
    """
    return replace(load_sentencepiece(folder, config), add_space_prefix=False)


def load_gemma3(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """Gemma's SentencePiece where there is one, else byte-level BPE.

    Raises:
        TokenizerError: the files are missing or damaged.
    """
    return load_gemma(folder, config) if has_sentencepiece(folder) else load_bpe(folder, config)


class Gemma(Family):
    """GemmaForCausalLM (conversion/gemma.py); norms are stored as offsets from one, the output is tied."""

    architectures: ClassVar[tuple[str, ...]] = ("GemmaForCausalLM",)
    arch: ClassVar[str] = "gemma"
    defaults: ClassVar[Mapping[str, Any]] = {
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "num_key_value_heads": 16,
        "rms_norm_eps": 1e-6,
    }
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(load_gemma)

    def rename(self, name: str) -> str | None:
        return None if name == "lm_head.weight" else super().rename(name)

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        return [(name, plus_one(tensor) if name.endswith("norm.weight") else tensor)]

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        config = self.config
        writer.add_context_length(config.required("max_position_embeddings"))
        writer.add_embedding_length(config.required("hidden_size"))
        writer.add_block_count(self.n_blocks)
        writer.add_feed_forward_length(config.required("intermediate_size"))
        writer.add_head_count(config.required("num_attention_heads"))
        writer.add_head_count_kv(config.required("num_key_value_heads"))
        writer.add_layer_norm_rms_eps(config.required_number("rms_norm_eps"))
        writer.add_key_length(config.required("head_dim"))
        writer.add_value_length(config.required("head_dim"))

    def adjust_vocabulary(self, vocabulary: Vocabulary) -> Vocabulary:
        return replace(vocabulary, special_ids={**_GEMMA_IDS, **vocabulary.special_ids})


class Gemma2(Gemma):
    """Gemma2ForCausalLM: soft caps on logits, a sliding window in every other layer."""

    architectures: ClassVar[tuple[str, ...]] = ("Gemma2ForCausalLM",)
    arch: ClassVar[str] = "gemma2"
    defaults: ClassVar[Mapping[str, Any]] = {
        **Gemma.defaults,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "num_key_value_heads": 4,
        "sliding_window": 4096,
    }

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        writer.add_attn_logit_softcapping(self.config.required_number("attn_logit_softcapping"))
        writer.add_final_logit_softcapping(self.config.required_number("final_logit_softcapping"))
        writer.add_sliding_window(self.config.required("sliding_window"))

    def adjust_vocabulary(self, vocabulary: Vocabulary) -> Vocabulary:
        return vocabulary


class Gemma3(Family):
    """Gemma3ForCausalLM, and the text part of Gemma3ForConditionalGeneration."""

    architectures: ClassVar[tuple[str, ...]] = ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration")
    arch: ClassVar[str] = "gemma3"
    defaults: ClassVar[Mapping[str, Any]] = {
        "head_dim": 256,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "max_position_embeddings": 131072,
        "num_attention_heads": 8,
        "num_hidden_layers": 26,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "sliding_window": 4096,
        "vocab_size": 262208,
    }
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(load_gemma3)

    def prepare_config(self, config: Config) -> Config:
        """Rope parameters of both kinds of layer, under the names of the newer generation."""
        config = super().prepare_config(config)
        rope = config.section("rope_parameters")
        full = {"rope_type": "default", **config.section("rope_scaling")}
        full.update(object_in(rope, "full_attention"))
        full.setdefault("rope_theta", config.number("rope_theta") or 1_000_000.0)
        sliding = {"rope_type": "default", **object_in(rope, "sliding_attention")}
        sliding.setdefault("rope_theta", config.number("rope_local_base_freq") or 10_000.0)
        rope = {**rope, "full_attention": full, "sliding_attention": sliding}
        return config.updated(rope_parameters=rope)

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        config = self.config
        if config.find("attn_logit_softcapping") is not None:
            raise UnsupportedModelError(
                "config.json gives attn_logit_softcapping, which Gemma 3 does not have"
            )
        if cap := config.number("final_logit_softcapping"):
            writer.add_final_logit_softcapping(cap)
        if config.find("sliding_window_pattern") != 1:
            writer.add_sliding_window(config.required("sliding_window"))

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if name.endswith("norm.weight"):
            return [(name, plus_one(tensor))]
        size = self.config.required("vocab_size")
        if name.endswith("embed_tokens.weight") and tensor.shape[0] > size:
            # Multimodal checkpoints carry rows for placeholders that are no tokens.
            return [(name, SliceRows(tensor, 0, size))]
        return [(name, tensor)]


class EmbeddingGemma(Gemma3):
    """Gemma3TextModel: an embedding model whose tensors lack the common prefix."""

    architectures: ClassVar[tuple[str, ...]] = ("Gemma3TextModel",)
    arch: ClassVar[str] = "gemma-embedding"
    _has_dense = False

    def rename(self, name: str) -> str | None:
        new = super().rename(name)
        return new if new is None or new.startswith("model.") else f"model.{new}"

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        if self.config.find("sliding_window_pattern") == 1:
            writer.add_sliding_window(self.config.required("sliding_window"))

    def add_folder_metadata(self, writer: gguf.GGUFWriter, folder: Path) -> None:
        if (pooling := pooling_type(folder)) is not None:
            writer.add_pooling_type(pooling)
        # Without them its vectors are those before the last two projections, as in the converter's own files.
        self._has_dense = any((folder / name / "model.safetensors").is_file() for name in _DENSE)

    def notes(self) -> list[str]:
        left = f"the projections in {' and '.join(_DENSE)} are left out, as llama.cpp's converter does"
        return [*super().notes(), *([left] if self._has_dense else [])]
