"""The splitting rules of the table against llama.cpp itself, on vocabularies that show where it cuts.

Every piece of the text is a token and any two neighbours merge: what llama.cpp gives as one token, it did not cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Regex, pre_tokenizers

from ewq_gguf.vocab import Vocabulary
from ewq_gguf.vocab.byte_letters import byte_letters
from ewq_gguf.vocab.pretokenizer import PROBE, Rule, rules

from .gguf_vocab import open_vocab, write_vocab_only

# The number of merges grows with the third power of this.
_BYTES = 24
MORE = ("1234567 a12345.678 ٣٤٥٦٧x", "հայՀԱՅ ǅungla ﬁn", "々〆〇 漢字かな交じり 𠀀𠀁")


def windows() -> list[str]:
    """Pieces of the probe's lines, cut before spaces."""
    found = []
    for line in (*PROBE, *MORE):
        text = ""
        for word in line.replace(" ", "\0 ").split("\0"):
            if text and len((text + word).encode()) > _BYTES:
                found.append(text)
                text = ""
            text += word
        found.append(text)
    return [text for text in found if len(text.encode()) <= 2 * _BYTES]


def all_pieces(text: str) -> tuple[list[str], list[str]]:
    """Tokens and merges, in GPT-2's letters."""
    letters = byte_letters()
    whole = "".join(letters[byte] for byte in text.encode())
    size = len(whole)
    ranges = [(i, j) for length in range(2, size + 1) for i, j in _spans(size, length)]
    tokens = dict.fromkeys([*letters, *(whole[i:j] for i, j in ranges)])
    merges = dict.fromkeys(f"{whole[i:k]} {whole[k:j]}" for i, j in ranges for k in range(i + 1, j))
    return list(tokens), list(merges)


def _spans(size: int, length: int) -> Iterator[tuple[int, int]]:
    return ((i, i + length) for i in range(size - length + 1))


def pieces(text: str, lengths: list[int]) -> list[str]:
    data, at, found = text.encode(), 0, []
    for length in lengths:
        found.append(data[at : at + length].decode("utf-8", "replace"))
        at += length
    return found


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.name)
def test_llama_cpp_cuts_as_the_table_says(tmp_path: Path, rule: Rule) -> None:
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in rule.runs]
    splitter = pre_tokenizers.Sequence(splits)
    path = tmp_path / "vocab.gguf"
    for text in windows():
        tokens, merges = all_pieces(text)
        # Some names make llama.cpp look for these.
        names = [token.encode() for token in tokens] + [b"<mask>", b"[MASK]"]
        write_vocab_only(path, Vocabulary("gpt2", rule.name, names, [1] * len(names), merges=merges))
        with open_vocab(path) as tokenizer:
            found = pieces(text, [len(tokens[i]) for i in tokenizer.encode(text)])
        assert found == [text[a:b] for _, (a, b) in splitter.pre_tokenize_str(text) if b > a]
