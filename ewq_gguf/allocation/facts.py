"""What a decision about types may look at: tensor and model facts, eligibility, fallbacks for odd rows.

Everything here holds for llama-quantize and for our own methods alike: a tensor that llama-quantize leaves
alone would not load (or not work) in another type, and blocks that do not divide a row cannot be stored.
Facts from llama.cpp (pinned): src/llama-quant.cpp, src/llama-model.cpp, src/llama-model-loader.h.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ewq_gguf.errors import CheckpointError, PlanError
from ewq_gguf.ggml.types import REQUIRES_IMATRIX, GGMLType

_LAYER = re.compile(r"blk\.\s*([+-]?\d+)", re.ASCII)

# Parts of a name that keep a tensor in its source type, whatever the preset. Norms, routers and position
# tables are tiny or looked up exactly; recurrent state and convolution kernels are kept in F32 by the graphs.
_KEPT_PARTS: tuple[str, ...] = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    *(
        f"time_mix_{part}.weight"
        for part in ("w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2")
    ),
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
)
_KEPT_NAMES = frozenset({"position_embd.weight", "token_types.weight"})
_KEPT_PARTS_OF_ARCH: Mapping[str, tuple[str, ...]] = {
    "glm5-next": (
        "hc_",
        "indexer.attn_q_b",
        "indexer.attn_k",
        "indexer.proj",
        "indexer_compressor_gate",
        "indexer_compressor_ape",
        "ssm_f_a.weight",
        "ssm_f_b.weight",
        "ssm_g_a.weight",
        "ssm_g_b.weight",
        "ssm_beta.weight",
        "attn_kv_a_mqa.weight",
        "attn_k_b.weight",
        "attn_v_b.weight",
    ),
}

EMBEDDING_NAMES = ("token_embd.weight", "per_layer_token_embd.weight")
OUTPUT_NAME = "output.weight"

# Types that llama-quantize makes for no matrix but embeddings and output without an importance matrix.
_POOR_WITHOUT_IMATRIX = frozenset(
    {
        GGMLType.IQ1_S,
        GGMLType.IQ1_M,
        GGMLType.IQ2_XXS,
        GGMLType.IQ2_XS,
        GGMLType.IQ2_S,
        GGMLType.IQ3_XXS,
    }
)

# The type with smaller blocks that stands in when a row is no multiple of the wanted type's block.
_STAND_IN: Mapping[GGMLType, GGMLType] = {
    GGMLType.IQ1_S: GGMLType.IQ4_NL,
    GGMLType.IQ1_M: GGMLType.IQ4_NL,
    GGMLType.IQ2_XXS: GGMLType.IQ4_NL,
    GGMLType.IQ2_XS: GGMLType.IQ4_NL,
    GGMLType.IQ2_S: GGMLType.IQ4_NL,
    GGMLType.IQ3_XXS: GGMLType.IQ4_NL,
    GGMLType.IQ3_S: GGMLType.IQ4_NL,
    GGMLType.IQ4_XS: GGMLType.IQ4_NL,
    GGMLType.Q2_0: GGMLType.Q4_0,
    GGMLType.Q2_K: GGMLType.Q4_0,
    GGMLType.Q3_K: GGMLType.Q4_0,
    GGMLType.TQ1_0: GGMLType.Q4_0,
    GGMLType.TQ2_0: GGMLType.Q4_0,
    GGMLType.Q4_K: GGMLType.Q5_0,
    GGMLType.Q5_K: GGMLType.Q5_1,
    GGMLType.Q6_K: GGMLType.Q8_0,
}


@dataclass(frozen=True)
class TensorFacts:
    """A tensor as a type decision sees it.

    `shape` is numpy order, outermost first, so the last entry is the row length; `type` is the type in the
    source file, which the tensor keeps when it is not quantized.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLType

    @property
    def row_length(self) -> int:
        """Weights per row: ggml's `ne[0]`."""
        return self.shape[-1] if self.shape else 1

    @property
    def n_dims(self) -> int:
        """Dimensions as ggml counts them: leading ones do not count, so a (1, n) matrix is a vector."""
        for position, extent in enumerate(self.shape):
            if extent > 1:
                return len(self.shape) - position
        return 1

    @property
    def is_stack(self) -> bool:
        """True for stacked matrices, such as a layer's experts: ggml's `ne[2] > 1`."""
        return len(self.shape) > 2 and self.shape[-3] > 1


@dataclass(frozen=True)
class ModelFacts:
    """The model as a type decision sees it.

    `n_layer_all` counts every block, `n_layer` only those that are no next-token-prediction (MTP) blocks.
    `n_head` and `n_head_kv` are those of the first block; `n_expert` is 0 in a dense model.
    """

    arch: str
    n_layer: int
    n_layer_all: int
    n_head: int = 0
    n_head_kv: int = 0
    n_expert: int = 0

    @property
    def n_gqa(self) -> int:
        """Query heads per key/value head in the first block; 0 where there is no attention."""
        return self.n_head // self.n_head_kv if self.n_head_kv else 0


@dataclass(frozen=True)
class Assignment:
    """The type decided for one tensor.

    `type` is what to store; `wanted` is what the rule asked for before the row length was looked at;
    `reason` says in a few words where it comes from; `requires_imatrix` marks a type that llama-quantize
    refuses to make for this tensor without an importance matrix, or that ggml cannot make without one.
    """

    type: GGMLType
    wanted: GGMLType
    reason: str
    requires_imatrix: bool = False

    @property
    def fell_back(self) -> bool:
        """True if the row length did not allow the wanted type."""
        return self.type != self.wanted


