"""InternLM2 and InternLM2.5."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from ewq_gguf.arch.base import Family
from ewq_gguf.arch.fused_qkv import split_groups
from ewq_gguf.arch.views import permute_heads
from ewq_gguf.checkpoint.tensor import Tensor
from ewq_gguf.vocab import TokenType, Vocabulary, load_sentencepiece
from ewq_gguf.vocab.files import as_id, as_mapping, as_sequence, as_text, encode, read_object
from ewq_gguf.vocab.spm import open_sentencepiece

_ADDED_SCORE = -1000.0
_CHAT_END = "<|im_end|>"
# A NUL would end the token in C; llama.cpp's converter writes a dragon for it.
_NUL_STANDS_AS = "\U0001f409".encode()


def load_internlm2(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """tokenizer.model with the added tokens of both JSON files as they are (conversion/internlm.py, set_vocab).

    A chat model's end of turn takes the place of the end of text.

    Raises:
        TokenizerError: the files are missing or damaged.
    """
    vocabulary = load_sentencepiece(folder, config)
    tokens, types = list(vocabulary.tokens), list(vocabulary.types)
    scores, special_ids = list(vocabulary.scores or ()), dict(vocabulary.special_ids)
    for token_id, token in enumerate(tokens):
        if token == b"\x00":
            tokens[token_id] = _NUL_STANDS_AS
        elif token.startswith(b"[UNUSED"):
            types[token_id] = int(TokenType.UNUSED)
    for token_id, token, special in _added_tokens(folder, len(tokens)):
        tokens[token_id] = token
        scores[token_id] = _ADDED_SCORE
        types[token_id] = int(TokenType.CONTROL if special else TokenType.USER_DEFINED)
        if token == _CHAT_END.encode():
            special_ids["eos"] = token_id
    return replace(
        vocabulary,
        tokens=tokens,
        types=types,
        scores=scores,
        special_ids=special_ids,
        add_space_prefix=adds_space_prefix(folder),
    )


def adds_space_prefix(folder: Path) -> bool:
    """Whether the SentencePiece model puts a space before a text; its normalizer tells by doing it."""
    pieces = open_sentencepiece(folder / "tokenizer.model").EncodeAsPieces("a")
    return bool(pieces) and pieces[0].startswith("\u2581")


def _added_tokens(folder: Path, size: int) -> Iterator[tuple[int, bytes, bool]]:
    """(id, token, special) out of tokenizer_config.json, then out of tokenizer.json; ids beyond `size` left out."""
    file = folder / "tokenizer_config.json"
    listed = (read_object(file) or {}).get("added_tokens_decoder") or {}
    for key, entry in as_mapping(listed, file, "added_tokens_decoder").items():
        token_id = as_id(
            int(key) if re.fullmatch(r"[0-9]{1,9}", key) else key, file, f"added token {key!r:.24}"
        )
        if token_id < size:
            yield _added_token(entry, token_id, file)
    file = folder / "tokenizer.json"
    for entry in as_sequence((read_object(file) or {}).get("added_tokens") or [], file, "added_tokens"):
        token_id = as_id(as_mapping(entry, file, "added_tokens").get("id"), file, "added_tokens")
        if token_id < size:
            yield _added_token(entry, token_id, file)


def _added_token(entry: object, token_id: int, file: Path) -> tuple[int, bytes, bool]:
    place = f"added token {token_id}"
    fields = as_mapping(entry, file, place)
    text = as_text(fields.get("content"), file, place)
    return token_id, encode(text, file, place), fields.get("special") is True


class InternLM2(Family):
    """InternLM2ForCausalLM (conversion/internlm.py)."""

    architectures: ClassVar[tuple[str, ...]] = ("InternLM2ForCausalLM",)
    arch: ClassVar[str] = "internlm2"
    defaults: ClassVar[Mapping[str, Any]] = {"num_key_value_heads": None}
    load_vocabulary: ClassVar[Callable[[Path, Mapping[str, Any]], Vocabulary]] = staticmethod(load_internlm2)

    def transform(self, name: str, tensor: Tensor, block: int | None) -> Iterable[tuple[str, Tensor]]:
        if ".attention.wqkv" not in name:
            return [(name, tensor)]
        heads = self.config.required("num_attention_heads")
        groups = self.config.required("num_key_value_heads")
        q, k, v = split_groups(tensor, groups, heads // groups)
        prefix, _, suffix = name.partition("attention.wqkv")
        return [
            (f"{prefix}self_attn.q_proj{suffix}", permute_heads(q, heads)),
            (f"{prefix}self_attn.k_proj{suffix}", permute_heads(k, groups)),
            (f"{prefix}self_attn.v_proj{suffix}", v),
        ]
