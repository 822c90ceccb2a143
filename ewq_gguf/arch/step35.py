"""StepFun's Step 3.5: windowed blocks with more heads than the others, gated attention, routed and shared experts."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import gguf
import numpy as np

from ewq_gguf.arch.byte_level import ByteLevelFamily
from ewq_gguf.arch.config import Config, finite
from ewq_gguf.arch.lookahead import LOOKAHEAD_NAMES
from ewq_gguf.arch.mamba import squeezed
from ewq_gguf.arch.rope import full_attention
from ewq_gguf.arch.views import plus_one
from ewq_gguf.checkpoint.tensor import ArrayTensor, Tensor
from ewq_gguf.errors import UnsupportedModelError

_LAYER = re.compile(r"^model\.layers\.(\d{1,4})\.")
_FULL, _SLIDING = "full_attention", "sliding_attention"
# llama.cpp turns half of a head in blocks that see all, and the whole in windowed ones.
_SHARES = {_FULL: 0.5, _SLIDING: 1.0}
_SQUEEZED = (
    ".self_attn.g_proj.weight",
    ".moe.gate.weight",
    ".moe.up_proj.weight",
    ".moe.gate_proj.weight",
    ".moe.down_proj.weight",
)
_WIDEST_HEAD = 1 << 16


class Step35(ByteLevelFamily):
    """Step3p5ForCausalLM (conversion/step3.py); layers that look ahead stay behind the others."""

    architectures: ClassVar[tuple[str, ...]] = ("Step3p5ForCausalLM",)
    arch: ClassVar[str] = "step35"
    more_names: ClassVar[Mapping[str, str]] = LOOKAHEAD_NAMES

    def prepare_config(self, config: Config) -> Config:
        config = super().prepare_config(config)
        bases = config.find("rope_theta")
        if not isinstance(bases, list):
            return config
        if len(bases) < 2:
            raise UnsupportedModelError("config.json gives rope_theta for fewer than two blocks")
        # The first block sees all, the second only its window.
        return config.updated(
            rope_theta=finite(bases[0], "rope_theta"), local_rope_theta=finite(bases[1], "rope_theta")
        )

    @property
    def n_ahead(self) -> int:
        return self.config.integer("num_nextn_predict_layers") or 0

    def count_blocks(self) -> int:
        return super().count_blocks() + self.n_ahead

    def rename(self, name: str) -> str | None:
        layer = _LAYER.match(name)
        if layer and int(layer[1]) >= self.n_blocks - self.n_ahead:
            name = name.replace(".transformer.", ".").replace("shared_head.output", "shared_head.head")
        return super().rename(f"{name}.bias" if name.endswith(".moe.router_bias") else name)

    def kinds(self) -> list[str]:
        """For each block, how it attends.

        Raises:
            UnsupportedModelError: another way than two, or with rotated shares other than llama.cpp's.
        """
        kinds = self._per_block("layer_types", _FULL)
        shares = self._per_block("partial_rotary_factors", _SHARES[_FULL])
        for kind, share in zip(kinds, shares):
            if not isinstance(kind, str) or _SHARES.get(kind) != share:
                raise UnsupportedModelError(
                    f"config.json gives layer_types {kind!r:.40} with partial_rotary_factors {share!r:.40}; llama.cpp "
                    f"knows {_FULL} with {_SHARES[_FULL]} and {_SLIDING} with {_SHARES[_SLIDING]}"
                )
        return kinds

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        config, kinds = self.config, self.kinds()
        windowed = [kind == _SLIDING for kind in kinds]
        other = Config(config.section("attention_other_setting"))
        heads: tuple[tuple[str, Callable[[list[int]], None]], ...] = (
            ("num_attention_heads", writer.add_head_count),
            ("num_attention_groups", writer.add_head_count_kv),
        )
        for key, add in heads:
            full = config.required(key)
            within = other.integer(key, minimum=1) or full
            add([within if window else full for window in windowed])
        writer.add_sliding_window(config.required("sliding_window"))
        writer.add_sliding_window_pattern(windowed)
        writer.add_value_length(config.required("head_dim"))
        writer.add_expert_count(config.required("moe_num_experts"))
        writer.add_expert_used_count(config.required("moe_top_k"))
        writer.add_expert_feed_forward_length(config.required("moe_intermediate_size"))
        writer.add_expert_shared_feed_forward_length(config.required("share_expert_dim"))
        if (scale := config.number("moe_router_scaling_factor")) is not None:
            writer.add_expert_weights_scale(scale)
        if (norm := config.find("norm_expert_weight")) is not None:
            writer.add_expert_weights_norm(norm is True)
        writer.add_leading_dense_block_count(self._first_mixture())
        writer.add_moe_every_n_layers(config.integer("moe_every_n_layer") or 1)
        eps = config.number("rms_norm_eps")
        writer.add_layer_norm_rms_eps(1e-5 if eps is None else eps)
        for name, clamp in (
            ("swiglu_limits", writer.add_swiglu_clamp_exp),
            ("swiglu_limits_shared", writer.add_swiglu_clamp_shexp),
        ):
            if config.find(name) is not None:
                clamp([float(finite(value or 0.0, name)) for value in self._per_block(name, 0.0)])
        if self.n_ahead:
            writer.add_nextn_predict_layers(self.n_ahead)

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if name.endswith("norm.weight"):
            return [(name, plus_one(tensor))]
        return [(name, squeezed(tensor) if name.endswith(_SQUEEZED) else tensor)]

    def extra_tensors(self) -> Iterable[tuple[str, Tensor]]:
        full = full_attention(self.rope)
        if str(full.get("rope_type", "")).lower() != "llama3":
            return []
        head = self.config.required("head_dim")
        if head > _WIDEST_HEAD:
            raise UnsupportedModelError(
                f"config.json gives head_dim = {head:,}; no attention head is that wide"
            )
        return [("rope_freqs.weight", ArrayTensor(_factors(full, head)))]

    def _per_block(self, key: str, otherwise: Any) -> list[Any]:
        """The values of a list for all blocks, those that look ahead included, which it may leave out."""
        values = self.config.find(key) or []
        if not isinstance(values, list):
            raise UnsupportedModelError(f"config.json gives {key} = {values!r:.60}; expected a list")
        return [*values, *[otherwise] * (self.n_blocks - len(values))][: self.n_blocks]

    def _first_mixture(self) -> int:
        """The first block with experts, out of a list such as "3,4,5"."""
        listed = self.config.find("moe_layers_enum")
        if not isinstance(listed, str) or not listed.strip():
            return 0
        numbers = [part.strip() for part in listed.strip().split(",")]
        if not all(part.isdecimal() and len(part) < 6 for part in numbers):
            raise UnsupportedModelError(
                f"config.json gives moe_layers_enum = {listed!r:.60}; expected numbers of blocks"
            )
        return min(map(int, numbers))


def _factors(full: Mapping[str, Any], head: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Frequency factors float32 (head / 2,): Llama 3's for the rotated half of a head, one for the rest.

    Source: conversion/step3.py (generate_extra_tensors), which works in double precision beyond the frequencies.
    """
    base = finite(full.get("rope_theta", 10000.0), "rope_theta")
    factor = finite(full.get("factor", 8.0), "rope factor")
    low = finite(full.get("low_freq_factor", 1.0), "low_freq_factor")
    high = finite(full.get("high_freq_factor", 4.0), "high_freq_factor")
    original = int(
        finite(full.get("original_max_position_embeddings", 8192), "original_max_position_embeddings")
    )
    if not (base > 0 and factor > 0 and 0 < low < high and original > 0):
        raise UnsupportedModelError("config.json gives llama3 rope factors that make no sense")
    rotated = int(head * _SHARES[_FULL])
    exponents = np.arange(0, rotated, 2, dtype=np.float32) / np.float32(rotated)
    frequencies = np.float32(1) / np.power(float(base), exponents.astype(np.float64)).astype(np.float32)
    factors = np.ones(head // 2, dtype=np.float32)
    for i, frequency in enumerate(frequencies.tolist()):
        wavelength = 2 * math.pi / frequency
        if wavelength > original / low:
            factors[i] = factor
        elif wavelength >= original / high:
            smooth = (original / wavelength - low) / (high - low)
            factors[i] = 1.0 / ((1.0 - smooth) / factor + smooth)
    return factors
