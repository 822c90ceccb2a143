"""Tokenizers in tiktoken's form, on one of 256 bytes and eleven longer tokens."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ewq_gguf.arch.deepseek2 import load_deepseek
from ewq_gguf.arch.hunyuan import load_hunyuan, load_hunyuan_moe
from ewq_gguf.errors import TokenizerError
from ewq_gguf.vocab import (
    TokenType,
    Vocabulary,
    load_hunyuan_tiktoken,
    load_kimi_tiktoken,
    load_qwen_tiktoken,
)
from ewq_gguf.vocab.tiktoken import read_ranks, recover_merges
from tests.tiny.tiktoken import pieces, special_tokens, write_tiktoken
from tests.tiny.vocabularies import write_bpe

from .gguf_vocab import open_vocab, write_vocab_only

LOADERS = {
    "hy.tiktoken": load_hunyuan_tiktoken,
    "tiktoken.model": load_kimi_tiktoken,
    "qwen.tiktoken": load_qwen_tiktoken,
}
SIZE = 560


def load(folder: Path, name: str, **config: Any) -> Vocabulary:
    write_tiktoken(folder / name)
    (folder / "config.json").write_text(json.dumps({"vocab_size": SIZE, **config}), encoding="utf-8")
    return LOADERS[name](folder, {"vocab_size": SIZE, **config})


def encoded(word: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """As tiktoken does it: join the two neighbours that make the token of least rank, until none do."""
    parts = [word[i : i + 1] for i in range(len(word))]
    while True:
        joined = [(ranks[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ranks]
        if not joined:
            return [ranks[part] for part in parts]
        at = min(joined)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


@pytest.mark.parametrize("name", LOADERS)
def test_tokens_types_and_special_ids(name: str, tmp_path: Path) -> None:
    found = load(tmp_path, name)
    special = special_tokens(name)
    assert len(found) == SIZE
    assert [found.tokens[i].decode() for i in special.values()] == list(special)
    n = len(pieces(name))
    assert found.types == (
        [TokenType.NORMAL] * n
        + [TokenType.CONTROL] * len(special)
        + [TokenType.UNUSED] * (SIZE - n - len(special))
    )
    assert found.tokens[pieces(name).index(b" the")] == "\u0120the".encode()
    assert found.tokens[-1] == b"[PAD559]"
    assert found.chat_template == "{{ messages }}"


@pytest.mark.parametrize("name", LOADERS)
def test_llama_cpp_gives_the_ids_that_tiktoken_gives(name: str, tmp_path: Path) -> None:
    # The names of the pre-tokenizers do not matter for single words.
    found = load(tmp_path, name)
    write_vocab_only(tmp_path / "v.gguf", found)
    ranks = {piece: rank for rank, piece in enumerate(pieces(name))}
    with open_vocab(tmp_path / "v.gguf") as vocab:
        for word in ("the", "thin", "ether", "other", " then", " te", "an\u00e9", "hhee", "anther", "\u4e2d"):
            assert vocab.encode(word) == encoded(word.encode(), ranks), word


def test_merges_end_with_the_two_parts_that_the_ranks_leave() -> None:
    ranks = {
        piece: rank for rank, piece in enumerate((b"a", b"b", b"c", b"bc", b"ab", b"abc", b"cab", b"xyz"))
    }
    # "abc" is "a" and "bc", for these two are joined before "ab"; nothing makes "xyz".
    assert recover_merges(ranks) == ["b c", "a b", "a bc", "c ab"]


def test_merges_of_a_long_run_are_found_pair_by_pair() -> None:
    ranks = {b"-" * (1 << i): i for i in range(8)}
    assert recover_merges(ranks) == [f"{'-' * (1 << i)} {'-' * (1 << i)}" for i in range(7)]


def test_hunyuan_begins_with_its_own_token_and_passes_over_what_is_there(tmp_path: Path) -> None:
    found = load(tmp_path, "hy.tiktoken", bos_token_id=1, eos_token_id=270)
    assert found.pre == "hunyuan"
    assert found.special_ids == {"bos": found.tokens.index(b"<|bos|>"), "eos": 270}
    file = tmp_path / "hy.tiktoken"
    file.write_bytes(b"IQ== 7\n\n" + file.read_bytes())
    assert load_hunyuan_moe(tmp_path, {"vocab_size": SIZE}) == found


@pytest.mark.parametrize(("width", "begins"), [(4096, 268), (2048, 1)])
def test_only_the_dense_hunyuan_7b_begins_otherwise(width: int, begins: int, tmp_path: Path) -> None:
    config = {"vocab_size": SIZE, "hidden_size": width, "bos_token_id": 1, "eod_token_id": 270}
    load(tmp_path, "hy.tiktoken", **config)
    assert load_hunyuan(tmp_path, config).special_ids == {"bos": begins, "eos": 270}


def test_kimi_names_its_tokens_in_the_settings(tmp_path: Path) -> None:
    found = load(tmp_path, "tiktoken.model", bos_token_id=267)
    assert found.pre == "kimi-k2"
    assert found.tokens[267:271] == [b"[BOS]", b"[EOS]", b"<|im_end|>", b"<|reserved_token_270|>"]
    assert found.special_ids == {"bos": 267}
    assert found.add_special == {"bos": False}
    assert load_deepseek(tmp_path, {"vocab_size": SIZE}) == found
    write_bpe(tmp_path)
    assert load_deepseek(tmp_path, {"vocab_size": SIZE}).pre == "qwen2"


def test_kimi_without_settings_has_reserved_tokens_only(tmp_path: Path) -> None:
    load(tmp_path, "tiktoken.model")
    (tmp_path / "tokenizer_config.json").unlink()
    found = load_kimi_tiktoken(tmp_path, {"vocab_size": SIZE}, pre="gpt-4o")
    assert found.tokens[267] == b"<|reserved_token_267|>"
    assert found.pre == "gpt-4o"


@pytest.mark.parametrize(("config", "begins"), [({}, 266), ({"bos_token_id": 5, "eos_token_id": 6}, 5)])
def test_qwen_begins_with_its_end_unless_the_config_says_otherwise(
    config: dict[str, int], begins: int, tmp_path: Path
) -> None:
    found = load(tmp_path, "qwen.tiktoken", **config)
    assert found.special_ids == {"bos": begins, "eos": config.get("eos_token_id", 266), "unk": 266}


def line(piece: bytes, rank: int) -> bytes:
    return base64.b64encode(piece) + b" %d\n" % rank


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda data: data + b"dGhl", "line 268 is not a token and its rank"),
        (lambda data: data + b"dGhl 267 1\n", "line 268 is not a token and its rank"),
        (lambda data: data + b"d\xffGl 267\n", "line 268 has a token that is not base64"),
        (lambda data: data + b"dGh 267\n", "line 268 has a token that is not base64"),
        (lambda data: data + line(b"the", 267), "line 268 has a token that is there already"),
        (lambda data: data + line(b"ha", 900), "line 268 has a rank other than 267"),
        (lambda data: data + line(b"ha", -1), "line 268 has a rank other than 267"),
        (lambda data: data + b"aGE= 2_67\n", "line 268 has a rank other than 267"),
        (lambda data: data + b"= 267\n", "line 268 has a token"),
        (lambda data: data + line(b"a" * 1025, 267), "line 268 has a token of 1025 bytes"),
        (lambda data: data.split(b"\n", 1)[1], "line 1 has a rank other than 0"),
        (lambda data: b"", "has no token for the byte 0x00"),
        (lambda data: line(b"a", 0), "has no token for the byte 0x00"),
        (lambda data: b"\x00" * 200, "line 1 is not a token and its rank"),
    ],
)
def test_a_damaged_file_is_refused(damage: Callable[[bytes], bytes], problem: str, tmp_path: Path) -> None:
    file = tmp_path / "tiktoken.model"
    write_tiktoken(file)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(TokenizerError) as caught:
        load_kimi_tiktoken(tmp_path, {"vocab_size": SIZE})
    message = str(caught.value)
    assert message.startswith(str(file))
    assert problem in message
    assert "\n" not in message


def test_tokens_that_would_take_long_to_take_apart_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.tiktoken"
    file.write_bytes(b"".join(line(i.to_bytes(1024, "big"), i) for i in range(200)))
    with pytest.raises(TokenizerError, match="line 129 goes beyond what a tokenizer may hold"):
        read_ranks(file)


@pytest.mark.parametrize(
    ("decoder", "problem"),
    [
        (["x"], "added_tokens_decoder must be an object"),
        ({"x": {"content": "a"}}, "added_tokens_decoder.x is not a token id"),
        ({"9" * 30: {"content": "a"}}, "is not a token id"),
        ({"267": "a"}, "added_tokens_decoder.267 must be an object"),
        ({"267": {"content": 5}}, "added_tokens_decoder.267.content must be a string"),
        ({"267": {"content": "\ud800"}}, "half of a surrogate pair"),
        (
            {"267": {"content": "a"}, "269": {"content": "a"}},
            "added_tokens_decoder.269 repeats a token's text",
        ),
    ],
)
def test_damaged_settings_are_refused(decoder: object, problem: str, tmp_path: Path) -> None:
    load(tmp_path, "tiktoken.model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    with pytest.raises(TokenizerError, match=problem):
        load_kimi_tiktoken(tmp_path, {"vocab_size": SIZE})


@pytest.mark.parametrize(
    ("name", "size"), [("hy.tiktoken", 271), ("tiktoken.model", 266), ("qwen.tiktoken", 268)]
)
def test_a_model_with_too_few_rows_is_refused(name: str, size: int, tmp_path: Path) -> None:
    load(tmp_path, name)
    with pytest.raises(TokenizerError, match=f"vocab_size {size}"):
        LOADERS[name](tmp_path, {"vocab_size": size})
    assert len(LOADERS[name](tmp_path, {"vocab_size": size + 1})) == size + 1


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"qwen\.tiktoken: there is no such file"):
        load_qwen_tiktoken(tmp_path, {})
