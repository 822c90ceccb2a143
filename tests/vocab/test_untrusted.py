"""Damaged and hostile tokenizer files: each is refused with one sentence that names the file."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ewq_gguf.errors import TokenizerError
from ewq_gguf.vocab import load_vocabulary
from ewq_gguf.vocab.files import MAX_TOKENS, read_bytes

from .gguf_vocab import write_vocab_only
from .tiny_tokenizers import added, byte_fallback_document, byte_level_document, write

SETTINGS: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|endoftext|>",
    "eos_token": {"__type": "AddedToken", "content": "<|endoftext|>", "special": True},
    "additional_special_tokens": ["<|a|>"],
    "added_tokens_decoder": {"600": {"content": "<|endoftext|>", "special": True, "normalized": False}},
    "chat_template": [{"name": "default", "template": "x"}],
}


def document() -> dict[str, Any]:
    content = copy.deepcopy(byte_level_document())
    content["added_tokens"] = [added(600, "<|endoftext|>", special=True)]
    return content


def refusal(folder: Path, config: dict[str, Any] | None = None) -> str:
    with pytest.raises(TokenizerError) as caught:
        load_vocabulary(folder, config or {})
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


def with_vocab(value: object) -> Callable[[dict[str, Any]], None]:
    def damage(content: dict[str, Any]) -> None:
        content["model"]["vocab"]["zz"] = value

    return damage


def with_added(**entry: object) -> Callable[[dict[str, Any]], None]:
    def damage(content: dict[str, Any]) -> None:
        content["added_tokens"].append({**added(601, "<x>"), **entry})

    return damage


def replaced(*path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def damage(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return damage


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (with_vocab(-1), "is -1, not a token id"),
        (with_vocab(10**18), "is 1000000000000000000, not a token id"),
        (with_vocab(10**100), "more than 20 digits"),
        (with_vocab(5), "has id 5, as"),
        (with_vocab("5"), "must be a token id, not a string"),
        (with_vocab(5.0), "must be a token id, not a number"),
        (with_vocab(True), "must be a token id, not a boolean"),
        (with_vocab(None), "must be a token id, not null"),
        (with_added(id=-3), "is -3, not a token id"),
        (with_added(id=MAX_TOKENS), "not a token id"),
        (with_added(id=600), "is 600, which"),
        (with_added(content=7), "must be a string"),
        (with_added(content="\ud800"), "half of a surrogate pair"),
        (with_added(content="x" * 70000), "is 70000 bytes long"),
        (with_added(special="yes"), "must be true or false"),
        (replaced("model", value=None), "model must be an object"),
        (replaced("model", "vocab", value="x"), "model.vocab must be an array"),
        (replaced("model", "vocab", value={}), "holds no tokens"),
        (replaced("model", "type", value="WordLevel"), "cannot read it"),
        (replaced("model", "type", value=7), "model.type must be a string"),
        (replaced("model", "merges", value=[["a"]]), "model.merges[0] is not a pair of texts"),
        (replaced("model", "merges", value=["abc"]), "model.merges[0] is not a pair of texts"),
        (replaced("model", "merges", value=[["nope", "neither"]]), "cannot read it"),
        (replaced("model", "merges", value={"a": 1}), "model.merges must be an array"),
        (replaced("added_tokens", value={"a": 1}), "added_tokens must be an array"),
        (replaced("added_tokens", value=[3]), "added_tokens[0] must be an object"),
        (replaced("normalizer", value=3), "normalizer must be an object"),
        (replaced("normalizer", value={"type": "Nonsense"}), "cannot read it"),
        (replaced("post_processor", value=[1]), "post_processor must be an object"),
        (replaced("pre_tokenizer", value={"type": "Split", "pattern": {"Regex": "("}}), "cannot read it"),
    ],
)  # fmt: skip
def test_a_damaged_tokenizer_json(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None], told: str
) -> None:
    content = document()
    damage(content)
    message = refusal(write(tmp_path, tokenizer=content))
    assert "tokenizer.json" in message
    assert told in message


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "line 1 column 1 is not JSON"),
        (b'{"model": ', "is not JSON"),
        (b"\xff\xfe{}", "byte 0 is not valid UTF-8"),
        (b"[1, 2]", "the top level must be an object, not an array"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
    ],
)
def test_tokenizer_json_that_is_no_json(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    assert told in refusal(tmp_path)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"added_tokens_decoder": [1]}, "must be an object"),
        ({"added_tokens_decoder": {"-1": {"content": "x"}}}, "is not a token id"),
        ({"added_tokens_decoder": {"1_0": {"content": "x"}}}, "is not a token id"),
        ({"added_tokens_decoder": {"99999999999": {"content": "x"}}}, "is not a token id"),
        ({"added_tokens_decoder": {"7": "x"}}, "must be an object"),
        ({"added_tokens_decoder": {"7": {}}}, "must be a string, not null"),
        ({"added_tokens_decoder": {"7": {"content": "x", "lstrip": 3}}}, "must be true or false"),
        ({"bos_token": "\ud83d"}, "half of a surrogate pair"),
        ({"add_prefix_space": "no"}, "add_prefix_space must be true or false"),
        ({"chat_template": 5}, "chat_template must be a string or a list"),
    ],
)
def test_a_damaged_tokenizer_config(tmp_path: Path, settings: dict[str, Any], told: str) -> None:
    message = refusal(write(tmp_path, tokenizer=document(), tokenizer_config=settings))
    assert "tokenizer_config.json" in message
    assert told in message


@pytest.mark.parametrize("size", [10_000_000, -1, "600", 600.5, True, 10**30])
def test_an_impossible_vocabulary_size(tmp_path: Path, size: object) -> None:
    message = refusal(write(tmp_path, tokenizer=document()), {"vocab_size": size})
    assert "config.json: vocab_size is" in message


@pytest.mark.parametrize(
    "content", [{"a": -1}, {"a": 700, "b": 700}, {"a": "7"}, {"\ud800": 7}, [1], {"a": 10**9}]
)
def test_damaged_added_tokens(tmp_path: Path, reference: Path, content: object) -> None:
    (tmp_path / "tokenizer.model").write_bytes((reference / "tokenizer.model").read_bytes())
    assert "added_tokens.json" in refusal(write(tmp_path, added_tokens=content))


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_bytes(tmp_path / "x", limit=5) == b"12345"
    with pytest.raises(TokenizerError, match="more than 4 bytes"):
        read_bytes(tmp_path / "x", limit=4)


def test_padding_and_truncation_in_the_file_are_ignored(tmp_path: Path) -> None:
    content = document()
    plain = load_vocabulary(write(tmp_path / "plain", tokenizer=content), {})
    content["padding"] = {
        "strategy": {"Fixed": 10**12},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    content["truncation"] = {"max_length": 1, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}
    padded = load_vocabulary(write(tmp_path / "padded", tokenizer=content), {})
    assert replace(padded, notes=()) == replace(plain, notes=())


JUNK: tuple[object, ...] = (
    *(None, True, -1, 0, 3, 2**31, 10**25, 1.5, "", "x", "\ud800", "\u2581", " ", "<0x00>"),
    *([], {}, [1], [[]], ["a", "b"], {"a": 1}, {"type": "Sequence"}, {"content": "y"}, {"id": 1}),
)


def damaged_somewhere(content: Any, random_: random.Random) -> Any:
    """A copy of `content` in which one value, key or entry is replaced, removed or repeated."""
    content = copy.deepcopy(content)
    node = content
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return content
        key = random_.choice(keys)
        if isinstance(node[key], dict | list) and node[key] and random_.random() < 0.8:
            node = node[key]
            continue
        action = random_.randrange(3)
        if action == 0 and isinstance(node, dict):
            del node[key]
        elif action == 1 and isinstance(node, list):
            node.append(node[key])
        else:
            node[key] = random_.choice(JUNK)
        return content


@pytest.mark.parametrize("seed", range(8))
def test_random_damage_never_escapes(tmp_path: Path, seed: int) -> None:
    random_ = random.Random(seed)
    fallback = byte_fallback_document(("\u2581the", "\u2581and"))
    for attempt in range(6):
        folder = tmp_path / str(attempt)
        tokenizer = random_.choice((document(), fallback))
        files = {"tokenizer": tokenizer, "tokenizer_config": SETTINGS, "config": {"vocab_size": 640}}
        name = random_.choice(list(files))
        files[name] = damaged_somewhere(files[name], random_)
        write(folder, **files)
        with contextlib.suppress(TokenizerError):
            vocabulary = load_vocabulary(folder, files["config"])
            assert len(vocabulary.tokens) == len(vocabulary.types)
            write_vocab_only(folder / "vocab.gguf", vocabulary)
