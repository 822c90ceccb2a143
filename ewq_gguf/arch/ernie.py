"""ERNIE 4.5, dense and with experts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.config import Config
from ewq_gguf.arch.views import SliceRows
from ewq_gguf.checkpoint.json_file import load_json_object
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.errors import UnsupportedModelError
from ewq_gguf.vocab import Vocabulary, load_sentencepiece

_AHEAD = re.compile(r"model\.mtp_(?:block|emb_norm|hidden_norm|linear_proj)\.\d")


def load_ernie(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """SentencePiece, with the prefix space that tokenizer_config.json asks for.

    Raises:
        TokenizerError: no tokenizer.model, or it is damaged.
    """
    vocabulary = load_sentencepiece(folder, config)
    file = folder / "tokenizer_config.json"
    prefix = load_json_object(file).get("add_prefix_space") if file.is_file() else None
    return vocabulary if prefix is None else replace(vocabulary, add_space_prefix=bool(prefix))


class Ernie45(Family):
    """Ernie4_5ForCausalLM (conversion/ernie.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM")
    arch: ClassVar[str] = "ernie4_5"
    defaults: ClassVar[Mapping[str, Any]] = {
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
    }
    fills_head_dim: ClassVar[bool] = True
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(load_ernie)

    def rename(self, name: str) -> str | None:
        return super().rename(name.replace("ernie.", "model."))

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if name.endswith("qkv_proj.weight"):
            return self._split_qkv(name, tensor)
        if name.endswith("up_gate_proj.weight"):
            half = tensor.shape[0] // 2
            return [
                (name.replace("up_gate_proj", "gate_proj"), SliceRows(tensor, 0, half)),
                (name.replace("up_gate_proj", "up_proj"), SliceRows(tensor, half, 2 * half)),
            ]
        return [(name, tensor)]

    def _split_qkv(self, name: str, tensor: Tensor) -> Iterable[tuple[str, Tensor]]:
        config = self.config
        heads, heads_kv = config.required("num_attention_heads"), config.required("num_key_value_heads")
        head = config.integer("head_dim", minimum=1) or config.required("hidden_size") // heads
        bounds = [0, heads * head, (heads + heads_kv) * head, (heads + 2 * heads_kv) * head]
        if tensor.shape[0] != bounds[-1]:
            raise UnsupportedModelError(
                f"{name} has {tensor.shape[0]} rows; config.json speaks of {bounds[-1]}"
            )
        return [
            (name.replace("qkv_proj", f"{letter}_proj"), SliceRows(tensor, start, stop))
            for letter, start, stop in zip("qkv", bounds, bounds[1:])
        ]


class Ernie45Moe(Ernie45):
    """Ernie4_5_MoeForCausalLM; layers that predict several tokens ahead are left out."""

    architectures: ClassVar[tuple[str, ...]] = ("Ernie4_5_MoeForCausalLM",)
    arch: ClassVar[str] = "ernie4_5-moe"
    fills_head_dim: ClassVar[bool] = False
    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 131072,
        "moe_intermediate_size": 1536,
        "moe_k": 6,
        "moe_layer_interval": 1,
        "moe_layer_start_index": 1,
        "moe_num_experts": 64,
        "moe_num_shared_experts": 2,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
    }

    def prepare_config(self, config: Config) -> Config:
        config = super().prepare_config(config)
        # Two spellings of the same numbers would both be written.
        return config.updated(num_experts=None, num_experts_per_tok=None)

    def rename(self, name: str) -> str | None:
        return None if _AHEAD.match(name) else super().rename(name)

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        config = self.config
        writer.add_expert_count(config.required("moe_num_experts"))
        writer.add_expert_used_count(config.required("moe_k"))
        writer.add_interleave_moe_layer_step(config.required("moe_layer_interval"))
        writer.add_leading_dense_block_count(config.required("moe_layer_start_index", minimum=0))
        if (size := config.integer("moe_intermediate_size")) is not None:
            writer.add_expert_feed_forward_length(size)
        if (shared := config.integer("moe_num_shared_experts")) is not None:
            writer.add_expert_shared_count(shared)
            if shared:
                heads = config.required("num_key_value_heads")
                writer.add_expert_shared_feed_forward_length(config.required("intermediate_size") // heads)
