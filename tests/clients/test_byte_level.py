"""The reference model's vocabulary as byte-level BPE."""

from __future__ import annotations

from pathlib import Path

import pytest
from client_check.checkpoint import byte_alphabet, byte_level_checkpoint
from client_check.measure import PROMPTS
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, reference: Path) -> Path:
    return byte_level_checkpoint(reference, tmp_path_factory.mktemp("byte-level"))


def test_every_byte_has_a_letter_of_its_own() -> None:
    letters = byte_alphabet()
    assert len(set(letters)) == 256
    assert letters[ord("A")] == "A"
    assert letters[ord(" ")] == "\u0120"


@pytest.mark.parametrize(
    "text", [*PROMPTS, "It was built between and by the same people , but not for them ."]
)
def test_words_get_the_ids_of_the_sentencepiece_model(folder: Path, reference: Path, text: str) -> None:
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    original = SentencePieceProcessor(str(reference / "tokenizer.model"))
    # SentencePiece puts a space before the first word.
    assert made.encode(" " + text).ids == original.encode(text)


def test_any_text_comes_back(folder: Path) -> None:
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "Ångström: 1 849 km\t“naïve” 🙂\n日本"
    assert made.decode(made.encode(text).ids) == text


def test_the_vocabulary_is_whole(folder: Path, reference: Path) -> None:
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    original = SentencePieceProcessor(str(reference / "tokenizer.model"))
    assert sorted(made.get_vocab().values()) == list(range(original.get_piece_size()))
    assert made.get_vocab()["</s>"] == original.eos_id()
