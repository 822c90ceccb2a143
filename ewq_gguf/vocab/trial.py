"""A tokenizer run with llama.cpp's splitting rules in place of its own.

What counts are token ids. A rule that cuts less than the tokenizer gives its ids all the same where no token of the
vocabulary reaches over a cut; one that cuts more tears tokens apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from ewq_gguf.vocab.byte_letters import byte_letters
from ewq_gguf.vocab.hf import build_backend
from ewq_gguf.vocab.own_bpe import backend_of, byte_level
from ewq_gguf.vocab.pretokenizer import PROBE, Rule, rule_of
from ewq_gguf.vocab.vocabulary import Vocabulary

# The rules under which llama.cpp does not build a word that is a token from its merges (`ignore_merges` in
# src/llama-vocab.cpp), whether or not it tells the rule from others.
_TAKES_WORDS_WHOLE = frozenset(
    {"llama-bpe", "glm4", "minicpm5", "youtu", "tekken", "granite-embed-multi-97m"}
)

_Tokens = frozenset[tuple[int, int]]


class Trial:
    """One tokenizer without normalizer and added tokens, and how far llama.cpp is from it under a rule.

    A distance counts the tokens that only one of the two finds, by their place and id.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> Trial | None:
        """From the opened tokenizer, else from the metadata; None where these do not tell how text is split.

        Raises what the `tokenizers` library raises.
        """
        tokenizer = vocabulary.origin
        if tokenizer is not None:
            if tokenizer.backend.pre_tokenizer is None:
                return None
            bare: dict[str, Any] = {"added_tokens": [], "normalizer": None, "post_processor": None}
            backend = build_backend({**tokenizer.document, **bare}, tokenizer.file)
            backend.pre_tokenizer = tokenizer.backend.pre_tokenizer
            return cls(backend)
        form = own_form(vocabulary)
        if form is None or not vocabulary.merges:
            return None
        # Files without merges of their own are tiktoken's, which takes a word that is a token as it is.
        backend = backend_of(vocabulary.tokens, vocabulary.merges, ignore_merges=True)
        backend.pre_tokenizer = byte_level(form)
        return cls(backend)

    def on_probe(self, rule: Rule) -> tuple[int, ...]:
        """Distance on every line of `PROBE`."""
        with self._splitting_as(rule):
            theirs = self._run(PROBE)
        return tuple(len(a ^ b) for a, b in zip(self._own_probe, theirs))

    def torn(self, rule: Rule) -> tuple[str, ...]:
        """The tokens that are a text and that get other ids as one, in the order of their ids."""
        return self._unlike(rule, self._texts, self._own_texts)

    def keeps(self, rule: Rule, texts: Sequence[str]) -> bool:
        """Whether any of `texts` gets the tokenizer's ids."""
        return len(self._unlike(rule, texts, self._ids(texts))) < len(texts)

    def _unlike(self, rule: Rule, texts: Sequence[str], own: list[list[int]]) -> tuple[str, ...]:
        with self._splitting_as(rule):
            theirs = self._ids(texts)
        return tuple(text for text, a, b in zip(texts, own, theirs) if a != b)

    def word(self, rule: Rule, line: int) -> str:
        """The first word of a line of `PROBE` that gets other ids."""
        with self._splitting_as(rule):
            [theirs] = self._run(PROBE[line : line + 1])
        at = min((start for start, _ in self._own_probe[line] ^ theirs), default=0)
        return (PROBE[line][:at].split(" ")[-1] + PROBE[line][at:].split(" ")[0]).strip() or PROBE[line]

    @cached_property
    def _own_probe(self) -> list[_Tokens]:
        return self._run(PROBE)

    @cached_property
    def _own_texts(self) -> list[list[int]]:
        return self._ids(self._texts)

    @cached_property
    def _texts(self) -> list[str]:
        vocab = self._backend.get_vocab(with_added_tokens=False)
        return list(_as_texts(sorted(vocab, key=vocab.__getitem__)))

    @contextmanager
    def _splitting_as(self, rule: Rule) -> Iterator[None]:
        own = (self._backend.pre_tokenizer, self._backend.model.ignore_merges)
        self._backend.pre_tokenizer = byte_level(rule.runs)
        self._backend.model.ignore_merges = rule.name in _TAKES_WORDS_WHOLE
        try:
            yield
        finally:
            self._backend.pre_tokenizer, self._backend.model.ignore_merges = own

    def _run(self, lines: Sequence[str]) -> list[_Tokens]:
        encoded = self._backend.encode_batch(list(lines), add_special_tokens=False)
        return [frozenset((start, token) for (start, _), token in zip(e.offsets, e.ids)) for e in encoded]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def own_form(vocabulary: Vocabulary) -> tuple[str, ...] | None:
    """The regular expressions of a tokenizer that is no tokenizer.json: the file's own, else its rule's."""
    if vocabulary.splits:
        return vocabulary.splits
    rule = rule_of(vocabulary.pre)
    return None if rule is None else rule.forms[0]


def _as_texts(tokens: Iterable[str]) -> Iterable[str]:
    byte_of = {letter: byte for byte, letter in enumerate(byte_letters())}
    for token in tokens:
        try:
            yield bytes(byte_of[letter] for letter in token).decode()
        except (KeyError, UnicodeDecodeError):
            continue
