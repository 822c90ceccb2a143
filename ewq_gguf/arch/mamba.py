"""Mamba, Falcon Mamba and Mamba 2: state spaces in place of attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import gguf
import numpy as np

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.config import Config
from ewq_gguf.arch.views import Computed, Reshape
from ewq_gguf.arch.vocabularies import sentencepiece_or_bpe
from ewq_gguf.checkpoint.tensor import DType, Tensor
from ewq_gguf.errors import TokenizerError, UnsupportedModelError
from ewq_gguf.vocab import Vocabulary, has_sentencepiece, load_bpe, load_sentencepiece

# These models have no positions; a length for programs that ask for one.
_CONTEXT = 2**20
_BAND_ROWS = 1024
_EMBEDDINGS = ("backbone.embeddings.weight", "backbone.embedding.weight")


def load_mamba(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """Byte-level BPE, else tokenizer.model.

    Raises:
        TokenizerError: the files are missing or damaged.
    """
    names = ("tokenizer.json", "tokenizer.model", "vocab.json")
    if not any((folder / name).is_file() for name in names):
        raise TokenizerError(
            f"{folder} holds no tokenizer; the first Mamba models use that of EleutherAI/gpt-neox-20b: "
            "put its tokenizer.json and tokenizer_config.json there"
        )
    if (folder / "tokenizer.json").is_file() or not has_sentencepiece(folder):
        return load_bpe(folder, config)
    return load_sentencepiece(folder, config)


class Mamba(Family):
    """MambaForCausalLM and FalconMambaForCausalLM (conversion/mamba.py).

    config.json is taken as it is: the state-spaces checkpoints have names of their own (d_model, n_layer).
    """

    architectures: ClassVar[tuple[str, ...]] = (
        "MambaForCausalLM",
        "MambaLMHeadModel",
        "FalconMambaForCausalLM",
    )
    arch: ClassVar[str] = "mamba"
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(load_mamba)
    vocab_multiple: ClassVar[int] = 8

    def prepare_config(self, config: Config) -> Config:
        multiple = config.integer("pad_vocab_size_multiple", minimum=1) or self.vocab_multiple
        return config.updated(vocab_size=-(config.required("vocab_size") // -multiple) * multiple)

    @property
    def width(self) -> int:
        return self.config.required("hidden_size", "d_model", "dim")

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        config = self.config
        inner = config.integer("intermediate_size", "d_inner") or 2 * self.width
        if inner != 2 * self.width:
            raise UnsupportedModelError(
                f"config.json gives an inner size of {inner} for a width of {self.width}; llama.cpp runs "
                "this family with an expansion of 2 only"
            )
        self._add_common(writer, inner, config.integer("state_size", "d_state") or 16)
        writer.add_ssm_time_step_rank(config.integer("time_step_rank", "dt_rank") or -(self.width // -16))
        # Falcon Mamba normalises what the others do not.
        writer.add_ssm_dt_b_c_rms(config.find("model_type") == "falcon_mamba")

    def _add_common(self, writer: gguf.GGUFWriter, inner: int, state: int) -> None:
        config = self.config
        writer.add_context_length(_CONTEXT)
        writer.add_embedding_length(self.width)
        writer.add_feed_forward_length(0)
        writer.add_head_count(0)
        writer.add_block_count(self.n_blocks)
        writer.add_ssm_conv_kernel(config.integer("conv_kernel", "d_conv") or 4)
        writer.add_ssm_inner_size(inner)
        writer.add_ssm_state_size(state)
        writer.add_layer_norm_rms_eps(config.number("layer_norm_epsilon", "rms_norm_eps") or 1e-5)

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if name == "lm_head.weight" and self._is_embedding(tensor):
            return []
        if name.endswith(".A_log"):
            return [(name, decay(tensor))]
        return [(name, squeezed(tensor) if name.endswith("conv1d.weight") else tensor)]

    def _is_embedding(self, output: Tensor) -> bool:
        """Whether the output matrix repeats the embedding, which many of these checkpoints store twice."""
        embedding = next((self.sources[name] for name in _EMBEDDINGS if name in self.sources), None)
        return embedding is not None and equal(embedding, output)


class Mamba2(Mamba):
    """Mamba2ForCausalLM: heads that share a decay, groups that share the state's projections."""

    architectures: ClassVar[tuple[str, ...]] = ("Mamba2ForCausalLM",)
    arch: ClassVar[str] = "mamba2"
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(
        sentencepiece_or_bpe
    )
    vocab_multiple: ClassVar[int] = 16

    def rename(self, name: str) -> str | None:
        if name.startswith(("model.backbone", "model.lm_head")):
            name = name.removeprefix("model.")
        if name.endswith(".dt_bias"):
            name = name.removesuffix(".dt_bias") + ".dt_proj.bias"
        return super().rename(name)

    @property
    def inner(self) -> int:
        expand = self.config.integer("mamba_expand", "expand") or 2
        return self.config.integer("mamba_d_ssm", "intermediate_size", "d_inner") or expand * self.width

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        config = self.config
        head = config.integer("mamba_d_head", "head_dim") or 64
        if self.inner % head:
            raise UnsupportedModelError(f"config.json gives heads of {head} that do not divide {self.inner}")
        self._add_common(writer, self.inner, config.integer("state_size", "d_state") or 128)
        writer.add_ssm_time_step_rank(self.inner // head)
        writer.add_ssm_group_count(self.groups)

    @property
    def groups(self) -> int:
        return self.config.integer("n_groups") or 1

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        mixes = ".mixer." in name
        return [(name, state_space(name, tensor, self.groups, self.inner) if mixes else tensor)]


def state_space(name: str, tensor: Tensor, groups: int, inner: int) -> Tensor:
    """A tensor of a Mamba 2 mixer as GGUF has it, by the end of its name."""
    if name.endswith(".A_log"):
        return Reshape(decay(tensor), (*tensor.shape, 1))
    if name.endswith(".D"):
        return Reshape(tensor, (*tensor.shape, 1))
    if name.endswith(".norm.weight"):
        return Reshape(tensor, (groups, inner // groups))
    return squeezed(tensor) if name.endswith(".conv1d.weight") else tensor


def squeezed(tensor: Tensor) -> Tensor:
    """The tensor without its dimensions of length one."""
    return Reshape(tensor, [n for n in tensor.shape if n != 1])


def decay(tensor: Tensor) -> Tensor:
    """-exp(A_log), the state's decay rates; F16 sources round to F16, as in llama.cpp's converter.

    Each value is the float32 nearest to the true one. The converter's own depend on torch's vector library, whose
    last bit is another for about one value in a hundred.
    """
    if tensor.dtype is DType.F16:
        return Computed(
            tensor, lambda rows, _: -np.exp(rows.astype(np.float64)).astype(np.float16).astype(np.float32)
        )
    return Computed(tensor, lambda rows, _: -np.exp(rows.astype(np.float64)).astype(np.float32))


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same values; reads on only while they do."""
    if a.shape != b.shape:
        return False
    return all(
        np.array_equal(a.rows(start, stop), b.rows(start, stop))
        for start in range(0, a.n_rows, _BAND_ROWS)
        for stop in [min(start + _BAND_ROWS, a.n_rows)]
    )
