"""IBM Granite 3 and 4 without state spaces, dense and mixture of experts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.config import Config
from ewq_gguf.arch.llama import Llama
from ewq_gguf.arch.rope import llama3_factors
from ewq_gguf.arch.views import take
from ewq_gguf.checkpoint.tensor import ArrayTensor, Tensor
from ewq_gguf.errors import UnsupportedModelError


class Granite(Llama):
    """GraniteForCausalLM (conversion/granite.py): Llama with four scales."""

    architectures: ClassVar[tuple[str, ...]] = ("GraniteForCausalLM",)
    arch: ClassVar[str] = "granite"
    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 2048,
        "num_key_value_heads": None,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "embedding_multiplier": 1.0,
        "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
        "attention_multiplier": 1.0,
    }
    fills_head_dim: ClassVar[bool] = False

    def prepare_config(self, config: Config) -> Config:
        # llama.cpp derives the head width of this family; a config that states it does not count.
        filled = {key: value for key, value in config.items() if key != "head_dim"}
        return Family.prepare_config(self, Config(filled))

    @property
    def head_dim(self) -> int:
        return self.config.required("hidden_size") // self.n_head

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        Family.add_metadata(self, writer)
        writer.add_vocab_size(self.config.required("vocab_size"))
        writer.add_rope_dimension_count(self.head_dim)
        for key, add in (
            ("attention_multiplier", writer.add_attention_scale),
            ("embedding_multiplier", writer.add_embedding_scale),
            ("residual_multiplier", writer.add_residual_scale),
            ("logits_scaling", writer.add_logit_scale),
        ):
            if value := self.config.number(key):
                add(value)

    def extra_tensors(self) -> Iterable[tuple[str, Tensor]]:
        factors = llama3_factors(self.rope, self.head_dim)
        return [] if factors is None else [("rope_freqs.weight", ArrayTensor(factors))]


class GraniteMoe(Granite):
    """GraniteMoeForCausalLM and GraniteMoeSharedForCausalLM: gate and up projections come joined."""

    architectures: ClassVar[tuple[str, ...]] = ("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM")
    arch: ClassVar[str] = "granitemoe"
    defaults: ClassVar[Mapping[str, Any]] = {
        **Granite.defaults,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    }

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        if width := self.config.integer("shared_intermediate_size"):
            writer.add_expert_shared_feed_forward_length(width)

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        experts = self.config.integer("num_local_experts") or 0
        if name.endswith("block_sparse_moe.input_linear.weight"):
            return self._halves(name, tensor, "intermediate_size", "mlp.experts")
        if name.endswith("shared_mlp.input_linear.weight"):
            part = "mlp.shared_experts" if experts else "mlp"
            return self._halves(name, tensor, "shared_intermediate_size", part)
        if not experts and name.endswith("shared_mlp.output_linear.weight"):
            return [(f"model.layers.{block}.mlp.down_proj.weight", tensor)]
        return super().transform(name, tensor, block)

    def _halves(self, name: str, tensor: Tensor, key: str, part: str) -> Iterable[tuple[str, Tensor]]:
        width = self.config.required(key)
        if len(tensor.shape) < 2 or tensor.shape[-2] != 2 * width:
            raise UnsupportedModelError(
                f"{name!r} has shape {list(tensor.shape)}; its gate and up halves need "
                f"{2 * width} rows ({key})"
            )
        prefix = name[: name.index(".block_sparse_moe" if "block_sparse" in name else ".shared_mlp")]
        return [
            (f"{prefix}.{part}.gate_proj.weight", take(tensor, slice(width))),
            (f"{prefix}.{part}.up_proj.weight", take(tensor, slice(width, None))),
        ]
