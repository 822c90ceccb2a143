"""What llama.cpp cannot do as a tokenizer does it, whatever a GGUF file says: sentences for the terminal."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken

from ewq_gguf.vocab.closest import own_cuts
from ewq_gguf.vocab.hf import HfTokenizer, library_errors
from ewq_gguf.vocab.normalizer import normalizer_kinds
from ewq_gguf.vocab.pretokenizer import first_difference, rule_cuts, rule_of
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
    notes = () if tokenizer is None else (*_of_normalizer(vocabulary, tokenizer), *_of_added(tokenizer))
    if vocabulary.model == "gpt2":
        notes += _of_splitting(vocabulary)
    if any(b"\0" in token for token in vocabulary.tokens):
        notes += (
            "llama.cpp reads the text of a token up to its first null character: texts with such characters get "
            "other tokens",
        )
    return notes


def _of_normalizer(vocabulary: Vocabulary, tokenizer: HfTokenizer) -> tuple[str, ...]:
    ours = "; ewq-gguf's own commands normalize it" if vocabulary.normalizer else ""
    return tuple(
        f"{tokenizer.file}: llama.cpp does not run its {kind} normalizer: {_STEPS[kind]} may get other tokens, "
        f"unless it is normalized before{ours}"
        for kind in normalizer_kinds(tokenizer.document)
        if kind in _STEPS
    )


def _of_added(tokenizer: HfTokenizer) -> tuple[str, ...]:
    """Added tokens with flags that a GGUF file has no place for."""
    normalizer = tokenizer.backend.normalizer

    def elsewhere(token: AddedToken) -> bool:
        if token.lstrip or token.rstrip or token.single_word:
            return True
        return bool(
            token.normalized
            and normalizer is not None
            and normalizer.normalize_str(token.content) != token.content
        )

    with library_errors(tokenizer.file):
        found = [token.content for _, token in sorted(tokenizer.added.items()) if elsewhere(token)]
    if not found:
        return ()
    others = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return (
        f"{tokenizer.file}: llama.cpp finds the added token {found[0]!r}{others} just where it is written out; the "
        "tokenizer finds it in the normalized text, takes the spaces beside it along, or finds it only as a word",
    )


def _of_splitting(vocabulary: Vocabulary) -> tuple[str, ...]:
    rule, file = rule_of(vocabulary.pre), Path("the tokenizer")
    if vocabulary.origin is not None:
        file = vocabulary.origin.file
    with library_errors(file):
        own = own_cuts(vocabulary)
    if rule is None or own is None or own == rule_cuts(rule.runs):
        return ()
    mine, other = first_difference(own, rule_cuts(rule.runs))
    ours = "; ewq-gguf's own commands cut as the tokenizer does" if vocabulary.own_splits else ""
    return (
        f"{file}: llama.cpp's pre-tokenizer {vocabulary.pre} only comes close: it cuts out {other!r} "
        f"where the tokenizer cuts out {mine!r}{ours}",
    )
