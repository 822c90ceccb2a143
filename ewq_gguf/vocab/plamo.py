"""PLaMo's tokenizer.jsonl: one token, its score and its kind per line.

The metadata is that of `_set_vocab_plamo` in llama.cpp's conversion/base.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ewq_gguf.errors import TokenizerError
from ewq_gguf.vocab.files import (
    MAX_TOKENS,
    as_sequence,
    as_text,
    damaged,
    encode,
    read_object,
    read_text,
    vocabulary_size,
)
from ewq_gguf.vocab.vocabulary import TokenType, Vocabulary

_FILE = "tokenizer.jsonl"
_KINDS = {"UNKNOWN": TokenType.UNKNOWN, "CONTROL": TokenType.CONTROL, "BYTE": TokenType.BYTE}
_PAD_SCORE = -1000.0
# The token with which a chat's turn ends, <|plamo:op|>.
_TURN = 4


def load_plamo(folder: Path, config: Mapping[str, Any], *, with_template: bool = False) -> Vocabulary:
    """The vocabulary of `folder`, padded to config.json's vocab_size; `with_template` adds the chat template.

    Raises TokenizerError when a file is missing, damaged or does not fit config.json.
    """
    file, settings_file = folder / _FILE, folder / "tokenizer_config.json"
    text = read_text(file)
    if text is None:
        raise TokenizerError(f"{file}: there is no such file; this model's tokenizer needs it")
    tokens, scores, types = _read(text, file)
    size = vocabulary_size(config) or len(tokens)
    if len(tokens) > size:
        raise TokenizerError(
            f"{file}: holds {len(tokens)} tokens, but config.json says vocab_size {size}; "
            "the tokenizer belongs to another model, or config.json must be corrected"
        )
    missing = next((byte for byte in range(256) if b"<0x%02X>" % byte not in tokens), None)
    if missing is not None or len(tokens) <= _TURN:
        raise damaged(file, "", f"has no token for the byte 0x{missing or 0:02X}")
    padding = size - len(tokens)
    settings = read_object(settings_file) or {}
    ids = {}
    for kind in ("bos", "eos", "pad", "sep", "unk"):
        token = settings.get(f"{kind}_token")
        if token is None:
            continue
        wanted = encode(as_text(token, settings_file, f"{kind}_token"), settings_file, f"{kind}_token")
        if wanted not in tokens:
            raise damaged(settings_file, f"{kind}_token", f"is {token!r:.60}, which {_FILE} does not hold")
        ids[kind] = tokens.index(wanted)
    template = read_text(folder / "chat_template.jinja") if with_template else None
    if with_template and template is None and settings.get("chat_template"):
        template = as_text(settings["chat_template"], settings_file, "chat_template")
    return Vocabulary(
        model="plamo2",
        pre="default",
        tokens=tokens + [b"[PAD%d]" % i for i in range(1, padding + 1)],
        scores=scores + [_PAD_SCORE] * padding,
        types=types + [int(TokenType.UNUSED)] * padding,
        special_ids={**ids, "eot": _TURN},
        chat_template=template or None,
        add_space_prefix=False,
    )


def _read(text: str, file: Path) -> tuple[list[bytes], list[float], list[int]]:
    tokens: list[bytes] = []
    scores: list[float] = []
    types: list[int] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            entry = as_sequence(json.loads(line), file, place)
        except (ValueError, RecursionError) as error:
            raise damaged(file, place, "is not JSON") from error
        if len(entry) < 2 or len(tokens) >= MAX_TOKENS:
            raise damaged(file, place, "is not a token and its score, or one too many")
        token, score = as_text(entry[0], file, place), entry[1]
        # Written so that NaN fails too; GGUF keeps scores in single precision.
        if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) < 3.0e38:
            raise damaged(file, place, "has a score that is no finite number")
        tokens.append(encode(token, file, place))
        scores.append(float(score))
        kind = _KINDS.get(entry[2]) if len(entry) > 2 and isinstance(entry[2], str) else None
        marked = token.startswith("<|plamo:") and token.endswith("|>")
        types.append(int(kind or (TokenType.CONTROL if marked else TokenType.NORMAL)))
    return tokens, scores, types
