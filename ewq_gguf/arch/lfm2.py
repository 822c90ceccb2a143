"""LFM2: short convolutions in most layers, attention in some; dense and with experts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.config import Config
from ewq_gguf.arch.views import Reshape
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.errors import UnsupportedModelError
from ewq_gguf.vocab import Vocabulary, load_bpe


class Lfm2(Family):
    """Lfm2ForCausalLM (conversion/lfm2.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("Lfm2ForCausalLM", "LFM2ForCausalLM")
    arch: ClassVar[str] = "lfm2"
    defaults: ClassVar[Mapping[str, Any]] = {
        "block_auto_adjust_ff_dim": True,
        "block_ffn_dim_multiplier": 1.0,
        "block_multiple_of": 256,
        "conv_L_cache": 3,
        "max_position_embeddings": 128000,
        "norm_eps": 1e-5,
        "num_key_value_heads": 8,
        "rope_theta": 1000000.0,
    }
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(load_bpe)

    def prepare_config(self, config: Config) -> Config:
        config = super().prepare_config(config)
        self._heads_kv = self._heads_by_layer(config)
        # The metadata gets one number of heads for each layer instead.
        return config.updated(num_key_value_heads=None, intermediate_size=self._feed_forward(config))

    def _heads_by_layer(self, config: Config) -> list[int]:
        n_layers, heads = config.required("num_hidden_layers"), config.required("num_key_value_heads")
        kinds = config.find("layer_types")
        if kinds is None:
            full = config.find("full_attn_idxs")
            attending = set(full) if isinstance(full, list) else set(range(n_layers))
            kinds = ["full_attention" if i in attending else "conv" for i in range(n_layers)]
        if not isinstance(kinds, list) or len(kinds) != n_layers:
            raise UnsupportedModelError(
                f"config.json gives layer_types {kinds!r:.80}; expected {n_layers} names"
            )
        return [0 if kind == "conv" else heads for kind in kinds]

    def _feed_forward(self, config: Config) -> int:
        """Inner width of the feed-forward blocks, worked out as the model's code does."""
        width = config.required("block_ff_dim", "intermediate_size")
        if not config.find("block_auto_adjust_ff_dim"):
            return width
        width = int(2 * width / 3)
        if (factor := config.number("block_ffn_dim_multiplier")) is not None:
            width = int(factor * width)
        multiple = config.required("block_multiple_of")
        return -(-width // multiple) * multiple

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        writer.add_head_count_kv(self._heads_kv)
        writer.add_vocab_size(self.config.required("vocab_size"))
        writer.add_shortconv_l_cache(self.config.required("conv_L_cache"))

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if "conv.conv" in name and len(tensor.shape) == 3 and tensor.shape[1] == 1:
            return [(name, Reshape(tensor, (tensor.shape[0], tensor.shape[2])))]
        return [(name, tensor)]


class Lfm2Moe(Lfm2):
    """Lfm2MoeForCausalLM."""

    architectures: ClassVar[tuple[str, ...]] = ("Lfm2MoeForCausalLM",)
    arch: ClassVar[str] = "lfm2moe"
    defaults: ClassVar[Mapping[str, Any]] = {
        "conv_L_cache": 3,
        "max_position_embeddings": 128000,
        "moe_intermediate_size": 1792,
        "norm_eps": 1e-5,
        "num_dense_layers": 2,
        "num_experts": 32,
        "num_experts_per_tok": 4,
        "num_key_value_heads": 8,
        "rope_theta": 1000000.0,
    }

    def rename(self, name: str) -> str | None:
        return super().rename(f"{name}.bias" if name.endswith(".expert_bias") else name)

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        writer.add_expert_feed_forward_length(self.config.required("moe_intermediate_size"))
        writer.add_leading_dense_block_count(self.config.required("num_dense_layers", minimum=0))
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        # The table knows stacked experts by the name they have in Mixtral.
        prefix = f"model.layers.{block}.feed_forward.experts."
        if name.startswith(prefix):
            return [(name.removeprefix("model."), tensor)]
        return super().transform(name, tensor, block)
