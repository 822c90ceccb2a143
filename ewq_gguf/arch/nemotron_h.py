"""Nvidia Nemotron-H, Nemotron Nano 2 and Nemotron 3: Mamba 2, attention, and feed-forward parts as blocks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.config import Config
from ewq_gguf.arch.mamba import state_space
from ewq_gguf.arch.views import permute_heads
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.errors import UnsupportedModelError
from ewq_gguf.vocab import Vocabulary, load_bpe

_CONTEXT = 2**20
_VOCAB_MULTIPLE = 8
_MAMBA, _ATTENTION = ("M", "mamba", "linear_attention"), ("*", "attention", "full_attention")
_EXPERTS, _MLP = ("E", "moe"), ("-", "mlp")
# The draft head's tensors that are not named as a block's are, and their names in GGUF.
_DRAFT = {
    "mtp.layers.0.enorm.weight": "nextn.enorm.weight",
    "mtp.layers.0.hnorm.weight": "nextn.hnorm.weight",
    "mtp.layers.0.eh_proj.weight": "nextn.eh_proj.weight",
    "mtp.layers.1.norm.weight": "post_attention_norm.weight",
    "mtp.layers.1.final_layernorm.weight": "nextn.shared_head_norm.weight",
}
_MIXER_EXPERTS = re.compile(r"^backbone\.layers\.(\d+)\.mixer\.experts\.(\w+)\.weight$")


def load_padded(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """Byte-level BPE, padded to a multiple of 8 tokens.

    Raises:
        TokenizerError: the files are missing or damaged.
    """
    size = Config(config).required("vocab_size")
    return load_bpe(folder, {**config, "vocab_size": -(size // -_VOCAB_MULTIPLE) * _VOCAB_MULTIPLE})


class NemotronH(Family):
    """NemotronHForCausalLM (conversion/nemotron.py): one thing per block, as the pattern in config.json says."""

    architectures: ClassVar[tuple[str, ...]] = ("NemotronHForCausalLM",)
    arch: ClassVar[str] = "nemotron_h"
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(load_padded)

    def __new__(cls, config: Mapping[str, Any], sources: Mapping[str, Tensor]) -> NemotronH:
        """Models with experts are another architecture to llama.cpp."""
        has_experts = any(kind in _EXPERTS for kind in _pattern(Config(config)))
        return super().__new__(NemotronHMoe if has_experts else NemotronH)

    def prepare_config(self, config: Config) -> Config:
        self.pattern = _pattern(config)
        head = config.required("head_dim", "attention_head_dim")
        # Written per block instead, below.
        return config.updated(
            head_dim=head,
            max_position_embeddings=_CONTEXT,
            ffn_width=config.integer(self.width_key),
            kv_heads=config.required("num_key_value_heads"),
            **dict.fromkeys(("num_key_value_heads", "intermediate_size")),
        )

    width_key: ClassVar[str] = "intermediate_size"
    feed_forward: ClassVar[tuple[str, ...]] = _MLP

    def count_blocks(self) -> int:
        return len(self.pattern)

    @property
    def groups(self) -> int:
        return self.config.required("n_groups", "mamba_n_groups")

    @property
    def inner(self) -> int:
        return self.config.required("mamba_num_heads") * self.config.required("mamba_head_dim")

    def _per_block(self, kinds: tuple[str, ...], value: int) -> list[int]:
        """`value` for blocks of these kinds, 0 for others; the draft block is of every kind."""
        numbers = [value if kind in kinds else 0 for kind in self.pattern]
        return numbers + [value] * (self.n_blocks - len(numbers))

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        config = self.config
        writer.add_vocab_size(config.required("vocab_size"))
        writer.add_rope_dimension_count(
            config.required("hidden_size") // config.required("num_attention_heads")
        )
        writer.add_ssm_conv_kernel(config.required("conv_kernel", "d_conv"))
        writer.add_ssm_state_size(config.required("state_size", "d_state", "ssm_state_size"))
        writer.add_ssm_group_count(self.groups)
        writer.add_ssm_inner_size(self.inner)
        writer.add_ssm_time_step_rank(config.required("mamba_num_heads"))
        writer.add_head_count_kv(self._per_block(_ATTENTION, config["kv_heads"]))
        writer.add_rope_scaling_finetuned(False)
        writer.add_feed_forward_length(self._per_block(self.feed_forward, config.required("ffn_width")))

    def rename(self, name: str) -> str | None:
        if name.startswith("model.layers.") and ".mixer." in name:
            name = name.replace("model.layers.", "backbone.layers.", 1)
        if name.endswith(".dt_bias"):
            name = name.removesuffix(".dt_bias") + ".dt_proj.bias"
        return super().rename(name)

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        kind = self.pattern[block] if block is not None and block < len(self.pattern) else ""
        if kind in _MAMBA and ".mixer." in name:
            tensor = state_space(name, tensor, self.groups, self.inner)
        elif name.endswith(("q_proj.weight", "q_proj.bias")):
            tensor = permute_heads(tensor, self.config.required("num_attention_heads"))
        elif name.endswith(("k_proj.weight", "k_proj.bias")):
            tensor = permute_heads(tensor, self.config["kv_heads"])
        return [(name, tensor)]


class NemotronHMoe(NemotronH):
    """Nemotron 3: experts in place of plain feed-forward blocks, and perhaps a draft head behind the last block."""

    arch: ClassVar[str] = "nemotron_h_moe"
    width_key: ClassVar[str] = "moe_intermediate_size"
    feed_forward: ClassVar[tuple[str, ...]] = _EXPERTS

    def count_blocks(self) -> int:
        drafts = self.config.integer("num_nextn_predict_layers") or 0
        if drafts > 1:
            raise UnsupportedModelError(f"config.json gives {drafts} draft heads; llama.cpp runs one")
        return super().count_blocks() + drafts

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        config = self.config
        writer.add_expert_feed_forward_length(config.required("moe_intermediate_size"))
        writer.add_expert_shared_feed_forward_length(
            config.required("moe_shared_expert_intermediate_size", minimum=0)
        )
        writer.add_expert_shared_count(config.required("n_shared_experts", minimum=0))
        writer.add_expert_weights_norm(config.find("norm_topk_prob") is True)
        writer.add_expert_weights_scale(config.required_number("routed_scaling_factor"))
        if (latent := config.integer("moe_latent_size")) is not None:
            writer.add_moe_latent_size(latent)
        if self.n_blocks > len(self.pattern):
            writer.add_nextn_predict_layers(1)

    def rename(self, name: str) -> str | None:
        drafts = self.n_blocks > len(self.pattern)
        if drafts and name not in _DRAFT and name.startswith(("mtp.layers.0.", "mtp.layers.1.")):
            name = f"backbone.layers.{self.n_blocks - 1}.{name.split('.', 3)[3]}"
        return super().rename(name)

    def name_map(self) -> Callable[[str], str | None]:
        known = super().name_map()
        # The gguf package's table for this architecture has no draft head.
        drafts = {name: f"blk.{self.n_blocks - 1}.{new}" for name, new in _DRAFT.items()}
        return lambda name: drafts.get(name) or known(name)

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        match = _MIXER_EXPERTS.match(name)
        if match is not None:
            return [(f"model.layers.{match[1]}.mlp.experts.{match[2]}.weight", tensor)]
        return super().transform(name, tensor, block)


def _pattern(config: Config) -> list[str]:
    """What each block is, out of "M-M*-" or of a list of names.

    Raises:
        UnsupportedModelError: config.json says neither.
    """
    pattern = config.find("hybrid_override_pattern", "layers_block_type")
    if not isinstance(pattern, (str, list)) or not all(
        kind in (*_MAMBA, *_ATTENTION, *_EXPERTS, *_MLP) for kind in pattern
    ):
        raise UnsupportedModelError(
            f"config.json gives hybrid_override_pattern = {pattern!r:.60}; expected M, *, - or E for each block"
        )
    return list(pattern)