def model_facts(metadata: Mapping[str, Any]) -> ModelFacts:
    """Read the facts from GGUF metadata (plain key -> value, per-layer lists where GGUF has them).

    Source: llama.cpp src/llama-model.cpp (load_hparams) and the two families whose loader changes the layer
    count (src/models/nanbeige.cpp, src/models/granite-switch.cpp).

    Raises:
        CheckpointError: no architecture or block count, or a value that is not a number.
    """
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str) or not arch:
        raise CheckpointError(
            "the GGUF metadata has no general.architecture; it is not a model file that llama.cpp can read"
        )
    if arch == "clip":  # a projector file: llama.cpp reads no hyperparameters from it
        return ModelFacts(arch=arch, n_layer=0, n_layer_all=0)

    n_layer_all = _number(metadata, f"{arch}.block_count", None)
    n_layer = n_layer_all - _number(metadata, f"{arch}.nextn_predict_layers", 0)
    n_head = _number(metadata, f"{arch}.attention.head_count", 0)
    if arch == "nanbeige":
        loops = _number(metadata, "nanbeige.num_loops", 1)
        if loops > 1:
            n_layer_all = n_layer = n_layer * loops
    elif arch == "graniteswitch":
        n_layer_all = n_layer + 1
    return ModelFacts(
        arch=arch,
        n_layer=n_layer,
        n_layer_all=n_layer_all,
        n_head=n_head,
        n_head_kv=_number(metadata, f"{arch}.attention.head_count_kv", n_head),
        n_expert=_number(metadata, f"{arch}.expert_count", 0),
    )


def _number(metadata: Mapping[str, Any], key: str, default: int | None) -> int:
    value = metadata.get(key, default)
    if value is None:
        raise CheckpointError(
            f"the GGUF metadata has no {key if key.isprintable() else repr(key)}; without it the layers cannot be counted"
        )
    if not isinstance(value, str | bytes) and isinstance(value, Iterable):
        values = list(value)
        value = values[0] if values else 0
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"the GGUF metadata key {key} is {value!r}, not a whole number") from error


def quantizable(tensor: TensorFacts, model: ModelFacts) -> bool:
    """Whether llama-quantize would change this tensor's type at all.

    Matrices and stacks of matrices whose name ends in `weight`, minus norms, routers, position and token-type
    tables, convolution kernels, small recurrent projections and parts of vision and audio towers.
    Source: llama.cpp src/llama-quant.cpp, tensor_allows_quantization.
    """
    name = tensor.name
    if tensor.n_dims < 2 or not name.endswith("weight") or name in _KEPT_NAMES:
        return False
    if any(part in name for part in _KEPT_PARTS):
        return False
    return not any(part in name for part in _KEPT_PARTS_OF_ARCH.get(model.arch, ()))


def fallback_type(wanted: GGMLType, row_length: int) -> GGMLType | None:
    """The type to store a row of `row_length` weights in when `wanted` is asked for.

    `wanted` itself where its blocks divide the row; otherwise its stand-in with blocks of 32; F16 where even
    those do not. None where llama.cpp defines no stand-in (Q1_0 and NVFP4) and gives up.
    Source: llama.cpp src/llama-quant.cpp, tensor_type_fallback.
    """
    if row_length % wanted.block_size == 0:
        return wanted
    stand_in = _STAND_IN.get(wanted)
    if stand_in is None:
        return GGMLType.F16 if wanted.block_size <= 32 else None
    return stand_in if row_length % stand_in.block_size == 0 else GGMLType.F16


def requires_imatrix(name: str, kind: GGMLType) -> bool:
    """Whether the tensor of that name cannot sensibly be stored as `kind` without an importance matrix.

    Sources: llama.cpp src/llama-quant.cpp, tensor_requires_imatrix (embeddings and output are excused), and
    ggml's own ggml_quantize_requires_imatrix (nothing is).
    """
    if kind in REQUIRES_IMATRIX:
        return True
    return kind in _POOR_WITHOUT_IMATRIX and name != OUTPUT_NAME and name not in EMBEDDING_NAMES


def fit(tensor: TensorFacts, wanted: GGMLType, reason: str) -> Assignment:
    """The assignment of `wanted`, or of its stand-in where the row length needs one.

    Raises:
        PlanError: the row fits neither.
    """
    kind = fallback_type(wanted, tensor.row_length)
    if kind is None:
        raise PlanError(
            f"{tensor.name} has rows of {tensor.row_length} weights, but a block of {wanted.name} holds "
            f"{wanted.block_size} ({reason}); choose a type with smaller blocks for it, such as Q8_0"
        )
    if kind != wanted:
        reason += f"; {wanted.name} needs rows in multiples of {wanted.block_size}, not {tensor.row_length}"
    return Assignment(kind, wanted, reason, requires_imatrix(tensor.name, kind))


def layer_index(name: str) -> int | None:
    """The block number in a name such as `blk.7.ffn_up.weight`; None outside the blocks."""
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def quantize_order(tensors: Iterable[TensorFacts]) -> Sequence[TensorFacts]:
    """The tensors in the order in which llama-quantize visits (and writes) them.

    Tensors outside the blocks first, then block by block, by name within a block; rules that count tensors
    depend on it. Source: llama.cpp src/llama-model-loader.h, weight_name_comparer.
    """

    def key(tensor: TensorFacts) -> tuple[int, bytes]:
        layer = layer_index(tensor.name)
        return (-1 if layer is None else layer, tensor.name.encode())

    return sorted(tensors, key=key)
