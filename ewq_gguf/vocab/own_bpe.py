"""Byte-level BPE as the tokenizer runs it, for splitting that llama.cpp only approximates.

A GGUF file names one of llama.cpp's splitting rules, and some of these come only close to the tokenizer's: tekken's
cuts words of Hindi, Thai or Arabic at their marks. Ours keeps the tokenizer's regular expressions beside the name, for
our own programs; every other program passes over them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

from ewq_gguf.vocab.pretokenizer import rules, splits

SPLITS_KEY = "ewq.tokenizer.splits"
"""Key of a GGUF file: an array of strings, the regular expressions by which text is split, one after the other."""

IGNORE_MERGES_KEY = "ewq.tokenizer.ignore_merges"
"""Key of a GGUF file: a bool, whether a word that is a token is taken as it is. Written beside `SPLITS_KEY`."""

# Characters handed to the library at a time, which needs some fifty times as many bytes.
_PIECE = 1 << 18
# A line that ends in no space, and the next one's first letter: where splitting starts anew under every rule but those
# that do not split at lines at all.
_NEW_LINE = re.compile(r"(?<=\S\n)(?=[A-Za-z])")
_TWO_LINES = ("an end.\n", "Next")


class OwnBPE:
    """A tokenizer made of a GGUF file's tokens and merges, run by the `tokenizers` library.

    Args:
        tokens: in the order of their ids, in byte letters.
        merges: "left right" in order of rank.
        form: regular expressions that split a text, one after the other.
        ignore_merges: whether a word that is a token is taken as it is, and not built from its merges.
    """

    def __init__(
        self, tokens: Sequence[bytes], merges: Sequence[str], form: Sequence[str], ignore_merges: bool
    ) -> None:
        self.form = tuple(form)
        self.ignore_merges = ignore_merges
        self._tokens, self._merges = tokens, merges

    @cached_property
    def _backend(self) -> Tokenizer:
        backend = backend_of(self._tokens, self._merges, self.ignore_merges)
        backend.pre_tokenizer = byte_level(self.form)
        return backend

    @cached_property
    def _by_lines(self) -> bool:
        cut = pre_tokenizers.Sequence(splits(self.form)).pre_tokenize_str("".join(_TWO_LINES))
        return _TWO_LINES[1] in [piece for piece, _ in cut]

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, which must be free of lone surrogates; special tokens in it are text.

        Raises what the library raises, for tokens and merges that make no tokenizer.
        """
        pieces = _pieces(text) if self._by_lines else (text,)
        return [number for piece in pieces for number in self._backend.encode(piece).ids]


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        found = _NEW_LINE.search(text, start + _PIECE)
        end = found.start() if found else len(text)
        yield text[start:end]
        start = end


def backend_of(tokens: Sequence[bytes], merges: Iterable[str], ignore_merges: bool) -> Tokenizer:
    """A tokenizer of the `tokenizers` library that does not split yet.

    Raises what the library raises.
    """
    ids = {token.decode("utf-8", "replace"): number for number, token in enumerate(tokens)}
    pairs = (merge.partition(" ") for merge in merges)
    # The library refuses a merge of or to what is no token; llama.cpp never gets to it.
    known = [(a, b) for a, _, b in pairs if a in ids and b in ids and a + b in ids]
    return Tokenizer(models.BPE(vocab=ids, merges=known, ignore_merges=ignore_merges))


def byte_level(form: Iterable[str]) -> Any:
    """The library's pre-tokenizer that splits by regular expressions and turns bytes into letters."""
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits(form), letters])


@cache
def _known() -> frozenset[tuple[str, ...]]:
    return frozenset(form for rule in rules() for form in rule.forms)


def known_form(form: Sequence[str]) -> bool:
    """Whether these are the regular expressions of a rule in our table; others, of a file from anywhere, are not run:
    a regular expression can be made to take forever."""
    return tuple(form) in _known()
