"""BPE merges, from tokenizer.json or merges.txt, as "left right" texts (`SpecialVocab` in
gguf-py/gguf/vocab.py)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ewq_gguf.vocab.files import damaged, read_text

MAX_MERGES = 1 << 21
"""Most merges; published tokenizers stay below a third of that."""
_SPACE_SYMBOL = "\u0120"


def read_merges(folder: Path, tokenizer: Mapping[str, Any] | None) -> list[str]:
    """The merges in `tokenizer` (the content of tokenizer.json), else those of merges.txt, else none.

    `tokenizer` must have passed `check_document`. Raises TokenizerError when merges.txt cannot be read.
    """
    entries = tokenizer["model"].get("merges") if tokenizer is not None else None
    return [_merge(entry) for entry in entries] if entries else read_merges_txt(folder) or []


def _merge(entry: str | list[str]) -> str:
    if isinstance(entry, str):
        return entry
    left, right = entry
    # A space inside a part is spelled as byte-level BPE spells it: the one between the parts must stand alone.
    if " " in left or " " in right:
        left, right = left.replace(" ", _SPACE_SYMBOL), right.replace(" ", _SPACE_SYMBOL)
    return f"{left} {right}"


def read_merges_txt(folder: Path) -> list[str] | None:
    """The pairs in merges.txt, or None when there is none; lines that are no pair are passed over."""
    text = read_text(folder / "merges.txt")
    if text is None:
        return None
    lines = text.split("\n")
    if lines[0].strip().startswith("#"):
        del lines[0]
    if len(lines) > MAX_MERGES:
        raise damaged(folder / "merges.txt", "", f"has more than {MAX_MERGES} lines")
    pairs = (line.strip().split(None, 3) for line in lines)
    return [f"{pair[0]} {pair[1]}" for pair in pairs if len(pair) == 2]
