"""SmallThinker: experts chosen before attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.config import Config
from ewq_gguf.vocab import Vocabulary, load_bpe


class SmallThinker(Family):
    """SmallThinkerForCausalLM (conversion/smallthinker.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("SmallThinkerForCausalLM",)
    arch: ClassVar[str] = "smallthinker"
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(load_bpe)

    def prepare_config(self, config: Config) -> Config:
        """The experts' numbers under the names that most families use."""
        return config.updated(
            num_experts=config.integer("moe_num_primary_experts"),
            num_experts_per_tok=config.integer("moe_num_active_primary_experts"),
            intermediate_size=config.integer("moe_ffn_hidden_size"),
        )

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        config = self.config
        if (size := config.integer("moe_ffn_hidden_size")) is not None:
            writer.add_expert_feed_forward_length(size)
        softmax = bool(config.find("moe_primary_router_apply_softmax"))
        gating = gguf.ExpertGatingFuncType
        writer.add_expert_gating_func(gating.SOFTMAX if softmax else gating.SIGMOID)
        layout = config.find("sliding_window_layout")
        window = config.integer("sliding_window_size")
        if isinstance(layout, list) and any(layout) and window:
            writer.add_sliding_window(window)
