"""Hostile tokenizer.model (a protocol buffer) with added_tokens.json, and tekken.json."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.attacks.attack import Attack, changed, conversion, placed, raw, sparse, without
from tests.attacks.workshop import Workshop

FILE, ADDED, TEKKEN = "tokenizer.model", "added_tokens.json", "tekken.json"
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
Piece = tuple[bytes, float, int]


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes | float) -> bytes:
    """One field of a protocol buffer: varint, length-delimited, or 32-bit float."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


_SOUND: tuple[Piece, ...] = (
    (b"<unk>", 0.0, _UNKNOWN),
    (b"<s>", 0.0, _CONTROL),
    (b"</s>", 0.0, _CONTROL),
    *((f"<0x{i:02X}>".encode(), 0.0, _BYTE) for i in range(256)),
    *((bytes([letter]), -1.0, _NORMAL) for letter in b"etaoinshrdlu"),
)


def model(pieces: Sequence[Piece], *, normalizer: bytes = b"", trainer: bytes = b"") -> bytes:
    """A BPE model of those pieces."""
    data = b"".join(
        field(1, field(1, text) + field(2, score) + field(3, kind)) for text, score, kind in pieces
    )
    data += field(2, field(3, 2) + field(35, 1) + field(40, 0) + field(41, 1) + field(42, 2) + trainer)
    return data + field(3, field(1, b"identity") + field(3, 1) + normalizer)


def _more(*pieces: Piece) -> bytes:
    return model((*_SOUND, *pieces))


_SPM: dict[str, bytes] = {
    "empty file": b"",
    "zeros": bytes(4096),
    "ones": b"\xff" * 4096,
    "a text": b"this is no protocol buffer",
    "JSON": b'{"model": {"vocab": {}}}',
    "a gzip archive": b"\x1f\x8b\x08" + bytes(50),
    "cut off": _more()[:700],
    "no pieces": model(()),
    "a piece longer than the file": field(1, b"abc")[:1] + varint(1 << 31) + b"abc",
    "a piece of 2^63 bytes": b"\x0a" + varint(1 << 63) + b"abc",
    "a varint without end": b"\x0a" + b"\x80" * 64,
    "an unknown wire type": b"\x0f\x01\x02",
    "groups nested deeply": b"\x0b" * 100_000,
    "an empty piece": _more((b"", -2.0, _NORMAL)),
    "a piece twice": _more((b"e", -2.0, _NORMAL)),
    "a piece that is no UTF-8": _more((b"\xff\xfe", -2.0, _NORMAL)),
    "a piece of half a surrogate pair": _more((b"\xed\xa0\x80", -2.0, _NORMAL)),
    "two unknown tokens": _more((b"<unk2>", 0.0, _UNKNOWN)),
    "bytes that are no bytes": _more((b"<0xZZ>", 0.0, _BYTE)),
    "a byte twice": _more((b"<0x0a>", 0.0, _BYTE)),
    "half of the bytes": model((*_SOUND[:100], *_SOUND[259:])),
    "a score of NaN": _more((b"zz", float("nan"), _NORMAL)),
    "a score of infinity": _more((b"zz", float("inf"), _NORMAL)),
    "a table of letters that lies about its size": model(_SOUND, normalizer=field(2, struct.pack("<I", 1 << 31) + bytes(16))),
    "a table of letters of three bytes": model(_SOUND, normalizer=field(2, b"abc")),
}  # fmt: skip


def _spm(name: str, data: bytes) -> Attack:
    return raw("tokenizer.model", name, FILE, data)


def _lfs(folder: Path, workshop: Workshop) -> list[str]:
    checkpoint = workshop.checkpoint("llama", folder / "m")
    (checkpoint / FILE).write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 499723\n"
    )
    return conversion(checkpoint, folder)


def _huge(folder: Path, workshop: Workshop) -> list[str]:
    checkpoint = workshop.checkpoint("llama", folder / "m")
    sparse(checkpoint / FILE, 1 << 33, (0, model(_SOUND)))
    return conversion(checkpoint, folder)


def _folder(folder: Path, workshop: Workshop) -> list[str]:
    checkpoint = workshop.checkpoint("llama", folder / "m")
    (checkpoint / FILE).unlink()
    (checkpoint / FILE).mkdir()
    return conversion(checkpoint, folder)


def _added(name: str, content: object, *says: str) -> Attack:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return raw("tokenizer.model", f"added: {name}", ADDED, data, *says)


_N_SPECIAL = 24
_PIECES = (*(bytes([byte]) for byte in range(256)), b"th", b"he", b"the")


def _tekken_document() -> dict[str, Any]:
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
        for rank, piece in enumerate(_PIECES)
    ]
    settings = {
        "pattern": r"\p{L}+|\p{N}|\s+",
        "num_vocab_tokens": len(vocab),
        "default_vocab_size": _N_SPECIAL + len(_PIECES),
        "default_num_special_tokens": _N_SPECIAL,
        "version": "v3",
    }
    return {"config": settings, "vocab": vocab}


