"""Phi-3, Phi-3.5 and Phi-4, dense and with experts; long contexts by two sets of rope factors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import gguf
import numpy as np

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.config import finite
from ewq_gguf.arch.rope import full_attention
from ewq_gguf.checkpoint.tensor import ArrayTensor, F32Array, Tensor
from ewq_gguf.errors import TokenizerError, UnsupportedModelError
from ewq_gguf.vocab import TokenType, Vocabulary, load_bpe, load_sentencepiece

_ADDED_SCORE = -1000.0


def load_phi3(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """GPT-2's kind of BPE when the tokenizer's class says so (Phi-4), else SentencePiece and all added tokens.

    Raises:
        TokenizerError: the files are missing or damaged.
    """
    if _read(folder / "tokenizer_config.json").get("tokenizer_class") == "GPT2Tokenizer":
        return load_bpe(folder, config)
    vocabulary = load_sentencepiece(folder, config)
    tokens, types, scores = list(vocabulary.tokens), list(vocabulary.types), list(vocabulary.scores or ())
    for token_id, content, special in _added_tokens(folder):
        if token_id < len(tokens):
            tokens[token_id] = content.encode()
            scores[token_id] = _ADDED_SCORE
            types[token_id] = int(TokenType.CONTROL if special else TokenType.USER_DEFINED)
    return replace(vocabulary, tokens=tokens, types=types, scores=scores)


def _added_tokens(folder: Path) -> Iterable[tuple[int, str, bool]]:
    """Id, text and whether it is special, of tokenizer_config.json and then tokenizer.json."""
    decoder = _read(folder / "tokenizer_config.json").get("added_tokens_decoder")
    listed = _read(folder / "tokenizer.json").get("added_tokens")
    entries: list[tuple[object, object]] = list(decoder.items()) if isinstance(decoder, dict) else []
    if isinstance(listed, list):
        entries += [(entry.get("id"), entry) for entry in listed if isinstance(entry, dict)]
    for key, entry in entries:
        content = entry.get("content") if isinstance(entry, dict) else None
        if not str(key).isdecimal() or not isinstance(entry, dict) or not isinstance(content, str):
            raise TokenizerError(
                f"{folder}: an added token, {entry!r:.80}, has no id or text; download it again"
            )
        yield int(str(key)), content, bool(entry.get("special"))


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{file} cannot be read ({error}); download it again") from error
    return content if isinstance(content, dict) else {}


class Phi3(Family):
    """Phi3ForCausalLM (conversion/phi.py); queries, keys and values stay fused, gate and up as well."""

    architectures: ClassVar[tuple[str, ...]] = ("Phi3ForCausalLM", "Phi4ForCausalLMV")
    arch: ClassVar[str] = "phi3"
    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 4096,
        "num_key_value_heads": None,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    }
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(load_phi3)

    @property
    def rope_dimensions(self) -> int:
        """Elements of each head that are rotated."""
        share = finite(self.rope.get("partial_rotary_factor", 1.0), "partial_rotary_factor")
        width = self.config.required("hidden_size", "n_embd")
        return int(share * width) // self.config.required("num_attention_heads", "n_head")

    @property
    def original_context(self) -> int:
        """Tokens of context before rope scaling."""
        value = self.rope.get("original_max_position_embeddings")
        if value is None:
            raise UnsupportedModelError("config.json has no original_max_position_embeddings")
        return int(finite(value, "original_max_position_embeddings"))

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        config = self.config
        writer.add_context_length(config.required("n_positions", "max_position_embeddings"))
        writer.add_rope_scaling_orig_ctx_len(self.original_context)
        writer.add_embedding_length(config.required("hidden_size", "n_embd"))
        writer.add_feed_forward_length(config.required("intermediate_size"))
        writer.add_block_count(self.n_blocks)
        writer.add_head_count(config.required("num_attention_heads", "n_head"))
        writer.add_head_count_kv(config.required("num_key_value_heads", "n_head_kv"))
        writer.add_layer_norm_rms_eps(config.required_number("rms_norm_eps"))
        writer.add_rope_dimension_count(self.rope_dimensions)
        writer.add_rope_freq_base(finite(full_attention(self.rope).get("rope_theta"), "rope_theta"))
        # Zero tells llama.cpp that this is a Phi without a window, such as Phi-4.
        writer.add_sliding_window(config.integer("sliding_window") or 0)
        if self._factors("long_factor") is not None:
            writer.add_rope_scaling_attn_factors(self._attention_factor())

    def _attention_factor(self) -> float:
        original = self.original_context
        scale = self.config.required("n_positions", "max_position_embeddings") / max(1, original)
        if scale <= 1.0 or original <= 1:
            return 1.0
        kind = str(self.rope.get("rope_type", "")).lower()
        if kind in ("su", "longrope"):
            return math.sqrt(1 + math.log(scale) / math.log(original))
        if kind == "yarn":
            return 0.1 * math.log(scale) + 1.0
        raise UnsupportedModelError(
            f"config.json gives rope_type = {kind!r:.60} with long factors; expected longrope"
        )

    def _factors(self, key: str) -> F32Array | None:
        values = self.rope.get(key)
        if not values:
            return None
        if not isinstance(values, list) or len(values) != self.rope_dimensions / 2:
            raise UnsupportedModelError(f"config.json gives {key} without one number for each rotated pair")
        return np.array([finite(value, key) for value in values], dtype=np.float32)

    def extra_tensors(self) -> Iterable[tuple[str, Tensor]]:
        long, short = self._factors("long_factor"), self._factors("short_factor")
        if long is None:
            return []
        if short is None:
            raise UnsupportedModelError("config.json gives long rope factors without short ones")
        return [
            ("rope_factors_long.weight", ArrayTensor(long)),
            ("rope_factors_short.weight", ArrayTensor(short)),
        ]


class PhiMoe(Phi3):
    """PhiMoEForCausalLM (Phi-3.5-MoE)."""

    architectures: ClassVar[tuple[str, ...]] = ("PhiMoEForCausalLM",)
    arch: ClassVar[str] = "phimoe"
    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 131072,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 8,
        "num_local_experts": 16,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
    }

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        writer.add_expert_used_count(self.config.required("num_experts_per_tok", "num_experts_per_token"))
        writer.add_expert_count(self.config.required("num_local_experts", "num_experts"))
