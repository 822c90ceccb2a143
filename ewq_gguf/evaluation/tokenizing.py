"""What llama.cpp does not do to a text as its tokenizer does, for files that say so: normalize it, split it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from ewq_gguf.vocab.normalizer import known_forms, normalized
from ewq_gguf.vocab.own_bpe import OwnBPE
from ewq_gguf.vocab.vocabulary import TokenType

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cut:
    """A text as its tokenizer takes it apart: normalized pieces of text and, between them, ids of added tokens.

    `changed`: whether normalization changed anything.
    """

    parts: tuple[str | int, ...]
    changed: bool


@dataclass(frozen=True)
class Tokenizing:
    """What a file says of normalization and splitting.

    As in the `tokenizers` library, added tokens that stand in a text are cut out first and stay as they are, the
    leftmost and longest first; what is between them is normalized piece by piece, and no control token comes of it.
    Tokens that are to be found in the normalized text (`normalized` in tokenizer.json) are no different in a GGUF
    file, and are cut out like the others.

    Attributes:
        steps: as `vocab.normalizer.normalized` takes them.
        user_defined: text -> id of the tokens that are always found in a text.
        control: text -> id of those that are found where special tokens are parsed.
        bpe: gives the ids of a piece of text; None where llama.cpp does.
    """

    steps: tuple[str, ...]
    user_defined: Mapping[str, int]
    control: Mapping[str, int]
    bpe: OwnBPE | None = None

    @classmethod
    def of(
        cls, steps: Sequence[bytes], tokens: Sequence[bytes], types: Sequence[int], bpe: OwnBPE | None = None
    ) -> Tokenizing | None:
        """From a file's arrays; None where it asks for nothing, or for a step that is not known here."""
        names = tuple(step.decode("ascii", "replace") for step in steps)
        if not known_forms(names) or not (names or bpe):
            return None

        def of_type(*kinds: int) -> dict[str, int]:
            found = (
                (token, number) for number, (token, kind) in enumerate(zip(tokens, types)) if kind in kinds
            )
            return {token.decode("utf-8", "surrogateescape"): number for token, number in found if token}

        return cls(names, of_type(TokenType.USER_DEFINED), of_type(TokenType.CONTROL, TokenType.UNKNOWN), bpe)

    def cut(self, text: bytes, *, parse_special: bool) -> Cut | None:
        """`text` taken apart and normalized; None where it is no UTF-8, which is then left as it is."""
        try:
            whole = text.decode("utf-8")
        except UnicodeDecodeError:
            return None
        known = {**self.user_defined, **self.control} if parse_special else self.user_defined
        found = self._all if parse_special else self._always
        parts: list[str | int] = []
        changed = False
        # A pattern with one group splits into texts and, between them, what it matched.
        for index, part in enumerate(found.split(whole) if found is not None else [whole]):
            if index % 2:
                parts.append(known[part])
            elif part:
                form = normalized(part, self.steps)
                changed = changed or form != part
                parts.append(form)
        if changed:
            _tell_normalized(self.steps)
        return Cut(tuple(parts), changed)

    @cached_property
    def _always(self) -> re.Pattern[str] | None:
        return _any_of(self.user_defined)

    @cached_property
    def _all(self) -> re.Pattern[str] | None:
        return _any_of({**self.user_defined, **self.control})


def _any_of(texts: Mapping[str, int]) -> re.Pattern[str] | None:
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None


@cache
def _tell_normalized(steps: tuple[str, ...]) -> None:
    _log.warning(
        "the text was normalized (%s) as the model's tokenizer does it; llama.cpp's own programs do not, so that "
        "llama-perplexity may give other figures",
        ", ".join(steps),
    )


@cache
def tell_split() -> None:
    """Say once that a text has other tokens here than in llama.cpp's programs."""
    _log.warning(
        "the text was split as the model's tokenizer does it, which llama.cpp's own programs only come close to, so "
        "that llama-perplexity may give other figures"
    )
