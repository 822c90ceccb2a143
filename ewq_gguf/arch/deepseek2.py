"""DeepSeek V2 and V3 (R1), Kimi K2: multi-head latent attention, shared and routed experts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.config import Config, finite
from ewq_gguf.arch.glm4 import GLM_IDS
from ewq_gguf.arch.lookahead import LOOKAHEAD_NAMES
from ewq_gguf.arch.views import Reshape, Transpose, take
from ewq_gguf.arch.vocabularies import with_default_ids
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.errors import UnsupportedModelError
from ewq_gguf.vocab import Vocabulary, load_bpe, load_kimi_tiktoken

_LAYER = re.compile(r"model\.layers\.(\d{1,6})")


def load_deepseek(folder: Path, config: Mapping[str, Any], *, pre: str | None = None) -> Vocabulary:
    """Byte-level BPE, or Kimi's tiktoken.model where that is all there is.

    Raises:
        TokenizerError: the files are missing or damaged.
    """
    only_ranks = (folder / "tiktoken.model").is_file() and not (folder / "tokenizer.json").is_file()
    return (load_kimi_tiktoken if only_ranks else load_bpe)(folder, config, pre=pre)


class Deepseek2(Family):
    """DeepseekV2ForCausalLM and DeepseekV3ForCausalLM (conversion/deepseek.py).

    llama.cpp computes attention on the compressed keys and values, so kv_b is stored as its two halves,
    the first transposed, and the model looks like one with a single key-value head.
    """

    architectures: ClassVar[tuple[str, ...]] = ("DeepseekV2ForCausalLM",)
    arch: ClassVar[str] = "deepseek2"
    defaults: ClassVar[Mapping[str, Any]] = {
        "first_k_dense_replace": 0,
        "kv_lora_rank": 512,
        "max_position_embeddings": 2048,
        "moe_intermediate_size": 1407,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "norm_topk_prob": False,
        "num_key_value_heads": None,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "routed_scaling_factor": 1.0,
        "v_head_dim": 128,
    }
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(load_deepseek)

    def prepare_config(self, config: Config) -> Config:
        config = super().prepare_config(config)
        # The metadata speaks of the compressed cache, which all heads share.
        self._n_head_kv = config.required("num_key_value_heads")
        return config.updated(num_key_value_heads=1, head_dim=None)

    def rename(self, name: str) -> str | None:
        layer = _LAYER.match(name)
        if layer and int(layer.group(1)) >= self.n_blocks:
            return None  # layers that predict several tokens ahead
        if name in ("lm_head.weight", "model.lm_head.weight") and self.config.find("tie_word_embeddings"):
            return None
        return super().rename(name)

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        config = self.config
        dense = config.integer("first_k_dense_replace")
        if dense is None:
            dense = (
                0 if config.integer("n_routed_experts") is not None else config.required("num_hidden_layers")
            )
        rank, rope = config.required("kv_lora_rank"), config.required("qk_rope_head_dim")
        writer.add_leading_dense_block_count(dense)
        writer.add_vocab_size(config.required("vocab_size"))
        if (q_rank := config.integer("q_lora_rank")) is not None:
            writer.add_q_lora_rank(q_rank)
        writer.add_kv_lora_rank(rank)
        writer.add_key_length(rank + rope)
        writer.add_value_length(rank)
        writer.add_key_length_mla(config.required("qk_nope_head_dim") + rope)
        writer.add_value_length_mla(config.required("v_head_dim"))
        writer.add_expert_feed_forward_length(config.required("moe_intermediate_size", "intermediate_size"))
        writer.add_expert_shared_count(config.integer("n_shared_experts") or 0)
        if (scale := config.number("routed_scaling_factor")) is not None:
            writer.add_expert_weights_scale(scale)
        if config.find("norm_topk_prob"):
            writer.add_expert_weights_norm(True)
        writer.add_rope_dimension_count(rope)
        if (mscale := self.rope.get("mscale_all_dim")) is not None:
            writer.add_rope_scaling_yarn_log_mul(0.1 * finite(mscale, "mscale_all_dim"))

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if not name.endswith("kv_b_proj.weight"):
            return [(name, tensor)]
        config = self.config
        return split_kv_b(
            name, tensor, self._n_head_kv, config.required("qk_nope_head_dim"), config.required("v_head_dim")
        )


def split_kv_b(name: str, tensor: Tensor, heads: int, keys: int, values: int) -> Iterable[tuple[str, Tensor]]:
    """kv_b of shape (heads * (keys + values), rank) as k_b (heads, rank, keys) and v_b (heads, values, rank).

    Raises:
        UnsupportedModelError: another shape than that.
    """
    if len(tensor.shape) != 2 or tensor.shape[0] != heads * (keys + values):
        raise UnsupportedModelError(
            f"{name} has the shape {list(tensor.shape)}; config.json speaks of {heads} heads of {keys} + {values} rows"
        )
    per_head = Reshape(tensor, (heads, keys + values, tensor.shape[1]))
    return [
        (name.replace("kv_b_proj", "k_b_proj"), Transpose(take(per_head, slice(keys)))),
        (name.replace("kv_b_proj", "v_b_proj"), take(per_head, slice(keys, None))),
    ]


class Deepseek3(Deepseek2):
    """DeepseekV3ForCausalLM: V3, V3.1, R1, Kimi K2 and Moonlight, mostly published in FP8."""

    architectures: ClassVar[tuple[str, ...]] = ("DeepseekV3ForCausalLM", "KimiK2ForCausalLM")
    defaults: ClassVar[Mapping[str, Any]] = {
        **Deepseek2.defaults,
        "first_k_dense_replace": 3,
        "max_position_embeddings": 4096,
        "moe_intermediate_size": 2048,
        "n_group": 8,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 128,
        "routed_scaling_factor": 2.5,
        "topk_group": 4,
    }


class Glm4MoeLite(Deepseek2):
    """Glm4MoeLiteForCausalLM (GLM-4.7-Flash): DeepSeek's layout; layers that look ahead stay behind the others."""

    architectures: ClassVar[tuple[str, ...]] = ("Glm4MoeLiteForCausalLM",)
    defaults: ClassVar[Mapping[str, Any]] = {
        "kv_lora_rank": 512,
        "max_position_embeddings": 202752,
        "moe_intermediate_size": 1536,
        "n_group": 1,
        "n_routed_experts": 64,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 4,
        "num_key_value_heads": 20,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 192,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "routed_scaling_factor": 1.8,
        "topk_group": 1,
        "v_head_dim": 256,
    }
    more_names: ClassVar[Mapping[str, str]] = LOOKAHEAD_NAMES

    @property
    def n_ahead(self) -> int:
        """Layers that predict several tokens ahead."""
        return self.config.integer("num_nextn_predict_layers") or 0

    def count_blocks(self) -> int:
        return super().count_blocks() + self.n_ahead

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        if self.n_ahead:
            writer.add_nextn_predict_layers(self.n_ahead)

    def adjust_vocabulary(self, vocabulary: Vocabulary) -> Vocabulary:
        return with_default_ids(vocabulary, GLM_IDS)
