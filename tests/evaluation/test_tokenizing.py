"""A text is normalized as its tokenizer does it, where the file says so: conversion, engine and header check."""

from __future__ import annotations

import json
import logging
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest
from tokenizers import Tokenizer

import ewq_gguf
from ewq_gguf.evaluation import tokenizing
from ewq_gguf.evaluation.engine import Engine
from ewq_gguf.evaluation.gguf_check import check_gguf
from ewq_gguf.evaluation.perplexity import perplexity
from ewq_gguf.evaluation.tokenizing import Cut, Tokenizing
from ewq_gguf.pipeline.gguf_source import open_gguf
from ewq_gguf.vocab.normalizer import NORMALIZER_KEY
from tests.tiny.build import build
from tests.tiny.cases import CASES

ADDED = {"<|endoftext|>": True, "<|im_start|>": True, "<tool>": False}
APART = "cafe\u0301 A\u030angstro\u0308m, \u1100\u1161\u11a8"
TEXTS = (
    "the winter then",
    APART,
    f"<|im_start|>\u0338{APART}<tool>\u0301 the</s> \u212b",
    "a</s>b <|im_end",
    "<tool><tool>e\u0301",
    "",
    "e\u0301\n" * 3000,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    case = next(case for case in CASES if case.name == "qwen2")
    made = build(case, tmp_path_factory.mktemp("nfc") / "model")
    file = made / "tokenizer.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    document["normalizer"] = {"type": "NFC"}
    vocab = document["model"]["vocab"]
    # A plain token that llama.cpp takes for the end of a text by its looks.
    vocab["</s>"] = len(vocab)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    document["added_tokens"] = [
        {"id": len(vocab) + i, "content": text, "special": special, **flags}
        for i, (text, special) in enumerate(ADDED.items())
    ]
    file.write_text(json.dumps(document), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "add_bos_token": True,
    }
    (made / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def ours(folder: Path) -> Path:
    out = folder.parent / "ours.gguf"
    ewq_gguf.convert(folder, out, ewq_gguf.Decision(type="f32"))
    return out


@pytest.fixture(scope="module")
def converters(folder: Path) -> Path:
    out = folder.parent / "converters.gguf"
    ewq_gguf.convert(folder, out, ewq_gguf.Decision(type="f32", tokenizer="converter"))
    return out


@pytest.fixture(autouse=True)
def _told_anew() -> Iterator[None]:
    tokenizing._tell_normalized.cache_clear()
    tokenizing.tell_split.cache_clear()
    yield
    tokenizing._tell_normalized.cache_clear()
    tokenizing.tell_split.cache_clear()


def test_ids_are_the_tokenizers(folder: Path, ours: Path) -> None:
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bos = original.token_to_id("<|endoftext|>")
    with Engine(ours, n_ctx=64, n_threads=1) as engine:
        for text in TEXTS:
            wanted = original.encode(text, add_special_tokens=False).ids
            assert engine.tokenize(text, add_special=False, parse_special=True).tolist() == wanted
            assert engine.tokenize(text, parse_special=True).tolist() == [bos, *wanted]


def test_control_tokens_in_a_text_are_text(folder: Path, ours: Path) -> None:
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    start = original.token_to_id("<|im_start|>")
    with Engine(ours, n_ctx=64, n_threads=1) as engine:
        ids = engine.tokenize(TEXTS[2]).tolist()
        assert start not in ids
        assert original.token_to_id("<tool>") in ids
        assert ids[0] == engine.bos
        # The mark composes with the text before it, which is no token here.
        whole = unicodedata.normalize("NFC", "<|im_start|>\u0338").encode()
        assert b"".join(engine.piece(i) for i in ids[1:])[: len(whole)] == whole


def test_a_text_that_is_no_utf8_stays_as_it_is(ours: Path, converters: Path) -> None:
    data = "e\u0301".encode() + b"\xff"
    with Engine(ours, n_ctx=64, n_threads=1) as a, Engine(converters, n_ctx=64, n_threads=1) as b:
        assert a.tokenize(data).tolist() == b.tokenize(data).tolist()
        assert a.tokenize("e\u0301").tolist() != b.tokenize("e\u0301").tolist()
        assert a.tokenize("e\u0301\ud800").tolist() == b.tokenize("e\u0301\ud800").tolist()


def test_it_is_told_once_and_only_of_a_changed_text(ours: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), Engine(ours, n_ctx=64, n_threads=1) as engine:
        engine.tokenize("\u00e9 the winter")
        assert caplog.messages == []
        engine.tokenize(APART)
        engine.tokenize(APART)
    (message,) = caplog.messages
    assert "normalized (NFC)" in message
    assert "llama-perplexity may give other figures" in message


def test_perplexity_is_of_the_normalized_text(ours: Path, converters: Path) -> None:
    composed = unicodedata.normalize("NFC", APART) * 40
    apart = perplexity(ours, APART * 40)
    assert apart.ppl == perplexity(ours, composed).ppl
    assert apart.tokens == perplexity(converters, composed).tokens
    assert apart.tokens != perplexity(converters, APART * 40).tokens


def test_the_key_is_carried_over_and_part_of_the_digest(ours: Path, converters: Path, tmp_path: Path) -> None:
    out = tmp_path / "q8.gguf"
    ewq_gguf.convert(ours, out, ewq_gguf.Decision(type="Q8_0"))
    for path in (ours, out):
        assert open_gguf(path).value(NORMALIZER_KEY) == ["NFC"]
        found = check_gguf(path).tokenizing
        assert found is not None
        assert found.steps == ("NFC",)
        assert list(found.user_defined) == ["<tool>"]
        assert sorted(found.control) == ["<|endoftext|>", "<|im_start|>"]
    assert open_gguf(converters).value(NORMALIZER_KEY) is None
    assert check_gguf(converters).tokenizing is None
    assert check_gguf(out).tokenizer == check_gguf(ours).tokenizer != check_gguf(converters).tokenizer


@pytest.mark.parametrize(
    ("steps", "types"), [(["NFC", "Lowercase"], [1, 4]), ([], [1, 4]), (["NFC"] * 9, [1, 4])]
)
def test_other_steps_are_nothing_we_run(tmp_path: Path, steps: list[str], types: list[int]) -> None:
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list([b"a", b"b"])
    writer.add_token_types(types)
    if steps:
        writer.add_array(NORMALIZER_KEY, steps)
    else:
        writer.add_string(NORMALIZER_KEY, "NFC")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    assert check_gguf(path).tokenizing is None


def test_tokens_are_cut_out_longest_first() -> None:
    found = Tokenizing.of(
        [b"NFKC"], [b"<a>", b"<a>b", b"\xff", "\uff5c".encode(), b"", b"<c>"], [4, 4, 4, 3, 4, 3]
    )
    assert found is not None
    bar = "\uff5c"
    assert found.cut(f"\ufb01<a>b<a>{bar}<c>".encode(), parse_special=True) == Cut(("fi", 1, 0, 3, 5), True)
    assert found.cut(f"<a>{bar}<c>".encode(), parse_special=False) == Cut((0, "|<c>"), True)
    # What only looks like a control token once it is normalized is none.
    assert found.cut("\uff1cc>".encode(), parse_special=True) == Cut(("<c>",), True)
    assert found.cut(b"plain", parse_special=False) == Cut(("plain",), False)
    assert found.cut(b"\xff", parse_special=True) is None
