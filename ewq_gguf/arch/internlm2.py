"""InternLM2 and InternLM2.5."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.fused_qkv import split_groups
from ewq_gguf.arch.views import permute_heads
from ewq_gguf.checkpoint.tensor import Tensor


class InternLM2(Family):
    """InternLM2ForCausalLM (conversion/internlm.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("InternLM2ForCausalLM",)
    arch: ClassVar[str] = "internlm2"
    defaults: ClassVar[Mapping[str, Any]] = {"num_key_value_heads": None}

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if ".attention.wqkv" not in name:
            return [(name, tensor)]
        heads = self.config.required("num_attention_heads")
        groups = self.config.required("num_key_value_heads")
        q, k, v = split_groups(tensor, groups, heads // groups)
        prefix, _, suffix = name.partition("attention.wqkv")
        prefix = f"{prefix}self_attn."
        return [
            (f"{prefix}q_proj{suffix}", permute_heads(q, heads)),
            (f"{prefix}k_proj{suffix}", permute_heads(k, groups)),
            (f"{prefix}v_proj{suffix}", v),
        ]
