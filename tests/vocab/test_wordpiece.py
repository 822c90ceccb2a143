"""WordPiece vocabularies, on one made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from ewq_gguf.errors import TokenizerError
from ewq_gguf.vocab import TokenType, load_bpe, load_wordpiece

from .gguf_vocab import open_vocab, write_vocab_only
from .tiny_tokenizers import added, byte_level_document, write

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("the", "##s", "##ing", "walk", "talk", "!", ",", "caf", "##e", "t", "##a", "w")


def document() -> dict[str, Any]:
    vocab = {token: index for index, token in enumerate((*SPECIAL, *WORDS))}
    cls, sep = ({"SpecialToken": {"id": name, "type_id": 0}} for name in ("[CLS]", "[SEP]"))
    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "version": "1.0",
        "added_tokens": [added(index, token, special=True) for index, token in enumerate(SPECIAL)],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [cls, a, sep],
            "pair": [cls, a, sep, b, sep],
            "special_tokens": {
                name: {"id": name, "ids": [vocab[name]], "tokens": [name]} for name in ("[CLS]", "[SEP]")
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocab,
        },
    }


def test_pieces_are_rewritten(tmp_path: Path) -> None:
    settings = {"tokenizer_class": "BertTokenizer", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    folder = write(tmp_path, tokenizer=document(), tokenizer_config=settings)
    vocabulary = load_wordpiece(folder, {"vocab_size": 18, "type_vocab_size": 2})
    assert vocabulary.tokens[:8] == [*(text.encode() for text in SPECIAL), "\u2581the".encode(), b"s", b"ing"]
    assert vocabulary.types[:5] == [TokenType.CONTROL] * 5
    assert vocabulary.types[-1] == TokenType.UNUSED
    assert vocabulary.special_ids == {"bos": 2, "eos": 3, "sep": 3, "cls": 2}
    assert vocabulary.add_special == {"bos": True, "eos": True, "sep": False}
    assert (vocabulary.model, vocabulary.token_type_count) == ("bert", 2)
    assert (vocabulary.normalizer_lowercase, vocabulary.normalizer_strip_accents) == (True, None)


def test_llama_cpp_gives_the_same_ids(tmp_path: Path) -> None:
    settings = {"tokenizer_class": "BertTokenizer", "unk_token": "[UNK]"}
    folder = write(tmp_path, tokenizer=document(), tokenizer_config=settings)
    path = tmp_path / "vocab.gguf"
    write_vocab_only(path, load_wordpiece(folder, {}))
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    cases = ["The walks, talking!", "walking the talk", "cafes", "", "the xyz the", "ta"]
    with open_vocab(path) as tokenizer:
        for text in cases:
            assert tokenizer.encode(text) == original.encode(text, add_special_tokens=False).ids, text


def test_each_loader_refuses_the_others_kind(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="BPE model, not WordPiece"):
        load_wordpiece(write(tmp_path / "a", tokenizer=byte_level_document()), {})
    with pytest.raises(TokenizerError, match="WordPiece model, not byte-level BPE"):
        load_bpe(write(tmp_path / "b", tokenizer=document()), {})
