"""Cases: checkpoints that are quantized already."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.tiny.case import Case
from tests.tiny.established import LLAMA, QWEN3, QWEN3MOE


def _as(case: Case, name: str, storage: str, quantization: dict[str, Any]) -> Case:
    config = {**case.config, "quantization_config": quantization}
    return replace(case, name=name, config=config, storage=storage, types=("bf16",))


def _compressed(kind: str, weights: dict[str, Any]) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "config_groups": groups,
        "ignore": ["lm_head"],
    }


_FP8 = {"quant_method": "fp8", "activation_scheme": "static", "fmt": "e4m3"}
_INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16}
CASES: tuple[Case, ...] = (
    _as(LLAMA, "llama-fp8-tensor", "fp8-tensor", _FP8),
    _as(QWEN3MOE, "qwen3moe-fp8", "fp8-block", {**_FP8, "weight_block_size": [32, 32]}),
    _as(
        LLAMA,
        "llama-compressed-fp8",
        "fp8-channel",
        _compressed("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    ),
    _as(
        QWEN3,
        "qwen3-compressed-int8",
        "int8-channel",
        _compressed("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}),
    ),
    _as(LLAMA, "llama-compressed-int4", "int4", _compressed("pack-quantized", {**_INT4, "symmetric": True})),
    _as(
        QWEN3,
        "qwen3-compressed-int4-zero",
        "int4-zero",
        _compressed("pack-quantized", {**_INT4, "symmetric": False}),
    ),
)
