"""Made-up checkpoints for benchmarks: Llama-shaped folders of any size, with data or as headers alone."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

TOKENIZER = Path(__file__).parent / "reference-10m" / "tokenizer.model"
VOCABULARY = 4096
_SHARD_BYTES = 256 << 20


@dataclass(frozen=True)
class LlamaShape:
    """What decides the size of a Llama."""

    width: int
    layers: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int = VOCABULARY

    @property
    def parameters(self) -> int:
        """Weights in all."""
        return sum(int(np.prod(shape)) for shape in self.tensors().values())

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Hugging Face names and shapes, embedding and output apart."""
        w, f = self.width, self.inner
        kv = w // self.heads * self.kv_heads
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, w)}
        for i in range(self.layers):
            shapes: Mapping[str, tuple[int, ...]] = {
                "self_attn.q_proj": (w, w),
                "self_attn.k_proj": (kv, w),
                "self_attn.v_proj": (kv, w),
                "self_attn.o_proj": (w, w),
                "mlp.gate_proj": (f, w),
                "mlp.up_proj": (f, w),
                "mlp.down_proj": (w, f),
                "input_layernorm": (w,),
                "post_attention_layernorm": (w,),
            }
            found |= {f"model.layers.{i}.{name}.weight": shape for name, shape in shapes.items()}
        return {**found, "model.norm.weight": (w,), "lm_head.weight": (self.vocabulary, w)}

    def config(self) -> dict[str, object]:
        """config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.inner,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": "bfloat16",
        }


def llama_of(nbytes: int) -> LlamaShape:
    """A Llama of about that many bytes in 16 bits: width 2048, as many layers as it takes."""
    one = LlamaShape(2048, 1, 5632, 32, 4)
    two = LlamaShape(2048, 2, 5632, 32, 4)
    per_layer = 2 * (two.parameters - one.parameters)
    layers = max(1, -(-(nbytes - (2 * one.parameters - per_layer)) // per_layer))
    return LlamaShape(2048, layers, 5632, 32, 4)


def write_checkpoint(folder: Path, shape: LlamaShape, *, data: bool = True) -> int:
    """Write a bf16 checkpoint in several shards, with the reference model's tokenizer; the shards' bytes.

    Args:
        data: False makes sparse files that hold headers and holes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=1))
    shutil.copy(TOKENIZER, folder / "tokenizer.model")
    limit = _SHARD_BYTES if data else 5 << 30
    return write_shards(folder, shape.tensors(), limit, _Noise() if data else None)


class _Noise:
    """bf16 codes of Gaussian weights, from one pool: what is benchmarked does not look at their order."""

    def __init__(self) -> None:
        values = np.random.default_rng(1).standard_normal(1 << 22).astype(np.float32) * np.float32(0.02)
        self._pool = (values.view(np.uint32) >> 16).astype("<u2")
        self._at = 0

    def take(self, n: int) -> Iterator[npt.NDArray[np.uint16]]:
        """n codes, in pieces."""
        while n:
            piece = self._pool[self._at : self._at + n]
            self._at = (self._at + len(piece)) % len(self._pool)
            n -= len(piece)
            yield piece


def write_shards(
    folder: Path, tensors: Mapping[str, tuple[int, ...]], limit: int, noise: _Noise | None
) -> int:
    """Safetensors shards of at most `limit` bytes of bf16, and their index; the bytes of all."""
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in tensors.items():
        nbytes = 2 * int(np.prod(shape))
        if groups[-1] and size + nbytes > limit:
            groups.append({})
            size = 0
        groups[-1][name] = shape
        size += nbytes
    total, weight_map = 0, {}
    for i, group in enumerate(groups):
        path = folder / f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors"
        header, at = {}, 0
        for name, shape in group.items():
            end = at + 2 * int(np.prod(shape))
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
            weight_map[name], at = path.name, end
        text = json.dumps(header).encode()
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            if noise is None:
                file.truncate(8 + len(text) + at)
            else:
                for shape in group.values():
                    for piece in noise.take(int(np.prod(shape))):
                        file.write(piece.data)
        total += path.stat().st_size
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total
