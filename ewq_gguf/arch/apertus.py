"""Arcee's AFM and the Swiss Apertus: Llama's attention with feed-forward parts of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.llama import Llama
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.errors import UnsupportedModelError


class Arcee(Llama):
    """ArceeForCausalLM (conversion/llama.py): squared ReLU, no gate."""

    architectures: ClassVar[tuple[str, ...]] = ("ArceeForCausalLM",)
    arch: ClassVar[str] = "arcee"
    defaults: ClassVar[Mapping[str, Any]] = {
        **Llama.defaults,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    }


class Apertus(Llama):
    """ApertusForCausalLM: an xIELU activation whose parameters, one of each per layer, are metadata in GGUF."""

    architectures: ClassVar[tuple[str, ...]] = ("ApertusForCausalLM",)
    arch: ClassVar[str] = "apertus"
    defaults: ClassVar[Mapping[str, Any]] = {
        **Llama.defaults,
        "max_position_embeddings": 65536,
        "rms_norm_eps": 1e-5,
        "rope_theta": 12000000.0,
    }
    permutes: ClassVar[bool] = False
    fills_head_dim: ClassVar[bool] = False

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        super().add_metadata(writer)
        for key, add in (
            ("alpha_n", writer.add_xielu_alpha_n),
            ("alpha_p", writer.add_xielu_alpha_p),
            ("beta", writer.add_xielu_beta),
            ("eps", writer.add_xielu_eps),
        ):
            names = [f"model.layers.{block}.mlp.act_fn.{key}" for block in range(self.n_blocks)]
            present = [name for name in names if name in self.sources]
            if present:
                if len(present) != self.n_blocks or any(self.sources[n].n_elements != 1 for n in names):
                    raise UnsupportedModelError(f"the checkpoint needs one {names[0]!r} for each layer")
                add([float(self.sources[name].rows(0, 1)[0, 0]) for name in names])

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        return [] if ".act_fn." in name else super().transform(name, tensor, block)
