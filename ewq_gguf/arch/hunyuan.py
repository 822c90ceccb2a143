"""Hunyuan, dense and with experts."""

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
from ewq_gguf.vocab import Vocabulary, load_bpe, load_hunyuan_tiktoken

_CONTEXT = 256 * 1024
_CONTEXTS = (32 * 1024, _CONTEXT)
_MOE_HEAD = 128
# The 7B alone begins its texts with another token than its config.json says.
_WIDTH_7B = 4096


def load_hunyuan(folder: Path, config: Mapping[str, Any], *, pre: str | None = None) -> Vocabulary:
    """tokenizer.json or hy.tiktoken; published configs name the wrong end of text, the right one stands elsewhere.

    Raises:
        TokenizerError: the files are missing or damaged.
    """
    if (folder / "tokenizer.json").is_file():
        vocabulary = load_bpe(folder, config, pre=pre)
    else:
        begins = "<|startoftext|>" if config.get("hidden_size") == _WIDTH_7B else None
        vocabulary = load_hunyuan_tiktoken(folder, config, pre=pre, bos=begins)
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


def load_hunyuan_moe(folder: Path, config: Mapping[str, Any], *, pre: str | None = None) -> Vocabulary:
    """tokenizer.json where somebody has made one, else the hy.tiktoken that is published.

    Raises:
        TokenizerError: the files are missing or damaged.
    """
    if (folder / "tokenizer.json").is_file():
        return load_bpe(folder, config, pre=pre)
    return load_hunyuan_tiktoken(folder, config, pre=pre)


class _Hunyuan(Family):
    # What the published models with dynamic rope scaling take for granted.
    default_alpha: ClassVar[int] = 50
    wanted_alpha: ClassVar[int | None] = None

    def rename(self, name: str) -> str | None:
        if name == "lm_head.weight" and self.config.find("tie_word_embeddings"):
            return None
        return super().rename(name)

    @property
    def head_dim(self) -> int:
        return self.config.required("head_dim", minimum=3)

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        if self.rope.get("rope_type") != "dynamic":
            return
        base = finite(self.rope.get("rope_theta", 10000.0), "rope_theta")
        alpha = finite(self.rope.get("alpha", self.default_alpha), "rope alpha")
        known = alpha > 0 if self.wanted_alpha is None else alpha == self.wanted_alpha
        head = self.head_dim
        context = self.config.required("max_position_embeddings")
        if base != 10000.0 or not known or context not in _CONTEXTS:
            raise UnsupportedModelError(
                "config.json asks for dynamic rope with other values than the published Hunyuan models have"
            )
        writer.add_rope_freq_base(base * (alpha ** (head / (head - 2))))
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        writer.add_rope_scaling_factor(1)
        writer.add_rope_scaling_orig_ctx_len(_CONTEXT)
        writer.add_context_length(_CONTEXT)


class HunyuanDense(_Hunyuan):
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


class HunyuanMoe(_Hunyuan):
    """HunYuanMoEV1ForCausalLM (conversion/hunyuan.py): the same experts in every block, beside a shared one."""

    architectures: ClassVar[tuple[str, ...]] = ("HunYuanMoEV1ForCausalLM",)
    arch: ClassVar[str] = "hunyuan-moe"
    default_alpha: ClassVar[int] = 1000
    wanted_alpha: ClassVar[int | None] = 1000
    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 2048,
        "num_key_value_heads": None,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    }
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(
        load_hunyuan_moe
    )

    @property
    def head_dim(self) -> int:
        width = self.config.required("hidden_size") // self.config.required("num_attention_heads")
        if width != _MOE_HEAD:
            raise UnsupportedModelError(
                f"config.json asks for dynamic rope on heads of {width}; the published Hunyuan models have {_MOE_HEAD}"
            )
        return width

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        writer.add_expert_shared_feed_forward_length(self.config.required("intermediate_size"))
        writer.add_expert_feed_forward_length(self._alike("moe_intermediate_size"))
        writer.add_expert_used_count(self._alike("moe_topk"))
        writer.add_expert_shared_count(self._alike("num_shared_expert"))

    def _alike(self, key: str) -> int:
        """A number that config.json gives once, or once for each block."""
        values = self.config.find(key)
        if not isinstance(values, list):
            return self.config.required(key)
        if not values or any(value != values[0] for value in values):
            raise UnsupportedModelError(f"config.json gives blocks unlike {key}; llama.cpp wants one for all")
        return Config({key: values[0]}).required(key)
