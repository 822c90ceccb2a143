"""The text part of Gemma 3n: embeddings per layer, alternating updates, and a low-rank side path."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import NormalDist
from typing import Any, ClassVar

import gguf
import numpy as np

from ewq_gguf.arch.config import Config, finite
from ewq_gguf.arch.gemma import Gemma3, load_gemma3
from ewq_gguf.arch.views import PadRows, stack
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.errors import UnsupportedModelError
from ewq_gguf.vocab import Vocabulary

_ALTERNATIVES = re.compile(r"^(model\.altup_(?:unembed_)?projections)\.(\d)\.weight$")
# llama.cpp has no other number built in.
_N_INPUTS = 4


def load_gemma3n(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """Gemma's vocabulary with the placeholders for images and sound, which the embeddings per layer lack.

    Raises:
        TokenizerError: the files are missing or damaged.
    """
    return load_gemma3(folder, {k: v for k, v in config.items() if k != "vocab_size_per_layer_input"})


def threshold(share: float) -> float:
    """How many standard deviations above the mean the largest 1 - `share` of a normal distribution begin.

    Computed step by step in float32, as torch's `Normal.icdf` does; -inf for 0.
    """
    doubled = np.float32(2) * np.float32(share) - np.float32(1)
    if abs(doubled) >= 1:
        return math.copysign(math.inf, doubled)
    inverse = np.float32(NormalDist().inv_cdf((float(doubled) + 1) / 2) / math.sqrt(2))
    return float(inverse * np.float32(math.sqrt(2)))


class Gemma3n(Gemma3):
    """Gemma3nForConditionalGeneration and Gemma3nForCausalLM (conversion/gemma.py); norms are stored as they are."""

    architectures: ClassVar[tuple[str, ...]] = ("Gemma3nForCausalLM", "Gemma3nForConditionalGeneration")
    arch: ClassVar[str] = "gemma3n"
    defaults: ClassVar[Mapping[str, Any]] = {
        "altup_active_idx": 0,
        "altup_num_inputs": _N_INPUTS,
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "hidden_size": 2048,
        "hidden_size_per_layer_input": 256,
        "intermediate_size": 16384,
        "max_position_embeddings": 32768,
        "num_attention_heads": 8,
        "num_hidden_layers": 35,
        "num_key_value_heads": 2,
        "num_kv_shared_layers": 15,
        "rms_norm_eps": 1e-6,
        "sliding_window": 512,
        "vocab_size": 262400,
        "vocab_size_per_layer_input": 262144,
    }
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(load_gemma3n)

    def prepare_config(self, config: Config) -> Config:
        if config.required("altup_num_inputs") != _N_INPUTS:
            raise UnsupportedModelError(
                f"config.json gives altup_num_inputs other than {_N_INPUTS}, which llama.cpp cannot run"
            )
        n = config.required("num_hidden_layers")
        inner = self._per_layer(config, "intermediate_size", n)
        self._inner = [int(finite(value, "intermediate_size")) for value in inner]
        if config.find("layer_types") is None:
            kinds = ["full_attention" if (i + 1) % 5 == 0 else "sliding_attention" for i in range(n)]
            config = config.updated(layer_types=kinds)
        if config.find("activation_sparsity_pattern") is None:
            sparse = 10 if n > 10 else 0
            config = config.updated(activation_sparsity_pattern=[0.95] * sparse + [0.0] * (n - sparse))
        return super().prepare_config(config.updated(intermediate_size=None))

    @staticmethod
    def _per_layer(config: Config, key: str, n: int) -> list[Any]:
        value = config.find(key)
        values = value if isinstance(value, list) else [value] * n
        if len(values) != n:
            raise UnsupportedModelError(f"config.json gives {key} without one value for each of {n} layers")
        return values

    def rename(self, name: str) -> str | None:
        new = super().rename(name)
        return f"{new}.weight" if new is not None and new.endswith("_scale") else new

    def prepare_sources(self, sources: Mapping[str, Tensor]) -> dict[str, Tensor]:
        groups: dict[str, dict[int, Tensor]] = {}
        merged: dict[str, Tensor] = {}
        for name, tensor in super().prepare_sources(sources).items():
            match = _ALTERNATIVES.match(name)
            if match is None:
                merged[name] = tensor
            else:
                groups.setdefault(match[1], {})[int(match[2])] = tensor
        for name, parts in groups.items():
            if sorted(parts) != list(range(_N_INPUTS - 1)):
                raise UnsupportedModelError(f"{name} is incomplete; download the checkpoint again")
            merged[f"{name}.weight"] = stack([parts[i] for i in sorted(parts)])
        return merged

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        size = self.config.required("vocab_size")
        if name.endswith(("embed_tokens.weight", "embed_tokens_per_layer.weight")) and tensor.shape[0] < size:
            # Images and sound come with embeddings of their own; their tokens have no row here.
            return [(name, PadRows(tensor, size))]
        return [(name, tensor)]

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        config, n = self.config, self.n_blocks
        writer.add_feed_forward_length(self._inner)
        writer.add_altup_active_idx(config.required("altup_active_idx", minimum=0))
        writer.add_altup_num_inputs(_N_INPUTS)
        writer.add_embedding_length_per_layer_input(config.required("hidden_size_per_layer_input"))
        writer.add_shared_kv_layers(config.required("num_kv_shared_layers", minimum=0))
        shares = self._per_layer(config, "activation_sparsity_pattern", n)
        writer.add_activation_sparsity_scale(
            [threshold(finite(share, "activation_sparsity_pattern")) for share in shares]
        )
        kinds = self._per_layer(config, "layer_types", n)
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in kinds])
