"""Preferred Networks' PLaMo 3.

PLaMo 2 is left out: its first block has no heads, llama.cpp then takes heads for zero elements wide, and its rotary
embedding never ends (ggml/src/ggml-cpu/ops.cpp of the pinned version).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.config import Config
from ewq_gguf.arch.views import plus
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.errors import UnsupportedModelError
from ewq_gguf.vocab import Vocabulary, load_plamo

# Norms are stored as offsets from these values.
_OFFSETS = (
    (".pre_mixer_norm.weight", 1.0),
    (".post_mixer_norm.weight", 1.0 / 5),
    (".pre_mlp_norm.weight", 1.0),
    (".post_mlp_norm.weight", 1.0 / (5**1.5)),
    (".mixer.q_norm.weight", 1.0),
    (".mixer.k_norm.weight", 1.0),
    (".norm.weight", 1.0),
)


class Plamo3(Family):
    """Plamo3ForCausalLM (conversion/plamo.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("Plamo3ForCausalLM", "PLaMo3ForCausalLM")
    arch: ClassVar[str] = "plamo3"
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(
        functools.partial(load_plamo, with_template=True)
    )

    def prepare_config(self, config: Config) -> Config:
        config = super().prepare_config(config)
        factor = config.number("rope_scaling_factor")
        scaling = config.section("rope_parameters", "rope_scaling")
        if factor is None or factor == 1 or "rope_type" in scaling or "type" in scaling:
            return config
        yarn = {
            "rope_type": "yarn",
            "factor": float(factor),
            "original_max_position_embeddings": config.required("initial_context_length"),
            "beta_fast": 32.0,
            "beta_slow": 1.0,
        }
        return config.updated(rope_parameters={**scaling, **yarn})

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        config = self.config
        writer.add_vocab_size(config.required("vocab_size"))
        if (window := config.integer("window_size", "sliding_window")) is not None:
            writer.add_sliding_window(window)
            writer.add_sliding_window_pattern(self._pattern())

    def _pattern(self) -> int | list[bool]:
        """Every nth block sees all, or for each block whether it attends within the window."""
        pattern = self.config.find("sliding_window_pattern")
        if isinstance(pattern, list):
            if len(pattern) != self.n_blocks or not all(isinstance(window, bool) for window in pattern):
                raise UnsupportedModelError(
                    "config.json gives sliding_window_pattern without one value for each block"
                )
            return pattern
        return self.config.required("sliding_window_pattern")

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        offset = next((value for end, value in _OFFSETS if name.endswith(end)), None)
        return [(name, tensor if offset is None else plus(tensor, offset))]
