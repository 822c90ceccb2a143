"""Xiaomi's MiMo V2: sliding windows with attention sinks, routed experts, three layers that look ahead."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

import gguf

from ewq_gguf.arch.byte_level import ByteLevelFamily
from ewq_gguf.arch.config import finite
from ewq_gguf.arch.lookahead import LOOKAHEAD_NAMES
from ewq_gguf.arch.mxfp4 import Mxfp4
from ewq_gguf.arch.quantized import Scaled
from ewq_gguf.arch.rope import full_attention
from ewq_gguf.arch.views import ConcatRows, Reshape, SliceRows, stack
from ewq_gguf.checkpoint.tensor import DType, Tensor
from ewq_gguf.errors import UnsupportedModelError

_AHEAD = 3
_AHEAD_LAYER = re.compile(r"^model\.mtp\.layers\.(\d{1,4})\.")
_QKV = re.compile(r"^model\.layers\.(\d{1,4})\.self_attn\.qkv_proj\.weight$")
_EXPERT = re.compile(r"^(model\.layers\.\d{1,4}\.mlp\.experts)\.(\d{1,6})\.((?:gate|up|down)_proj)\.weight$")
_BLOCK = 128
# Published weights were sliced for so many devices; the larger number is tried first, as in the converter.
_SLICES = (8, 4)


class MiMo2(ByteLevelFamily):
    """MiMoV2FlashForCausalLM and MiMoV2ForCausalLM (conversion/mimo.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("MiMoV2FlashForCausalLM", "MiMoV2ForCausalLM")
    arch: ClassVar[str] = "mimo2"
    more_names: ClassVar[Mapping[str, str]] = {
        **LOOKAHEAD_NAMES,
        "model.layers.{bid}.final_layernorm": "blk.{bid}.layer_output_norm",
        "model.layers.{bid}.self_attn.qkv_proj": "blk.{bid}.attn_qkv",
    }

    def count_blocks(self) -> int:
        # config.json does not say how many layers look ahead; every published model has three.
        return super().count_blocks() + _AHEAD

    @property
    def n_main(self) -> int:
        return self.n_blocks - _AHEAD

    def rename(self, name: str) -> str | None:
        if match := _AHEAD_LAYER.match(name):
            name = f"model.layers.{int(match[1]) + self.n_main}.{name[match.end() :]}"
        if "attention_sink" in name and not name.endswith(".weight"):
            name += ".weight"
        return super().rename(name)

    def windowed(self) -> list[int]:
        """For each block, 1 where it attends within the window."""
        pattern = self.config.find("hybrid_layer_pattern")
        if (
            not isinstance(pattern, list)
            or len(pattern) != self.n_main
            or any(n not in (0, 1) for n in pattern)
        ):
            raise UnsupportedModelError(
                f"config.json gives hybrid_layer_pattern without a 0 or 1 for each of {self.n_main} blocks"
            )
        return [*map(int, pattern), *[1] * _AHEAD]

    def heads_kv(self) -> list[int]:
        """For each block, its key-value heads."""
        full, within = (
            self.config.required("num_key_value_heads"),
            self.config.required("swa_num_key_value_heads"),
        )
        return [within if window else full for window in self.windowed()]

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        config = self.config
        for key in ("head_dim", "num_attention_heads", "v_head_dim"):
            if config.required(f"swa_{key}") != config.required(key):
                raise UnsupportedModelError(
                    f"config.json gives swa_{key} other than {key}; llama.cpp wants one"
                )
        if config.find("topk_method") != "noaux_tc":
            raise UnsupportedModelError(
                f"config.json gives topk_method = {config.find('topk_method')!r:.60}; llama.cpp knows noaux_tc only"
            )
        writer.add_head_count_kv(self.heads_kv())
        writer.add_sliding_window(config.required("sliding_window"))
        writer.add_sliding_window_pattern(self.windowed())
        writer.add_value_length(config.required("v_head_dim"))
        writer.add_expert_count(config.required("n_routed_experts"))
        writer.add_expert_feed_forward_length(config.required("moe_intermediate_size"))
        share = finite(full_attention(self.rope).get("partial_rotary_factor"), "partial_rotary_factor")
        writer.add_rope_dimension_count(int(config.required("head_dim") * share))
        eps = config.number("layernorm_epsilon")
        writer.add_layer_norm_rms_eps(1e-5 if eps is None else eps)
        if (scale := config.number("attention_value_scale")) is not None:
            writer.add_float32(f"{self.arch}.attention.value_scale", scale)
        writer.add_nextn_predict_layers(_AHEAD)

    def prepare_sources(self, sources: Mapping[str, Tensor]) -> dict[str, Tensor]:
        quantization = self.config.section("quantization_config")
        found = dict(sources)
        if quantization.get("store_dtype") == "mxfp4":
            found = _packed_experts(found)
        if quantization.get("quant_method") == "fp8":
            for name in [name for name in found if _QKV.match(name)]:
                if (scale := found.pop(f"{name}_scale_inv", None)) is not None:
                    found[name] = self._joined(name, found[name], scale)
        return super().prepare_sources(found)

    def _joined(self, name: str, weight: Tensor, scale: Tensor) -> Tensor:
        """One projection out of slices that hold queries, keys and values each, with blocks of scales of their own.

        `weight`: FP8 (rows, width); `scale`: float32 (slices * blocks of 128 rows of a slice, blocks of columns).
        """
        match = _QKV.match(name)
        heads_kv = self.heads_kv()[int(match[1])] if match else 0
        head, value = self.config.required("head_dim"), self.config.required("v_head_dim")
        sizes = self.config.required("num_attention_heads") * head, heads_kv * head, heads_kv * value
        rows = sum(sizes)
        n = next(
            (n for n in _SLICES if rows % n == 0 and scale.shape[0] == n * -(-(rows // n) // _BLOCK)), None
        )
        if n is None or weight.shape[0] != rows or any(size % n for size in sizes):
            raise UnsupportedModelError(
                f"{name} has the shape {list(weight.shape)} and scales of {list(scale.shape)}; config.json speaks of "
                f"{rows} rows, sliced for {' or '.join(map(str, _SLICES))} devices"
            )
        per, blocks = rows // n, scale.shape[0] // n
        slices = [
            Scaled(
                SliceRows(weight, i * per, (i + 1) * per),
                SliceRows(scale, i * blocks, (i + 1) * blocks),
                (_BLOCK, _BLOCK),
            )
            for i in range(n)
        ]
        parts, start = [], 0
        for size in sizes:
            parts += [SliceRows(piece, start, start + size // n) for piece in slices]
            start += size // n
        return ConcatRows(parts)


def _packed_experts(sources: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sources with each layer's experts in MXFP4 as one tensor per projection.

    Codes are uint8 (rows, columns / 2), scales uint8 (rows, columns / 32).
    """
    found = dict(sources)
    groups: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
    for name, codes in sources.items():
        match = _EXPERT.match(name)
        if match is None or codes.dtype is not DType.U8:
            continue
        scales = found.pop(f"{name}_scale", None)
        if scales is None:
            raise UnsupportedModelError(f"{name} has no scale beside it; download the checkpoint again")
        groups.setdefault(f"{match[1]}.{match[3]}.weight", {})[int(match[2])] = (found.pop(name), scales)
    for name, experts in groups.items():
        shapes = {(codes.shape, scales.shape) for codes, scales in experts.values()}
        if sorted(experts) != list(range(len(experts))) or len(shapes) > 1:
            raise UnsupportedModelError(f"the experts of {name} are incomplete or differ in shape")
        in_order = [experts[i] for i in range(len(experts))]
        codes, scales = stack([pair[0] for pair in in_order]), stack([pair[1] for pair in in_order])
        found[name] = Mxfp4(name, Reshape(codes, (*scales.shape, 16)), scales)
    return found
