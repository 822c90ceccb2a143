"""A llama-architecture GGUF of a few hundred KiB with random weights, made in a moment.

Enough of a model to run every kernel a real one would: attention, feed-forward, quantized matrices. Its text
is noise. The crash probe runs it, and tests measure it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGUFWriter, TokenType
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import quantize

_WORDS = ("the", "of", "and", "to", "in", "is", "that", "for", "water", "light", "house", "small")
_LETTERS = "etaoinshrdlucmfwypvbgkqjxzABCDEFGHIJ0123456789.,:?!'-"
_BYTES = 256

F32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TinyModel:
    """Shape and types of the model.

    Attributes:
        n_embd, n_ff: widths; multiples of 256 where K-quants are wanted.
        n_blocks, n_head, n_head_kv: blocks and attention heads.
        types: ggml type name per tensor role (`attn`, `ffn`, `embd`, `output`); f32 where absent.
        extra_tokens: unused tokens at the end of the vocabulary.
        seed: of the random weights; two models of one seed differ by their types alone.
        spread: standard deviation of the logits, about.
    """

    n_embd: int = 64
    n_ff: int = 128
    n_blocks: int = 2
    n_head: int = 4
    n_head_kv: int = 2
    types: dict[str, str] = field(default_factory=dict)
    extra_tokens: int = 0
    seed: int = 0
    spread: float = 3.0


def vocabulary(extra: int = 0) -> tuple[list[bytes], list[float], list[int]]:
    """SentencePiece tokens with byte fallback: (texts, scores, types)."""
    space = "\u2581"
    texts = [b"<unk>", b"<s>", b"</s>"] + [f"<0x{value:02X}>".encode() for value in range(_BYTES)]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL] + [TokenType.BYTE] * _BYTES
    scores = [0.0] * len(texts)
    pieces = [space, *_LETTERS]
    for word in _WORDS:
        # Every prefix is a token, so that merging letter by letter reaches the word.
        pieces += [space + word[: n + 1] for n in range(len(word))]
    pieces += [space + letter for letter in "ABCDEFGHIJ"] + [f"<unused{n}>" for n in range(extra)]
    unique = list(dict.fromkeys(pieces))
    texts += [piece.encode() for piece in unique]
    types += [TokenType.NORMAL] * len(unique)
    scores += [-float(rank) for rank in range(len(unique))]
    return texts, scores, [int(kind) for kind in types]


def _random_k_blocks(
    kind: GGMLQuantizationType, rows: int, columns: int, rng: np.random.Generator, std: float
) -> npt.NDArray[np.uint8]:
    """Blocks of a K-quant with random codes and sane scales; gguf has no encoder for them."""
    per_block, n_bytes = GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (rows, columns // per_block, n_bytes), dtype=np.uint8)
    # Where the float16 scales lie in a block (ggml-common.h) and what brings the values near `std`.
    places = {
        GGMLQuantizationType.Q4_K: ((0, std / 250), (2, std / 25)),
        GGMLQuantizationType.Q5_K: ((0, std / 500), (2, std / 25)),
        GGMLQuantizationType.Q6_K: ((208, std / 1300),),
    }
    for at, scale in places[kind]:
        data[:, :, at : at + 2] = np.frombuffer(np.float16(scale).tobytes(), dtype=np.uint8)
    return data.reshape(rows, -1)


def write_tiny_model(path: Path, model: TinyModel | None = None, *, poison: float | None = None) -> Path:
    """Write the model; the same arguments give the same bytes.

    Args:
        poison: a value (NaN, inf) put into the first block's weights, to see how it is noticed.

    Returns:
        `path`.
    """
    model = model or TinyModel()
    rng = np.random.default_rng(model.seed)
    texts, scores, types = vocabulary(model.extra_tokens)
    head = model.n_embd // model.n_head
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(2048)
    writer.add_embedding_length(model.n_embd)
    writer.add_block_count(model.n_blocks)
    writer.add_feed_forward_length(model.n_ff)
    writer.add_head_count(model.n_head)
    writer.add_head_count_kv(model.n_head_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(head)
    writer.add_vocab_size(len(texts))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)

    def matrix(name: str, role: str, rows: int, columns: int, std: float) -> None:
        weights = (rng.standard_normal((rows, columns)) * std).astype(np.float32)
        if poison is not None and name == "blk.0.ffn_down.weight":
            weights[0, 0] = poison
        kind = GGMLQuantizationType[model.types.get(role, "F32")]
        if kind == GGMLQuantizationType.F32:
            writer.add_tensor(name, weights)
        elif kind.name.endswith("_K"):
            writer.add_tensor(name, _random_k_blocks(kind, rows, columns, rng, std), raw_dtype=kind)
        else:
            writer.add_tensor(name, quantize(weights, kind), raw_dtype=kind)

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(model.n_embd, dtype=np.float32))

    width, kv = model.n_embd, head * model.n_head_kv
    matrix("token_embd.weight", "embd", len(texts), width, 1.0)
    for block in range(model.n_blocks):
        prefix = f"blk.{block}."
        norm(prefix + "attn_norm.weight")
        matrix(prefix + "attn_q.weight", "attn", width, width, width**-0.5)
        matrix(prefix + "attn_k.weight", "attn", kv, width, width**-0.5)
        matrix(prefix + "attn_v.weight", "attn", kv, width, width**-0.5)
        matrix(prefix + "attn_output.weight", "attn", width, width, width**-0.5)
        norm(prefix + "ffn_norm.weight")
        matrix(prefix + "ffn_gate.weight", "ffn", model.n_ff, width, width**-0.5)
        matrix(prefix + "ffn_up.weight", "ffn", model.n_ff, width, width**-0.5)
        matrix(prefix + "ffn_down.weight", "ffn", width, model.n_ff, model.n_ff**-0.5)
    norm("output_norm.weight")
    matrix("output.weight", "output", len(texts), width, model.spread * width**-0.5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