def _tekken(name: str, change: Callable[[dict[str, Any]], Any] | bytes, *says: str) -> Attack:
    """The tokenizer as tekken.json alone."""

    def prepare(folder: Path, workshop: Workshop) -> list[str]:
        checkpoint = workshop.checkpoint("llama", folder / "m")
        (checkpoint / FILE).unlink()
        data = change if isinstance(change, bytes) else json.dumps(change(_tekken_document())).encode()
        (checkpoint / TEKKEN).write_bytes(data)
        return conversion(checkpoint, folder)

    return Attack("tekken.json", name, prepare, (TEKKEN, *says))


def _long_pieces(document: dict[str, Any]) -> dict[str, Any]:
    """Thousands of pieces as long as a piece may be, each of which could be cut in a thousand ways."""
    for i in range(20_000):
        piece = struct.pack(">I", i) + b"x" * 1000
        entry = {"rank": len(document["vocab"]), "token_bytes": base64.b64encode(piece).decode()}
        document["vocab"].append(entry)
    document["config"]["default_vocab_size"] = _N_SPECIAL + len(document["vocab"])
    return document


def _vocab(index: int, key: str, value: object) -> Callable[[dict[str, Any]], Any]:
    return placed("vocab", index, key, value=value)


def _b64(piece: bytes) -> str:
    return base64.b64encode(piece).decode()


_SIZE = ("config", "default_vocab_size")
_TEKKEN: tuple[Attack, ...] = (
    _tekken("no JSON", b"{", "not JSON"),
    _tekken("a list", b"[]", "must be an object"),
    _tekken("nested deeply", b'{"config":' * 100_000, "not JSON"),
    _tekken("no config", without("config"), "config must be an object"),
    _tekken("no vocabulary", without("vocab"), "vocab must be an array"),
    _tekken("a version of a number", placed("config", "version", value=3), "config.version"),
    _tekken("a vocabulary of ten million", placed(*_SIZE, value=10_000_000), "default_vocab_size"),
    _tekken("a vocabulary below zero", placed(*_SIZE, value=-1), "default_vocab_size"),
    _tekken("a vocabulary of a fraction", placed(*_SIZE, value=283.5), "default_vocab_size"),
    _tekken("a vocabulary larger than its list", placed(*_SIZE, value=5000), "vocab"),
    _tekken("a vocabulary without all bytes", placed(*_SIZE, value=100), "vocab"),
    _tekken("more special tokens than tokens", placed("config", "default_num_special_tokens", value=100_000), "vocab"),
    _tekken("special tokens of a number", placed("special_tokens", value=5), "special_tokens"),
    _tekken("special tokens twice", placed("special_tokens", value=[{"rank": 0, "token_str": "a"}, {"rank": 1, "token_str": "a"}]), "special_tokens"),
    _tekken("special tokens out of order", placed("special_tokens", value=[{"rank": 5, "token_str": "a"}]), "rank"),
    _tekken("special tokens without <s>", placed("special_tokens", value=[{"rank": 0, "token_str": "a"}]), "special_tokens"),
    _tekken("a special token of half a surrogate pair", placed("special_tokens", value=[{"rank": 0, "token_str": "\ud800"}]), "surrogate"),
    _tekken("an entry of a string", placed("vocab", 7, value="x"), "vocab[7]"),
    _tekken("an entry without bytes", _vocab(7, "token_bytes", None), "vocab[7]"),
    _tekken("an entry that is no base64", _vocab(7, "token_bytes", "@@@"), "vocab[7]"),
    _tekken("an entry that is no ASCII", _vocab(7, "token_bytes", "\u00e9\u00e9"), "vocab[7]"),
    _tekken("an entry of nothing", _vocab(257, "token_bytes", ""), "vocab[257]"),
    _tekken("an entry twice", _vocab(257, "token_bytes", _b64(b"th")), "vocab[257]"),
    _tekken("an entry out of order", _vocab(257, "rank", 3), "vocab[257]"),
    _tekken("a byte in another's place", _vocab(7, "token_bytes", _b64(b"a")), "vocab[7]"),
    _tekken("an entry of 100,000 bytes", _vocab(257, "token_bytes", _b64(b"x" * 100_000)), "vocab[257]"),
    _tekken("twenty million ways to cut", _long_pieces, "vocab"),
)  # fmt: skip

ATTACKS: tuple[Attack, ...] = (
    *(_spm(name, data) for name, data in _SPM.items()),
    Attack("tokenizer.model", "a Git LFS pointer", _lfs, (FILE, "git lfs pull")),
    Attack("tokenizer.model", "eight gigabytes", _huge, (FILE, "more than")),
    Attack("tokenizer.model", "a folder in its place", _folder, ("tokenizer",)),
    changed("tokenizer.model", "a vocabulary of ten million", "config.json", placed("vocab_size", value=10_000_000), "vocab_size"),
    changed("tokenizer.model", "a vocabulary of two million", "config.json", placed("vocab_size", value=2_000_000), "vocab_size"),
    _added("a list", [1], "must be an object"),
    _added("no JSON", b"{", "not JSON"),
    _added("an id below zero", {"a": -1}, "is -1"),
    _added("an id after a gap of 2^31", {"a": 2**31}, "2147483648"),
    _added("an id of a string", {"a": "7"}, "must be a token id"),
    _added("an id twice", {"a": 300, "b": 300}, "id 300"),
    _added("half a surrogate pair", {"\ud800": 7}, "surrogate"),
    *_TEKKEN,
)  # fmt: skip
