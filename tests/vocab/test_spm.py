"""SentencePiece vocabularies against the sentencepiece library and against llama.cpp."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor

from ewq_gguf.errors import TokenizerError
from ewq_gguf.vocab import TokenType, has_sentencepiece, load_sentencepiece
from ewq_gguf.vocab.spm import looks_special

from .gguf_vocab import open_vocab, write_vocab_only
from .texts import texts
from .tiny_tokenizers import write


@pytest.fixture
def folder(tmp_path: Path, reference: Path) -> Path:
    """A folder with the reference model's tokenizer.model alone."""
    shutil.copy(reference / "tokenizer.model", tmp_path / "tokenizer.model")
    return tmp_path


@pytest.fixture
def processor(reference: Path) -> SentencePieceProcessor:
    """The reference model's tokenizer in the sentencepiece library."""
    return SentencePieceProcessor(model_file=str(reference / "tokenizer.model"))


def test_pieces_scores_and_types_are_the_models(folder: Path, processor: SentencePieceProcessor) -> None:
    vocabulary = load_sentencepiece(folder, {"vocab_size": processor.vocab_size()})
    ids = range(processor.vocab_size())
    assert vocabulary.tokens == [processor.id_to_piece(i).encode() for i in ids]
    assert vocabulary.scores == [processor.get_score(i) for i in ids]
    types = vocabulary.types
    assert [i for i in ids if types[i] == TokenType.CONTROL] == [i for i in ids if processor.is_control(i)]
    assert [i for i in ids if types[i] == TokenType.BYTE] == [i for i in ids if processor.is_byte(i)]
    assert [i for i in ids if types[i] == TokenType.UNKNOWN] == [processor.unk_id()]
    assert (vocabulary.model, vocabulary.pre) == ("llama", "default")


def test_llama_cpp_gives_the_same_ids(
    folder: Path, processor: SentencePieceProcessor, tmp_path: Path
) -> None:
    path = tmp_path / "vocab.gguf"
    write_vocab_only(path, load_sentencepiece(folder, {"bos_token_id": 1, "eos_token_id": 2}))
    with open_vocab(path) as tokenizer:
        wrong = [text for text in texts() if tokenizer.encode(text) != processor.encode(text)]
        assert wrong == []
        assert tokenizer.encode("a", add_special=True)[0] == 1


def test_missing_ids_are_padded(folder: Path, processor: SentencePieceProcessor) -> None:
    n = processor.vocab_size()
    vocabulary = load_sentencepiece(folder, {"vocab_size": n + 2})
    assert vocabulary.tokens[n:] == [b"[PAD%d]" % n, b"[PAD%d]" % (n + 1)]
    assert vocabulary.types[n:] == [TokenType.UNUSED] * 2
    assert vocabulary.scores is not None
    assert vocabulary.scores[n:] == [-10000.0] * 2


def test_pieces_beyond_the_vocabulary_are_left_out(folder: Path) -> None:
    vocabulary = load_sentencepiece(folder, {"vocab_size": 1000})
    assert len(vocabulary) == 1000
    assert "pieces beyond" in vocabulary.notes[0]


def test_added_tokens_of_both_files(folder: Path, processor: SentencePieceProcessor) -> None:
    n = processor.vocab_size()
    write(
        folder,
        added_tokens={"<extra>": n, "beyond": n + 100},
        tokenizer_config={
            "added_tokens_decoder": {
                str(n + 1): {"content": "<|im_start|>", "special": False},
                str(n + 2): {"content": "\u2581\u2581two", "special": False},
                str(n + 3): {"content": "[END]", "special": True},
            }
        },
    )
    vocabulary = load_sentencepiece(folder, {"vocab_size": n + 4})
    assert vocabulary.tokens[n:] == [b"<extra>", b"<|im_start|>", b"  two", b"[END]"]
    user, control = TokenType.USER_DEFINED, TokenType.CONTROL
    assert vocabulary.types[n:] == [user, control, user, control]
    assert vocabulary.scores is not None
    assert vocabulary.scores[n:] == [-1000.0] * 4
    assert any("beyond the model's" in note for note in vocabulary.notes)


def test_the_per_layer_vocabulary_size_counts_first(folder: Path) -> None:
    vocabulary = load_sentencepiece(folder, {"vocab_size": 5000, "vocab_size_per_layer_input": 4500})
    assert len(vocabulary) == 4500


def test_special_ids_beyond_the_vocabulary_are_left_out(folder: Path) -> None:
    config = {"vocab_size": 4096, "bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 4096}
    vocabulary = load_sentencepiece(folder, config)
    assert vocabulary.special_ids == {"bos": 1}
    assert any("pad_token_id" in note for note in vocabulary.notes)


@pytest.mark.parametrize("content", [b"", b"not a model", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_damaged_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.model"):
        load_sentencepiece(tmp_path, {})


def test_a_truncated_model_is_refused(folder: Path) -> None:
    file = folder / "tokenizer.model"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(TokenizerError, match="is not a SentencePiece model"):
        load_sentencepiece(folder, {})


def test_a_missing_model_is_told(tmp_path: Path) -> None:
    assert not has_sentencepiece(tmp_path)
    with pytest.raises(TokenizerError, match="there is no such file"):
        load_sentencepiece(tmp_path, {})


@pytest.mark.parametrize(
    ("token", "special"),
    [
        ("<|im_start|>", True),
        ("<|>", True),
        ("<｜begin▁of▁sentence｜>", True),
        ("<unused7>", True),
        ("<pad>", True),
        ("[@BOS@]", True),
        ("<|open", False),
        ("<s>", False),
        ("a<|b|>", False),
        ("<|multi\nline|>", True),
    ],
)
def test_special_by_look(token: str, special: bool) -> None:
    assert looks_special(token) is special
