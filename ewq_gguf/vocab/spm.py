"""SentencePiece vocabularies: tokenizer.model with the files that add tokens to it.

The rules are those of `_create_vocab_sentencepiece` in llama.cpp's conversion/base.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from ewq_gguf.errors import TokenizerError
from ewq_gguf.vocab.files import (
    as_id,
    as_mapping,
    as_text,
    damaged,
    encode,
    read_bytes,
    read_object,
    vocabulary_size,
)
from ewq_gguf.vocab.special import read_special_tokens
from ewq_gguf.vocab.vocabulary import TokenType, Vocabulary

_PAD_SCORE = -10000.0
_ADDED_SCORE = -1000.0
_SPACE_MARK = "\u2581"
_SPECIAL_LOOK = re.compile(r"<\|.*\|>|<\uff5c.*\uff5c>|<unused.*>", re.DOTALL)
_SPECIAL_NAMES = frozenset({"<pad>", "<mask>", "<2mass>", "[@BOS@]"})


def looks_special(token: str) -> bool:
    """Whether a token is a control token by its look alone; several models forget to mark theirs
    (`does_token_look_special` in llama.cpp's conversion/base.py)."""
    if token in _SPECIAL_NAMES:
        return True
    # "<|>" starts and ends with the marks although they overlap.
    return _SPECIAL_LOOK.fullmatch(token) is not None or token in ("<|>", "<\uff5c>")


def has_sentencepiece(folder: Path) -> bool:
    """Whether `folder` holds a SentencePiece tokenizer.model."""
    return (folder / "tokenizer.model").is_file()


def load_sentencepiece(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """The SentencePiece vocabulary of `folder` (tokenizer.model, added_tokens.json, tokenizer_config.json),
    padded to config.json's vocab_size.

    Raises TokenizerError when there is no tokenizer.model (ask `has_sentencepiece` first) or a file is
    damaged.
    """
    table = read_sentencepiece_table(folder, config)
    vocabulary = Vocabulary(
        model="llama",
        pre="default",
        tokens=table.tokens,
        scores=table.scores,
        types=table.types,
        notes=tuple(table.notes),
        overruled=_overruled(folder, len(table.tokens)),
    )
    return vocabulary.with_special(read_special_tokens(folder, config, n_vocab=len(table.tokens)))


def _overruled(folder: Path, size: int) -> tuple[int, ...]:
    """Ids that added_tokens.json names alone: a tokenizer reads that file only where nothing newer lists its tokens
    (`PreTrainedTokenizerBase._from_pretrained` in transformers 4.57)."""
    settings_file, file = folder / "tokenizer_config.json", folder / "added_tokens.json"
    listed = (read_object(settings_file) or {}).get("added_tokens_decoder")
    if listed is None:
        return ()
    found = {
        text: as_id(value, file, f"the id of {text!r:.60}")
        for text, value in (read_object(file) or {}).items()
    }
    ids = {token_id for token_id in found.values() if token_id < size and str(token_id) not in listed}
    if not ids:
        return ()
    added = (read_object(folder / "tokenizer.json") or {}).get("added_tokens")
    entries = added if isinstance(added, list) else []
    known = {entry.get("content") for entry in entries if isinstance(entry, dict)}
    return tuple(sorted(ids - {token_id for text, token_id in found.items() if text in known}))


@dataclass(frozen=True)
class TokenTable:
    """Tokens, scores and types by id, while they are being filled in."""

    tokens: list[bytes]
    scores: list[float]
    types: list[int]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def padded(cls, size: int) -> TokenTable:
        return cls([b"[PAD%d]" % i for i in range(size)], [_PAD_SCORE] * size, [int(TokenType.UNUSED)] * size)

    def put(self, token_id: int, token: bytes, score: float, kind: TokenType) -> None:
        self.tokens[token_id] = token
        self.scores[token_id] = score
        self.types[token_id] = int(kind)


def read_sentencepiece_table(folder: Path, config: Mapping[str, Any]) -> TokenTable:
    """Tokens, scores and types of tokenizer.model with the tokens added by the other files."""
    file = folder / "tokenizer.model"
    processor = open_sentencepiece(file)
    n_pieces = processor.vocab_size()
    size = vocabulary_size(config, ("vocab_size_per_layer_input", "vocab_size")) or n_pieces
    table = TokenTable.padded(size)
    if n_pieces > size:
        table.notes.append(f"{file}: {n_pieces - size} pieces beyond the model's {size} tokens were left out")
    put_pieces(processor, file, table)
    _add_from_added_tokens(folder / "added_tokens.json", table)
    _add_from_tokenizer_config(folder / "tokenizer_config.json", table)
    return table


def put_pieces(processor: SentencePieceProcessor, file: Path, table: TokenTable) -> None:
    """Put the model's pieces into the table, as many as it has room for; TokenizerError when one is damaged."""
    for token_id in range(min(processor.vocab_size(), len(table.tokens))):
        try:
            piece = encode(processor.IdToPiece(token_id), file, f"piece {token_id}")
        except UnicodeDecodeError as error:
            raise damaged(file, f"piece {token_id}", "is not valid UTF-8") from error
        score = processor.GetScore(token_id)
        if not math.isfinite(score):
            raise damaged(file, f"piece {token_id}", f"has the score {score}")
        table.put(token_id, piece, score, _piece_type(processor, token_id))


def open_sentencepiece(file: Path) -> SentencePieceProcessor:
    """The SentencePiece model in `file`; TokenizerError when it is missing or not one."""
    data = read_bytes(file)
    if data is None:
        raise TokenizerError(f"{file}: there is no such file; a SentencePiece tokenizer needs it")
    if data.startswith(b"version https://git-lfs"):
        raise TokenizerError(
            f"{file}: is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"
        )
    processor = SentencePieceProcessor()
    try:
        loaded = processor.LoadFromSerializedProto(data)
    except (RuntimeError, OSError, ValueError) as error:
        raise damaged(file, "", "is not a SentencePiece model") from error
    if not loaded or processor.vocab_size() <= 0:
        raise damaged(file, "", "is not a SentencePiece model")
    return processor


def _piece_type(processor: SentencePieceProcessor, token_id: int) -> TokenType:
    if processor.IsUnknown(token_id):
        return TokenType.UNKNOWN
    if processor.IsControl(token_id):
        return TokenType.CONTROL
    if processor.IsUnused(token_id):
        return TokenType.UNUSED
    if processor.IsByte(token_id):
        return TokenType.BYTE
    return TokenType.NORMAL


def _add_from_added_tokens(file: Path, table: TokenTable) -> None:
    seen: dict[int, str] = {}
    for token, value in (read_object(file) or {}).items():
        token_id = as_id(value, file, f"the id of {token!r:.60}")
        if seen.setdefault(token_id, token) != token:
            raise damaged(file, f"id {token_id}", f"is given to {seen[token_id]!r:.60} and to {token!r:.60}")
        if _outside(token_id, table, file):
            continue
        table.put(
            token_id,
            encode(token, file, f"the token of id {token_id}"),
            _ADDED_SCORE,
            TokenType.USER_DEFINED,
        )


def _add_from_tokenizer_config(file: Path, table: TokenTable) -> None:
    added = (read_object(file) or {}).get("added_tokens_decoder")
    if added is None:
        return
    for key, value in as_mapping(added, file, "added_tokens_decoder").items():
        place = f"added_tokens_decoder[{key!r:.24}]"
        if re.fullmatch(r"[0-9]{1,9}", key) is None:
            raise damaged(file, place, "is not a token id")
        token_id = as_id(int(key), file, place)
        entry = as_mapping(value, file, place)
        token = as_text(entry.get("content"), file, f"{place}.content")
        if _outside(token_id, table, file):
            continue
        if entry.get("special") or looks_special(token):
            kind = TokenType.CONTROL
        else:
            kind = TokenType.USER_DEFINED
            token = token.replace(_SPACE_MARK, " ")
        table.put(token_id, encode(token, file, place), _ADDED_SCORE, kind)


def _outside(token_id: int, table: TokenTable, file: Path) -> bool:
    if token_id < len(table.tokens):
        return False
    table.notes.append(
        f"{file}: token id {token_id} is beyond the model's {len(table.tokens)} tokens, left out"
    )
    return True
