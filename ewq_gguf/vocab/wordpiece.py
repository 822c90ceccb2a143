"""WordPiece vocabularies of BERT-like encoders, rewritten the way llama.cpp reads them.

The rules are those of `BertModel.set_vocab` in llama.cpp's conversion/bert.py: a piece that continues a word
loses its "##", a piece that begins one gets U+2581 in front.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ewq_gguf.errors import TokenizerError
from ewq_gguf.vocab.bpe import token_table
from ewq_gguf.vocab.files import as_id
from ewq_gguf.vocab.hf import open_tokenizer
from ewq_gguf.vocab.pretokenizer import fingerprints_of, known_fingerprints
from ewq_gguf.vocab.special import read_special_tokens
from ewq_gguf.vocab.vocabulary import TokenType, Vocabulary

_CONTINUES = b"##"
_BEGINS = "\u2581".encode()
# llama.cpp splits WordPiece text by one rule whatever the name says, but it wants a name.
_ANY_NAME = "jina-v2-en"


def load_wordpiece(folder: Path, config: Mapping[str, Any], *, pre: str | None = None) -> Vocabulary:
    """The WordPiece vocabulary in `folder`'s tokenizer.json, padded to config.json's vocab_size.

    `pre` is the pre-tokenizer's name; None takes the one whose fingerprint matches.

    Raises TokenizerError when the file is missing, damaged, or not WordPiece.
    """
    tokenizer = open_tokenizer(folder, config)
    kind = tokenizer.document["model"].get("type")
    if kind != "WordPiece":
        raise TokenizerError(f"{tokenizer.file}: is a {kind!s:.40} model, not WordPiece")
    notes: list[str] = []
    tokens, types = token_table(tokenizer, config, notes)
    if pre is None:
        table = known_fingerprints()
        pre = next((table[digest] for digest in fingerprints_of(tokenizer) if digest in table), _ANY_NAME)
    size = as_id(config.get("type_vocab_size", 1), folder / "config.json", "type_vocab_size")
    vocabulary = Vocabulary(
        model="bert",
        pre=pre,
        tokens=[_rewritten(token, kind) for token, kind in zip(tokens, types)],
        types=types,
        token_type_count=size,
        notes=tuple(notes),
    )
    special = read_special_tokens(folder, config, n_vocab=len(tokens), tokenizer=tokenizer.document)
    return vocabulary.with_special(special)


def _rewritten(token: bytes, kind: int) -> bytes:
    if kind == TokenType.CONTROL:
        return token
    return token[len(_CONTINUES) :] if token.startswith(_CONTINUES) else _BEGINS + token
