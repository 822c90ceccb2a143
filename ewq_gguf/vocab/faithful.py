"""Metadata with which llama.cpp gives the tokenizer's own token ids, where the converter's does not.

The converter's metadata is kept except for these causes, each of which gives a model other tokens than it was
trained on:

- `merge order`: for a SentencePiece-like tokenizer.json without tokenizer.model, the converter gives every token
  the same score. llama.cpp merges the pair of highest score first, and so merges in another order than the
  tokenizer. The ranks of the merges are the scores that restore it.
- `space before the text`: for the same files the converter does not say whether a space goes before a text, and
  llama.cpp then puts one even where the tokenizer (Gemma's) puts none.
- `added tokens`: for the same files the converter takes an added token for a plain piece of text where its id is
  below the others'. llama.cpp then does not look for it in a text before merging. The other way round, beside a
  tokenizer.model it takes for added what an added_tokens.json says that tokenizer_config.json overrules.
- `splitting`: llama.cpp only approximates some splitting rules, and another of its pre-tokenizers may give the
  tokenizer's ids for more texts than the one that the converter names, and for none fewer (`vocab.closest`). GPT-4o's
  rule (gpt-oss, Llama 4, ...) is the case known: under its own name llama.cpp cuts words at combining marks, which
  tears most words of Hindi, Bengali or Thai apart. Mistral's tekken suffers the same, but the rule that mends it cuts
  Turkish suffixes ("Ankara'dan") elsewhere; there a note names it, and the user chooses.
- `whole words`: the tokenizer takes a word that is a token whole, and under the converter's name llama.cpp builds
  it from its merges. Llama 3's tokenizer.json without BOS in its post-processor is the case known: the converter
  takes it for Smaug's.
- `normalizer`: llama.cpp runs none before BPE. Unicode normalization forms are kept under a key of ours, for our own
  programs (`vocab.normalizer`); nothing makes llama.cpp's programs run them.

Where no rule of llama.cpp's splits as the tokenizer does, its own regular expressions are kept too, for our own
programs (`vocab.own_bpe`).

The other way round nothing changes: a tokenizer.json that says nothing of whole words keeps a name under which
llama.cpp takes them whole, for files older than the setting cannot say it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

from ewq_gguf.vocab.closest import closest_rule, own_cuts
from ewq_gguf.vocab.hf import HfTokenizer, library_errors
from ewq_gguf.vocab.normalizer import unicode_forms
from ewq_gguf.vocab.pretokenizer import first_difference, rule_cuts, rule_of, rules
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
    if vocabulary.model == "llama" and tokenizer is not None:
        return _in_merge_order(vocabulary, tokenizer)
    if vocabulary.overruled:
        return _without_overruled(vocabulary)
    if vocabulary.model != "gpt2":
        return vocabulary
    forms = () if tokenizer is None else unicode_forms(tokenizer.document)
    if forms:
        vocabulary = replace(vocabulary, normalizer=forms)
    return _with_own_splits(vocabulary if keep_pre else _with_closest_rule(vocabulary))


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


def _without_overruled(vocabulary: Vocabulary) -> Vocabulary:
    types = list(vocabulary.types)
    for token_id in vocabulary.overruled:
        if types[token_id] == TokenType.USER_DEFINED:
            types[token_id] = int(TokenType.NORMAL)
    first = vocabulary.tokens[vocabulary.overruled[0]].decode()
    note = (
        f"added_tokens.json: {first!r} is not looked for in a text, as tokenizer_config.json lists the added tokens "
        "without it; --tokenizer converter looks for it"
    )
    return replace(vocabulary, types=types, notes=(*vocabulary.notes, note))


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


def _with_closest_rule(vocabulary: Vocabulary) -> Vocabulary:
    current, own = rule_of(vocabulary.pre), own_cuts(vocabulary)
    if current is None or own is None:
        return vocabulary
    file = Path("the tokenizer") if vocabulary.origin is None else vocabulary.origin.file
    with library_errors(file):
        found = closest_rule(vocabulary, current, own)
    if found is None:
        return vocabulary
    name = found.rule.name
    if found.loss:
        note = (
            f"{file}: under llama.cpp's pre-tokenizer {vocabulary.pre} {len(found.saved)} tokens are never found, such as "
            f"{found.saved[0]!r}; --pre-tokenizer {name} finds them, but gives texts like {found.loss!r} other "
            "tokens than the tokenizer"
        )
        return replace(vocabulary, notes=(*vocabulary.notes, note))
    why = "which does not take whole the words that are tokens"
    if own != rule_cuts(current.runs):
        mine, theirs = first_difference(own, rule_cuts(current.runs))
        why = f"which cuts out {theirs!r} where the tokenizer cuts out {mine!r}"
    note = (
        f"{file}: pre-tokenizer {name} in place of the converter's {vocabulary.pre}, {why}; "
        f"for programs too old to know {name}, take --tokenizer converter"
    )
    return replace(vocabulary, pre=name, notes=(*vocabulary.notes, note))


def _with_own_splits(vocabulary: Vocabulary) -> Vocabulary:
    """With the tokenizer's regular expressions where llama.cpp's rule is another and ours knows them."""
    rule = rule_of(vocabulary.pre)
    file = Path("the tokenizer") if vocabulary.origin is None else vocabulary.origin.file
    with library_errors(file):
        own = own_cuts(vocabulary)
    if own is None or rule is None or own == rule_cuts(rule.runs) or not vocabulary.merges:
        return vocabulary
    forms = (form for known in (rule, *rules()) for form in known.forms)
    form = next((form for form in forms if rule_cuts(form) == own), ())
    whole = vocabulary.origin is None or vocabulary.origin.takes_words_whole
    return replace(vocabulary, own_splits=form, ignore_merges=whole)
