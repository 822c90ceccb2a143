"""LG's EXAONE 3 and 3.5, EXAONE 4, and K-EXAONE."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.byte_level import ByteLevelFamily
from ewq_gguf.arch.config import finite
from ewq_gguf.arch.rope import llama3_factors
from ewq_gguf.checkpoint.tensor import ArrayTensor, Tensor
from ewq_gguf.errors import UnsupportedModelError

_DRAFT_LAYER = re.compile(r"^mtp\.layers\.(\d{1,4})\.(.+)$")
_DRAFT_SHARED = {
    "mtp.fc": "eh_proj",
    "mtp.pre_fc_norm_embedding": "enorm",
    "mtp.pre_fc_norm_hidden": "hnorm",
    "mtp.norm": "shared_head.norm",
}


class Exaone(ByteLevelFamily):
    """ExaoneForCausalLM (conversion/exaone.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("ExaoneForCausalLM",)
    arch: ClassVar[str] = "exaone"

    @property
    def head_dim(self) -> int:
        """Width of an attention head, which also sets the number of rope factors."""
        stated = self.config.integer("head_dim", minimum=1)
        return stated or self.config.required("hidden_size") // self.config.required("num_attention_heads")

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        config = self.config
        if config.find("activation_function") != "silu":
            raise UnsupportedModelError(
                f"config.json gives activation_function = {config.find('activation_function')!r:.60}; "
                "llama.cpp runs this family with silu only"
            )
        if config.number("rms_norm_eps", "norm_eps") is None:
            # The norms are RMS norms and llama.cpp wants their epsilon under that name; published configs call it
            # layer_norm_epsilon, and the pinned converter's files then do not load.
            writer.add_layer_norm_rms_eps(config.required_number("layer_norm_epsilon"))
        share = self.rope.get("partial_rotary_factor")
        share = 1.0 if share is None else finite(share, "partial_rotary_factor")
        head = config.required("hidden_size") // config.required("num_attention_heads")
        writer.add_rope_dimension_count(int(share * head))

    def extra_tensors(self) -> Iterable[tuple[str, Tensor]]:
        factors = llama3_factors(self.rope, self.head_dim)
        return [] if factors is None else [("rope_freqs.weight", ArrayTensor(factors))]


class Exaone4(Exaone):
    """Exaone4ForCausalLM: norms after the blocks' parts, sliding windows in the 32B."""

    architectures: ClassVar[tuple[str, ...]] = ("Exaone4ForCausalLM",)
    arch: ClassVar[str] = "exaone4"
    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 2048,
        "num_key_value_heads": None,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
    }

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        Family.add_metadata(self, writer)
        writer.add_vocab_size(self.config.required("vocab_size"))
        window = self.config.integer("sliding_window")
        if window is not None:
            writer.add_sliding_window(window)
            writer.add_sliding_window_pattern(self._windowed())

    def _windowed(self) -> list[bool]:
        """For each block, whether it attends within the window: listed, as "LLLG", or all but every nth."""
        kinds = self.config.find("layer_types")
        if kinds is not None:
            return [kind == "sliding_attention" for kind in kinds]
        pattern = self.config.find("sliding_window_pattern")
        if isinstance(pattern, str) and pattern:
            return [pattern[i % len(pattern)] == "L" for i in range(self.n_blocks)]
        period = self.config.integer("sliding_window_pattern", minimum=1) or 4
        return [(i + 1) % period != 0 for i in range(self.n_blocks)]


class ExaoneMoe(Exaone4):
    """ExaoneMoeForCausalLM (K-EXAONE): EXAONE 4's attention, a mixture of experts, perhaps a draft head."""

    architectures: ClassVar[tuple[str, ...]] = ("ExaoneMoeForCausalLM", "ExaoneMoEForCausalLM")
    arch: ClassVar[str] = "exaone-moe"
    defaults: ClassVar[Mapping[str, Any]] = {
        **Exaone4.defaults,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "num_shared_experts": 1,
        "moe_intermediate_size": 1024,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    }

    def count_blocks(self) -> int:
        return super().count_blocks() + (self.config.integer("num_nextn_predict_layers") or 0)

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        config = self.config
        width, shared = (
            config.required("moe_intermediate_size"),
            config.required("num_shared_experts", minimum=0),
        )
        writer.add_expert_feed_forward_length(width)
        writer.add_expert_shared_count(shared)
        writer.add_expert_shared_feed_forward_length(width * shared)
        writer.add_expert_weights_scale(config.required_number("routed_scaling_factor"))
        writer.add_expert_weights_norm(config.find("norm_topk_prob") is True)
        writer.add_leading_dense_block_count(
            config.integer("first_k_dense_replace", "first_last_k_dense_replace") or 0
        )
        writer.add_nextn_predict_layers(config.integer("num_nextn_predict_layers") or 0)
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)

    def rename(self, name: str) -> str | None:
        if match := _DRAFT_LAYER.match(name):
            name = f"model.layers.{int(match[1]) + self._n_main}.{match[2]}"
        return super().rename(name)

    @property
    def _n_main(self) -> int:
        return self.config.required("num_hidden_layers")

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        stem = name.removesuffix(".weight")
        if stem in _DRAFT_SHARED:
            # All draft layers share these.
            blocks = range(self._n_main, self.n_blocks)
            return [(f"model.layers.{i}.{_DRAFT_SHARED[stem]}.weight", tensor) for i in blocks]
        return super().transform(name, tensor, block)
