"""Qwen3-Next and Qwen3.5: linear attention in most layers, full attention in every fourth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, ClassVar

import gguf
import numpy as np
import numpy.typing as npt

from ewq_gguf.arch.config import Config, finite
from ewq_gguf.arch.mamba import decay
from ewq_gguf.arch.qwen import Qwen2Moe
from ewq_gguf.arch.views import Reshape, TakeColumns, plus_one, take
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.errors import UnsupportedModelError

_INTERVAL = 4
_SECTIONS = [11, 11, 10, 0]
_SIZES = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_attention_heads": 16,
    "num_hidden_layers": 32,
    "vocab_size": 248320,
}
# Tensors of the layer that predicts several tokens ahead, outside its transformer block.
_AHEAD = {
    "fc": "eh_proj",
    "pre_fc_norm_embedding": "enorm",
    "pre_fc_norm_hidden": "hnorm",
    "norm": "shared_head.norm",
}


class Qwen3Next(Qwen2Moe):
    """Qwen3NextForCausalLM (conversion/qwen.py); layers that look ahead are kept behind the others."""

    architectures: ClassVar[tuple[str, ...]] = ("Qwen3NextForCausalLM",)
    arch: ClassVar[str] = "qwen3next"
    defaults: ClassVar[Mapping[str, Any]] = {
        "head_dim": 256,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_value_head_dim": 128,
        "max_position_embeddings": 32768,
        "moe_intermediate_size": 512,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "num_key_value_heads": 2,
        "partial_rotary_factor": 0.25,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "shared_expert_intermediate_size": 512,
    }

    more_names: ClassVar[Mapping[str, str]] = {
        "model.layers.{bid}.eh_proj": "blk.{bid}.nextn.eh_proj",
        "model.layers.{bid}.enorm": "blk.{bid}.nextn.enorm",
        "model.layers.{bid}.hnorm": "blk.{bid}.nextn.hnorm",
        "model.layers.{bid}.shared_head.norm": "blk.{bid}.nextn.shared_head_norm",
    }

    def __init__(self, config: Mapping[str, Any], sources: Mapping[str, Tensor]) -> None:
        ahead = [name.removeprefix("model.").split(".") for name in sources]
        layers = [int(parts[2]) for parts in ahead if parts[:2] == ["mtp", "layers"] and parts[2].isdecimal()]
        self._n_ahead = 1 + max(layers) if layers else 0
        super().__init__(config, sources)

    def prepare_config(self, config: Config) -> Config:
        config = super().prepare_config(config)
        n_layers = config.required("num_hidden_layers")
        kinds = config.find("layer_types")
        if kinds is None:
            interval = config.integer("full_attention_interval", minimum=1) or _INTERVAL
            kinds = [
                "full_attention" if (i + 1) % interval == 0 else "linear_attention" for i in range(n_layers)
            ]
            # The reference library uses the interval up here, and the converter then writes its default.
            config = config.updated(layer_types=kinds, full_attention_interval=None)
        if not isinstance(kinds, list) or len(kinds) != n_layers:
            raise UnsupportedModelError(
                f"config.json gives layer_types {kinds!r:.80}; expected {n_layers} names"
            )
        return config

    def count_blocks(self) -> int:
        return self.config.required("num_hidden_layers") + self._n_ahead

    def rename(self, name: str) -> str | None:
        new = super().rename(name)
        if new is None or not new.removeprefix("model.").startswith("mtp."):
            return new
        first = self.config.required("num_hidden_layers")
        _, *parts = new.removeprefix("model.").split(".")
        if parts[0] == "layers" and len(parts) > 2 and parts[1].isdecimal():
            return f"model.layers.{first + int(parts[1])}.{'.'.join(parts[2:])}"
        if len(parts) == 2 and parts[0] in _AHEAD:
            return f"model.layers.{first}.{_AHEAD[parts[0]]}.{parts[1]}"
        return new

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        config = self.config
        values = config.required("linear_num_value_heads")
        writer.add_ssm_conv_kernel(config.required("linear_conv_kernel_dim"))
        writer.add_ssm_state_size(config.required("linear_key_head_dim"))
        writer.add_ssm_group_count(config.required("linear_num_key_heads"))
        writer.add_ssm_time_step_rank(values)
        writer.add_ssm_inner_size(config.required("linear_value_head_dim") * values)
        recurrent = [kind == "linear_attention" for kind in config["layer_types"]]
        writer.add_array(f"{self.arch}.attention.recurrent_layers", recurrent + [False] * self._n_ahead)
        writer.add_full_attention_interval(config.integer("full_attention_interval") or _INTERVAL)
        share = finite(self.rope.get("partial_rotary_factor", 0.25), "partial_rotary_factor")
        writer.add_rope_dimension_count(int(config.required("head_dim") * share))
        if self._n_ahead:
            writer.add_nextn_predict_layers(self._n_ahead)

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if name.endswith(".A_log"):
            return [(name, decay(tensor))]
        if name.endswith(".dt_bias"):
            return [(name.replace(".dt_bias", ".dt_proj.bias"), tensor)]
        if "conv1d" in name:
            return [(name, Reshape(tensor, (tensor.shape[0], tensor.shape[-1])))]
        if name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
            return [(name, plus_one(tensor))]
        if name.endswith("in_proj_qkvz.weight"):
            return self._split_qkvz(name, tensor)
        return super().transform(name, tensor, block)

    def _split_qkvz(self, name: str, tensor: Tensor) -> Iterable[tuple[str, Tensor]]:
        """Rows lie by key head: its queries, keys, values and gates; all queries come first in the end."""
        config = self.config
        groups, key = config.required("linear_num_key_heads"), config.required("linear_key_head_dim")
        value = config.required("linear_num_value_heads") // groups * config.required("linear_value_head_dim")
        if tensor.shape[0] != groups * 2 * (key + value):
            raise UnsupportedModelError(
                f"{name} has {tensor.shape[0]} rows; config.json speaks of {groups} x 2 x ({key} + {value})"
            )
        rows = np.arange(tensor.shape[0]).reshape(groups, -1)
        bounds = [0, key, 2 * key, 2 * key + value, 2 * (key + value)]
        parts = [rows[:, a:b].reshape(-1) for a, b in pairwise(bounds)]
        return [
            (name.replace("in_proj_qkvz", "in_proj_qkv"), take(tensor, np.concatenate(parts[:3]))),
            (name.replace("in_proj_qkvz", "in_proj_z"), take(tensor, parts[3])),
        ]


class Qwen35(Qwen3Next):
    """Qwen3_5ForConditionalGeneration's text part: value heads dealt out to key heads in turns."""

    architectures: ClassVar[tuple[str, ...]] = ("Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM")
    arch: ClassVar[str] = "qwen35"
    defaults: ClassVar[Mapping[str, Any]] = {
        key: value
        for key, value in {**Qwen3Next.defaults, **_SIZES, "num_key_value_heads": 4}.items()
        if "expert" not in key and key != "moe_intermediate_size"
    }

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        if "mrope_section" not in self.rope:
            writer.add_rope_dimension_sections(_SECTIONS)

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if "linear_attn." in name:
            tensor = self._in_turns(name, tensor)
        return super().transform(name, tensor, block)

    def _in_turns(self, name: str, tensor: Tensor) -> Tensor:
        """Value heads, stored by key head, in the order 1st of every key head, 2nd of every key head, ..."""
        config = self.config
        keys, values = config.required("linear_num_key_heads"), config.required("linear_num_value_heads")
        width = config.required("linear_value_head_dim")
        if keys == values:
            return tensor
        if values % keys:
            raise UnsupportedModelError(
                f"config.json gives {values} value heads, no multiple of {keys} key heads"
            )
        before = 2 * keys * config.required("linear_key_head_dim")
        if ".in_proj_qkv." in name or ".conv1d" in name:
            order = _turns(keys, values // keys, width)
            return take(_as_matrix(tensor), np.concatenate([np.arange(before), before + order]))
        if ".in_proj_z." in name:
            return take(tensor, _turns(keys, values // keys, width))
        if name.endswith((".in_proj_a.weight", ".in_proj_b.weight", ".A_log", ".dt_bias")):
            return take(tensor, _turns(keys, values // keys, 1))
        if ".out_proj." in name:
            return TakeColumns(tensor, _turns(keys, values // keys, width))
        return tensor


class Qwen35Moe(Qwen35):
    """Qwen3_5MoeForConditionalGeneration's text part."""

    architectures: ClassVar[tuple[str, ...]] = ("Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeForCausalLM")
    arch: ClassVar[str] = "qwen35moe"
    defaults: ClassVar[Mapping[str, Any]] = {
        **Qwen3Next.defaults,
        "hidden_size": 2048,
        "num_attention_heads": 16,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 40,
        "vocab_size": 248320,
    }


def _turns(groups: int, per_group: int, width: int) -> npt.NDArray[np.intp]:
    return np.arange(groups * per_group * width).reshape(groups, per_group, width).swapaxes(0, 1).reshape(-1)


def _as_matrix(tensor: Tensor) -> Tensor:
    return Reshape(tensor, (tensor.shape[0], tensor.n_elements // max(1, tensor.shape[0])))
