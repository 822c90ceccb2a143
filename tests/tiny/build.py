"""Write a tiny checkpoint as a Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.tiny.case import Case
from tests.tiny.tiktoken import write_tiktoken
from tests.tiny.vocabularies import (
    write_bpe,
    write_fallback_bpe,
    write_phi,
    write_plamo,
    write_rwkv,
    write_sentencepiece,
    write_unigram,
    write_wordpiece,
)
from tests.tiny.weights import Stored, codes, noise, store, weights, write_safetensors

_GEMMA = ("<pad>", "<eos>", "<bos>", "<unk>")


def build(case: Case, folder: Path) -> Path:
    """Write config.json, model.safetensors and the tokenizer into `folder`, which is made and returned."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(case.config, indent=1), encoding="utf-8")
    _write_tokenizer(case, folder)
    for name, content in case.files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content), encoding="utf-8")
    tensors: dict[str, Stored] = {}
    for name, shape in case.shapes(case.config).items():
        tensors.update(_stored(case, name, shape))
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def _write_tokenizer(case: Case, folder: Path) -> None:
    if case.tokenizer == "spm":
        write_sentencepiece(folder)
    elif case.tokenizer == "phi":
        write_phi(folder)
    elif case.tokenizer == "gemma":
        write_sentencepiece(folder, _GEMMA)
    elif case.tokenizer == "gemma4":
        write_fallback_bpe(folder, (*_GEMMA, *case.added))
    elif case.tokenizer == "wordpiece":
        write_wordpiece(folder)
    elif case.tokenizer == "rwkv":
        write_rwkv(folder)
    elif case.tokenizer == "unigram":
        write_unigram(folder)
    elif case.tokenizer == "plamo":
        write_plamo(folder)
    elif "tiktoken" in case.tokenizer:
        write_tiktoken(folder / case.tokenizer)
    else:
        write_bpe(folder, case.added)
    if case.tokenizer == "gpt2":
        file = folder / "tokenizer_config.json"
        settings = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps({**settings, "tokenizer_class": "GPT2Tokenizer"}), encoding="utf-8")


def _stored(case: Case, name: str, shape: tuple[int, ...]) -> dict[str, Stored]:
    if name.endswith("_blocks"):
        return {name: codes(name, shape, "U8")}
    if name.endswith("_scales"):
        return {name: Stored("U8", (120 + 4 * noise(name, shape)).astype(np.uint8))}
    if case.storage and _is_linear(name, shape):
        return _quantized(case, name, shape)
    if name.endswith(("e_score_correction_bias", "A_log")):
        return {name: store(weights(name, shape), "F32")}
    return {name: store(weights(name, shape), case.dtype)}


def _is_linear(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and name.endswith("_proj.weight")


def _quantized(case: Case, name: str, shape: tuple[int, ...]) -> dict[str, Stored]:
    rows, columns = shape
    if case.storage == "fp8-sliced":
        # Four slices, each with blocks of 128 rows of its own.
        grid = (4 * -(-rows // 4 // 128) if "qkv" in name else -(-rows // 128), -(-columns // 128))
        return {name: codes(name, shape, "F8_E4M3"), f"{name}_scale_inv": _scales(name, grid, 0.0008)}
    if case.storage == "mxfp4-experts":
        if ".experts." not in name:
            return {name: store(weights(name, shape), case.dtype)}
        exponents = (120 + 2 * noise(f"{name}.scale", (rows, columns // 32))).astype(np.uint8)
        return {
            name: codes(name, (rows, columns // 2), "U8"),
            f"{name}_scale": Stored("U8", exponents),
        }
    if case.storage == "fp8-block":
        block = case.config["quantization_config"]["weight_block_size"]
        grid = tuple(-(-n // b) for n, b in zip(shape, block))
        return {name: codes(name, shape, "F8_E4M3"), f"{name}_scale_inv": _scales(name, grid, 0.0008)}
    if case.storage == "fp8-tensor":
        activation = f"{name.removesuffix('.weight')}.activation_scale"
        return {
            name: codes(name, shape, "F8_E4M3"),
            f"{name}_scale_inv": _scales(name, (), 0.0008, "BF16"),
            activation: _scales(activation, (), 1.0, "BF16"),
        }
    if case.storage in ("fp8-channel", "int8-channel"):
        dtype, size = ("F8_E4M3", 0.0008) if case.storage == "fp8-channel" else ("I8", 0.002)
        return {name: codes(name, shape, dtype), f"{name}_scale": _scales(name, (rows, 1), size, "BF16")}
    group = case.config["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"]
    groups = -(-columns // group)
    stored = {
        f"{name}_packed": codes(name, (rows, -(-columns // 8)), "I32"),
        f"{name}_scale": _scales(name, (rows, groups), 0.03, "BF16"),
        f"{name}_shape": Stored("I64", np.array(shape, dtype="<i8")),
    }
    if case.storage == "int4-zero":
        stored[f"{name}_zero_point"] = codes(f"{name}.zero", (-(-rows // 8), groups), "I32")
    return stored


def _scales(name: str, shape: tuple[int, ...], size: float, dtype: str = "F32") -> Stored:
    return store(np.float32(size) * (noise(f"{name}.scale", shape) + np.float32(1.5)), dtype)
