"""Mistral's own tokenizer format, tekken.json: ranked byte strings behind a block of special tokens.

The layout is that of `Tekkenizer` in mistral-common; the metadata is that of `_set_vocab_mistral` in llama.cpp's
conversion/base.py and `MistralVocab` in its gguf-py/gguf/vocab.py.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ewq_gguf.errors import TokenizerError
from ewq_gguf.vocab.byte_letters import byte_letters
from ewq_gguf.vocab.files import (
    MAX_TOKENS,
    as_id,
    as_mapping,
    as_sequence,
    as_text,
    damaged,
    encode,
    read_object,
    read_text,
)
from ewq_gguf.vocab.vocabulary import TokenType, Vocabulary

_MAX_PIECE_BYTES = 1024
# Every piece is cut at each of its bytes; a vocabulary of 150,000 has about a million.
_MAX_CUTS = 1 << 22
# Files up to version 7 may leave the special tokens out; these are then the first of them.
_EARLY_SPECIAL = (
    *(
        "<unk>",
        "<s>",
        "</s>",
        "[INST]",
        "[/INST]",
        "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]",
        "[TOOL_RESULTS]",
    ),
    *(
        "[/TOOL_RESULTS]",
        "[TOOL_CALLS]",
        "[IMG]",
        "<pad>",
        "[IMG_BREAK]",
        "[IMG_END]",
        "[PREFIX]",
        "[MIDDLE]",
    ),
    *("[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)
_EARLY_VERSIONS = ("v1", "v2", "v3", "v7")
# llama.cpp has these templates built in and knows them by name.
_TEMPLATES = {"v3": "mistral-v3-tekken", "v7": "mistral-v7-tekken"}


def is_tekken(folder: Path) -> bool:
    """Whether tekken.json is the only form in which `folder` holds its tokenizer."""
    return (folder / "tekken.json").is_file() and not (folder / "tokenizer.json").is_file()


def load_tekken(folder: Path, config: Mapping[str, Any], *, pre: str | None = None) -> Vocabulary:
    """The vocabulary of `folder`'s tekken.json; `pre` names another of llama.cpp's pre-tokenizers than tekken.

    The chat template is the one llama.cpp knows for the tokenizer's version, else chat_template.jinja.

    Raises TokenizerError when the file is missing or damaged.
    """
    file = folder / "tekken.json"
    document = read_object(file)
    if document is None:
        raise TokenizerError(f"{file}: there is no such file; Mistral's tokenizer needs it")
    settings = as_mapping(document.get("config"), file, "config")
    version = as_text(settings.get("version"), file, "config.version")
    size = as_id(settings.get("default_vocab_size"), file, "config.default_vocab_size", MAX_TOKENS + 1)
    n_special = as_id(settings.get("default_num_special_tokens"), file, "config.default_num_special_tokens")
    special = _special_tokens(document, version, n_special, file)
    ranks = _ranks(document, size - n_special, file)
    symbols = byte_letters()
    pieces = ["".join(symbols[byte] for byte in piece) for piece in ranks]
    tokens = [text.encode() for text in (*special, *pieces)]
    ids = {text: index for index, text in enumerate(special)}
    template = _TEMPLATES.get(version) or read_text(folder / "chat_template.jinja")
    notes = [] if template else [f"{file}: no chat template is known for version {version:.20}"]
    if config.get("vocab_size") not in (None, size):
        notes.append(f"{file}: holds {size} tokens, config.json says vocab_size {config['vocab_size']!r:.20}")
    named = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
    missing = [text for text in ("<s>", "</s>", "<unk>") if text not in ids]
    if missing:
        raise damaged(file, "special_tokens", f"lack {missing[0]}")
    return Vocabulary(
        model="gpt2",
        pre=pre or "tekken",
        tokens=tokens,
        types=[int(TokenType.CONTROL)] * n_special + [int(TokenType.NORMAL)] * len(pieces),
        # Integers, as the converter writes them: the array's type in the file follows from it.
        scores=[0] * size,
        merges=_merges(ranks, pieces),
        special_ids={kind: ids.get(text, ids["</s>"]) for kind, text in named.items()},
        add_special={"bos": True, "eos": False},
        chat_template=template,
        notes=tuple(notes),
        splits=(pattern,) if isinstance(pattern := settings.get("pattern"), str) else (),
    )


def _special_tokens(document: Mapping[str, Any], version: str, count: int, file: Path) -> list[str]:
    entries = document.get("special_tokens")
    if entries is None and version not in _EARLY_VERSIONS:
        raise damaged(file, "special_tokens", "are missing")
    if entries is None:
        texts = list(_EARLY_SPECIAL)
    else:
        texts = []
        for index, item in enumerate(as_sequence(entries, file, "special_tokens")):
            place = f"special_tokens[{index}]"
            entry = as_mapping(item, file, place)
            if entry.get("rank") != index:
                raise damaged(file, f"{place}.rank", f"is not {index}")
            texts.append(as_text(entry.get("token_str"), file, f"{place}.token_str"))
            encode(texts[-1], file, f"{place}.token_str")
    texts += [f"<SPECIAL_{index}>" for index in range(len(texts), count)]
    if len(texts) != count or len(set(texts)) != count:
        raise damaged(file, "special_tokens", f"are not {count} different ones")
    return texts


def _ranks(document: Mapping[str, Any], count: int, file: Path) -> dict[bytes, int]:
    entries = as_sequence(document.get("vocab"), file, "vocab")
    if not 256 <= count <= len(entries):
        raise damaged(file, "vocab", f"has {len(entries)} entries where config asks for {count}")
    ranks: dict[bytes, int] = {}
    cuts = 0
    for index, item in enumerate(entries[:count]):
        entry = as_mapping(item, file, f"vocab[{index}]")
        try:
            text = as_text(entry.get("token_bytes"), file, f"vocab[{index}].token_bytes")
            piece = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise damaged(file, f"vocab[{index}].token_bytes", "is not base64") from error
        known = len(piece) <= _MAX_PIECE_BYTES and piece not in ranks and piece
        if not known or entry.get("rank") != index or (index < 256 and piece != bytes([index])):
            raise damaged(file, f"vocab[{index}]", "is not the token that belongs there")
        ranks[piece] = index
        cuts += len(piece)
        if cuts > _MAX_CUTS:
            raise damaged(file, f"vocab[{index}]", f"ends more than {_MAX_CUTS} bytes of tokens")
    return ranks


def _merges(ranks: Mapping[bytes, int], pieces: list[str]) -> list[str]:
    """Every way to join two tokens to a third, in the order of the third's rank, then of the two's."""
    merges: list[str] = []
    for piece, rank in ranks.items():
        if rank < 256:
            continue
        cuts = ((ranks.get(piece[:i]), ranks.get(piece[i:])) for i in range(1, len(piece)))
        pairs = sorted((left, right) for left, right in cuts if left is not None and right is not None)
        merges += [f"{pieces[left]} {pieces[right]}" for left, right in pairs]
    return merges
