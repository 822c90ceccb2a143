"""Families whose tokenizer is byte-level BPE, the converter's own assumption unless told otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from ewq_gguf.arch.base import Family
from ewq_gguf.vocab import Vocabulary, load_bpe


class ByteLevelFamily(Family):
    """A family with tokenizer.json or vocab.json and merges.txt (conversion/base.py, TextModel.set_vocab)."""

    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(load_bpe)
