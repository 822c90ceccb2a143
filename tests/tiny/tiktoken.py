"""Tiny tokenizers in tiktoken's form, and code by which the reference converter's transformers can read them."""

from __future__ import annotations

import base64
import json
from pathlib import Path

_PAIRS = (b"th", b"he", b"in", b"er", b"an", b" t", b" th", b"the", b" the", b"\xc3\xa9")
_MERGED = (*(bytes([(i + 33) % 256]) for i in range(256)), *_PAIRS)
_EXTRA = [f"<|extra_{i}|>" for i in range(205)]
_NAMED = {
    "hy.tiktoken": ["<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>", *_EXTRA],
    "qwen.tiktoken": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_EXTRA],
}
_KIMI = {0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 5: "[UNK]"}
_CODE = """
import base64
import json
from pathlib import Path
from types import SimpleNamespace


class TinyTokenizer:
    @classmethod
    def register_for_auto_class(cls, *args, **kwargs):
        pass

    @classmethod
    def from_pretrained(cls, folder, *args, **kwargs):
        made = cls()
        lines = (Path(folder) / FILE).read_bytes().split()
        made.mergeable_ranks = {base64.b64decode(token): int(rank) for token, rank in zip(lines[::2], lines[1::2])}
        made.model = SimpleNamespace(_mergeable_ranks=made.mergeable_ranks)
        made.special_tokens = SPECIAL
        made.eos_id = SPECIAL.get("[EOS]")
        made.vocab_size = json.loads((Path(folder) / "config.json").read_text())["vocab_size"]
        return made

    def get_vocab(self):
        return {**{token.hex(): rank for token, rank in self.mergeable_ranks.items()}, **self.special_tokens}
"""


def pieces(name: str) -> tuple[bytes, ...]:
    """The tokens by rank. The last is one that no two others make: it has no merge, or the reference refuses it."""
    return _MERGED if name == "qwen.tiktoken" else (*_MERGED, b"qzx")


def special_tokens(name: str) -> dict[str, int]:
    """The special tokens of the tokenizer whose file is called `name`, with their ids."""
    start = len(pieces(name))
    named = _NAMED.get(name) or [_KIMI.get(i, f"<|reserved_token_{start + i}|>") for i in range(258)]
    return {text: start + i for i, text in enumerate(named)}


def write_tiktoken(file: Path) -> None:
    """The ranks, tokenizer_config.json, and tokenization_tiny.py."""
    lines = (base64.b64encode(piece) + b" %d\n" % rank for rank, piece in enumerate(pieces(file.name)))
    file.write_bytes(b"".join(lines))
    settings = {
        "auto_map": {"AutoTokenizer": ["tokenization_tiny.TinyTokenizer", None]},
        "tokenizer_class": "TinyTokenizer",
        "chat_template": "{{ messages }}",
    }
    if file.name not in _NAMED:
        decoder = {
            str(len(pieces(file.name)) + i): {"content": text, "special": True} for i, text in _KIMI.items()
        }
        settings |= {"added_tokens_decoder": decoder, "bos_token": "[BOS]", "add_bos_token": False}
    (file.parent / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    code = f"{_CODE}\n\nFILE = {file.name!r}\nSPECIAL = {special_tokens(file.name)!r}\n"
    (file.parent / "tokenization_tiny.py").write_text(code, encoding="utf-8")
