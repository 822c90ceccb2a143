"""Metadata with which llama.cpp gives the tokenizer's own token ids, where the converter's does not.

The converter's metadata is kept except for these causes, each of which gives a model other tokens than it was
trained on:

- `merge order`: for a SentencePiece-like tokenizer.json without tokenizer.model, the converter gives every token
  the same score. llama.cpp merges the pair of highest score first, and so merges in another order than the
  tokenizer. The ranks of the merges are the scores that restore it.
- `space before the text`: for the same files the converter does not say whether a space goes before a text, and
  llama.cpp then puts one even where the tokenizer (Gemma's) puts none.
- `added tokens`: for the same files the converter takes an added token for a plain piece of text where its id is
  below the others'. llama.cpp then does not look for it in a text before merging.
- `splitting`: llama.cpp only approximates some splitting rules, and another of its pre-tokenizers may come closer
  on some texts than the one that the converter names, and be farther on none. GPT-4o's rule (gpt-oss, Llama 4, ...) is the case known: under its own
  name llama.cpp cuts words at combining marks, which tears most words of Hindi, Bengali or Thai apart.

- `whole words`: the tokenizer takes a word that is a token whole, and under the converter's name llama.cpp builds
  it from its merges. Llama 3's tokenizer.json without BOS in its post-processor is the case known: the converter
  takes it for Smaug's.

The other way round nothing changes: a tokenizer.json that says nothing of whole words keeps a name under which
llama.cpp takes them whole, for files older than the setting cannot say it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from typing import Any

from ewq_gguf.vocab.hf import HfTokenizer, library_errors
from ewq_gguf.vocab.pretokenizer import Rule, cuts, distances, first_difference, rule_cuts, rules
from ewq_gguf.vocab.vocabulary import TokenType, Vocabulary


class TokenizerMode(str, Enum):
    """Whose metadata a file gets: that of the tokenizer's own ids, or the converter's, byte for byte."""

    FAITHFUL = "faithful"
    CONVERTER = "converter"


def faithful(vocabulary: Vocabulary, *, keep_pre: bool = False) -> Vocabulary:
    """`vocabulary` (as llama.cpp's converter writes it) with what makes llama.cpp give the tokenizer's ids.

    `keep_pre` leaves the pre-tokenizer alone, for one that the user has named. Each change is a note.

    Raises TokenizerError when the `tokenizers` library cannot run the tokenizer.
    """
    tokenizer = vocabulary.origin
    if tokenizer is None:
        return vocabulary
    if vocabulary.model == "llama":
        return _in_merge_order(vocabulary, tokenizer)
    if vocabulary.model == "gpt2" and not keep_pre:
        return _with_closest_rule(vocabulary, tokenizer)
    return vocabulary


def _in_merge_order(vocabulary: Vocabulary, tokenizer: HfTokenizer) -> Vocabulary:
    add_space = vocabulary.add_space_prefix
    if not isinstance(tokenizer.settings.get("add_prefix_space"), bool):
        add_space = prepends_space(tokenizer.document)
    note = (
        f"{tokenizer.file}: scores by the order of its merges, where llama.cpp's converter writes none; "
        "--tokenizer converter leaves them out"
    )
    return replace(
        vocabulary,
        types=_added_types(vocabulary, tokenizer),
        scores=_ranked_scores(tokenizer, len(vocabulary)),
        add_space_prefix=add_space,
        notes=(*vocabulary.notes, note),
    )


def _added_types(vocabulary: Vocabulary, tokenizer: HfTokenizer) -> list[int]:
    types = list(vocabulary.types)
    for token_id, token in tokenizer.added.items():
        if token_id < len(types) and types[token_id] == TokenType.NORMAL:
            types[token_id] = int(TokenType.CONTROL if token.special else TokenType.USER_DEFINED)
    return types


def _ranked_scores(tokenizer: HfTokenizer, size: int) -> list[float]:
    scores = [0.0] * size
    merges = tokenizer.document["model"].get("merges") or []
    # Of several merges that give one token, the first decides.
    for rank, merge in reversed(list(enumerate(merges, 1))):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        token_id = tokenizer.vocab.get(left + right, size)
        if token_id < size:
            scores[token_id] = -float(rank)
    return scores


def prepends_space(document: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json puts a space before a text."""
    text = json.dumps([document.get("normalizer"), document.get("pre_tokenizer")])
    return '"type": "Prepend"' in text or ('"Metaspace"' in text and '"prepend_scheme": "never"' not in text)


def _with_closest_rule(vocabulary: Vocabulary, tokenizer: HfTokenizer) -> Vocabulary:
    splitter = tokenizer.backend.pre_tokenizer
    current = rule_of(vocabulary.pre)
    if current is None or splitter is None:
        return vocabulary
    with library_errors(tokenizer.file):
        own = cuts(splitter)

        def away(rule: Rule) -> tuple[int, ...]:
            forgets = tokenizer.takes_words_whole and not rule.merges_alike(tokenizer)
            return int(forgets), *distances(own, rule_cuts(rule.runs))

        now = away(current)
        # Better here and worse there is no better: prose is not to pay for what code gains.
        measured = [(away(rule), rule) for rule in rules() if rule.fits(tokenizer)]
        better = [(found, rule) for found, rule in measured if all(a <= b for a, b in zip(found, now))]
        least, best = min(better, key=lambda entry: sum(entry[0]), default=(now, current))
        if sum(least) >= sum(now):
            return vocabulary
        why = "which does not take whole the words that are tokens"
        if any(now[1:]):
            mine, theirs = first_difference(own, rule_cuts(current.runs))
            why = f"which cuts out {theirs!r} where the tokenizer cuts out {mine!r}"
    note = (
        f"{tokenizer.file}: pre-tokenizer {best.name} in place of the converter's {vocabulary.pre}, {why}; "
        f"for programs too old to know {best.name}, take --tokenizer converter"
    )
    return replace(vocabulary, pre=best.name, notes=(*vocabulary.notes, note))


def rule_of(name: str | None) -> Rule | None:
    """The splitting rule behind a pre-tokenizer's name; None when it is not in the table."""
    return next((rule for rule in rules() if name in (rule.name, *rule.aliases)), None)
