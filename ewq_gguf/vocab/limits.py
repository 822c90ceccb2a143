"""What llama.cpp cannot do as a tokenizer does it, whatever a GGUF file says: sentences for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ewq_gguf.vocab.faithful import rule_of
from ewq_gguf.vocab.hf import HfTokenizer, library_errors
from ewq_gguf.vocab.pretokenizer import Cuts, Rule, cuts, distances, first_difference, rule_cuts
from ewq_gguf.vocab.vocabulary import Vocabulary

# Normalizer steps of tokenizer.json that change a text, and what they change. llama.cpp runs none of them
# before BPE (src/llama-vocab.cpp, llm_tokenizer_bpe and llm_tokenizer_spm).
_STEPS = {
    "NFC": "text with separate accents",
    "NFD": "accented text",
    "NFKC": "text with separate accents, ligatures or full-width forms",
    "NFKD": "accented text, ligatures and full-width forms",
    "Nmt": "text with control characters",
    "Precompiled": "text that its character map changes",
    "Lowercase": "text with capitals",
    "StripAccents": "accented text",
}


def limits(vocabulary: Vocabulary) -> tuple[str, ...]:
    """One sentence for each way in which llama.cpp's token ids differ from the tokenizer's with `vocabulary`.

    Raises TokenizerError when the `tokenizers` library cannot run the tokenizer.
    """
    tokenizer = vocabulary.origin
    if vocabulary.model not in ("gpt2", "llama", "gemma4"):
        return ()
    if tokenizer is None:
        # tekken.json is split by the very rule that the pre-tokenizer is named after.
        rule = rule_of(vocabulary.pre) if vocabulary.model == "gpt2" else None
        note = None if rule is None else _approximation("the tokenizer", rule, rule_cuts(rule.forms[0]))
        return (note,) if note else ()
    found = []
    for kind in normalizer_kinds(tokenizer.document):
        if kind in _STEPS:
            found.append(
                f"{tokenizer.file}: llama.cpp does not run its {kind} normalizer: {_STEPS[kind]} may get other tokens, "
                f"unless it is normalized before"
            )
    note = _of_splitting(vocabulary, tokenizer) if vocabulary.model == "gpt2" else None
    return (*found, note) if note else tuple(found)


def normalizer_kinds(document: Mapping[str, Any]) -> tuple[str, ...]:
    """The steps of a tokenizer.json's normalizer, by type, in order."""
    node = document.get("normalizer")
    if not isinstance(node, dict):
        return ()
    inner = node.get("normalizers")
    steps = inner if isinstance(inner, list) else [node]
    return tuple(str(step.get("type")) for step in steps if isinstance(step, dict))


def _of_splitting(vocabulary: Vocabulary, tokenizer: HfTokenizer) -> str | None:
    rule, splitter = rule_of(vocabulary.pre), tokenizer.backend.pre_tokenizer
    if rule is None or splitter is None:
        return None
    with library_errors(tokenizer.file):
        return _approximation(str(tokenizer.file), replace(rule, name=str(vocabulary.pre)), cuts(splitter))


def _approximation(whose: str, rule: Rule, own: tuple[Cuts, ...]) -> str | None:
    theirs = rule_cuts(rule.runs)
    if not any(distances(own, theirs)):
        return None
    mine, other = first_difference(own, theirs)
    return (
        f"{whose}: llama.cpp's pre-tokenizer {rule.name} only comes close: it cuts out {other!r} "
        f"where the tokenizer cuts out {mine!r}"
    )
