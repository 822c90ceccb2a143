"""Detection of llama.cpp's pre-tokenizer: by fingerprint, by structure, and what is said on a miss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ewq_gguf.errors import TokenizerError
from ewq_gguf.vocab import Vocabulary, load_bpe
from ewq_gguf.vocab.hf import HfTokenizer, open_tokenizer
from ewq_gguf.vocab.pretokenizer import (
    Rule,
    detect_pretokenizer,
    fingerprints_of,
    known_fingerprints,
    rules,
)

from .gguf_vocab import open_vocab, write_vocab_only
from .tiny_tokenizers import QWEN2_REGEX, added, byte_level_document, write

GPT2_STEP = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
NO_REGEX_STEP = {**GPT2_STEP, "use_regex": False}


def split(pattern: str, **fields: Any) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False, **fields}


def steps_document(*steps: dict[str, Any]) -> dict[str, Any]:
    return {**byte_level_document(), "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(steps)}}


def opened(folder: Path, document: dict[str, Any], settings: dict[str, Any] | None = None) -> HfTokenizer:
    write(
        folder,
        tokenizer=document,
        tokenizer_config=settings or {"tokenizer_class": "PreTrainedTokenizerFast"},
    )
    return open_tokenizer(folder, {})


def with_properties_of(rule: Rule, document: dict[str, Any], settings: dict[str, Any]) -> None:
    document["model"]["ignore_merges"] = bool(rule.ignore_merges)
    if rule.bos:
        document["added_tokens"].append(added(600, "<bos>", special=True))
        settings["bos_token"] = "<bos>"
    if rule.post_processor:
        document["post_processor"] = {
            "type": rule.post_processor,
            "sep": ["!", 0],
            "cls": ["!", 0],
            "trim_offsets": True,
            "add_prefix_space": False,
        }
    settings["clean_up_tokenization_spaces"] = rule.clean_up is not False


FIRST_OF_THEIR_KIND = [rule for rule in rules() if rule.name != "granite-embed-multi-97m"]


@pytest.mark.parametrize("rule", FIRST_OF_THEIR_KIND, ids=lambda rule: rule.name)
def test_every_rule_is_found_by_its_splitting(tmp_path: Path, rule: Rule) -> None:
    for number, form in enumerate(rule.forms):
        document = steps_document(*map(split, form), NO_REGEX_STEP)
        settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        with_properties_of(rule, document, settings)
        tokenizer = opened(tmp_path / str(number), document, settings)
        found = detect_pretokenizer(tokenizer, {})
        assert (found.name, found.how) == (rule.name, "structure")
        assert rule.name in found.note


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([GPT2_STEP], "gpt-2"),
        ([{"type": "Digits", "individual_digits": True}, GPT2_STEP], "smollm"),
        ([split(rules()[0].forms[0][0], behavior="Removed", invert=True), NO_REGEX_STEP], "dbrx"),
        ([split(rules()[0].forms[0][0].replace("'s|'t|'re|'ve|'m|'ll|'d", "'[sdmt]|'ll|'ve|'re")), NO_REGEX_STEP], "dbrx"),
    ],
)  # fmt: skip
def test_other_spellings_of_the_same_splitting(
    tmp_path: Path, steps: list[dict[str, Any]], name: str
) -> None:
    assert detect_pretokenizer(opened(tmp_path, steps_document(*steps)), {}).name == name


def test_spaces_marked_and_bytes_fallen_back_on(tmp_path: Path) -> None:
    document = byte_level_document()
    document["model"]["byte_fallback"] = True
    document["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    document["pre_tokenizer"] = None
    assert detect_pretokenizer(opened(tmp_path, document), {}).name == "gemma4"


def test_the_fingerprint_comes_first(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path, byte_level_document())
    digest = next(fingerprints_of(tokenizer))
    found = detect_pretokenizer(tokenizer, {digest: "hunyuan"})
    assert (found.name, found.how) == ("hunyuan", "fingerprint")


def test_the_fingerprint_is_of_the_encoded_text(tmp_path: Path) -> None:
    plain = opened(tmp_path / "plain", byte_level_document())
    document = byte_level_document()
    document["added_tokens"] = [added(600, "<bos>", special=True)]
    document["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [600], "tokens": ["<bos>"]}},
    }
    wrapped = list(fingerprints_of(opened(tmp_path / "bos", document)))
    own = next(fingerprints_of(plain))
    assert wrapped[0] != own
    assert own in wrapped


def test_a_hundred_added_tokens_hide_nothing(tmp_path: Path) -> None:
    document = byte_level_document()
    document["added_tokens"] = [added(600, "<|endoftext|>", special=True), added(601, "   ")]
    original = opened(tmp_path / "original", document)
    table = {next(fingerprints_of(original)): "found"}
    words = ["told", "apple", " not sure", "3333", "\n\n", *(f"<|extra_{i}|>" for i in range(95))]
    document["added_tokens"] += [
        added(602 + i, word, normalized=i % 2 == 0, special=i > 4) for i, word in enumerate(words)
    ]
    tuned = opened(tmp_path / "tuned", document)
    assert next(fingerprints_of(tuned)) not in table
    assert detect_pretokenizer(tuned, table).name == "found"
    assert detect_pretokenizer(tuned, {}).name == "qwen2"


def test_a_miss_names_the_nearest_and_the_option(tmp_path: Path) -> None:
    document = steps_document(split(QWEN2_REGEX.replace(r"\p{L}+", r"\p{L}{1,9}")), NO_REGEX_STEP)
    folder = write(tmp_path, tokenizer=document)
    with pytest.raises(TokenizerError, match="--pre-tokenizer NAME") as caught:
        load_bpe(folder, {})
    assert "the nearest is qwen2, which cuts out 'CamelCaseWord' where" in str(caught.value)
    assert load_bpe(folder, {}, pre="qwen2").pre == "qwen2"


def test_the_table_holds_digests() -> None:
    table = known_fingerprints()
    assert len(table) > 90
    assert all(len(digest) == 64 and int(digest, 16) >= 0 for digest in table)


NOT_BYTE_LEVEL = {"bert-bge", "bert-bge-large", "jina-v2-en"}


@pytest.mark.parametrize(
    "name",
    sorted({*known_fingerprints().values(), *(rule.name for rule in rules())} - NOT_BYTE_LEVEL),
)
def test_llama_cpp_knows_every_name(tmp_path: Path, name: str) -> None:
    document = byte_level_document()
    vocab = document["model"]["vocab"]
    tokens = [token.encode() for token in sorted(vocab, key=vocab.__getitem__)] + [b"<mask>", b"[MASK]"]
    merges = [" ".join(pair) for pair in document["model"]["merges"]]
    vocabulary = Vocabulary("gpt2", name, tokens, [1] * len(tokens), merges=merges)
    path = tmp_path / "vocab.gguf"
    write_vocab_only(path, vocabulary)
    with open_vocab(path) as tokenizer:
        assert tokenizer.encode("a")
