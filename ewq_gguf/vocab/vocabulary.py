"""A tokenizer as GGUF knows it: tokens, scores, types, merges, and the keys around them."""

from __future__ import annotations

import string
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import TYPE_CHECKING

from ewq_gguf.vocab.normalizer import NORMALIZER_KEY
from ewq_gguf.vocab.own_bpe import IGNORE_MERGES_KEY, SPLITS_KEY
from ewq_gguf.vocab.special import NamedTemplates, SpecialTokens

if TYPE_CHECKING:
    import gguf

    from ewq_gguf.vocab.hf import HfTokenizer

OWN_KEYS = (NORMALIZER_KEY, SPLITS_KEY, IGNORE_MERGES_KEY)
"""Keys of ours that belong to the tokenizer: what llama.cpp does not do as the tokenizer does, and our programs do."""

_NORMALIZER = "tokenizer.ggml.normalizer"
_NAME_CHARACTERS = frozenset(string.ascii_letters + string.digits)


class TokenType(IntEnum):
    """Values of `tokenizer.ggml.token_type` (llama.h, `llama_token_type`)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """One tokenizer, ready to be written; `tokens[i]`, `scores[i]` and `types[i]` belong to token id i.

    `special_ids` ("bos", "eos", "unk", "eot", ...) and `add_special` keep the order of llama.cpp's converter.
    `chat_template` is one text, or (name, text) pairs. `normalizer` is what llama.cpp does not run and our own
    programs do (see `vocab.normalizer`); so is `own_splits`, with `ignore_merges` (see `vocab.own_bpe`). `notes` are sentences about what was ignored or assumed, worth a line on
    the terminal.

    Not written: `origin`, the tokenizer.json (or vocab.json) that it was read from, opened; `splits`, the regular
    expressions by which another file splits a text; `overruled`, the ids of tokens that only llama.cpp's converter
    takes for added ones.
    """

    model: str
    pre: str | None
    tokens: list[bytes]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] = field(default_factory=list)
    special_ids: dict[str, int] = field(default_factory=dict)
    add_special: dict[str, bool] = field(default_factory=dict)
    chat_template: str | NamedTemplates | None = None
    add_space_prefix: bool | None = None
    remove_extra_whitespaces: bool | None = None
    precompiled_charsmap: bytes | None = None
    token_type_count: int | None = None
    normalizer_lowercase: bool | None = None
    normalizer_strip_accents: bool | None = None
    normalizer: tuple[str, ...] = ()
    own_splits: tuple[str, ...] = ()
    ignore_merges: bool = False
    notes: tuple[str, ...] = ()
    overruled: tuple[int, ...] = field(default=(), compare=False, repr=False)
    splits: tuple[str, ...] = field(default=(), compare=False, repr=False)
    origin: HfTokenizer | None = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.tokens)

    def with_special(self, special: SpecialTokens) -> Vocabulary:
        """This vocabulary with the special tokens of its folder."""
        return replace(
            self,
            special_ids=dict(special.ids),
            add_special=dict(special.add),
            chat_template=special.chat_template,
            normalizer_lowercase=special.normalizer_lowercase,
            normalizer_strip_accents=special.normalizer_strip_accents,
            notes=self.notes + special.notes,
        )

    def add_to(self, writer: gguf.GGUFWriter) -> None:
        """Write the `tokenizer.*` keys, with the value types and in the order of llama.cpp's converter
        (conversion/base.py and `SpecialVocab.add_to_gguf` in gguf-py/gguf/vocab.py)."""
        if self.add_space_prefix is not None:
            writer.add_add_space_prefix(self.add_space_prefix)
        writer.add_tokenizer_model(self.model)
        if self.pre is not None:
            writer.add_tokenizer_pre(self.pre)
        if self.token_type_count is not None:
            writer.add_token_type_count(self.token_type_count)
        writer.add_token_list(self.tokens)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        writer.add_token_types([int(kind) for kind in self.types])
        if self.remove_extra_whitespaces is not None:
            writer.add_remove_extra_whitespaces(self.remove_extra_whitespaces)
        if self.precompiled_charsmap:
            writer.add_precompiled_charsmap(self.precompiled_charsmap)
        if self.merges:
            writer.add_token_merges(self.merges)
        for kind, token in self.special_ids.items():
            # A kind without a key of its own ("prefix", "fsep", ...) is one that GGUF does not record.
            handler = getattr(writer, f"add_{kind}_token_id", None)
            if handler is not None:
                handler(token)
        for kind, flag in self.add_special.items():
            handler = getattr(writer, f"add_add_{kind}_token", None)
            if handler is not None:
                handler(flag)
        if isinstance(self.chat_template, str):
            writer.add_chat_template(self.chat_template)
        elif self.chat_template is not None:
            self._add_named_templates(writer, self.chat_template)
        if self.normalizer_lowercase is not None:
            writer.add_bool(f"{_NORMALIZER}.lowercase", self.normalizer_lowercase)
        if self.normalizer_strip_accents is not None:
            writer.add_bool(f"{_NORMALIZER}.strip_accents", self.normalizer_strip_accents)
        if self.normalizer:
            writer.add_array(NORMALIZER_KEY, list(self.normalizer))
        if self.own_splits:
            writer.add_array(SPLITS_KEY, list(self.own_splits))
            writer.add_bool(IGNORE_MERGES_KEY, self.ignore_merges)

    @staticmethod
    def _add_named_templates(writer: gguf.GGUFWriter, templates: NamedTemplates) -> None:
        default = None
        names: dict[str, None] = {}
        for raw, text in templates:
            name = "".join(c if c in _NAME_CHARACTERS else "_" for c in raw)
            if name == "default":
                default = text
            elif name:
                names[name] = None
                writer.add_string(f"tokenizer.chat_template.{name}", text)
        if names:
            # The converter writes the names of a set in no fixed order; equal input must give equal bytes
            # here.
            writer.add_array("tokenizer.chat_templates", list(names))
        if default is not None:
            writer.add_string("tokenizer.chat_template", default)
