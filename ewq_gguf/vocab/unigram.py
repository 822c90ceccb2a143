"""Unigram vocabularies of XLM-RoBERTa's kind: a SentencePiece model whose ids are moved by its users.

The rules are those of `_xlmroberta_set_vocab` in llama.cpp's conversion/bert.py, for sentencepiece.bpe.model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ewq_gguf.errors import TokenizerError
from ewq_gguf.vocab.files import as_id, damaged, read_bytes, vocabulary_size
from ewq_gguf.vocab.special import read_special_tokens
from ewq_gguf.vocab.spm import TokenTable, open_sentencepiece, put_pieces
from ewq_gguf.vocab.vocabulary import TokenType, Vocabulary

UNIGRAM_FILE = "sentencepiece.bpe.model"
_SPECIAL = (b"<s>", b"<pad>", b"</s>", b"<unk>")
_SPECIAL_KINDS = (TokenType.CONTROL, TokenType.CONTROL, TokenType.CONTROL, TokenType.UNKNOWN)
# Fields of a serialized SentencePiece model (sentencepiece_model.proto).
_TRAINER, _NORMALIZER = 2, 3
_MODEL_TYPE, _UNIGRAM = 3, 1
_CHARSMAP, _DUMMY_PREFIX, _EXTRA_SPACES = 2, 3, 4


def load_xlm_roberta(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of `folder`, padded to config.json's vocab_size.

    Raises TokenizerError when the file is missing, damaged, or no Unigram model.
    """
    file = folder / UNIGRAM_FILE
    processor = open_sentencepiece(file)
    data = read_bytes(file) or b""
    trainer = _message(data, _TRAINER, file)
    normalizer = _message(data, _NORMALIZER, file)
    if trainer.get(_MODEL_TYPE, _UNIGRAM) != _UNIGRAM:
        raise TokenizerError(f"{file}: is no Unigram model, which this kind of tokenizer needs")
    n_pieces = processor.vocab_size()
    table = TokenTable.padded(max(vocabulary_size(config) or 0, n_pieces))
    put_pieces(processor, file, table)
    if n_pieces < len(_SPECIAL):
        raise damaged(file, "", f"holds {n_pieces} pieces, fewer than the special ones")
    # fairseq has its own four in front, the model three, and one row behind that no piece has.
    charsmap = normalizer.get(_CHARSMAP)
    vocabulary = Vocabulary(
        model="t5",
        pre="default",
        tokens=[*_SPECIAL, *table.tokens[3:-1]],
        scores=[0.0] * len(_SPECIAL) + table.scores[3:-1],
        types=[*map(int, _SPECIAL_KINDS), *table.types[3:-1]],
        add_space_prefix=bool(normalizer.get(_DUMMY_PREFIX, 1)),
        remove_extra_whitespaces=bool(normalizer.get(_EXTRA_SPACES, 1)),
        precompiled_charsmap=charsmap if isinstance(charsmap, bytes) else None,
        token_type_count=as_id(config.get("type_vocab_size", 1), folder / "config.json", "type_vocab_size"),
    )
    return vocabulary.with_special(read_special_tokens(folder, config, n_vocab=len(vocabulary)))


def _message(data: bytes, number: int, file: Path) -> dict[int, int | bytes]:
    """The fields of the message that a serialized model holds under `number`; of repeated ones the last."""
    found = next((value for field, value in _fields(data, file) if field == number), b"")
    if not isinstance(found, bytes):
        raise damaged(file, f"field {number}", "is no message")
    return dict(_fields(found, file))


def _fields(data: bytes, file: Path) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a serialized protocol buffer: whole numbers and byte strings."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = 0
        for shift in range(0, 70, 7):
            if place >= len(data):
                break
            byte = data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise damaged(file, f"byte {place}", "ends in the middle of a number")

    while place < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(kind)
        if size is None and kind != 2:
            raise damaged(file, f"byte {place}", "is no field of a SentencePiece model")
        length = varint() if size is None else size
        if length > len(data) - place:
            raise damaged(file, f"byte {place}", "ends in the middle of a field")
        yield key >> 3, data[place : place + length]
        place += length
