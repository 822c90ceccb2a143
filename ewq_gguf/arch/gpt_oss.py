"""gpt-oss: experts in MXFP4, kept as they are, or in 16 bits as fine-tunes store them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.config import Config
from ewq_gguf.arch.experts import split_gate_up
from ewq_gguf.arch.mxfp4 import Mxfp4
from ewq_gguf.arch.views import Reshape, Transpose, take
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.errors import UnsupportedModelError
from ewq_gguf.vocab import Vocabulary, load_bpe

_DEFAULT_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 4096,
    "rope_theta": 150000.0,
}


class GptOss(Family):
    """GptOssForCausalLM (conversion/gpt_oss.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("GptOssForCausalLM",)
    arch: ClassVar[str] = "gpt-oss"
    defaults: ClassVar[Mapping[str, Any]] = {
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "num_experts_per_tok": 4,
        "num_key_value_heads": 8,
        "num_local_experts": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
        "sliding_window": 128,
    }
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(load_bpe)

    def prepare_config(self, config: Config) -> Config:
        config = super().prepare_config(config)
        if config.find("rope_parameters", "rope_scaling") is None:
            theta = config.required_number("rope_theta")
            return config.updated(rope_parameters={**_DEFAULT_ROPE, "rope_theta": theta})
        return config

    def rename(self, name: str) -> str | None:
        return super().rename(f"{name}.weight" if "sinks" in name else name)

    def prepare_sources(self, sources: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = super().prepare_sources(sources)
        for name in [n for n in found if n.endswith("_proj_blocks")]:
            base = name.removesuffix("_blocks")
            if f"{base}_scales" not in found:
                raise UnsupportedModelError(f"{name} has no scales beside it; download the checkpoint again")
            blocks, scales = found.pop(name), found.pop(f"{base}_scales")
            if not base.endswith("gate_up_proj"):
                found[f"{base}.weight"] = Mxfp4(base, blocks, scales)
                continue
            for new, index in (("gate_proj", slice(0, None, 2)), ("up_proj", slice(1, None, 2))):
                part = Mxfp4(base, _take_groups(blocks, index), take(scales, index))
                found[f"{base.replace('gate_up_proj', new)}.weight"] = part
        return found

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if name.endswith("_proj_bias"):
            new = name.replace("_proj_bias", "_proj.bias")
            if "gate_up_proj" not in new:
                return [(new, tensor)]
            as_rows = Reshape(tensor, (*tensor.shape, 1))
            return [
                (part, Reshape(half, half.shape[:-1]))
                for part, half in split_gate_up(new, as_rows, interleaved=True)
            ]
        if name.endswith("experts.gate_up_proj"):
            return split_gate_up(f"{name}.weight", Transpose(tensor), interleaved=True)
        if name.endswith("experts.down_proj"):
            return [(f"{name}.weight", Transpose(tensor))]
        return [(name, tensor)]

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        writer.add_sliding_window(self.config.required("sliding_window"))
        writer.add_expert_feed_forward_length(self.config.required("intermediate_size"))


def _take_groups(blocks: Tensor, index: slice) -> Tensor:
    """`blocks[:, index]` of (experts, rows, groups, 16)."""
    if len(blocks.shape) != 4:
        raise UnsupportedModelError(
            f"expert blocks have the shape {list(blocks.shape)}; expected four dimensions"
        )
    experts, rows, groups, size = blocks.shape
    halves = take(Reshape(blocks, (experts, rows, groups * size)), index)
    return Reshape(halves, (experts, halves.shape[1], groups, size))
