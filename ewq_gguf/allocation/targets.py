"""What the user asks for (a size, bits per weight, a preset's size, a share of memory), as bytes of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ewq_gguf.errors import PlanError
from ewq_gguf.ggml.types import GGMLType

# What llama.cpp computes with at a time by default (n_ubatch); its work buffers scale with it.
_UBATCH = 512


@dataclass(frozen=True)
class Target:
    """At most one of these; none means the method's own default.

    Attributes:
        size: bytes the file may take.
        bpw: bits per weight of tensor data.
        like: a preset whose bytes serve as the budget.
        max_kld: mean KL divergence from the original not to exceed, in nats (fix the accuracy instead).
        vram: bytes of memory that weights, KV cache and work buffers share, at `context` tokens.
        context: tokens of context for `vram`.
        cache_type: type of K and V entries for `vram`.
    """

    size: int | None = None
    bpw: float | None = None
    like: str | None = None
    max_kld: float | None = None
    vram: int | None = None
    context: int = 8192
    cache_type: GGMLType = GGMLType.F16

    def __post_init__(self) -> None:
        given = [n for n in ("size", "bpw", "like", "max_kld", "vram") if getattr(self, n) is not None]
        if len(given) > 1:
            raise PlanError(
                f"--{given[0].replace('_', '-')} and --{given[1].replace('_', '-')} exclude each other"
            )
        for name in ("size", "bpw", "max_kld", "vram"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 2**60:
                raise PlanError(f"--{name.replace('_', '-')} is {value!r}; expected a positive number")
        if self.context < 1:
            raise PlanError(f"--context is {self.context}; expected at least 1 token")

    @property
    def is_set(self) -> bool:
        return any(v is not None for v in (self.size, self.bpw, self.like, self.max_kld, self.vram))


@dataclass(frozen=True)
class RunningMemory:
    """Bytes a model needs beside its weights: the KV cache exactly, the work buffers as an estimate."""

    kv_cache: int
    compute: int

    @property
    def total(self) -> int:
        return self.kv_cache + self.compute


def running_memory(metadata: Mapping[str, Any], context: int, cache_type: GGMLType) -> RunningMemory:
    """KV cache and work buffers at a context length, from GGUF metadata (plain key -> value).

    The KV cache holds, per block and token, K and V of every key-value head (llama.cpp's src/llama-kv-cache.cpp,
    full attention, one sequence). Work buffers are estimated from the largest activations of a batch of 512.

    Raises:
        PlanError: the metadata lacks what is needed (a recurrent model, say).
    """
    arch = metadata.get("general.architecture")

    def number(key: str, default: int | None = None) -> int:
        value = metadata.get(f"{arch}.{key}", default)
        if isinstance(value, list):
            value = max(value, default=0)
        if not isinstance(value, int):
            raise PlanError(f"the model's metadata has no {arch}.{key}; give --size instead of --vram")
        return value

    width, heads = number("embedding_length"), number("attention.head_count")
    per_head = width // max(1, heads)
    kv_heads = metadata.get(f"{arch}.attention.head_count_kv", heads)
    blocks = number("block_count")
    per_block = kv_heads if isinstance(kv_heads, list) else [kv_heads] * blocks
    k, v = number("attention.key_length", per_head), number("attention.value_length", per_head)
    padded = -(-context // 256) * 256
    kv_cache = sum(
        padded * (cache_type.row_bytes(n * k) + cache_type.row_bytes(n * v)) for n in per_block[:blocks]
    )
    vocabulary = metadata.get("tokenizer.ggml.tokens")
    n_vocab = len(vocabulary) if isinstance(vocabulary, list) else number("vocab_size", 0)
    hidden = number("feed_forward_length", 4 * width)
    scores = heads * padded
    compute = 4 * _UBATCH * (n_vocab + 2 * hidden + 6 * width + scores)
    return RunningMemory(kv_cache, compute)


def file_budget(
    target: Target,
    metadata: Mapping[str, Any],
    n_parameters: int,
    overhead: int,
    like_bytes: int | None = None,
) -> int | None:
    """Bytes that tensor data may take, or None where the target is an accuracy or not set.

    Args:
        overhead: bytes of header and padding of the file.
        like_bytes: tensor data of the preset that `target.like` names.

    Raises:
        PlanError: nothing is left after header, KV cache and work buffers.
    """
    if target.size is not None:
        left = target.size - overhead
    elif target.bpw is not None:
        left = int(target.bpw * n_parameters / 8)
    elif target.like is not None:
        if like_bytes is None:
            raise PlanError(f"the size of {target.like} is not known")
        left = like_bytes
    elif target.vram is not None:
        beside = running_memory(metadata, target.context, target.cache_type)
        left = target.vram - overhead - beside.total
        if left <= 0:
            raise PlanError(
                f"{target.vram:,} bytes do not hold the KV cache ({beside.kv_cache:,}) and work buffers (about "
                f"{beside.compute:,}) for {target.context} tokens; choose a smaller --context or --cache-type q8_0"
            )
    else:
        return None
    if left <= 0:
        raise PlanError(f"the target leaves no room for weights: the header alone takes {overhead:,} bytes")
    return left
