"""OpenELM: heads and feed-forward width grow from layer to layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.config import finite
from ewq_gguf.arch.views import SliceRows
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.errors import UnsupportedModelError
from ewq_gguf.vocab import Vocabulary, load_sentencepiece


class OpenElm(Family):
    """OpenELMForCausalLM (conversion/openelm.py); the tokenizer is Llama 2's, which must lie in the folder."""

    architectures: ClassVar[tuple[str, ...]] = ("OpenELMForCausalLM",)
    arch: ClassVar[str] = "openelm"
    defaults: ClassVar[Mapping[str, Any]] = {"max_context_length": 2048, "rope_freq_constant": 10000}
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(
        load_sentencepiece
    )

    def count_blocks(self) -> int:
        return self.config.required("num_transformer_layers")

    def _list(self, key: str) -> list[Any]:
        values = self.config.find(key)
        if not isinstance(values, list) or len(values) != self.n_blocks:
            raise UnsupportedModelError(
                f"config.json gives {key} without one value for each of {self.n_blocks} layers"
            )
        return [finite(value, key) for value in values]

    @property
    def _inner(self) -> list[int]:
        width, divisor = self.config.required("model_dim"), self.config.required("ffn_dim_divisor")
        return [_divisible(factor * width, divisor) for factor in self._list("ffn_multipliers")]

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        config, head = self.config, self.config.required("head_dim")
        writer.add_block_count(self.n_blocks)
        writer.add_context_length(config.required("max_context_length"))
        writer.add_embedding_length(config.required("model_dim"))
        writer.add_feed_forward_length(self._inner)
        writer.add_head_count([int(n) for n in self._list("num_query_heads")])
        writer.add_head_count_kv([int(n) for n in self._list("num_kv_heads")])
        writer.add_rope_freq_base(config.required_number("rope_freq_constant"))
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_rope_dimension_count(head)
        writer.add_key_length(head)
        writer.add_value_length(head)

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if block is None or not name.endswith("ffn.proj_1.weight"):
            return [(name, tensor)]
        inner = self._inner[block]
        return [
            (f"blk.{block}.ffn_gate.weight", SliceRows(tensor, 0, inner)),
            (f"blk.{block}.ffn_up.weight", SliceRows(tensor, inner, tensor.shape[0])),
        ]


def _divisible(value: float, divisor: int) -> int:
    """`value` rounded to a multiple of `divisor`, and up where that would lose more than a tenth."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded
