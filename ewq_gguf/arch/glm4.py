"""GLM-4 (0414 and later), dense, and GLM-4.5/4.6 with experts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.config import finite
from ewq_gguf.arch.vocabularies import with_default_ids
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.vocab import Vocabulary, load_bpe

_END = "<|endoftext|>"
# Special tokens by their text, for the models with experts.
GLM_IDS = {"bos": "[gMASK]", "eot": "<|user|>", "unk": _END, "eom": "<|observation|>"}


class Glm4(Family):
    """Glm4ForCausalLM (conversion/glm.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("Glm4ForCausalLM",)
    arch: ClassVar[str] = "glm4"
    defaults: ClassVar[Mapping[str, Any]] = {
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 2,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1.5625e-07,
        "rope_theta": 10000.0,
    }
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(load_bpe)

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        config = self.config
        head = config.integer("head_dim", minimum=1) or (
            config.required("hidden_size") // config.required("num_attention_heads")
        )
        share = finite(self.rope.get("partial_rotary_factor", 0.5), "partial_rotary_factor")
        writer.add_rope_dimension_count(int(head * share))

    def adjust_vocabulary(self, vocabulary: Vocabulary) -> Vocabulary:
        return with_default_ids(vocabulary, {"eos": _END, "eot": "<|user|>", "unk": _END, "bos": _END})


class Glm4Moe(Glm4):
    """Glm4MoeForCausalLM; the layers that predict several tokens ahead are kept behind the others."""

    architectures: ClassVar[tuple[str, ...]] = ("Glm4MoeForCausalLM",)
    arch: ClassVar[str] = "glm4moe"
    defaults: ClassVar[Mapping[str, Any]] = {
        "first_k_dense_replace": 1,
        "max_position_embeddings": 131072,
        "moe_intermediate_size": 1408,
        "n_group": 1,
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 8,
        "num_nextn_predict_layers": 1,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "routed_scaling_factor": 1.0,
        "topk_group": 1,
    }

    def count_blocks(self) -> int:
        return super().count_blocks() + (self.config.integer("num_nextn_predict_layers") or 0)

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        # The table knows an embedding of the layers that look ahead under the same name.
        return [("token_embd.weight" if name == "model.embed_tokens.weight" else name, tensor)]

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        config = self.config
        numbers: tuple[tuple[str, Callable[[int], None]], ...] = (
            ("moe_intermediate_size", writer.add_expert_feed_forward_length),
            ("n_shared_experts", writer.add_expert_shared_count),
            ("first_k_dense_replace", writer.add_leading_dense_block_count),
            ("num_nextn_predict_layers", writer.add_nextn_predict_layers),
        )
        for key, add in numbers:
            if (value := config.integer(key)) is not None:
                add(value)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        if (scale := config.number("routed_scaling_factor")) is not None:
            writer.add_expert_weights_scale(scale)
        if (norm := config.find("norm_topk_prob")) is not None:
            writer.add_expert_weights_norm(bool(norm))

    def adjust_vocabulary(self, vocabulary: Vocabulary) -> Vocabulary:
        return with_default_ids(vocabulary, GLM_IDS)


class Glm4vMoe(Glm4Moe):
    """Glm4vMoeForConditionalGeneration: the text part of GLM-4.5V, without layers that look ahead."""

    architectures: ClassVar[tuple[str, ...]] = ("Glm4vMoeForConditionalGeneration",)
    defaults: ClassVar[Mapping[str, Any]] = {
        key: value for key, value in Glm4Moe.defaults.items() if key != "num_nextn_predict_layers"
    }
