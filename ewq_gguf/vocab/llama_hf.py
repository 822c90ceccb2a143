"""SentencePiece-like BPE with byte fallback that comes only as tokenizer.json (TinyLlama and its like).

The rules are those of `LlamaHfVocab` in llama.cpp's gguf-py/gguf/vocab.py and `_set_vocab_llama_hf` in
conversion/base.py; beyond them, the vocabulary is padded to config.json's vocab_size, without which
llama.cpp would refuse the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ewq_gguf.errors import TokenizerError
from ewq_gguf.vocab.files import as_mapping, encode, read_object, vocabulary_size
from ewq_gguf.vocab.hf import open_tokenizer
from ewq_gguf.vocab.special import read_special_tokens
from ewq_gguf.vocab.vocabulary import TokenType, Vocabulary

_SCORE = -1000.0
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def is_llama_hf(folder: Path) -> bool:
    """Whether tokenizer.json in `folder` is BPE with byte fallback, decoded by a sequence of steps.

    Raises TokenizerError when the file is damaged.
    """
    file = folder / "tokenizer.json"
    document = read_object(file)
    if document is None:
        return False
    model = as_mapping(document.get("model"), file, "model")
    decoder = document.get("decoder")
    return (
        model.get("type") == "BPE"
        and model.get("byte_fallback") is True
        and isinstance(decoder, dict)
        and decoder.get("type") == "Sequence"
    )


def load_llama_hf(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a tokenizer.json that stands in for a SentencePiece model.

    As llama.cpp's converter does, every token gets the same score; see `vocab.faithful` for what that costs.

    Raises TokenizerError when there is none of that kind (ask `is_llama_hf` first) or a file is damaged.
    """
    if not is_llama_hf(folder):
        raise TokenizerError(f"{folder / 'tokenizer.json'}: is no BPE tokenizer with byte fallback")
    tokenizer = open_tokenizer(folder, config)
    special_ids = {tokenizer.vocab[text] for text in tokenizer.special if text in tokenizer.vocab}
    by_id = {token_id: token for token, token_id in tokenizer.vocab.items()}
    size = vocabulary_size(config) or len(by_id)
    tokens: list[bytes] = []
    types: list[int] = []
    notes: list[str] = []
    highest = max(by_id, default=-1)
    if highest >= size:
        notes.append(
            f"{tokenizer.file}: tokens with ids from {size} to {highest} are beyond the model's {size} tokens, left out"
        )
    for token_id in range(size):
        token = by_id.get(token_id)
        if token is None:
            tokens.append(b"[PAD%d]" % token_id)
            types.append(int(TokenType.UNUSED))
            continue
        tokens.append(encode(token, tokenizer.file, f"token {token_id}"))
        types.append(int(_type(token, token_id, token_id in special_ids, tokenizer.base_size)))
    vocabulary = Vocabulary(
        model="llama",
        pre="default",
        tokens=tokens,
        types=types,
        scores=[_SCORE] * size,
        notes=tuple(notes),
        origin=tokenizer,
    )
    special = read_special_tokens(folder, config, n_vocab=len(tokens), tokenizer=tokenizer.document)
    return vocabulary.with_special(special)


def _type(token: str, token_id: int, special: bool, base_size: int) -> TokenType:
    if token_id < base_size and _BYTE.fullmatch(token):
        return TokenType.BYTE
    if special:
        return TokenType.CONTROL
    return TokenType.NORMAL if token_id < base_size else TokenType.USER_DEFINED
