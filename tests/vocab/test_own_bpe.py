"""The tokenizer's own splitting beside llama.cpp's: when it is kept, and that it runs as the library runs it."""

from __future__ import annotations

import logging
from pathlib import Path

import gguf
import pytest
from tokenizers import AddedToken

from ewq_gguf.errors import TokenizerError
from ewq_gguf.evaluation import tokenizing
from ewq_gguf.evaluation.engine import Engine
from ewq_gguf.evaluation.gguf_check import check_gguf
from ewq_gguf.pipeline.gguf_source import open_gguf
from ewq_gguf.vocab import Vocabulary, faithful, limits, load_bpe, load_vocabulary
from ewq_gguf.vocab import own_bpe as module
from ewq_gguf.vocab.own_bpe import IGNORE_MERGES_KEY, SPLITS_KEY, OwnBPE, known_form
from ewq_gguf.vocab.pretokenizer import Rule, rules
from ewq_gguf.vocab.vocabulary import OWN_KEYS

from .gguf_vocab import open_vocab, write_vocab_only, write_with_zeros
from .test_closest import TEKKEN, tekken_folder, tokenizer_of
from .tiny_tokenizers import byte_level_document, write
from .varied import varied_texts

TEXTS = ("में की", "Ankara'da", "</s> में<s>की", "", "ไทยภาษา\n\nने  });", "plain words")


@pytest.fixture
def tekken(tmp_path: Path) -> Vocabulary:
    return faithful(load_vocabulary(tekken_folder(tmp_path / "tekken"), {}))


def test_it_is_kept_where_llama_cpp_only_comes_close(tekken: Vocabulary, tmp_path: Path) -> None:
    assert tekken.own_splits == (TEKKEN,)
    assert tekken.ignore_merges
    assert "own commands cut as the tokenizer does" in limits(tekken)[0]
    exact = faithful(load_bpe(write(tmp_path / "qwen2", tokenizer=byte_level_document()), {}))
    assert exact.own_splits == ()
    converters = load_vocabulary(tekken_folder(tmp_path / "converters"), {})
    assert converters.own_splits == ()
    found = {}
    for name, vocabulary in {"tekken": tekken, "exact": exact, "converters": converters}.items():
        write_vocab_only(tmp_path / f"{name}.gguf", vocabulary)
        keys = gguf.GGUFReader(tmp_path / f"{name}.gguf").fields
        found[name] = [key for key in OWN_KEYS if key in keys]
    assert found == {"tekken": [SPLITS_KEY, IGNORE_MERGES_KEY], "exact": [], "converters": []}


def test_the_engine_gives_the_tokenizers_ids(tekken: Vocabulary, tmp_path: Path) -> None:
    write_with_zeros(tmp_path / "model.gguf", tekken)
    original = tokenizer_of(tekken)
    # As text, then with what llama.cpp would find first.
    plain = [original.encode(text).ids for text in TEXTS]
    original.add_special_tokens([AddedToken(name, normalized=False) for name in ("<s>", "</s>")])
    special = [original.encode(text).ids for text in TEXTS]
    with open_vocab(tmp_path / "model.gguf") as alone:
        assert [alone.encode(text) == ids for text, ids in zip(TEXTS, special)].count(False) == 3
    with Engine(tmp_path / "model.gguf", n_ctx=64, n_threads=1) as engine:
        for text, as_text, parsed in zip(TEXTS, plain, special):
            assert engine.tokenize(text, add_special=False).tolist() == as_text
            assert engine.tokenize(text, add_special=False, parse_special=True).tolist() == parsed
            assert engine.tokenize(text).tolist() == [engine.bos, *as_text]


def test_it_is_told_once_and_only_where_ids_differ(
    tekken: Vocabulary, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_with_zeros(tmp_path / "model.gguf", tekken)
    tokenizing.tell_split.cache_clear()
    with caplog.at_level(logging.WARNING), Engine(tmp_path / "model.gguf", n_ctx=64, n_threads=1) as engine:
        engine.tokenize("plain words")
        before = list(caplog.messages)
        engine.tokenize(TEXTS[0])
        engine.tokenize(TEXTS[0])
    tokenizing.tell_split.cache_clear()
    assert before == []
    (message,) = caplog.messages
    assert "llama-perplexity may give other figures" in message


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.name)
def test_a_long_text_is_cut_where_nothing_changes(
    rule: Rule, tekken: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = OwnBPE(tekken.tokens, tekken.merges, rule.forms[0], ignore_merges=True)
    text = "\n".join([*varied_texts(), "The end.", "A line\n\n  next", "word", "Word  ", "x"])
    wanted = whole.ids(text)
    monkeypatch.setattr(module, "_PIECE", 8)
    pieces = list(module._pieces(text))
    assert len(pieces) > 20
    assert "".join(pieces) == text
    assert whole.ids(text) == wanted


def test_no_expression_of_a_file_is_run_but_those_we_know(tekken: Vocabulary, tmp_path: Path) -> None:
    assert known_form([TEKKEN])
    assert not known_form(["(a+)+$"])
    assert not known_form([])
    changed = Vocabulary(**{**vars(tekken), "own_splits": ("(a+)+$",)})
    write_vocab_only(tmp_path / "other.gguf", changed)
    assert open_gguf_value(tmp_path / "other.gguf") == ["(a+)+$"]
    assert check_gguf(tmp_path / "other.gguf").tokenizing is None


def open_gguf_value(path: Path) -> object:
    field = gguf.GGUFReader(path).get_field(SPLITS_KEY)
    return None if field is None else field.contents()


def test_the_keys_are_carried_over_and_part_of_the_digest(tekken: Vocabulary, tmp_path: Path) -> None:
    write_with_zeros(tmp_path / "ours.gguf", tekken)
    source = open_gguf(tmp_path / "ours.gguf")
    assert {key: source.value(key) for key in OWN_KEYS if key in source.metadata} == {
        SPLITS_KEY: [TEKKEN],
        IGNORE_MERGES_KEY: True,
    }
    write_with_zeros(tmp_path / "other.gguf", Vocabulary(**{**vars(tekken), "ignore_merges": False}))
    assert check_gguf(tmp_path / "ours.gguf").tokenizer != check_gguf(tmp_path / "other.gguf").tokenizer


def test_tokens_that_make_no_tokenizer_are_one_sentence(
    tekken: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_with_zeros(tmp_path / "model.gguf", tekken)

    def broken(*_: object, **__: object) -> None:
        raise ValueError("no such merge")

    monkeypatch.setattr(module, "backend_of", broken)
    with (
        Engine(tmp_path / "model.gguf", n_ctx=64, n_threads=1) as engine,
        pytest.raises(TokenizerError, match=r"model\.gguf: .*no such merge"),
    ):
        engine.tokenize("words")


def test_the_token_of_null_characters(tmp_path: Path) -> None:
    """llama.cpp reads its text up to the null character, and takes the byte's token in its place."""
    tokens = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256)), b"a", b"\0", b"b"]
    types = [2, 3, 3, *[6] * 256, 1, 1, 1]
    vocabulary = Vocabulary(
        "llama", "default", tokens, types, scores=[0.0] * len(tokens), add_space_prefix=False
    )
    write_with_zeros(tmp_path / "model.gguf", vocabulary)
    with Engine(tmp_path / "model.gguf", n_ctx=64, n_threads=1) as engine:
        assert engine.tokenize("a\0b", add_special=False).tolist() == [259, 260, 261]
    with open_vocab(tmp_path / "model.gguf") as alone:
        assert alone.encode("a\0b") == [259, 3, 261]
