"""Hunyuan, dense."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.config import Config, finite
from ewq_gguf.checkpoint.json_file import load_json_object
from ewq_gguf.errors import UnsupportedModelError
from ewq_gguf.vocab import Vocabulary, load_bpe

_CONTEXT = 256 * 1024
_CONTEXTS = (32 * 1024, _CONTEXT)


def load_hunyuan(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """Byte-level BPE; published configs name the wrong end of text, the right one stands under another key.

    Raises:
        TokenizerError: the files are missing or damaged.
    """
    vocabulary = load_bpe(folder, config)
    ids = dict(vocabulary.special_ids)
    pad, end = config.get("pad_token_id"), config.get("eod_token_id")
    if isinstance(pad, int) and pad < 0:
        ids.pop("pad", None)
    if isinstance(end, int) and end >= 0:
        ids["eos"] = end
    file = folder / "generation_config.json"
    ends = load_json_object(file).get("eos_token_id") if file.is_file() else None
    if isinstance(ends, list) and len(ends) >= 2 and isinstance(ends[0], int) and ends[0] >= 0:
        ids["eot"] = ends[0]
    return replace(vocabulary, special_ids=ids)


class HunyuanDense(Family):
    """HunYuanDenseV1ForCausalLM (conversion/hunyuan.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("HunYuanDenseV1ForCausalLM",)
    arch: ClassVar[str] = "hunyuan-dense"
    defaults: ClassVar[Mapping[str, Any]] = {
        "eod_token_id": 3,
        "max_position_embeddings": 2048,
        "num_key_value_heads": None,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    }
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(load_hunyuan)

    def prepare_config(self, config: Config) -> Config:
        return super().prepare_config(config).updated(num_experts=None)

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        if self.rope.get("rope_type") != "dynamic":
            return
        config = self.config
        base = finite(self.rope.get("rope_theta", 10000.0), "rope_theta")
        alpha = finite(self.rope.get("alpha", 50), "rope alpha")
        head = config.required("head_dim", minimum=3)
        if base != 10000.0 or alpha <= 0 or config.required("max_position_embeddings") not in _CONTEXTS:
            raise UnsupportedModelError(
                "config.json asks for dynamic rope with other values than the published Hunyuan models have"
            )
        writer.add_rope_freq_base(base * (alpha ** (head / (head - 2))))
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        writer.add_rope_scaling_factor(1)
        writer.add_rope_scaling_orig_ctx_len(_CONTEXT)
        writer.add_context_length(_CONTEXT)
