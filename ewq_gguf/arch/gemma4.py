"""The text part of Gemma 4: two head sizes, per-layer embeddings, shared keys and values, experts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import gguf
import numpy as np

from ewq_gguf.arch.config import Config, finite, object_in
from ewq_gguf.arch.gemma import Gemma3
from ewq_gguf.arch.views import SliceRows
from ewq_gguf.checkpoint.json_file import load_json_object
from ewq_gguf.checkpoint.tensor import ArrayTensor, Tensor
from ewq_gguf.errors import UnsupportedModelError
from ewq_gguf.vocab import TokenType, Vocabulary, load_llama_hf, read_special_tokens
from ewq_gguf.vocab.merges import read_merges

_DEFAULT_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}
# Chat programs look for these in the text, so they must be printed.
_VISIBLE = (
    b"<|channel>",
    b"<channel|>",
    b"<|tool_call>",
    b"<tool_call|>",
    b"<|tool_response>",
    b"<tool_response|>",
    b'<|"|>',
)
# Rotating by so low a frequency leaves an element where it is.
_STILL = 1e30


def load_gemma4(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """BPE with byte fallback and merges, which llama.cpp knows under a name of its own.

    Raises:
        TokenizerError: no tokenizer.json, or it is damaged.
    """
    vocabulary = load_llama_hf(folder, config)
    types = [
        int(TokenType.USER_DEFINED) if token in _VISIBLE else kind
        for token, kind in zip(vocabulary.tokens, vocabulary.types)
    ]
    special = read_special_tokens(folder, config)
    return replace(
        vocabulary.with_special(special),
        model="gemma4",
        pre=None,
        types=types,
        merges=read_merges(folder, load_json_object(folder / "tokenizer.json")),
        add_space_prefix=False,
        add_special={**special.add, "bos": True},
        notes=vocabulary.notes,
    )


class Gemma4(Gemma3):
    """Gemma4ForConditionalGeneration and Gemma4ForCausalLM (conversion/gemma.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration")
    arch: ClassVar[str] = "gemma4"
    defaults: ClassVar[Mapping[str, Any]] = {
        **Gemma3.defaults,
        "global_head_dim": 512,
        "hidden_size_per_layer_input": 256,
        "num_hidden_layers": 30,
        "num_kv_shared_layers": 0,
        "sliding_window": 512,
        "vocab_size": 262144,
    }
    more_names: ClassVar[Mapping[str, str]] = {
        "model.layers.{bid}.experts.down_proj": "blk.{bid}.ffn_down_exps",
        "model.layers.{bid}.router": "blk.{bid}.ffn_gate_inp",
    }
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(load_gemma4)

    def prepare_config(self, config: Config) -> Config:
        n_layers = config.required("num_hidden_layers")
        kinds = config.find("layer_types")
        if kinds is None:
            kinds = ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(n_layers)]
        if not isinstance(kinds, list) or len(kinds) != n_layers:
            raise UnsupportedModelError(
                f"config.json gives layer_types {kinds!r:.80}; expected {n_layers} names"
            )
        kinds = [*kinds[:-1], "full_attention"]
        rope = config.section("rope_parameters") or _DEFAULT_ROPE
        full = dict(config.section("per_layer_config").get(str(kinds.index("full_attention"))) or {})
        if not full:
            full["head_dim"] = config.required("global_head_dim")
            if config.find("attention_k_eq_v"):
                full["num_key_value_heads"] = config.integer("num_global_key_value_heads")
        everywhere = config.find("use_bidirectional_attention") == "all"
        return config.updated(
            layer_types=kinds,
            rope_parameters=rope,
            global_head_dim=full.get("head_dim"),
            num_global_key_value_heads=full.get("num_key_value_heads"),
            is_causal=False if everywhere else config.find("is_causal"),
        )

    def rename(self, name: str) -> str | None:
        new = super().rename(name)
        if new is None:
            return None
        if new.endswith("layer_scalar") or (".experts." in new and not new.endswith(".weight")):
            return f"{new}.weight"
        return new

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        config = self.config
        sliding = [kind == "sliding_attention" for kind in config["layer_types"]]
        shared = config.integer("num_kv_shared_layers") or 0
        inner, head = config.required("intermediate_size"), config.required("head_dim")
        n_head_kv, n_head_kv_full = (
            config.integer("num_key_value_heads"),
            config.integer("num_global_key_value_heads"),
        )
        full_head = config.required("global_head_dim")
        super().add_metadata(writer)
        writer.add_shared_kv_layers(shared)
        writer.add_embedding_length_per_layer_input(config.integer("hidden_size_per_layer_input") or 0)
        writer.add_sliding_window_pattern(sliding)
        writer.add_key_length(full_head)
        writer.add_value_length(full_head)
        writer.add_key_length_swa(head)
        writer.add_value_length_swa(head)
        if (size := config.integer("expert_intermediate_size", "moe_intermediate_size")) is not None:
            writer.add_expert_feed_forward_length(size)
        if config.find("use_double_wide_mlp"):
            first = self.n_blocks - shared
            writer.add_feed_forward_length([inner if i < first else 2 * inner for i in range(self.n_blocks)])
        if n_head_kv is not None and n_head_kv_full is not None:
            writer.add_head_count_kv([n_head_kv if narrow else n_head_kv_full for narrow in sliding])
        share = finite(self.rope.get("partial_rotary_factor", 1.0), "partial_rotary_factor")
        writer.add_rope_dimension_count(full_head)
        writer.add_rope_dimension_count_swa(int(head * share))

    def extra_tensors(self) -> Iterable[tuple[str, Tensor]]:
        full = object_in(self.rope, "full_attention")
        if full.get("rope_type") != "proportional":
            raise UnsupportedModelError(
                f"config.json gives rope_type {full.get('rope_type')!r:.60} for full attention; expected proportional"
            )
        head = self.config.required("global_head_dim")
        rotated = int(head * finite(full.get("partial_rotary_factor"), "partial_rotary_factor") / 2)
        factors = np.full(head // 2, _STILL, dtype=np.float32)
        factors[:rotated] = 1.0
        return [("rope_freqs.weight", ArrayTensor(factors))]

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if name.endswith(".router.per_expert_scale"):
            return [(name.replace(".router.per_expert_scale", ".experts.down_proj.scale"), tensor)]
        size = self.config.required("vocab_size")
        if name.endswith("embed_tokens.weight") and tensor.shape[0] > size:
            return [(name, SliceRows(tensor, 0, size))]
        return [(name, tensor)]
