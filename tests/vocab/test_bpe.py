"""Byte-level BPE and byte-fallback BPE vocabularies, on tokenizers made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from ewq_gguf.errors import TokenizerError
from ewq_gguf.vocab import TokenType, is_llama_hf, load_bpe, load_llama_hf, load_vocabulary

from .gguf_vocab import open_vocab, write_vocab_only
from .texts import texts
from .tiny_tokenizers import (
    added,
    byte_fallback_document,
    byte_level_document,
    write,
    write_vocab_and_merges,
)


def folder_with_added_tokens(path: Path) -> Path:
    document = byte_level_document()
    document["added_tokens"] = [
        added(600, "<|endoftext|>", special=True),
        added(601, "<|tool|>"),
        added(602, "<think>", normalized=True),
        added(603, "\u2581end\u2581"),
    ]
    settings = {"eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    return write(path, tokenizer=document, tokenizer_config=settings)


def test_tokens_types_and_padding(tmp_path: Path) -> None:
    vocabulary = load_bpe(folder_with_added_tokens(tmp_path), {"vocab_size": 606})
    by_id = {i: token for token, i in byte_level_document()["model"]["vocab"].items()}
    assert vocabulary.tokens[:600] == [by_id[i].encode() for i in range(600)]
    assert vocabulary.tokens[600:] == [
        *(b"<|endoftext|>", b"<|tool|>", b"<think>", b" end "),
        *(b"[PAD604]", b"[PAD605]"),
    ]
    control, user = TokenType.CONTROL, TokenType.USER_DEFINED
    assert vocabulary.types[:600] == [TokenType.NORMAL] * 600
    assert vocabulary.types[600:] == [control, control, user, user, TokenType.UNUSED, TokenType.UNUSED]
    assert (vocabulary.model, vocabulary.pre, vocabulary.scores) == ("gpt2", "qwen2", None)
    assert vocabulary.special_ids == {"eos": 600}
    assert vocabulary.add_special == {"bos": False, "eos": False}


def test_merges_keep_their_order(tmp_path: Path) -> None:
    vocabulary = load_bpe(folder_with_added_tokens(tmp_path), {})
    assert vocabulary.merges == [" ".join(pair) for pair in byte_level_document()["model"]["merges"]]


def test_merges_as_texts_are_the_same(tmp_path: Path) -> None:
    document = byte_level_document()
    pairs = load_bpe(write(tmp_path / "a", tokenizer=document), {})
    document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]
    assert load_bpe(write(tmp_path / "b", tokenizer=document), {}).merges == pairs.merges


def test_a_space_in_a_merge_is_spelled_as_byte_level_bpe_does(tmp_path: Path) -> None:
    document = byte_level_document()
    vocab = document["model"]["vocab"]
    vocab.update({" ": 600, "a ": 601})
    document["model"]["merges"].append(["a", " "])
    assert load_bpe(write(tmp_path, tokenizer=document), {}).merges[-1] == "a \u0120"


def test_llama_cpp_gives_the_same_ids(tmp_path: Path) -> None:
    folder = folder_with_added_tokens(tmp_path)
    path = tmp_path / "vocab.gguf"
    write_vocab_only(path, load_bpe(folder, {"vocab_size": 606}))
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    cases = [*texts(), "a <think>b</think> <|endoftext|>c<|tool|>"]
    with open_vocab(path) as tokenizer:
        wrong = [text for text in cases if tokenizer.encode(text) != original.encode(text).ids]
    assert wrong == []


def test_vocab_and_merges_files_give_what_tokenizer_json_gives(tmp_path: Path) -> None:
    settings = {"tokenizer_class": "Qwen2Tokenizer", "unk_token": None, "eos_token": None, "pad_token": None}
    document = byte_level_document()
    new = load_bpe(write(tmp_path / "new", tokenizer=document, tokenizer_config=settings), {})
    old_folder = write_vocab_and_merges(tmp_path / "old", document)
    old = load_bpe(write(old_folder, tokenizer_config=settings), {})
    assert (old.tokens, old.types, old.merges, old.pre) == (new.tokens, new.types, new.merges, new.pre)


def test_a_named_special_token_without_an_id_is_appended(tmp_path: Path) -> None:
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<|pad|>"}
    folder = write(tmp_path, tokenizer=byte_level_document(), tokenizer_config=settings)
    vocabulary = load_bpe(folder, {"vocab_size": 601})
    assert (vocabulary.tokens[600], vocabulary.types[600]) == (b"<|pad|>", TokenType.CONTROL)
    short = load_bpe(folder, {"vocab_size": 600})
    assert len(short) == 600
    assert "added tokens from id 600" in short.notes[0]


@pytest.mark.parametrize(
    "extra",
    [
        {"additional_special_tokens": ["<a>", "<b>"]},
        {"extra_special_tokens": ["<a>", "<b>"]},
        {"extra_special_tokens": {"image_token": "<a>", "audio_token": "<b>"}},
    ],
)
def test_further_special_tokens_however_they_are_listed(tmp_path: Path, extra: dict[str, Any]) -> None:
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **extra}
    vocabulary = load_bpe(write(tmp_path, tokenizer=byte_level_document(), tokenizer_config=settings), {})
    assert vocabulary.tokens[600:] == [b"<a>", b"<b>"]
    assert vocabulary.types[600:] == [TokenType.CONTROL] * 2


def test_added_tokens_decoder_overrides_flags(tmp_path: Path) -> None:
    document = byte_level_document()
    document["added_tokens"] = [added(600, "<x>")]
    decoder = {"600": {key: value for key, value in added(600, "<x>", special=True).items() if key != "id"}}
    folder = write(tmp_path, tokenizer=document, tokenizer_config={"added_tokens_decoder": decoder})
    assert load_bpe(folder, {}).types[600] == TokenType.CONTROL


def test_a_token_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, tokenizer=byte_level_document())
    with pytest.raises(TokenizerError, match=r"id 599, but config.json says vocab_size 500"):
        load_bpe(folder, {"vocab_size": 500})


def test_no_files_at_all(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="copy the model's tokenizer files"):
        load_vocabulary(tmp_path, {})


PIECES = ("\u2581the", "\u2581and", "\u2581token", "ing", "\u2581a", "\n", "\u2581\u2581")


def llama_folder(path: Path) -> Path:
    document = byte_fallback_document(PIECES)
    size = len(document["model"]["vocab"])
    document["added_tokens"] += [added(size, "<pad>", special=True), added(size + 1, "<tool>")]
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return write(path, tokenizer=document, tokenizer_config={"tokenizer_class": "LlamaTokenizer", **names})


def test_byte_fallback_types(tmp_path: Path) -> None:
    folder = llama_folder(tmp_path)
    assert is_llama_hf(folder)
    vocabulary = load_llama_hf(folder, {})
    types = vocabulary.types
    assert types[:3] == [TokenType.CONTROL] * 3
    assert types[3:259] == [TokenType.BYTE] * 256
    assert set(types[259:-2]) == {TokenType.NORMAL}
    assert types[-2:] == [TokenType.CONTROL, TokenType.USER_DEFINED]
    assert vocabulary.tokens[-2:] == [b"<pad>", b"<tool>"]
    assert vocabulary.special_ids == {"bos": 1, "eos": 2, "unk": 0, "pad": len(vocabulary) - 2}


def test_the_choice_between_the_loaders(tmp_path: Path) -> None:
    fallback = llama_folder(tmp_path / "a")
    assert load_vocabulary(fallback, {}).model == "llama"
    byte_level = write(tmp_path / "b", tokenizer=byte_level_document())
    assert not is_llama_hf(byte_level)
    assert load_vocabulary(byte_level, {}).model == "gpt2"


@pytest.mark.parametrize(
    ("settings", "config", "expected"),
    [
        ({"add_prefix_space": False}, {}, {"add_space_prefix": False}),
        ({}, {"vocab_size": 49152}, {"add_special": {"bos": False, "eos": False}}),
        (
            {},
            {"vocab_size": 32016},
            {"special_ids": {"prefix": 32007, "suffix": 32008, "middle": 32009, "eot": 32010}},
        ),
    ],
)
def test_what_llama_models_add(
    tmp_path: Path, settings: dict[str, Any], config: dict[str, Any], expected: dict[str, Any]
) -> None:
    folder = write(tmp_path, tokenizer=byte_level_document(), tokenizer_config=settings)
    vocabulary = load_vocabulary(folder, config)
    for name, value in expected.items():
        assert getattr(vocabulary, name) == value
