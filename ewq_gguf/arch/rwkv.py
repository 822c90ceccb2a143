"""RWKV 7: a recurrent model without attention, whose mixing weights come in pairs of low rank."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.mamba import squeezed
from ewq_gguf.arch.views import Reshape, Transpose, stack
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.errors import UnsupportedModelError
from ewq_gguf.vocab import Vocabulary, load_rwkv

# The model has no limit of its own.
_CONTEXT = 1 << 20
_MIXED = "rwkvag"
_MIX = re.compile(r"^(model\.layers\.\d{1,6}\.attention)\.x_([a-z])$")
_LOW_RANK = re.compile(r"\.attention\.[wavg][12]\.weight$|\.attention\.[wavg][12]$")
# (spellings of the rank, exponent of the width, multiplier) for the ranks that a config may leave out.
_RANKS = (
    (("lora_rank_decay", "decay_low_rank_dim"), 0.5, 1.8),
    (("lora_rank_iclr", "a_low_rank_dim"), 0.5, 1.8),
    (("lora_rank_value_residual_mix", "v_low_rank_dim"), 0.5, 1.3),
    (("lora_rank_gate", "gate_low_rank_dim"), 0.8, 0.6),
)
_SPELLINGS = (
    ("blocks", "layers"), ("ffn", "feed_forward"), ("self_attn", "attention"), ("attn", "attention"),
    ("time_mixer.", ""), ("feed_forward_norm", "ln2"), ("g_norm", "ln_x"),
)  # fmt: skip
_FLA = (
    ("_lora.lora.0.weight", "1.weight"),
    ("_lora.lora.2.weight", "2.weight"),
    ("_lora.lora.2.bias", "0.weight"),
)


class Rwkv7(Family):
    """Rwkv7ForCausalLM (conversion/rwkv.py), as the World models are published for transformers."""

    architectures: ClassVar[tuple[str, ...]] = ("Rwkv7ForCausalLM", "RWKV7ForCausalLM")
    arch: ClassVar[str] = "rwkv7"
    more_names: ClassVar[Mapping[str, str]] = {
        "model.layers.{bid}.attention.mixed": "blk.{bid}.time_mix_lerp_fused"
    }
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(load_rwkv)

    def rename(self, name: str) -> str | None:
        for old, new in _SPELLINGS:
            # "attn" stands inside "self_attn", and the result must not be replaced again.
            name = name.replace(old, new)
        return super().rename(name)

    def prepare_sources(self, sources: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # One library keeps the pairs the other way round, under names of its own.
        self._transposes = not any("_lora.lora" in name for name in sources)
        found: dict[str, Tensor] = {}
        mixes: dict[str, dict[str, Tensor]] = {}
        for name, tensor in super().prepare_sources(sources).items():
            for old, new in _FLA:
                name = name.replace(old, new)
            match = _MIX.match(name)
            if match is None:
                found[name] = tensor
            elif match[2] == "x":
                found[f"{match[1]}.mixed.weight"] = Reshape(
                    tensor, (len(_MIXED), 1, 1, tensor.n_elements // len(_MIXED))
                )
            else:
                mixes.setdefault(match[1], {})[match[2]] = tensor
        for prefix, parts in mixes.items():
            if sorted(parts) != sorted(_MIXED) or len({part.n_elements for part in parts.values()}) > 1:
                raise UnsupportedModelError(
                    f"{prefix} has not one x_ tensor of one size for each of {_MIXED}"
                )
            flat = [Reshape(parts[letter], (1, 1, parts[letter].n_elements)) for letter in _MIXED]
            found[f"{prefix}.mixed.weight"] = stack(flat)
        return found

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        config = self.config
        width = config.required("hidden_size")
        eps = config.number("layer_norm_epsilon", "norm_eps")
        writer.add_context_length(_CONTEXT)
        writer.add_embedding_length(width)
        writer.add_block_count(self.n_blocks)
        writer.add_layer_norm_eps(config.required_number("norm_eps") if eps is None else eps)
        writer.add_wkv_head_size(config.required("head_size", "head_dim"))
        ranks = (
            writer.add_decay_lora_rank,
            writer.add_iclr_lora_rank,
            writer.add_value_residual_mix_lora_rank,
            writer.add_gate_lora_rank,
        )
        for (keys, exponent, factor), add in zip(_RANKS, ranks):
            add(config.integer(*keys, minimum=1) or max(1, round(width**exponent * factor / 32)) * 32)
        writer.add_feed_forward_length(config.integer("intermediate_size", minimum=1) or 4 * width)
        # llama.cpp wants the key.
        writer.add_head_count(0)

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if name.endswith(".mixed.weight"):
            return [(name, tensor)]
        if block == 0 and re.search(r"\.attention\.v\d", name):
            return []  # the first block's own are not used, and some checkpoints lack them
        tensor = squeezed(tensor)
        if self._transposes and _LOW_RANK.search(name):
            tensor = Transpose(tensor)
        if name.endswith(".r_k"):
            tensor = Reshape(tensor, (tensor.n_elements,))
        if block == 0 and (match := re.search(r"\.attention\.a\d", name)):
            # llama.cpp wants something in their place.
            return [(name.replace(match[0], f".attention.v{match[0][-1]}"), tensor), (name, tensor)]
        return [(name, tensor)]

    def name_map(self) -> Callable[[str], str | None]:
        find = super().name_map()

        def named(name: str) -> str | None:
            found = find(name)
            return found if found is None or found.endswith((".weight", ".bias")) else f"{found}.weight"

        return named
