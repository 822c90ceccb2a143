"""Write a tiny checkpoint as a Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.tiny.cases import Case
from tests.tiny.vocabularies import write_bpe, write_fallback_bpe, write_sentencepiece
from tests.tiny.weights import Stored, codes, noise, store, weights, write_safetensors

_GEMMA = ("<pad>", "<eos>", "<bos>", "<unk>")


def build(case: Case, folder: Path) -> Path:
    """Write config.json, model.safetensors and the tokenizer into `folder`, which is made and returned."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(case.config, indent=1), encoding="utf-8")
    _write_tokenizer(case, folder)
    tensors: dict[str, Stored] = {}
    for name, shape in case.shapes(case.config).items():
        tensors.update(_stored(case, case.prefix + name, shape))
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def _write_tokenizer(case: Case, folder: Path) -> None:
    if case.tokenizer == "spm":
        write_sentencepiece(folder)
    elif case.tokenizer == "gemma":
        write_sentencepiece(folder, _GEMMA)
    elif case.tokenizer == "gemma4":
        write_fallback_bpe(folder, (*_GEMMA, *case.added))
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
    quantization = case.config["quantization_config"]
    if case.storage == "fp8-block":
        block = quantization["weight_block_size"]
        grid = tuple(-(-n // b) for n, b in zip(shape, block))
        scale = (np.float32(0.0008) * (noise(f"{name}.scale", grid) + np.float32(1.5))).astype(np.float32)
        return {name: codes(name, shape, "F8_E4M3"), f"{name}_scale_inv": Stored("F32", scale)}
    raise ValueError(case.storage)
