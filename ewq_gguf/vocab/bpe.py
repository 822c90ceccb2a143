"""Byte-level BPE vocabularies (GPT-2's scheme): tokenizer.json, or vocab.json with merges.txt.

The rules are those of `get_vocab_base` and `_set_vocab_gpt2` in llama.cpp's conversion/base.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ewq_gguf.errors import TokenizerError
from ewq_gguf.vocab.files import encode, vocabulary_size
from ewq_gguf.vocab.hf import HfTokenizer, open_tokenizer
from ewq_gguf.vocab.merges import read_merges
from ewq_gguf.vocab.pretokenizer import detect_pretokenizer
from ewq_gguf.vocab.special import read_special_tokens
from ewq_gguf.vocab.spm import looks_special
from ewq_gguf.vocab.vocabulary import TokenType, Vocabulary

_SPACE_MARK = "\u2581"


def load_bpe(folder: Path, config: Mapping[str, Any], *, pre: str | None = None) -> Vocabulary:
    """The byte-level BPE vocabulary of `folder`, padded to config.json's vocab_size.

    `pre` is the name of llama.cpp's pre-tokenizer; None detects it.

    Raises TokenizerError when there are no tokenizer files, one is damaged, an id does not fit vocab_size,
    or the pre-tokenizer is not known.
    """
    tokenizer = open_tokenizer(folder, config)
    model_type = tokenizer.document["model"].get("type", "BPE")
    if model_type != "BPE":
        raise TokenizerError(f"{tokenizer.file}: is a {model_type:.40} model, not byte-level BPE")
    notes: list[str] = []
    tokens, types = token_table(tokenizer, config, notes)
    if pre is None:
        detected = detect_pretokenizer(tokenizer)
        pre = detected.name
        if detected.note:
            notes.append(detected.note)
    document = tokenizer.document if tokenizer.file.name == "tokenizer.json" else None
    vocabulary = Vocabulary(
        model="gpt2",
        pre=pre,
        tokens=tokens,
        types=types,
        merges=read_merges(folder, document),
        notes=tuple(notes),
        origin=tokenizer,
    )
    return vocabulary.with_special(read_special_tokens(folder, config, tokenizer=document))


def token_table(
    tokenizer: HfTokenizer, config: Mapping[str, Any], notes: list[str]
) -> tuple[list[bytes], list[int]]:
    """Tokens and types by id, up to config.json's vocab_size; unused ids become `[PADi]`.

    Appends to `notes` a sentence about added tokens that the model has no row for.
    """
    by_id = {token_id: token for token, token_id in tokenizer.vocab.items()}
    size = vocabulary_size(config) or len(by_id)
    highest = max((i for i in by_id if i not in tokenizer.added), default=-1)
    if highest >= size:
        raise TokenizerError(
            f"{tokenizer.file}: has a token with id {highest}, but config.json says vocab_size {size}; "
            "the tokenizer belongs to another model, or config.json must be corrected"
        )
    beyond = sorted(i for i in tokenizer.added if i >= size)
    if beyond:
        notes.append(
            f"{tokenizer.file}: {len(beyond)} added tokens from id {beyond[0]} on are beyond the model's {size} "
            "tokens, left out"
        )
    tokens: list[bytes] = []
    types: list[int] = []
    for token_id in range(size):
        token = by_id.get(token_id)
        if token is None:
            tokens.append(b"[PAD%d]" % token_id)
            types.append(int(TokenType.UNUSED))
            continue
        kind = TokenType.NORMAL
        added = tokenizer.added.get(token_id)
        if added is not None:
            if not added.normalized:
                # llama.cpp looks for added tokens in the text as the decoder would print them.
                token = tokenizer.decode(tokenizer.encode(token, add_special_tokens=False))
            if added.special or looks_special(token):
                kind = TokenType.CONTROL
            else:
                kind = TokenType.USER_DEFINED
                token = token.replace(_SPACE_MARK, " ")
        tokens.append(encode(token, tokenizer.file, f"token {token_id}"))
        types.append(int(kind))
    return tokens, types
