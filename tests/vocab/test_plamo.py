"""PLaMo's tokenizer.jsonl, on one made here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ewq_gguf.errors import TokenizerError
from ewq_gguf.vocab import TokenType, load_plamo
from tests.tiny.vocabularies import write_plamo


def test_plamo_reads_kinds_scores_and_names(tmp_path: Path) -> None:
    n = write_plamo(tmp_path)
    found = load_plamo(tmp_path, {"vocab_size": n + 3}, with_template=True)
    assert found.tokens[-3:] == [b"[PAD1]", b"[PAD2]", b"[PAD3]"]
    assert found.types[:6] == [TokenType.UNKNOWN, *[TokenType.CONTROL] * 4, TokenType.BYTE]
    assert found.scores is not None
    assert found.scores[261:263] == [-1.0, -2.0]
    assert found.special_ids == {"bos": 1, "eos": 2, "pad": 3, "unk": 0, "eot": 4}
    assert found.chat_template == "{{ messages }}"
    (tmp_path / "chat_template.jinja").write_text("other")
    assert load_plamo(tmp_path, {}, with_template=True).chat_template == "other"
    assert load_plamo(tmp_path, {}).chat_template is None


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("nonsense", "is not JSON"),
        ("[" * 5000, "is not JSON"),
        ("{}", "must be an array"),
        ('["a"]', "is not a token and its score"),
        ("[1, 2]", "must be a string"),
        ('["\\ud800", 1]', "surrogate"),
        ('["a", "b"]', "no finite number"),
        ('["a", NaN]', "no finite number"),
        ('["a", 1e300]', "no finite number"),
        ('["a", true]', "no finite number"),
    ],
)
def test_damaged_plamo_files_are_refused(line: str, problem: str, tmp_path: Path) -> None:
    n = write_plamo(tmp_path)
    file = tmp_path / "tokenizer.jsonl"
    file.write_text(f"{file.read_text(encoding='utf-8')}{line}\n", encoding="utf-8")
    with pytest.raises(TokenizerError, match=f"line {n + 1} .*{problem}") as caught:
        load_plamo(tmp_path, {})
    assert "\n" not in str(caught.value)


def test_plamo_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no such file"):
        load_plamo(tmp_path, {})
    n = write_plamo(tmp_path)
    with pytest.raises(TokenizerError, match=f"vocab_size {n - 1}"):
        load_plamo(tmp_path, {"vocab_size": n - 1})
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({"bos_token": "<none>"}))
    with pytest.raises(TokenizerError, match="bos_token is '<none>'"):
        load_plamo(tmp_path, {})
    settings.unlink()
    (tmp_path / "tokenizer.jsonl").write_text('["a", 0]\n["<0x00>", 0]\n')
    with pytest.raises(TokenizerError, match="byte 0x01"):
        load_plamo(tmp_path, {})
