"""RWKV's World vocabulary, on a small one made here."""

from __future__ import annotations

from pathlib import Path

import jinja2.sandbox
import pytest

from ewq_gguf.errors import TokenizerError
from ewq_gguf.vocab import TokenType, load_rwkv
from ewq_gguf.vocab.rwkv import RWKV_FILE
from tests.tiny.vocabularies import write_rwkv

from .gguf_vocab import open_vocab, write_vocab_only


def test_tokens_types_and_special_ids(tmp_path: Path) -> None:
    n = write_rwkv(tmp_path)
    found = load_rwkv(tmp_path, {"vocab_size": n + 2})
    assert found.tokens[:2] == [b"<s>", b"\\x00"]
    assert found.tokens[256] == b"\\xff"
    assert found.tokens[261] == b"\\n\\n"
    assert found.tokens[n:] == [b"[PAD%d]" % n, b"[PAD%d]" % (n + 1)]
    assert found.types == [TokenType.CONTROL, *[TokenType.NORMAL] * (n - 1), *[TokenType.UNUSED] * 2]
    assert found.special_ids == {"eot": 261, "bos": 0, "eos": 0}
    assert len(load_rwkv(tmp_path, {})) == 65536


def test_llama_cpp_takes_the_longest_token_at_each_place(tmp_path: Path) -> None:
    n = write_rwkv(tmp_path)
    write_vocab_only(tmp_path / "v.gguf", load_rwkv(tmp_path, {"vocab_size": n}))
    with open_vocab(tmp_path / "v.gguf") as vocab:
        # "th", then "er" and not "he" and "r".
        assert vocab.encode("ther\n\n\u00e9") == [262, 265, 261, 0xC3 + 1, 0xA9 + 1]
        assert vocab.encode("it's") == [n - 1]


def test_the_template_writes_turns_between_empty_lines(tmp_path: Path) -> None:
    write_rwkv(tmp_path)
    template = load_rwkv(tmp_path, {}).chat_template
    assert isinstance(template, str)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " Hello "},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Bye"},
    ]
    rendered = jinja2.sandbox.SandboxedEnvironment().from_string(template).render
    text = "System: Be brief.\n\nUser: Hello\n\nAssistant: Hi\n\nUser: Bye\n\n"
    assert rendered(messages=messages) == text
    assert rendered(messages=messages, add_generation_prompt=True) == f"{text}Assistant:"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("9", "is not a number"),
        ("9 'a'", "is not a number"),
        ("9 [1] 1", "is not a number"),
        ("9 " + "(" * 500 + " 1", "is not a number"),
        (f"9 '{'a' * 3000}' 3000", "is not a number"),
        ("9 'a 1", "cannot be read"),
        ("9 'a' * 9 9", "cannot be read"),
        ("9 '\\q' 2", "cannot be read"),
        ("9 '\\ud800' 3", "cannot be read"),
        ("9 'a', 1", "of another length"),
        ("9 'ab' 1", "of another length"),
        ("9 '' 0", "of another length"),
    ],
)
def test_damaged_lines_are_refused(line: str, problem: str, tmp_path: Path) -> None:
    n = write_rwkv(tmp_path)
    file = tmp_path / RWKV_FILE
    file.write_text(f"{file.read_text(encoding='utf-8')}{line}\n", encoding="utf-8")
    with pytest.raises(TokenizerError, match=f"line {n} .*{problem}") as caught:
        load_rwkv(tmp_path, {})
    assert "\n" not in str(caught.value)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no such file"):
        load_rwkv(tmp_path, {})
    n = write_rwkv(tmp_path)
    with pytest.raises(TokenizerError, match=f"vocab_size {n - 1}"):
        load_rwkv(tmp_path, {"vocab_size": n - 1})
    (tmp_path / RWKV_FILE).write_text("1 'a' 1\n")
    with pytest.raises(TokenizerError, match="makes 2 tokens"):
        load_rwkv(tmp_path, {"vocab_size": 320})
