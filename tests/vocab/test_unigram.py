"""XLM-RoBERTa's Unigram model, on a small one made here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ewq_gguf.errors import TokenizerError
from ewq_gguf.vocab import TokenType, load_xlm_roberta
from ewq_gguf.vocab.unigram import UNIGRAM_FILE
from tests.tiny.vocabularies import write_sentencepiece, write_unigram

from .gguf_vocab import open_vocab, write_vocab_only


def test_pieces_move_behind_four_special_tokens(tmp_path: Path) -> None:
    n = write_unigram(tmp_path)
    found = load_xlm_roberta(tmp_path, {"vocab_size": n + 2, "bos_token_id": 0, "eos_token_id": 2})
    assert len(found) == n + 2
    assert found.tokens[:6] == [b"<s>", b"<pad>", b"</s>", b"<unk>", "\u2581".encode(), b"e"]
    assert found.tokens[-1] == b"[PAD%d]" % n
    assert found.types[:5] == [*[TokenType.CONTROL] * 3, TokenType.UNKNOWN, TokenType.NORMAL]
    assert found.scores is not None
    assert found.scores[3:6] == [0.0, -1.0, -1.125]
    assert found.add_space_prefix is True
    assert found.remove_extra_whitespaces is True
    assert found.special_ids == {"bos": 0, "eos": 2}


def test_llama_cpp_reads_it(tmp_path: Path) -> None:
    n = write_unigram(tmp_path)
    found = load_xlm_roberta(tmp_path, {"vocab_size": n + 2})
    write_vocab_only(tmp_path / "v.gguf", found)
    with open_vocab(tmp_path / "v.gguf") as vocab:
        ids = vocab.encode("the  tin")
    assert [found.tokens[i].decode() for i in ids] == ["\u2581the", "\u2581", "t", "in"]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda data: data[:-1], "is not a SentencePiece model"),
        (lambda data: b"", "is not a SentencePiece model"),
        (lambda data: b"\xff" * 40, "is not a SentencePiece model"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_damaged_files_are_refused(damage: Callable[[bytes], bytes], problem: str, tmp_path: Path) -> None:
    write_unigram(tmp_path)
    file = tmp_path / UNIGRAM_FILE
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(TokenizerError, match=problem) as caught:
        load_xlm_roberta(tmp_path, {})
    assert "\n" not in str(caught.value)


def test_other_models_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no such file"):
        load_xlm_roberta(tmp_path, {})
    write_sentencepiece(tmp_path)
    (tmp_path / "tokenizer.model").rename(tmp_path / UNIGRAM_FILE)
    with pytest.raises(TokenizerError, match="no Unigram model"):
        load_xlm_roberta(tmp_path, {})
