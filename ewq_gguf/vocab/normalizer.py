"""Unicode normalization that a tokenizer runs before it splits a text, and that llama.cpp does not run before BPE.

A GGUF file has no standard key for it. Ours keeps the steps for our own programs; every other program passes over it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from tokenizers import normalizers

NORMALIZER_KEY = "ewq.tokenizer.normalizer"
"""Key of a GGUF file: an array of strings, the steps by their names in tokenizer.json, in order."""

MAX_STEPS = 8
_FORMS = ("NFC", "NFD", "NFKC", "NFKD")
_PIECE = 1 << 20


def normalizer_kinds(document: Mapping[str, Any]) -> tuple[str, ...]:
    """The steps of a tokenizer.json's normalizer, by type, in order."""
    node = document.get("normalizer")
    if not isinstance(node, dict):
        return ()
    inner = node.get("normalizers")
    steps = inner if isinstance(inner, list) else [node]
    return tuple(str(step.get("type")) for step in steps if isinstance(step, dict))


def unicode_forms(document: Mapping[str, Any]) -> tuple[str, ...]:
    """The steps of a tokenizer.json's normalizer where each is a Unicode normalization form, else none at all."""
    kinds = normalizer_kinds(document)
    return kinds if known_forms(kinds) else ()


def known_forms(steps: Sequence[str]) -> bool:
    """Whether `normalized` can run these steps."""
    return len(steps) <= MAX_STEPS and all(step in _FORMS for step in steps)


def normalized(text: str, steps: Sequence[str]) -> str:
    """`text` after the steps; it must be free of lone surrogates.

    The `tokenizers` library itself does it: Python's own tables are of a newer Unicode and change characters that
    the tokenizer leaves alone (U+32FF under NFKC, the order of several dozen combining marks).
    """
    # A line feed is never part of a composition, so that a text may be cut before one. The library needs some twenty
    # times a text's size, and nothing changes ASCII.
    for step in steps:
        form = _form(step)
        text = "".join(piece if piece.isascii() else form.normalize_str(piece) for piece in _pieces(text))
    return text


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = text.find("\n", start + _PIECE) if len(text) - start > _PIECE else -1
        end = len(text) if end < 0 else end
        yield text[start:end]
        start = end


@cache
def _form(step: str) -> Any:
    return getattr(normalizers, step)()
