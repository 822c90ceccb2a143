"""What a model family is: config.json -> GGUF metadata, Hugging Face names -> GGUF tensors.

Families override small pieces; the shared pieces follow conversion/base.py (TextModel) of llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import gguf

from ewq_gguf.arch.config import Config
from ewq_gguf.arch.experts import merge_experts
from ewq_gguf.arch.quantized import dequantized
from ewq_gguf.arch.rope import add_rope, rope_parameters
from ewq_gguf.checkpoint.tensor import DType, Tensor
from ewq_gguf.errors import UnsupportedModelError
from ewq_gguf.ggml.types import GGMLType
from ewq_gguf.model import EncodedTensor, ModelTensor
from ewq_gguf.vocab import Vocabulary, load_vocabulary

# Tensors of vision, audio and connector parts; this package converts the text model.
_OTHER_MODALITIES = re.compile(
    r"^(mlp|vit\.|vpm\.|siglip2\.|conformer\.|merger\.|resampler\.|sound_|speech_embeddings\.)"
    r"|visual\.|vision[._]|audio[._]|talker\.|token2wav\.|code2wav\.|projector\.|pre_mm_projector_norm"
    r"|image_newline|view_seperator|patch_embed|patch_merger\.|patch_merge_mlp\.|model\.connector\."
)
# Buffers that old checkpoints carry along; llama.cpp computes them.
_BUFFERS = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")
# Small tensors that llama.cpp reads as F32 only (conversion/base.py, prepare_tensors).
_ALWAYS_F32 = re.compile(
    r"(?:^|\.)(?:ffn_gate_inp|ffn_gate_inp_shexp|position_embd|token_types|ssm_conv1d(?:_[qkv])?|shortconv\.conv"
    r"|time_mix_first|time_mix_w[12]|time_mix_decay_w[12]|time_mix_lerp_fused|posnet\.\d+\.norm[12]"
    r"|altup_correct_coef|altup_predict_coef|indexer\.proj)\.weight$"
)
_BLOCK_COUNTS = ("n_layers", "num_hidden_layers", "n_layer", "num_layers")
# What any model may claim; beyond it each block must have a tensor.
_FEW_BLOCKS = 256
_EXPERT_GATING = {"softmax": 1, "sigmoid": 2, "sqrtsoftplus": 4}


class Family:
    """One model family. Subclasses set the class variables and override what differs.

    Attributes:
        architectures: names in config.json's `architectures` that it serves.
        arch: GGUF architecture name.
        defaults: config values that the reference library assumes when config.json is silent.
        fills_head_dim: whether the reference library works out a missing head_dim, which then is written as
            key and value length.
        more_names: Hugging Face name -> GGUF name where gguf's table lacks one, without the suffix after the
            last dot; {bid} stands for the block.
        load_vocabulary: how its tokenizer files are read.
    """

    architectures: ClassVar[tuple[str, ...]] = ()
    arch: ClassVar[str] = ""
    defaults: ClassVar[Mapping[str, Any]] = {}
    fills_head_dim: ClassVar[bool] = False
    more_names: ClassVar[Mapping[str, str]] = {}
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(load_vocabulary)

    def __init__(self, config: Mapping[str, Any], sources: Mapping[str, Tensor]) -> None:
        """`sources`: Hugging Face name -> tensor."""
        given = Config(config, self.defaults)
        _check_blocks(given.integer(*_BLOCK_COUNTS), len(sources))
        self.config = self.prepare_config(given)
        self.n_blocks = self.count_blocks()
        _check_blocks(self.n_blocks, len(sources))
        self.rope = rope_parameters(self.config)
        renamed = {new: tensor for name, tensor in sources.items() if (new := self.rename(name)) is not None}
        self.n_left_out = sum(bool(_OTHER_MODALITIES.search(name)) for name in sources)
        self.sources = self.prepare_sources(renamed)
        self._names = self.name_map()

    # What subclasses override --------------------------------------------------------------------

    def prepare_config(self, config: Config) -> Config:
        """Fill in values that depend on others; called once, first."""
        heads = config.integer("num_attention_heads", minimum=1)
        if "num_key_value_heads" in self.defaults and config.find("num_key_value_heads") is None:
            config = config.updated(num_key_value_heads=heads)
        if self.fills_head_dim and config.find("head_dim") is None:
            width = config.required("hidden_size")
            config = config.updated(head_dim=width // config.required("num_attention_heads"))
        return config

    def count_blocks(self) -> int:
        """Transformer blocks that the file will hold."""
        return self.config.required(*_BLOCK_COUNTS)

    def rename(self, name: str) -> str | None:
        """Normalise a Hugging Face tensor name; None drops the tensor."""
        if _OTHER_MODALITIES.search(name) or name.endswith(_BUFFERS):
            return None
        if name.endswith("e_score_correction_bias"):
            name = name.removesuffix("e_score_correction_bias") + "e_score_correction.bias"
        return name.replace("language_model.", "")

    def prepare_sources(self, sources: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Join sources that belong together: weights with their scales, and the experts of a layer."""
        return merge_experts(dequantized(sources, self.config))

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        """(Hugging Face name, tensor) pairs that one source tensor becomes; names are mapped afterwards."""
        return [(name, tensor)]

    def extra_tensors(self) -> Iterable[tuple[str, Tensor]]:
        """(GGUF name, tensor) pairs that no checkpoint holds, such as rope factors; written first."""
        return []

    def fixed_type(self, name: str, tensor: Tensor) -> GGMLType | None:
        """The type a GGUF tensor must have whatever the plan says, or None."""
        if len(tensor.shape) <= 1 or name.endswith("_norm.weight") or not name.endswith(".weight"):
            return GGMLType.F32
        return GGMLType.F32 if _ALWAYS_F32.search(name) else None

    def adjust_vocabulary(self, vocabulary: Vocabulary) -> Vocabulary:
        """Changes a family makes to its vocabulary's metadata."""
        return vocabulary

    def add_metadata(self, writer: gguf.GGUFWriter) -> None:
        """Write the hyperparameters."""
        config = self.config
        writer.add_block_count(self.n_blocks)
        numbers: tuple[tuple[tuple[str, ...], Callable[[int], None]], ...] = (
            (
                ("max_position_embeddings", "n_ctx", "n_positions", "max_length", "max_sequence_length",
                 "model_max_length"),
                writer.add_context_length,
            ),
            (("hidden_size", "n_embd", "dim"), writer.add_embedding_length),
            (
                ("prefix_dense_intermediate_size", "dense_intermediate_size", "intermediate_size", "n_inner",
                 "hidden_dim"),
                writer.add_feed_forward_length,
            ),
            (("num_attention_heads", "n_head", "n_heads"), writer.add_head_count),
            (("num_key_value_heads", "n_kv_heads"), writer.add_head_count_kv),
        )  # fmt: skip
        for keys, add in numbers:
            if (value := config.integer(*keys)) is not None:
                add(value)
        if config.find("is_causal") is False:
            writer.add_causal_attention(False)
        add_rope(writer, self.rope)
        if (eps := config.number("rms_norm_eps", "norm_eps")) is not None:
            writer.add_layer_norm_rms_eps(eps)
        if (eps := config.number("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")) is not None:
            writer.add_layer_norm_eps(eps)
        self._add_experts(writer)
        if (head_dim := config.integer("head_dim", minimum=1)) is not None:
            writer.add_key_length(head_dim)
            writer.add_value_length(head_dim)

    def add_folder_metadata(self, writer: gguf.GGUFWriter, folder: Path) -> None:
        """Write what other files of the checkpoint say, such as how an embedding model pools."""

    def notes(self) -> list[str]:
        """Sentences about what the conversion leaves out, worth a line on the terminal."""
        if not self.n_left_out:
            return []
        return [
            f"{self.n_left_out} tensors for images or sound are left out; the file holds the language model"
        ]

    # What stays ----------------------------------------------------------------------------------

    def _add_experts(self, writer: gguf.GGUFWriter) -> None:
        config = self.config
        for keys, add in (
            (("num_local_experts", "num_experts", "n_routed_experts"), writer.add_expert_count),
            (("num_experts_per_tok", "num_experts_per_token", "top_k_experts"), writer.add_expert_used_count),
            (("n_group",), writer.add_expert_group_count),
            (("topk_group",), writer.add_expert_group_used_count),
        ):
            if (value := config.integer(*keys)) is not None:
                add(value)
        gating = config.find(
            "score_function", "scoring_func", "score_func", "moe_router_activation",
            "moe_router_activation_func", "expert_selection_fn",
        )  # fmt: skip
        if gating is not None:
            if gating not in _EXPERT_GATING:
                raise UnsupportedModelError(
                    f"config.json asks for expert gating {gating!r:.60}; known are {', '.join(_EXPERT_GATING)}"
                )
            writer.add_uint32(f"{self.arch}.expert_gating_func", _EXPERT_GATING[gating])

    def name_map(self) -> Callable[[str], str | None]:
        """A function from Hugging Face to GGUF names: gguf's own table, then `more_names`."""
        arch = next((a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == self.arch), None)
        if arch is None:
            raise UnsupportedModelError(
                f"the installed gguf package does not know the architecture {self.arch!r}; upgrade gguf"
            )
        table = gguf.get_tensor_name_map(arch, self.n_blocks)

        def find(name: str) -> str | None:
            known: str | None = table.get_name(name, try_suffixes=(".weight", ".bias"))
            if known is not None or not self.more_names:
                return known
            stem, _, suffix = name.rpartition(".")
            block = block_number(name)
            new = self.more_names.get(stem.replace(f".{block}.", ".{bid}.", 1))
            return None if new is None else f"{new.format(bid=block)}.{suffix}"

        return find

    def tensors(self) -> Iterator[ModelTensor]:
        """Every tensor of the GGUF file, in the order of writing.

        Raises:
            UnsupportedModelError: a tensor of the checkpoint has no place in this family.
        """
        for name, tensor in self.extra_tensors():
            yield ModelTensor(name, tensor, self.fixed_type(name, tensor))
        for name, tensor in self.sources.items():
            for new_name, new_tensor in self.transform(name, tensor, block_number(name)):
                gguf_name = self._names(new_name)
                if gguf_name is None:
                    raise UnsupportedModelError(
                        f"tensor {new_name!r} has no place in a {self.arch} model; "
                        "is the checkpoint of another family than config.json says?"
                    )
                if not new_tensor.dtype.is_float:
                    raise UnsupportedModelError(
                        f"tensor {name!r} holds {new_tensor.dtype.value}, not weights; "
                        "this looks like an already-quantized checkpoint: convert the original instead"
                    )
                if isinstance(new_tensor, EncodedTensor):
                    yield ModelTensor(gguf_name, new_tensor, new_tensor.encoding)
                else:
                    yield ModelTensor(gguf_name, new_tensor, self.fixed_type(gguf_name, new_tensor))


def _check_blocks(n_blocks: int | None, n_tensors: int) -> None:
    """Work and memory grow with the number of blocks, so a number without tensors to show for it is refused."""
    if n_blocks is not None and n_blocks > max(_FEW_BLOCKS, n_tensors):
        raise UnsupportedModelError(
            f"config.json asks for {n_blocks:,} blocks ({', '.join(_BLOCK_COUNTS[1::2])}), and the checkpoint has "
            f"{n_tensors:,} tensors in all; correct config.json"
        )


def block_number(name: str) -> int | None:
    """The first number-like part of a Hugging Face name, which is its block."""
    return next((int(part) for part in name.split(".") if part.isdecimal() and len(part) < 10), None)


def source_dtype(tensors: Iterable[ModelTensor]) -> DType:
    """The storage type of the first matrix: the checkpoint's own precision."""
    return next((t.source.dtype for t in tensors if len(t.shape) >= 2 and t.fixed is None), DType.F32)
