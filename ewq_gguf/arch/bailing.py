"""InclusionAI's Ling and Ring, and rednote's dots.llm1: mixtures of experts with shared experts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.byte_level import ByteLevelFamily
from ewq_gguf.arch.config import Config, finite
from ewq_gguf.arch.views import SliceRows, permute_heads
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.errors import UnsupportedModelError


class Dots1(ByteLevelFamily):
    """Dots1ForCausalLM (conversion/dots1.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("Dots1ForCausalLM",)
    arch: ClassVar[str] = "dots1"
    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 2048,
        "num_key_value_heads": None,
        "first_k_dense_replace": 0,
        "norm_topk_prob": False,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
    }

    def prepare_config(self, config: Config) -> Config:
        # The method that chooses experts stands where others name the function that weighs them.
        if config.find("scoring_func") == "noaux_tc":
            config = config.updated(scoring_func="sigmoid")
        return super().prepare_config(config)

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        config = self.config
        writer.add_expert_feed_forward_length(config.required("moe_intermediate_size"))
        writer.add_leading_dense_block_count(config.required("first_k_dense_replace", minimum=0))
        writer.add_expert_shared_count(config.required("n_shared_experts", minimum=0))
        writer.add_expert_weights_scale(config.required_number("routed_scaling_factor"))
        writer.add_expert_weights_norm(config.find("norm_topk_prob") is True)


class BailingMoe(ByteLevelFamily):
    """BailingMoeForCausalLM (conversion/bailingmoe.py): Ling lite and plus."""

    architectures: ClassVar[tuple[str, ...]] = ("BailingMoeForCausalLM",)
    arch: ClassVar[str] = "bailingmoe"
    defaults: ClassVar[Mapping[str, Any]] = {"num_key_value_heads": None}

    @property
    def head_dim(self) -> int:
        stated = self.config.integer("head_dim", minimum=1)
        return stated or self.config.required("hidden_size") // self.config.required("num_attention_heads")

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        config = self.config
        writer.add_rope_dimension_count(self.head_dim)
        writer.add_leading_dense_block_count(config.required("first_k_dense_replace", minimum=0))
        writer.add_vocab_size(config.required("vocab_size"))
        writer.add_expert_feed_forward_length(config.required("moe_intermediate_size"))
        writer.add_expert_weights_scale(1.0)
        writer.add_expert_shared_count(config.required("num_shared_experts", minimum=0))
        writer.add_expert_weights_norm(config.find("norm_topk_prob") is True)

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if name == "lm_head.weight" and self.config.find("norm_head") is True:
            raise UnsupportedModelError(
                "this model normalises its output matrix column by column (norm_head), which is not supported; "
                "convert it with llama.cpp's own converter and give the GGUF instead"
            )
        if name.endswith("attention.dense.weight"):
            return [(f"model.layers.{block}.self_attn.o_proj.weight", tensor)]
        if not name.endswith("query_key_value.weight"):
            return [(name, tensor)]
        heads = self.config.required("num_attention_heads")
        groups = self.config.required("num_key_value_heads")
        q, k = heads * self.head_dim, groups * self.head_dim
        prefix = f"model.layers.{block}.self_attn."
        return [
            (f"{prefix}q_proj.weight", permute_heads(SliceRows(tensor, 0, q), heads)),
            (f"{prefix}k_proj.weight", permute_heads(SliceRows(tensor, q, q + k), groups)),
            (f"{prefix}v_proj.weight", SliceRows(tensor, q + k, q + 2 * k)),
        ]


class BailingMoe2(BailingMoe):
    """BailingMoeV2ForCausalLM: Ling 2.0 and Ring 2.0."""

    architectures: ClassVar[tuple[str, ...]] = ("BailingMoeV2ForCausalLM",)
    arch: ClassVar[str] = "bailingmoe2"

    def count_blocks(self) -> int:
        return super().count_blocks() + (self.config.integer("num_nextn_predict_layers") or 0)

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        ByteLevelFamily.add_metadata(self, writer)
        config = self.config
        width, shared = (
            config.required("moe_intermediate_size"),
            config.required("num_shared_experts", minimum=0),
        )
        share = finite(self.rope.get("partial_rotary_factor", 0.5), "partial_rotary_factor")
        writer.add_rope_dimension_count(int(self.head_dim * share))
        writer.add_leading_dense_block_count(config.required("first_k_dense_replace", minimum=0))
        writer.add_vocab_size(config.required("vocab_size"))
        writer.add_expert_feed_forward_length(width)
        writer.add_expert_shared_feed_forward_length(
            config.integer("moe_shared_expert_intermediate_size") or width * shared
        )
        writer.add_expert_weights_scale(config.required_number("routed_scaling_factor"))
        writer.add_expert_shared_count(shared)
        writer.add_expert_weights_norm(config.find("norm_topk_prob") is True)
        if (drafts := config.integer("num_nextn_predict_layers")) is not None:
            writer.add_nextn_predict_layers(drafts)

    def rename(self, name: str) -> str | None:
        return super().rename(name.replace(".expert_bias", ".expert_bias.bias"))

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        return [(name, tensor)]
