"""Kimi Linear: delta attention with a state in most blocks, latent attention in the others, routed experts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.config import Config
from ewq_gguf.arch.deepseek2 import load_deepseek, split_kv_b
from ewq_gguf.arch.mamba import decay
from ewq_gguf.arch.views import Reshape
from ewq_gguf.checkpoint.json_file import load_json_object
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.errors import UnsupportedModelError
from ewq_gguf.vocab import Vocabulary

_CONVOLUTIONS = (".q_conv1d.weight", ".k_conv1d.weight", ".v_conv1d.weight")


def load_kimi_linear(folder: Path, config: Mapping[str, Any], *, pre: str | None = None) -> Vocabulary:
    """As for Kimi K2, ending with the token that tokenizer_config.json names.

    Raises:
        TokenizerError: the files are missing or damaged.
    """
    vocabulary = load_deepseek(folder, config, pre=pre)
    file = folder / "tokenizer_config.json"
    if vocabulary.origin is not None or not file.is_file():
        return vocabulary
    end = load_json_object(file).get("eos_token", "[EOS]")
    text = end.get("content") if isinstance(end, dict) else end
    if not isinstance(text, str) or text.encode(errors="replace") not in vocabulary.tokens:
        return vocabulary
    ids = {**vocabulary.special_ids, "eos": vocabulary.tokens.index(text.encode())}
    return replace(vocabulary, special_ids=ids)


class KimiLinear(Family):
    """KimiLinearForCausalLM (conversion/kimi_linear.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("KimiLinearForCausalLM",)
    arch: ClassVar[str] = "kimi-linear"
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(
        load_kimi_linear
    )

    def prepare_config(self, config: Config) -> Config:
        config = super().prepare_config(config)
        # The metadata speaks of the compressed cache, which all heads share.
        self._n_head_kv = config.required("num_key_value_heads")
        return config.updated(num_key_value_heads=None)

    def rename(self, name: str) -> str | None:
        if name.endswith(".dt_bias"):
            name = name.removesuffix("dt_bias") + "dt_proj.bias"
        return super().rename(name)

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        config = self.config
        linear = Config(config.section("linear_attn_config"))
        writer.add_vocab_size(config.required("vocab_size"))
        listed = linear.find("full_attn_layers")
        if not isinstance(listed, list) or not all(isinstance(number, int) for number in listed):
            raise UnsupportedModelError("config.json gives no list of full_attn_layers in linear_attn_config")
        # Counted from one; the others keep a state.
        writer.add_head_count_kv([int(i + 1 in listed) for i in range(self.n_blocks)])
        if (kernel := linear.integer("short_conv_kernel_size")) is not None:
            writer.add_ssm_conv_kernel(kernel)
        if (head := linear.integer("head_dim")) is not None:
            writer.add_kda_head_dim(head)
        if (rank := config.integer("q_lora_rank")) is not None:
            writer.add_q_lora_rank(rank)
        rank, rope = config.required("kv_lora_rank"), config.required("qk_rope_head_dim")
        writer.add_kv_lora_rank(rank)
        writer.add_rope_dimension_count(rope)
        writer.add_key_length(rank + rope)
        writer.add_key_length_mla(config.required("qk_nope_head_dim") + rope)
        writer.add_value_length_mla(config.required("v_head_dim"))
        writer.add_expert_feed_forward_length(config.required("moe_intermediate_size"))
        writer.add_expert_shared_count(config.required("num_shared_experts", minimum=0))
        writer.add_leading_dense_block_count(config.required("first_k_dense_replace", minimum=0))
        writer.add_expert_weights_scale(config.required_number("routed_scaling_factor"))

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if name.endswith("kv_b_proj.weight"):
            keys, values = self.config.required("qk_nope_head_dim"), self.config.required("v_head_dim")
            return split_kv_b(name, tensor, self._n_head_kv, keys, values)
        if name.endswith(".A_log"):
            return [(name, decay(tensor))]
        if name.endswith(_CONVOLUTIONS):
            return [(name, Reshape(tensor, (1, tensor.shape[0], 1, tensor.shape[-1])))]
        return [(name, tensor)]
