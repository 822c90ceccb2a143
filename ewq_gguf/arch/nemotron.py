"""Nvidia Nemotron and Minitron (the dense ones of 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.config import finite
from ewq_gguf.arch.views import plus_one
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.vocab import Vocabulary, load_sentencepiece


class Nemotron(Family):
    """NemotronForCausalLM (conversion/nemotron.py): layer norms stored as offsets from one."""

    architectures: ClassVar[tuple[str, ...]] = ("NemotronForCausalLM",)
    arch: ClassVar[str] = "nemotron"
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(
        load_sentencepiece
    )
    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 4096,
        "norm_eps": 1e-5,
        "rope_theta": 10000.0,
    }

    fills_head_dim: ClassVar[bool] = True

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        config = self.config
        width = config.required("hidden_size", "n_embd")
        heads = config.required("num_attention_heads", "n_head")
        share = finite(self.rope.get("partial_rotary_factor", 0.5), "partial_rotary_factor")
        eps = config.required_number("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
        writer.add_vocab_size(config.required("vocab_size"))
        writer.add_layer_norm_eps(eps)
        writer.add_rope_dimension_count(int(share * width) // heads)
        factor = config.number("factor") or self.rope.get("factor")
        if factor is None:
            writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        else:
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(finite(factor, "rope factor"))

    def adjust_vocabulary(self, vocabulary: Vocabulary) -> Vocabulary:
        return replace(vocabulary, special_ids={**vocabulary.special_ids, "pad": 0, "unk": 1})

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        return [(name, plus_one(tensor) if name.endswith("norm.weight") else tensor)]
