"""Tokenizers in tiktoken's form: one base64 token and its rank per line, and special tokens known by the model.

Hunyuan (hy.tiktoken), Kimi (tiktoken.model) and the first Qwen (qwen.tiktoken) are published so, with Python code that
names their special tokens and is never run here. The metadata is that of `HunYuanMoEModel.set_vocab`,
`DeepseekV2Model.set_vocab` and `_set_vocab_qwen` in llama.cpp's conversion/.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ewq_gguf.errors import TokenizerError
from ewq_gguf.vocab.byte_letters import byte_letters
from ewq_gguf.vocab.files import (
    MAX_TOKENS,
    as_mapping,
    as_text,
    damaged,
    encode,
    read_bytes,
    read_object,
    vocabulary_size,
)
from ewq_gguf.vocab.special import read_special_tokens
from ewq_gguf.vocab.vocabulary import TokenType, Vocabulary

HUNYUAN_FILE, KIMI_FILE, QWEN_FILE = "hy.tiktoken", "tiktoken.model", "qwen.tiktoken"
_MAX_PIECE_BYTES = 1024
# Taking a token of n bytes apart costs up to n * n steps; the 150,000 tokens of a published file need some ten million.
_MAX_WORK = 1 << 27
_NEVER = 1 << 62
_EXTRA = 205
_HUNYUAN_SPECIAL = ("<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>")
_QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_KIMI_RESERVED = 258


def load_hunyuan_tiktoken(
    folder: Path, config: Mapping[str, Any], *, pre: str | None = None, bos: str | None = "<|bos|>"
) -> Vocabulary:
    """The vocabulary of a Hunyuan model; `bos` begins a text whatever config.json says, unless it is None.

    Raises TokenizerError when a file is missing, damaged or does not fit config.json.
    """
    # This file's own reader counts the lines and passes over tokens that it has seen.
    ranks = read_ranks(folder / HUNYUAN_FILE, counts_lines=True)
    special = _numbered((*_HUNYUAN_SPECIAL, *_extra()), len(ranks))
    found = _vocabulary(
        folder / HUNYUAN_FILE, config, ranks, special, pre or "hunyuan", named=len(_HUNYUAN_SPECIAL)
    )
    return found if bos is None else replace(found, special_ids={**found.special_ids, "bos": special[bos]})


def load_kimi_tiktoken(folder: Path, config: Mapping[str, Any], *, pre: str | None = None) -> Vocabulary:
    """The vocabulary of Kimi K2, Moonlight and their like: special tokens as tokenizer_config.json names them.

    Raises TokenizerError when a file is missing, damaged or does not fit config.json.
    """
    ranks = read_ranks(folder / KIMI_FILE)
    named = _declared(folder / "tokenizer_config.json")
    special = {}
    for token_id in range(len(ranks), len(ranks) + _KIMI_RESERVED):
        text = named.get(token_id, f"<|reserved_token_{token_id}|>")
        if text in special:
            raise damaged(
                folder / "tokenizer_config.json", f"added_tokens_decoder.{token_id}", "repeats a token's text"
            )
        special[text] = token_id
    return _vocabulary(folder / KIMI_FILE, config, ranks, special, pre or "kimi-k2")


def load_qwen_tiktoken(folder: Path, config: Mapping[str, Any], *, pre: str | None = None) -> Vocabulary:
    """The vocabulary of the first Qwen models; `<|endoftext|>` also begins a text unless config.json says otherwise.

    Raises TokenizerError when a file is missing, damaged or does not fit config.json.
    """
    ranks = read_ranks(folder / QWEN_FILE)
    special = _numbered((*_QWEN_SPECIAL, *_extra()), len(ranks))
    vocabulary = _vocabulary(
        folder / QWEN_FILE, config, ranks, special, pre or "qwen2", named=len(_QWEN_SPECIAL)
    )
    end = special["<|endoftext|>"]
    ids = vocabulary.special_ids or {"bos": end, "eos": end}
    return replace(vocabulary, special_ids={**ids, "unk": ids.get("unk", end)})


def read_ranks(file: Path, *, counts_lines: bool = False) -> dict[bytes, int]:
    """Token -> rank, in the order of the file; the ranks are 0, 1, 2, ...

    `counts_lines` takes the number of a token's line for its rank, without lines whose token is there already.

    Raises TokenizerError when the file is missing, or a line is not a token of at most 1024 bytes in base64 and its
    rank, or a byte has no token of its own.
    """
    data = read_bytes(file)
    if data is None:
        raise TokenizerError(f"{file}: there is no such file; this model's tokenizer needs it")
    ranks: dict[bytes, int] = {}
    work = 0
    for number, line in enumerate(data.splitlines(), 1):
        if not line:
            continue
        parts = line.split()
        if len(parts) != 2:
            raise damaged(file, f"line {number}", "is not a token and its rank")
        try:
            piece = base64.b64decode(parts[0], validate=True)
        except (binascii.Error, ValueError) as error:
            raise damaged(file, f"line {number}", "has a token that is not base64") from error
        if not 0 < len(piece) <= _MAX_PIECE_BYTES:
            raise damaged(
                file, f"line {number}", f"has a token of {len(piece)} bytes, not of 1 to {_MAX_PIECE_BYTES}"
            )
        if piece in ranks and counts_lines:
            continue
        if piece in ranks:
            raise damaged(file, f"line {number}", "has a token that is there already")
        if not counts_lines and parts[1] != b"%d" % len(ranks):
            raise damaged(file, f"line {number}", f"has a rank other than {len(ranks)}, the next one")
        ranks[piece] = len(ranks)
        work += len(piece) ** 2
        if len(ranks) > MAX_TOKENS or work > _MAX_WORK:
            raise damaged(file, f"line {number}", "goes beyond what a tokenizer may hold")
    missing = next((byte for byte in range(256) if bytes([byte]) not in ranks), None)
    if missing is not None:
        raise damaged(file, "", f"has no token for the byte 0x{missing:02X}")
    return ranks


def recover_merges(ranks: Mapping[bytes, int]) -> list[str]:
    """The merges "left right" that make each token, in the order of the tokens, in GPT-2's letters.

    A token's last merge is found by merging its bytes by the ranks below its own. Tokens that no two others make have
    none. Source: `QwenModel.bpe` in llama.cpp's conversion/qwen.py.
    """
    letters = byte_letters()
    merges = []
    for piece, rank in ranks.items():
        cuts = _cuts(piece, rank, ranks)
        if len(cuts) == 1:
            left, right = piece[: cuts[0]], piece[cuts[0] :]
            merges.append(f"{_spelled(left, letters)} {_spelled(right, letters)}")
    return merges


def _cuts(piece: bytes, limit: int, ranks: Mapping[bytes, int]) -> list[int]:
    """Where the parts of `piece` meet after every merge with a rank below `limit`."""
    ends = list(range(len(piece) + 1))
    pairs = [ranks.get(piece[i : i + 2], _NEVER) for i in range(len(piece) - 1)]
    while pairs:
        lowest = min(pairs)
        if lowest >= limit:
            break
        at = pairs.index(lowest)
        del pairs[at], ends[at + 1]
        for i in (at - 1, at):
            if 0 <= i < len(pairs):
                pairs[i] = ranks.get(piece[ends[i] : ends[i + 2]], _NEVER)
    return ends[1:-1]


def _spelled(piece: bytes, letters: list[str]) -> str:
    """The bytes in GPT-2's letters."""
    return "".join(letters[byte] for byte in piece)


