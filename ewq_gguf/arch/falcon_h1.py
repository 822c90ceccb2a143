"""Falcon-H1: attention and Mamba 2 side by side in every block."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import gguf
import numpy as np

from ewq_gguf.arch.byte_level import ByteLevelFamily
from ewq_gguf.arch.config import Config, finite
from ewq_gguf.arch.mamba import state_space
from ewq_gguf.arch.views import Computed
from ewq_gguf.checkpoint.tensor import DType, F32Array, Tensor
from ewq_gguf.errors import UnsupportedModelError

# Part of a tensor's name -> the multipliers that go into its weights, by config key and place in the key's list.
_MULTIPLIERS: Mapping[str, tuple[tuple[str, int | None], ...]] = {
    "down_proj": (("mlp_multipliers", 1),),
    "gate_proj": (("mlp_multipliers", 0),),
    "k_proj": (("key_multiplier", None), ("attention_in_multiplier", None)),
    "q_proj": (("attention_in_multiplier", None),),
    "v_proj": (("attention_in_multiplier", None),),
    "o_proj": (("attention_out_multiplier", None),),
    "out_proj": (("ssm_out_multiplier", None),),
    "in_proj": (("ssm_in_multiplier", None),),
    "lm_head": (("lm_head_multiplier", None),),
    "embed_tokens": (("embedding_multiplier", None),),
}


class FalconH1(ByteLevelFamily):
    """FalconH1ForCausalLM (conversion/falcon_h1.py); its muP multipliers become part of the weights."""

    architectures: ClassVar[tuple[str, ...]] = ("FalconH1ForCausalLM",)
    arch: ClassVar[str] = "falcon-h1"

    def prepare_config(self, config: Config) -> Config:
        if config.find("hidden_act") not in (None, "silu"):
            raise UnsupportedModelError("llama.cpp runs Falcon-H1 with the silu activation only")
        return config

    @property
    def groups(self) -> int:
        return self.config.required("n_groups", "mamba_n_groups")

    @property
    def inner(self) -> int:
        return self.config.required("mamba_d_ssm")

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        config = self.config
        writer.add_context_length(config.integer("max_position_embeddings") or 0)
        writer.add_embedding_length(config.required("hidden_size", "d_model", "dim"))
        writer.add_feed_forward_length(config.required("intermediate_size"))
        writer.add_head_count(config.required("num_attention_heads"))
        writer.add_block_count(self.n_blocks)
        writer.add_ssm_conv_kernel(config.integer("conv_kernel", "d_conv", "mamba_d_conv") or 4)
        writer.add_ssm_inner_size(self.inner)
        writer.add_ssm_state_size(config.integer("state_size", "d_state", "mamba_d_state") or 128)
        writer.add_ssm_time_step_rank(self.inner // config.required("mamba_d_head", "head_dim"))
        writer.add_ssm_group_count(self.groups)
        writer.add_layer_norm_rms_eps(config.number("layer_norm_epsilon", "rms_norm_eps") or 1e-5)
        writer.add_vocab_size(config.required("vocab_size"))
        writer.add_head_count_kv(config.required("num_key_value_heads"))
        writer.add_key_length(config.required("head_dim"))
        writer.add_value_length(config.required("head_dim"))
        writer.add_rope_freq_base(finite(self.rope.get("rope_theta"), "rope_theta"))

    def rename(self, name: str) -> str | None:
        if name.endswith(".dt_bias"):
            name = name.removesuffix(".dt_bias") + ".dt_proj.bias"
        return super().rename(name)

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if ".mamba." in name:
            tensor = state_space(name, tensor, self.groups, self.inner)
        key = next((part for part in _MULTIPLIERS if part in name), None)
        if key is None:
            return [(name, tensor)]
        for entry, place in _MULTIPLIERS[key]:
            tensor = scaled(tensor, self._number(entry, place))
        if key == "in_proj":
            tensor = scaled(tensor, self._mixer_rows())
        return [(name, tensor)]

    def _number(self, key: str, place: int | None) -> float:
        if place is None:
            return self.config.required_number(key)
        values = self.config.find(key)
        if not isinstance(values, list) or len(values) <= place:
            raise UnsupportedModelError(
                f"config.json gives {key} = {values!r:.60}; expected a list of numbers"
            )
        return finite(values[place], key)

    def _mixer_rows(self) -> F32Array:
        """The multiplier of each row of in_proj: gate, input, two projections of the state, time step."""
        config = self.config
        state = config.required("mamba_n_groups") * config.required("mamba_d_state")
        sizes = [self.inner, self.inner, state, state, config.required("mamba_n_heads")]
        return np.repeat(np.array([self._number("ssm_multipliers", i) for i in range(5)], np.float32), sizes)


def scaled(tensor: Tensor, factor: float | F32Array) -> Tensor:
    """The tensor times a number, or times one per row; rounded to F16 for an F16 source, as torch does."""
    factors = np.asarray(factor, dtype=np.float32)
    if factors.ndim and len(factors) != tensor.n_rows:
        raise UnsupportedModelError(f"{len(factors)} multipliers do not fit {tensor.n_rows} rows")
    half = tensor.dtype is DType.F16

    def multiply(rows: F32Array, start: int) -> F32Array:
        own = factors[start : start + len(rows), None] if factors.ndim else factors
        product = rows * own
        return product.astype(np.float16).astype(np.float32) if half else product

    return Computed(tensor, multiply)
