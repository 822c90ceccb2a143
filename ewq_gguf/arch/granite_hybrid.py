"""IBM Granite 4 and Bamba: Mamba 2 layers with attention layers between, dense or mixture of experts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.config import Config
from ewq_gguf.arch.granite import GraniteMoe
from ewq_gguf.arch.mamba import state_space
from ewq_gguf.arch.vocabularies import sentencepiece_or_bpe
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.errors import UnsupportedModelError
from ewq_gguf.vocab import Vocabulary

# State spaces have no length limit; a number for programs that ask for one.
_CONTEXT = 2**20
_VOCAB_MULTIPLE = 8
_BAMBA = "BambaForCausalLM"


def load_padded(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """tokenizer.model, else byte-level BPE, padded to a multiple of 8 tokens.

    Raises:
        TokenizerError: the files are missing or damaged.
    """
    size = Config(config).required("vocab_size")
    return sentencepiece_or_bpe(
        folder, {**config, "vocab_size": -(size // -_VOCAB_MULTIPLE) * _VOCAB_MULTIPLE}
    )


def attention_blocks(config: Config, n_blocks: int) -> list[int]:
    """The blocks with attention, out of `layer_types`, of a list of their indices, or of a period and an offset.

    Raises:
        UnsupportedModelError: config.json says none of these.
    """
    kinds = config.find("layer_types")
    if kinds:
        return [i for i, kind in enumerate(kinds) if kind == "attention"]
    indices = config.find("attn_layer_indices")
    if indices:
        if not isinstance(indices, Sequence) or not all(isinstance(i, int) for i in indices):
            raise UnsupportedModelError("config.json gives attn_layer_indices that are no list of numbers")
        return list(indices)
    period = config.required("attn_layer_period")
    offset = config.required("attn_layer_offset", minimum=0)
    return [i for i in range(n_blocks) if i % period == offset]


class GraniteHybrid(GraniteMoe):
    """GraniteMoeHybridForCausalLM and BambaForCausalLM (conversion/granite.py).

    config.json is taken as it is, without the reference library's defaults.
    """

    architectures: ClassVar[tuple[str, ...]] = ("GraniteMoeHybridForCausalLM", _BAMBA)
    arch: ClassVar[str] = "granitehybrid"
    defaults: ClassVar[Mapping[str, Any]] = {}
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(load_padded)

    def __new__(cls, config: Mapping[str, Any], sources: Mapping[str, Tensor]) -> GraniteHybrid:
        """Some models of the family have attention in every block; they are plain Granite to llama.cpp."""
        flat = Config(config)
        n_blocks = flat.required("n_layers", "num_hidden_layers")
        if len(attention_blocks(flat, n_blocks)) < n_blocks:
            return super().__new__(GraniteHybrid)
        has_experts = bool(flat.integer("num_experts_per_tok", "num_experts_per_token"))
        return super().__new__(AttentionMoe if has_experts else AttentionOnly)

    def prepare_config(self, config: Config) -> Config:
        config = super().prepare_config(config)
        n_blocks = config.required("n_layers", "num_hidden_layers")
        self.attention = attention_blocks(config, n_blocks)
        self.rotates = len(self.attention) == n_blocks or _BAMBA in config["architectures"]
        # Written for each block, below.
        config = config.updated(
            kv_heads=config.required("num_key_value_heads", "n_head_kv"), num_key_value_heads=None
        )
        return config if self.rotates else config.updated(max_position_embeddings=_CONTEXT)

    @property
    def head_dim(self) -> int:
        return self.config.integer("attn_rotary_emb", minimum=1) or super().head_dim

    @property
    def n_head_kv(self) -> int:
        kv_heads: int = self.config["kv_heads"]
        return kv_heads

    @property
    def groups(self) -> int:
        return self.config.required("n_groups", "num_groups", "mamba_n_groups", "mamba_num_groups")

    @property
    def inner(self) -> int:
        """Width of the state spaces' inner activations."""
        width = self.config.required("mamba_head_dim", "hidden_size", "d_model")
        return width * self.config.required("expand", "num_heads", "mamba_expand", "mamba_num_heads")

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        config = self.config
        heads = [self.n_head_kv if i in self.attention else 0 for i in range(self.n_blocks)]
        writer.add_head_count_kv(heads)
        writer.add_ssm_conv_kernel(config.required("conv_kernel", "d_conv", "mamba_d_conv"))
        writer.add_ssm_state_size(config.required("state_size", "d_state", "ssm_state_size", "mamba_d_state"))
        writer.add_ssm_group_count(self.groups)
        writer.add_ssm_inner_size(self.inner)
        writer.add_ssm_time_step_rank(
            config.required("n_heads", "num_heads", "mamba_n_heads", "mamba_num_heads")
        )
        writer.add_rope_scaling_finetuned(self.rotates)

    def rename(self, name: str) -> str | None:
        if name.endswith(".dt_bias"):
            name = name.removesuffix(".dt_bias") + ".dt_proj.bias"
        return super().rename(name)

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if ".mamba." in name:
            return [(name, state_space(name, tensor, self.groups, self.inner))]
        return super().transform(name, tensor, block)


class AttentionOnly(GraniteHybrid):
    """A dense model of the family with attention in every block."""

    arch: ClassVar[str] = "granite"
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(
        sentencepiece_or_bpe
    )


class AttentionMoe(AttentionOnly):
    """A mixture of experts of the family with attention in every block."""

    arch: ClassVar[str] = "granitemoe"