def _vocabulary(
    file: Path,
    config: Mapping[str, Any],
    ranks: Mapping[bytes, int],
    special: Mapping[str, int],
    pre: str,
    *,
    named: int = 0,
) -> Vocabulary:
    """`named` special tokens have a meaning of their own, so that the model must have rows for them."""
    letters = byte_letters()
    size = vocabulary_size(config) or len(ranks) + len(special)
    if len(ranks) + named > size:
        raise TokenizerError(
            f"{file}: makes {len(ranks) + named} tokens, but config.json says vocab_size {size}; "
            "the tokenizer belongs to another model, or config.json must be corrected"
        )
    ids = {_spelled(piece, letters): rank for piece, rank in ranks.items()}
    ids.update(special)
    by_id = {token_id: text for text, token_id in ids.items()}
    tokens = [by_id[i].encode() if i in by_id else b"[PAD%d]" % i for i in range(size)]
    kinds = (TokenType.CONTROL if i >= len(ranks) else TokenType.NORMAL for i in range(size))
    vocabulary = Vocabulary(
        model="gpt2",
        pre=pre,
        tokens=tokens,
        types=[int(kind if i in by_id else TokenType.UNUSED) for i, kind in enumerate(kinds)],
        merges=recover_merges(ranks),
    )
    return vocabulary.with_special(read_special_tokens(file.parent, config))


def _declared(file: Path) -> dict[int, str]:
    """Added tokens by id, as tokenizer_config.json lists them."""
    listed = (read_object(file) or {}).get("added_tokens_decoder") or {}
    found = {}
    for key, entry in as_mapping(listed, file, "added_tokens_decoder").items():
        place = f"added_tokens_decoder.{key:.20}"
        if not key.isdecimal() or len(key) > 10:
            raise damaged(file, place, "is not a token id")
        text = as_text(as_mapping(entry, file, place).get("content"), file, f"{place}.content")
        encode(text, file, f"{place}.content")
        found[int(key)] = text
    return found


def _numbered(texts: tuple[str, ...], start: int) -> dict[str, int]:
    return {text: start + i for i, text in enumerate(texts)}


def _extra() -> tuple[str, ...]:
    return tuple(f"<|extra_{i}|>" for i in range(_EXTRA))
