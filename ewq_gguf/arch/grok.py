"""Grok 1 and 2: a mixture of experts with capped logits and scales on embedding, attention and output."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.vocabularies import sentencepiece_or_bpe
from ewq_gguf.vocab import Vocabulary

_CAP = 30.0
_YARN = ("yarn", "original")
_FIRST_EXPERTS = re.compile(r"^(transformer\.decoder_layer\.\d{1,6}\.moe)\.(\d{1,6}\.linear)")


class Grok(Family):
    """GrokForCausalLM and Grok1ForCausalLM (conversion/grok.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("GrokForCausalLM", "Grok1ForCausalLM")
    arch: ClassVar[str] = "grok"
    more_names: ClassVar[Mapping[str, str]] = {
        "transformer.decoder_layer.{bid}.moe.experts.linear": "blk.{bid}.ffn_gate_exps",
        "transformer.decoder_layer.{bid}.moe.experts.linear_1": "blk.{bid}.ffn_down_exps",
        "transformer.decoder_layer.{bid}.moe.experts.linear_v": "blk.{bid}.ffn_up_exps",
    }
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(
        sentencepiece_or_bpe
    )

    def rename(self, name: str) -> str | None:
        return super().rename(_FIRST_EXPERTS.sub(r"\1.experts.\2", name))

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        config = self.config
        writer.add_attn_logit_softcapping(_given(config.number("attn_logit_softcapping"), _CAP))
        writer.add_router_logit_softcapping(_given(config.number("router_logit_softcapping"), _CAP))
        if cap := config.number("final_logit_softcapping"):
            writer.add_final_logit_softcapping(cap)
        if (size := config.integer("moe_intermediate_size")) is not None:
            writer.add_expert_feed_forward_length(size)
        if config.find("rope_type") in _YARN:
            writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
            writer.add_rope_scaling_factor(config.required_number("scaling_factor"))
            writer.add_rope_scaling_orig_ctx_len(config.required("original_max_position_embeddings"))
            writer.add_rope_scaling_yarn_ext_factor(config.required_number("extrapolation_factor"))
            writer.add_rope_scaling_yarn_attn_factor(config.required_number("attn_factor"))
            writer.add_rope_scaling_yarn_beta_fast(config.required_number("beta_fast"))
            writer.add_rope_scaling_yarn_beta_slow(config.required_number("beta_slow"))
        if length := config.integer("attn_temperature_len"):
            writer.add_attn_temperature_length(length)
        head = config.integer("head_dim", minimum=1)
        head = head or config.required("hidden_size") // config.required("num_attention_heads")
        writer.add_attn_output_scale(_given(config.number("attn_output_multiplier"), head**-0.5))
        writer.add_embedding_scale(config.required_number("embedding_multiplier_scale"))
        writer.add_logit_scale(config.required_number("output_multiplier_scale"))


def _given(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
