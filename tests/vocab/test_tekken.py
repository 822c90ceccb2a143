"""Mistral's tekken.json, on one made here of 256 bytes, four pairs and a few special tokens."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest

from ewq_gguf.errors import TokenizerError
from ewq_gguf.vocab import TokenType, is_tekken, load_tekken, load_vocabulary

from .gguf_vocab import open_vocab, write_vocab_only
from .tiny_tokenizers import write

N_SPECIAL = 24
PIECES = (*(bytes([byte]) for byte in range(256)), b"th", b"he", b"the", b" the", b"\xc3\xa9")


def document(version: str = "v3", **fields: Any) -> dict[str, Any]:
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
        for rank, piece in enumerate((*PIECES, b"unused"))
    ]
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|\s+"
    config = {
        "pattern": pattern,
        "num_vocab_tokens": len(vocab),
        "default_vocab_size": N_SPECIAL + len(PIECES),
        "default_num_special_tokens": N_SPECIAL,
        "version": version,
    }
    return {"config": config, "vocab": vocab, **fields}


def special_tokens(*texts: str) -> list[dict[str, Any]]:
    return [{"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate(texts)]


def test_tokens_merges_and_special_ids(tmp_path: Path) -> None:
    folder = write(tmp_path, tekken=document())
    assert is_tekken(folder)
    vocabulary = load_vocabulary(folder, {"vocab_size": N_SPECIAL + len(PIECES)})
    assert vocabulary.tokens[:3] == [b"<unk>", b"<s>", b"</s>"]
    assert vocabulary.tokens[20:24] == [b"<SPECIAL_20>", b"<SPECIAL_21>", b"<SPECIAL_22>", b"<SPECIAL_23>"]
    assert vocabulary.tokens[N_SPECIAL + ord("a")] == b"a"
    assert vocabulary.tokens[N_SPECIAL + ord(" ")] == "\u0120".encode()
    assert [token.decode() for token in vocabulary.tokens[-5:]] == [
        "th",
        "he",
        "the",
        "\u0120the",
        "\u00c3\u00a9",
    ]
    assert vocabulary.merges == ["t h", "h e", "t he", "th e", "\u0120 the", "\u00c3 \u00a9"]
    assert vocabulary.special_ids == {"bos": 1, "eos": 2, "unk": 0, "pad": 11}
    assert vocabulary.add_special == {"bos": True, "eos": False}
    assert vocabulary.types == [TokenType.CONTROL] * N_SPECIAL + [TokenType.NORMAL] * len(PIECES)
    assert (vocabulary.model, vocabulary.pre, vocabulary.chat_template) == (
        "gpt2",
        "tekken",
        "mistral-v3-tekken",
    )
    assert vocabulary.notes == ()


def test_llama_cpp_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "vocab.gguf"
    write_vocab_only(path, load_tekken(write(tmp_path, tekken=document()), {}))
    the = N_SPECIAL + PIECES.index(b" the")
    with open_vocab(path) as tokenizer:
        assert tokenizer.encode(" the\u00e9[INST]", add_special=True) == [
            1,
            the,
            N_SPECIAL + len(PIECES) - 1,
            3,
        ]
    scores = gguf.GGUFReader(path).fields["tokenizer.ggml.scores"]
    assert scores.types == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32]


def test_named_special_tokens_and_a_template_beside(tmp_path: Path) -> None:
    names = ("<unk>", "<s>", "</s>", "[THINK]")
    folder = write(tmp_path, tekken=document("v13", special_tokens=special_tokens(*names)))
    (folder / "chat_template.jinja").write_text("{{ x }}", encoding="utf-8")
    vocabulary = load_tekken(folder, {"vocab_size": 7})
    assert vocabulary.tokens[3:5] == [b"[THINK]", b"<SPECIAL_4>"]
    assert vocabulary.special_ids["pad"] == 2
    assert vocabulary.chat_template == "{{ x }}"
    assert "config.json says vocab_size 7" in vocabulary.notes[0]


def test_tokenizer_json_goes_before_it(tmp_path: Path) -> None:
    assert not is_tekken(write(tmp_path, tekken=document(), tokenizer={}))


def changed(*path: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (changed("config", value=None), "config must be an object"),
        (changed("config", "default_vocab_size", value=10**9), "config.default_vocab_size is"),
        (changed("config", "default_vocab_size", value=5000), "entries where config asks for"),
        (changed("config", "default_num_special_tokens", value=-1), "default_num_special_tokens is -1"),
        (changed("config", "version", value="v13"), "special_tokens are missing"),
        (changed("config", "version", value=3), "config.version must be a string"),
        (changed("vocab", value={}), "vocab must be an array"),
        (changed("vocab", 7, value=7), "vocab[7] must be an object"),
        (changed("vocab", 7, "rank", value=8), "vocab[7] is not the token that belongs there"),
        (changed("vocab", 7, "token_bytes", value="CA=="), "vocab[7] is not the token that belongs there"),
        (changed("vocab", 256, "token_bytes", value="*"), "vocab[256].token_bytes is not base64"),
        (changed("vocab", 256, "token_bytes", value=""), "vocab[256] is not the token"),
        (changed("vocab", 257, "token_bytes", value="dGg="), "vocab[257] is not the token"),
        (changed("special_tokens", value=special_tokens("<unk>", "<unk>")), "are not 24 different ones"),
        (changed("special_tokens", value=special_tokens("<s>", "</s>")), "lack <unk>"),
        (changed("special_tokens", value=special_tokens(*(str(i) for i in range(30)))), "are not 24"),
        (changed("special_tokens", value=[{"rank": 1, "token_str": "<unk>"}]), "rank is not 0"),
    ],
)
def test_damage_is_told(tmp_path: Path, change: Callable[[dict[str, Any]], None], told: str) -> None:
    content = document()
    change(content)
    with pytest.raises(TokenizerError) as caught:
        load_tekken(write(tmp_path, tekken=content), {})
    assert "tekken.json" in str(caught.value)
    assert told in str(caught.value)
