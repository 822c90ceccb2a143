"""How families read tokenizer files where they differ from Llama's way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ewq_gguf.vocab import Vocabulary, has_sentencepiece, load_bpe, load_sentencepiece


def sentencepiece_or_bpe(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """tokenizer.model when there is one, else byte-level BPE.

    Raises:
        TokenizerError: the files are missing or damaged.
    """
    return load_sentencepiece(folder, config) if has_sentencepiece(folder) else load_bpe(folder, config)


def with_default_ids(vocabulary: Vocabulary, tokens: Mapping[str, str]) -> Vocabulary:
    """Special ids ("eot", ...) given by token text, where the tokenizer files name none and the token exists."""
    ids = dict(vocabulary.special_ids)
    for kind, text in tokens.items():
        if kind not in ids and text.encode() in vocabulary.tokens:
            ids[kind] = vocabulary.tokens.index(text.encode())
    return replace(vocabulary, special_ids=ids)
