"""Metadata for the tokenizer's own ids: each deviation from the converter, and what llama.cpp cannot do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from ewq_gguf.vocab import (
    TokenType,
    Vocabulary,
    faithful,
    limits,
    load_bpe,
    load_llama_hf,
    load_sentencepiece,
    load_vocabulary,
)
from ewq_gguf.vocab.pretokenizer import rules

from .gguf_vocab import open_vocab, write_vocab_only
from .test_pretokenizer import NO_REGEX_STEP, split, steps_document
from .tiny_tokenizers import added, byte_fallback_document, byte_level_document, write

MERGED = ("\u2581tea", "\u2581the", "the", "\u2581tt", "ea", "hea")
IDS = {"bos_token_id": 1, "eos_token_id": 2}


def ids(folder: Path, vocabulary: Vocabulary, texts: list[str]) -> list[list[int]]:
    path = folder / "vocab.gguf"
    write_vocab_only(path, vocabulary)
    with open_vocab(path) as tokenizer:
        return [tokenizer.encode(text) for text in texts]


@pytest.mark.parametrize("prepend", [True, False])
def test_merge_order_and_the_space_before_the_text(tmp_path: Path, prepend: bool) -> None:
    document = byte_fallback_document(MERGED)
    if not prepend:
        document["normalizer"] = document["normalizer"]["normalizers"][1]
    folder = write(tmp_path, tokenizer=document)
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    cases = ["the tea", "theathe tthe", " the", "tea\nthe heat", "ätheä", "🦙 tea"]
    wanted = [original.encode(text).ids for text in cases]
    converters = load_vocabulary(folder, IDS)
    assert converters.scores == [-1000.0] * len(converters)
    assert converters.add_space_prefix is None
    assert ids(tmp_path, converters, cases) != wanted
    ours = faithful(converters)
    assert ours.add_space_prefix is prepend
    assert ids(tmp_path, ours, cases) == wanted
    assert "order of its merges" in ours.notes[-1]


def test_a_setting_of_the_space_before_the_text_stays(tmp_path: Path) -> None:
    settings = {"add_prefix_space": False}
    folder = write(tmp_path, tokenizer=byte_fallback_document(MERGED), tokenizer_config=settings)
    assert faithful(load_vocabulary(folder, IDS)).add_space_prefix is False


def gpt_4o_folder(path: Path) -> Path:
    rule = next(rule for rule in rules() if rule.name == "gpt-4o")
    return write(path, tokenizer=byte_level_document(rule.forms[0][0]))


def test_splitting_takes_the_rule_that_comes_closest(tmp_path: Path) -> None:
    folder = gpt_4o_folder(tmp_path)
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    cases = ["हिन्दी में एक", "ภาษาไทย", "re\u0301sume\u0301", "\u0645\u064e\u0631\u0652"]
    wanted = [original.encode(text).ids for text in cases]
    converters = load_bpe(folder, {})
    assert converters.pre == "gpt-4o"
    ours = faithful(converters)
    assert ours.pre == "granite-embed-multi-97m"
    assert "--tokenizer converter" in ours.notes[-1]
    assert ids(tmp_path, converters, cases) != wanted
    assert ids(tmp_path, ours, cases) == wanted
    (note,) = limits(ours)
    assert "granite-embed-multi-97m only comes close: it cuts out ' fooÉtat'" in note


def test_a_named_pre_tokenizer_stays(tmp_path: Path) -> None:
    vocabulary = load_bpe(gpt_4o_folder(tmp_path), {}, pre="gpt-4o")
    assert faithful(vocabulary, keep_pre=True).pre == "gpt-4o"


def test_what_is_exact_stays(tmp_path: Path) -> None:
    folder = write(tmp_path, tokenizer=byte_level_document())
    vocabulary = load_bpe(folder, {}, pre="stablelm2")
    assert faithful(vocabulary) is vocabulary
    assert limits(vocabulary) == ()


def llama3_document() -> dict[str, Any]:
    return steps_document(split(rules()[0].forms[0][0]), NO_REGEX_STEP)


def test_words_are_taken_whole_where_the_tokenizer_says_so(tmp_path: Path) -> None:
    document = llama3_document()
    document["model"]["ignore_merges"] = True
    folder = write(tmp_path, tokenizer=document)
    ours = faithful(load_bpe(folder, {}, pre="smaug-bpe"))
    assert ours.pre == "glm4"
    assert "take whole the words" in ours.notes[-1]


def test_a_file_silent_about_whole_words_keeps_the_converters_name(tmp_path: Path) -> None:
    folder = write(tmp_path, tokenizer=llama3_document())
    vocabulary = load_bpe(folder, {}, pre="llama-bpe")
    assert faithful(vocabulary) is vocabulary


@pytest.mark.parametrize("form", ["NFC", "NFKC", "NFD", "NFKD"])
def test_a_normalizer_is_a_limit(tmp_path: Path, form: str) -> None:
    document = byte_level_document()
    document["normalizer"] = {"type": "Sequence", "normalizers": [{"type": form}]}
    folder = write(tmp_path, tokenizer=document)
    vocabulary = faithful(load_bpe(folder, {}))
    (note,) = limits(vocabulary)
    assert f"its {form} normalizer" in note
    original = Tokenizer.from_str(json.dumps(document))
    text = "re\u0301sume\u0301 é ﬁ"
    assert original.normalizer is not None
    wanted = original.encode(text).ids
    given = ids(tmp_path, vocabulary, [text, original.normalizer.normalize_str(text)])
    assert given[0] != wanted
    assert given[1] == wanted


def test_an_approximation_is_a_limit(tmp_path: Path) -> None:
    rule = next(rule for rule in rules() if rule.name == "tekken")
    folder = write(tmp_path, tokenizer=steps_document(split(rule.forms[0][0]), NO_REGEX_STEP))
    vocabulary = faithful(load_bpe(folder, {}))
    assert vocabulary.pre == "tekken"
    (note,) = limits(vocabulary)
    assert "tekken only comes close: it cuts out" in note


def test_tekken_json_has_the_limit_of_its_rule() -> None:
    vocabulary = Vocabulary("gpt2", "tekken", [b"a"], [1])
    assert faithful(vocabulary) is vocabulary
    (note,) = limits(vocabulary)
    assert "tekken only comes close" in note


@pytest.mark.parametrize(
    ("flags", "normalizer", "told"),
    [
        ({"lstrip": True}, None, True),
        ({"rstrip": True}, None, True),
        ({"single_word": True}, None, True),
        ({"normalized": True}, None, False),
        ({"normalized": True}, {"type": "Lowercase"}, True),
        ({"normalized": False}, {"type": "Lowercase"}, False),
        ({"normalized": True}, {"type": "NFC"}, False),
    ],
)
def test_flags_of_added_tokens_are_a_limit(
    tmp_path: Path, flags: dict[str, bool], normalizer: dict[str, str] | None, told: bool
) -> None:
    document = byte_level_document()
    document["normalizer"] = normalizer
    tokens = [added(600, "<Tool>", **flags), added(601, "<Other>", **flags), added(602, "<plain>")]
    document["added_tokens"] = tokens
    vocabulary = faithful(load_bpe(write(tmp_path, tokenizer=document), {}))
    found = [note for note in limits(vocabulary) if "finds the added token '<Tool>' and 1 more" in note]
    assert bool(found) is told


def test_no_limit_of_a_byte_fallback_tokenizer(tmp_path: Path) -> None:
    folder = write(tmp_path, tokenizer=byte_fallback_document(MERGED))
    assert limits(faithful(load_llama_hf(folder, IDS))) == ()


@pytest.mark.parametrize("newer", ["tokenizer_config", "tokenizer", "same id", None])
def test_an_overruled_added_tokens_json(tmp_path: Path, reference: Path, newer: str | None) -> None:
    shutil.copy(reference / "tokenizer.model", tmp_path / "tokenizer.model")
    size = len(load_sentencepiece(tmp_path, {}))
    config = {"vocab_size": size + 4, **IDS}
    files: dict[str, Any] = {"added_tokens": {"<pad>": size, "<foo>": size + 1, "<far>": size + 9}}
    listed = {str(size + 1): {"content": "<foo>"}}
    if newer == "same id":
        listed[str(size)] = {"content": "<other>"}
    if newer is not None:
        files["tokenizer_config"] = {"added_tokens_decoder": listed}
    if newer == "tokenizer":
        files["tokenizer"] = {"added_tokens": [added(size, "<pad>")]}
    converters = load_sentencepiece(write(tmp_path, **files), config)
    assert converters.types[size : size + 2] == [TokenType.USER_DEFINED] * 2
    ours = faithful(converters)
    if newer != "tokenizer_config":
        assert ours is converters
        return
    assert ours.types[size : size + 2] == [TokenType.NORMAL, TokenType.USER_DEFINED]
    assert "'<pad>' is not looked for in a text" in ours.notes[-1]
    own = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    [given] = ids(tmp_path, ours, ["a <pad> b"])
    assert given == own.encode("a <pad> b")
    assert ids(tmp_path, converters, ["a <pad> b"]) != [given]
    assert ids(tmp_path, ours, ["<foo>"]) == [[size + 1]]
