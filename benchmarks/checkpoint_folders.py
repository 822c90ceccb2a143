"""Hugging Face folders of two families, written from a GGUF file's metadata and float64 weights."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ewq_gguf.checkpoint.gguf_file import GGUFFile

Weights = dict[str, npt.NDArray[np.float64]]

_HF = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
}


def write_safetensors(path: Path, tensors: Weights, as_f32: bool = False) -> None:
    """Write tensors as bf16 (rounded to nearest even) or F32, in name order."""
    header: dict[str, Any] = {}
    at = 0
    for name in sorted(tensors):
        nbytes = tensors[name].size * (4 if as_f32 else 2)
        dtype = "F32" if as_f32 else "BF16"
        header[name] = {"dtype": dtype, "shape": list(tensors[name].shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(tensors):
            values = tensors[name].astype("<f4")
            if as_f32:
                out.write(values.tobytes())
            else:
                bits = values.view("<u4")
                out.write(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes())


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


def _text(token: str | bytes) -> str:
    return token if isinstance(token, str) else token.decode("utf-8", "replace")


def _unpermute(rows: npt.NDArray[np.float64], n_head: int) -> npt.NDArray[np.float64]:
    """Undo llama.cpp's interleaving of each head's two halves."""
    return rows.reshape(n_head, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def write_smollm2(file: GGUFFile, weights: Weights, folder: Path) -> None:
    """A LlamaForCausalLM folder with a byte-level BPE tokenizer.json."""
    key = lambda name: file.value(f"llama.{name}")  # noqa: E731
    n_head, n_head_kv = key("attention.head_count"), key("attention.head_count_kv")
    tensors: Weights = {
        "model.embed_tokens.weight": weights["token_embd.weight"],
        "model.norm.weight": weights["output_norm.weight"],
    }
    for b in range(key("block_count")):
        for ours, theirs in {**_HF, "ffn_norm": "post_attention_layernorm"}.items():
            value = weights[f"blk.{b}.{ours}.weight"]
            if ours in ("attn_q", "attn_k"):
                value = _unpermute(value, n_head if ours == "attn_q" else n_head_kv)
            tensors[f"model.layers.{b}.{theirs}.weight"] = value
    write_safetensors(folder / "model.safetensors", tensors)
    bos, eos = file.value("tokenizer.ggml.bos_token_id"), file.value("tokenizer.ggml.eos_token_id")
    _write_json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "torch_dtype": "bfloat16",
            "vocab_size": key("vocab_size"),
            "hidden_size": key("embedding_length"),
            "intermediate_size": key("feed_forward_length"),
            "num_hidden_layers": key("block_count"),
            "num_attention_heads": n_head,
            "num_key_value_heads": n_head_kv,
            "max_position_embeddings": key("context_length"),
            "rms_norm_eps": 1e-5,
            "rope_theta": key("rope.freq_base"),
            "tie_word_embeddings": True,
            "bos_token_id": bos,
            "eos_token_id": eos,
        },
    )
    tokens = [_text(t) for t in file.value("tokenizer.ggml.tokens")]
    kinds = file.value("tokenizer.ggml.token_type")
    added = [
        {"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for i, (t, kind) in enumerate(zip(tokens, kinds))
        if kind == 3
    ]  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    _write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
            "post_processor": None,
            "decoder": {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": True,
                "use_regex": True,
            },
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "vocab": {t: i for i, t in enumerate(tokens)},
                "merges": [_text(m) for m in file.value("tokenizer.ggml.merges")],
            },
        },
    )
    _write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "bos_token": tokens[bos],
            "eos_token": tokens[eos],
            "pad_token": tokens[file.value("tokenizer.ggml.padding_token_id")],
            "unk_token": tokens[file.value("tokenizer.ggml.unknown_token_id")],
            "chat_template": file.value("tokenizer.chat_template"),
            "tokenizer_class": "GPT2Tokenizer",
        },
    )


def _field(number: int, payload: bytes | int | float) -> bytes:
    """One protobuf field: bytes length-delimited, int as varint, float as fixed 32."""
    if isinstance(payload, float):
        return _varint(number << 3 | 5) + struct.pack("<f", payload)
    if isinstance(payload, int):
        return _varint(number << 3) + _varint(payload)
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def sentencepiece_model(file: GGUFFile) -> bytes:
    """A SentencePiece BPE model (sentencepiece_model.proto) from a GGUF vocabulary without a dummy prefix."""
    pieces = []
    kinds = file.value("tokenizer.ggml.token_type")
    for token, score, kind in zip(
        file.value("tokenizer.ggml.tokens"), file.value("tokenizer.ggml.scores"), kinds
    ):
        # The converter writes user-defined spaces as spaces; SentencePiece keeps its own sign for them.
        text = _text(token).replace(" ", "\u2581") if kind == 4 else _text(token)
        pieces.append(_field(1, _field(1, text.encode()) + _field(2, float(score)) + _field(3, int(kind))))
    ids = [file.value(f"tokenizer.ggml.{name}_token_id") for name in ("unknown", "bos", "eos", "padding")]
    trainer = _field(3, 2) + _field(4, len(pieces)) + _field(35, 1)
    trainer += b"".join(_field(number, i) for number, i in zip((40, 41, 42, 43), ids))
    normalizer = _field(1, b"identity") + _field(3, 0) + _field(4, 0) + _field(5, 1)
    return b"".join(pieces) + _field(2, trainer) + _field(3, normalizer)


def write_gemma3(file: GGUFFile, weights: Weights, folder: Path) -> None:
    """A Gemma3ForCausalLM folder with a SentencePiece tokenizer.model; norms are stored as offsets from one."""
    key = lambda name: file.value(f"gemma3.{name}")  # noqa: E731
    names = {
        **_HF,
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    }
    tensors: Weights = {
        "model.embed_tokens.weight": weights["token_embd.weight"],
        "model.norm.weight": weights["output_norm.weight"] - 1,
    }
    for b in range(key("block_count")):
        for ours, theirs in names.items():
            value = weights[f"blk.{b}.{ours}.weight"]
            tensors[f"model.layers.{b}.{theirs}.weight"] = value - 1 if ours.endswith("norm") else value
    write_safetensors(folder / "model.safetensors", tensors)
    tokens = file.value("tokenizer.ggml.tokens")
    _write_json(
        folder / "config.json",
        {
            "architectures": ["Gemma3ForCausalLM"],
            "model_type": "gemma3_text",
            "torch_dtype": "bfloat16",
            "vocab_size": len(tokens),
            "hidden_size": key("embedding_length"),
            "intermediate_size": key("feed_forward_length"),
            "num_hidden_layers": key("block_count"),
            "num_attention_heads": key("attention.head_count"),
            "num_key_value_heads": key("attention.head_count_kv"),
            "head_dim": key("attention.key_length"),
            "query_pre_attn_scalar": key("attention.key_length"),
            "max_position_embeddings": key("context_length"),
            "rms_norm_eps": 1e-6,
            "rope_theta": key("rope.freq_base"),
            "rope_local_base_freq": 10000.0,
            "sliding_window": key("attention.sliding_window"),
            "sliding_window_pattern": 6,
            "hidden_activation": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
            "bos_token_id": file.value("tokenizer.ggml.bos_token_id"),
            "eos_token_id": file.value("tokenizer.ggml.eos_token_id"),
            "pad_token_id": file.value("tokenizer.ggml.padding_token_id"),
        },
    )
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(file))
    _write_json(
        folder / "tokenizer_config.json",
        {"add_bos_token": True, "add_eos_token": False, "tokenizer_class": "GemmaTokenizer"},
    )
