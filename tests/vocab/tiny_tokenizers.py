"""Tokenizers of a few hundred tokens, made by code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from .texts import texts

QWEN2_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@cache
def _trained(regex: str) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer.to_str()


def byte_level_document(regex: str = QWEN2_REGEX) -> dict[str, Any]:
    """The content of a byte-level BPE tokenizer.json with 600 tokens that splits text by `regex`."""
    document: dict[str, Any] = json.loads(_trained(regex))
    return document


def added(token_id: int, content: str, **flags: bool) -> dict[str, Any]:
    """An entry of tokenizer.json's added_tokens."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return {"id": token_id, "content": content, **plain, **flags}


def byte_fallback_document(pieces: Sequence[str]) -> dict[str, Any]:
    """A Llama-like tokenizer.json: special tokens, byte tokens, characters, and a token per piece."""
    vocab: dict[str, int] = {}
    for token in ("<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))):
        vocab[token] = len(vocab)
    for piece in pieces:
        for character in piece:
            vocab.setdefault(character, len(vocab))
    words: list[str] = []
    for piece in pieces:
        for end in range(2, len(piece) + 1):
            if piece[:end] not in vocab:
                vocab[piece[:end]] = len(vocab)
                words.append(piece[:end])
    # Converted SentencePiece models list every way to cut a token in two.
    cuts = ((word[:i], word[i:]) for word in words for i in range(1, len(word)))
    merges = [[left, right] for left, right in cuts if left in vocab and right in vocab]
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    back = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(i, text, special=True) for i, text in enumerate(("<unk>", "<s>", "</s>"))],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, space]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, strip],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": merges,
        },
    }


def write(folder: Path, **files: object) -> Path:
    """Write JSON files (`tokenizer_config={...}` becomes tokenizer_config.json) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_vocab_and_merges(folder: Path, document: Mapping[str, Any]) -> Path:
    """Write a byte-level document as the older vocab.json and merges.txt."""
    write(folder, vocab=document["model"]["vocab"])
    lines = ["#version: 0.2", *(" ".join(pair) for pair in document["model"]["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
