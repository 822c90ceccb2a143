"""Hostile GGUF files, split models that disagree, and importance matrices of both kinds."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.attacks.attack import OUT, Attack, conversion, sparse
from tests.attacks.workshop import Workshop

_U8, _U16, _I32, _U32, _F32, _BOOL, _STRING, _ARRAY, _U64 = 0, 2, 5, 4, 6, 7, 8, 9, 10
_TYPE_F32, _TYPE_F16, _TYPE_Q4_K = 0, 1, 12


def text(value: str | bytes) -> bytes:
    """A GGUF string: 64-bit length and bytes."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def u32(name: str, value: int) -> bytes:
    return key(name, _U32, struct.pack("<I", value))


def string(name: str, value: str | bytes) -> bytes:
    return key(name, _STRING, text(value))


def array(name: str, kind: int, count: int, items: bytes = b"") -> bytes:
    return key(name, _ARRAY, struct.pack("<IQ", kind, count) + items)


def tensor(name: str | bytes, shape: Sequence[int], offset: int = 0, kind: int = _TYPE_F32) -> bytes:
    """A line of the tensor table; shape innermost first, as the format has it."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


_LLAMA = (string("general.architecture", "llama"), u32("llama.block_count", 1))


def gguf(
    keys: Sequence[bytes] = _LLAMA,
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    n_keys: int | None = None,
    n_tensors: int | None = None,
    magic: bytes = b"GGUF",
) -> bytes:
    """A GGUF file; the counts may lie."""
    n_tensors = len(tensors) if n_tensors is None else n_tensors
    n_keys = len(keys) if n_keys is None else n_keys
    head = magic + struct.pack("<IQQ", version, n_tensors, n_keys) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


_ONE = tensor("token_embd.weight", [4, 2])
_DATA = bytes(32)
_FILES: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "0 bytes"),
    "magic alone": (b"GGUF", "4 bytes"),
    "another magic": (gguf(magic=b"GGML", tensors=[_ONE], data=_DATA), "GGML"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(8), "version"),
    "version 1": (gguf(version=1), "version 1"),
    "version 2^32-1": (gguf(version=2**32 - 1), "version 4294967295"),
    "keys without end": (gguf(n_keys=2**64 - 1), "second time"),
    "one key too many": (gguf(tensors=[_ONE], data=_DATA, n_keys=3), "truncated"),
    "tensors without end": (gguf(n_tensors=2**64 - 1), "truncated"),
    "one tensor too many": (gguf(tensors=[_ONE], n_tensors=2), "truncated"),
    "a key twice": (gguf([*_LLAMA, u32("llama.block_count", 2)]), "second time"),
    "a key longer than the file": (gguf([struct.pack("<Q", 1 << 40) + b"abc"]), "truncated"),
    "a key of 2^64-1 bytes": (gguf([struct.pack("<Q", 2**64 - 1) + b"abc"]), "truncated"),
    "a key that is no UTF-8": (gguf([*_LLAMA, key(b"\xff", _U8, b"\1")]), "UTF-8"),
    "a string longer than the file": (gguf([*_LLAMA, key("s", _STRING, struct.pack("<Q", 1 << 33))]), "truncated"),
    "a string of 2^64-1 bytes": (gguf([*_LLAMA, key("s", _STRING, struct.pack("<Q", 2**64 - 1))]), "truncated"),
    "an unknown type of value": (gguf([*_LLAMA, key("x", 13, bytes(8))]), "unknown type 13"),
    "a type of value 2^32-1": (gguf([*_LLAMA, key("x", 2**32 - 1, bytes(8))]), "unknown type"),
    "an array longer than the file": (gguf([*_LLAMA, array("a", _U8, 1 << 40)]), "truncated"),
    "an array of 2^64-1 numbers": (gguf([*_LLAMA, array("a", _U64, 2**64 - 1)]), "truncated"),
    "an array whose bytes wrap to zero": (gguf([*_LLAMA, array("a", _U64, 1 << 61)]), "truncated"),
    "an array of 2^60 strings": (gguf([*_LLAMA, array("a", _STRING, 1 << 60)]), "strings"),
    "an array of strings that lie": (gguf([*_LLAMA, array("a", _STRING, 2, text("x") + struct.pack("<Q", 1 << 50))]), "truncated"),
    "an array of arrays": (gguf([*_LLAMA, array("a", _ARRAY, 1, struct.pack("<IQ", _U8, 1) + b"\1")]), "unknown type 9"),
    "arrays nested deeply": (gguf([*_LLAMA, array("a", _ARRAY, 1, struct.pack("<IQ", _ARRAY, 1) * 100_000)]), "unknown type 9"),
    "an array of an unknown type": (gguf([*_LLAMA, array("a", 99, 1, bytes(8))]), "unknown type 99"),
    "an alignment of zero": (gguf([*_LLAMA, u32("general.alignment", 0)]), "alignment"),
    "an alignment of three": (gguf([*_LLAMA, u32("general.alignment", 3)]), "alignment"),
    "an alignment of 2^31": (gguf([*_LLAMA, u32("general.alignment", 1 << 31)]), "alignment"),
    "an alignment of a string": (gguf([*_LLAMA, string("general.alignment", "32")]), "alignment"),
    "an alignment of an array": (gguf([*_LLAMA, array("general.alignment", _U32, 1, struct.pack("<I", 32))]), "alignment"),
    "an alignment of a fraction": (gguf([*_LLAMA, key("general.alignment", _F32, struct.pack("<f", 32.0))]), "alignment"),
    "no architecture": (gguf([u32("llama.block_count", 1)], [_ONE], _DATA), "general.architecture"),
    "an architecture of a number": (gguf([u32("general.architecture", 1)], [_ONE], _DATA), "general.architecture"),
    "an architecture that is no UTF-8": (gguf([string("general.architecture", b"\xff"), u32("llama.block_count", 1)], [_ONE], _DATA), "general.architecture"),
    "no number of blocks": (gguf(_LLAMA[:1], [_ONE], _DATA), "block_count"),
    "a number of blocks of a string": (gguf([_LLAMA[0], string("llama.block_count", "x")], [_ONE], _DATA), "block_count"),
    "a number of blocks of NaN": (gguf([_LLAMA[0], key("llama.block_count", _F32, struct.pack("<f", float("nan")))], [_ONE], _DATA), "block_count"),
    "a number of blocks of infinity": (gguf([_LLAMA[0], key("llama.block_count", _F32, struct.pack("<f", float("inf")))], [_ONE], _DATA), "block_count"),
    "heads of a string": (gguf([*_LLAMA, string("llama.attention.head_count", "x")], [_ONE], _DATA), "head_count"),
    "no tensors": (gguf(), "no tensors"),
    "a tensor of five dimensions": (gguf(tensors=[tensor("t", [1] * 5)]), "5 dimensions"),
    "a tensor of 2^32-1 dimensions": (gguf(tensors=[text("t") + struct.pack("<I", 2**32 - 1)]), "dimensions"),
    "a tensor of an unknown type": (gguf(tensors=[tensor("t", [4], kind=99)]), "type number 99"),
    "a tensor of a removed type": (gguf(tensors=[tensor("t", [32], kind=4)]), "type number 4"),
    "a tensor twice": (gguf(tensors=[_ONE, _ONE], data=_DATA), "second time"),
    "a name longer than the file": (gguf(tensors=[struct.pack("<Q", 1 << 40) + b"t"]), "truncated"),
    "a name that is no UTF-8": (gguf(tensors=[tensor(b"\xff\xfe", [4])], data=_DATA), "UTF-8"),
    "rows that do not fit their blocks": (gguf(tensors=[tensor("t.weight", [255], kind=_TYPE_Q4_K)], data=bytes(256)), "block of 256"),
    "a dimension of 2^63": (gguf(tensors=[tensor("t", [1 << 63])], data=_DATA), "with a dimension of"),
    "dimensions whose product wraps to zero": (gguf(tensors=[tensor("t", [1 << 32, 1 << 32])], data=_DATA), "truncated"),
    "data cut off": (gguf(tensors=[_ONE], data=bytes(31)), "truncated"),
    "no data": (gguf(tensors=[_ONE]), "truncated"),
    "an offset past the end": (gguf(tensors=[tensor("t", [8], 1 << 40)], data=_DATA), "truncated"),
    "an offset that wraps around": (gguf(tensors=[tensor("t", [8], 2**64 - 32)], data=_DATA), "truncated"),
    "an offset that is not aligned": (gguf(tensors=[tensor("t", [8], 8)], data=bytes(64)), "multiple of 32"),
    "tensors on the same bytes": (gguf(tensors=[tensor("a", [8]), tensor("b", [8])], data=_DATA), "overlap"),
    "tensors that overlap": (gguf(tensors=[tensor("a", [16]), tensor("b", [8], 32)], data=bytes(64)), "overlap"),
    "a weight of NaN": (gguf(tensors=[_ONE], data=struct.pack("<8f", 0, 0, 0, 0, 0, float("nan"), 0, 0)), "row 1"),
    "a weight of infinity": (gguf(tensors=[tensor("token_embd.weight", [4, 2], kind=_TYPE_F16)], data=struct.pack("<8e", *[float("inf")] * 8) + bytes(16)), "row 0"),
    "a name of control characters": (gguf(tensors=[tensor("\x1b]0;owned\x07", [8], 1 << 40)], data=_DATA), "truncated"),
}  # fmt: skip


def _file(name: str, data: bytes, says: str) -> Attack:
    def prepare(folder: Path, workshop: Workshop) -> list[str]:
        path = folder / "hostile.gguf"
        path.write_bytes(data)
        return conversion(path, folder)

    # A weight is named by its tensor and row, which no two files of a model share.
    return Attack("GGUF", name, prepare, ("token_embd.weight" if "row" in says else "hostile.gguf", says))


def _sparse(name: str, size: int, head: bytes, says: str, *command: str) -> Attack:
    """A file that claims much and holds zeros, so that it takes no space on the attacker's side."""

    def prepare(folder: Path, workshop: Workshop) -> list[str]:
        path = sparse(folder / "hostile.gguf", size, (0, head))
        if command:
            question = folder / "text.txt"
            question.write_text("text " * 200, encoding="utf-8")
            return [word.format(file=path, text=question) for word in command]
        return conversion(path, folder)

    return Attack("GGUF", name, prepare, ("hostile.gguf", says))


def _counts(n_tensors: int, n_keys: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_keys) + rest


_PERPLEXITY = ("evaluate", "perplexity", "{file}", "--text", "{text}")
_SPARSE: tuple[Attack, ...] = (
    _sparse("a billion keys of nothing", 1 << 34, _counts(0, 1 << 30), "second time"),
    _sparse("a billion tensors of nothing", 1 << 34, _counts(1 << 30, 2, b"".join(_LLAMA)), "second time"),
    _sparse("an array of a hundred million numbers", 1 << 28, gguf([*_LLAMA, array("a", _U8, 100_000_000)], n_keys=3), "array"),
    _sparse("an array of a hundred million strings", 1 << 30, gguf([*_LLAMA, array("a", _STRING, 100_000_000)], n_keys=3), "array"),
    _sparse("measured: a billion keys of nothing", 1 << 34, _counts(0, 1 << 30), "hostile.gguf", *_PERPLEXITY),
    _sparse("measured: a billion tensors of nothing", 1 << 34, _counts(1 << 30, 0), "hostile.gguf", *_PERPLEXITY),
    _sparse("measured: a hundred million strings", 1 << 30, gguf([*_LLAMA, array("a", _STRING, 100_000_000)]), "array", *_PERPLEXITY),
    _sparse("measured: a hundred million arrays", 1 << 31, gguf([*_LLAMA, array("a", _ARRAY, 100_000_000)]), "array", *_PERPLEXITY),
)  # fmt: skip


def _with(name: str, data: bytes, words: Sequence[str], *says: str) -> Attack:
    """Another command than convert on a hostile file."""

    def prepare(folder: Path, workshop: Workshop) -> list[str]:
        path = folder / "hostile.gguf"
        path.write_bytes(data)
        (folder / "text.txt").write_text("text " * 200, encoding="utf-8")
        return [
            word.format(file=path, text=folder / "text.txt", out=folder / OUT / "model.gguf")
            for word in words
        ]

    return Attack("GGUF", name, prepare, ("hostile.gguf", *says))


_BROKEN = gguf(tensors=[_ONE], data=bytes(31))
_COMMANDS: tuple[Attack, ...] = (
    _with("inspected: data cut off", _BROKEN, ["inspect", "{file}"], "truncated"),
    _with("verified: data cut off", _BROKEN, ["verify", "{file}"], "truncated"),
    _with("verified: a weight of NaN", _FILES["a weight of NaN"][0], ["verify", "{file}"], "row 1"),
    _with("analyzed: no architecture", _FILES["no architecture"][0], ["analyze", "{file}"], "general.architecture"),
    _with("planned: a tensor twice", _FILES["a tensor twice"][0], ["plan", "{file}"], "second time"),
    _with("shown as a plan: a tensor twice", _FILES["a tensor twice"][0], ["plan", "show", "{file}"], "second time"),
    _with("merged: no split", gguf(tensors=[_ONE], data=_DATA), ["merge", "{file}", "-o", "{out}"], "not part of a split"),
    _with("measured: data cut off", _BROKEN, _PERPLEXITY, "truncated"),
    _with("measured: keys without end", _FILES["keys without end"][0], _PERPLEXITY, "damaged"),
    _with("measured: arrays nested deeply", _FILES["arrays nested deeply"][0], _PERPLEXITY, "array"),
    _with("measured: no vocabulary", gguf(tensors=[_ONE], data=_DATA), _PERPLEXITY, "llama.cpp cannot load"),
    _with("run: an unknown architecture", gguf([string("general.architecture", "no-such")], [_ONE], _DATA), ["generate", "{file}"], "no-such"),
)  # fmt: skip


def _part(number: int, count: int, total: int, name: str, *, first: bool = False) -> bytes:
    keys = [
        key("split.no", _U16, struct.pack("<H", number)),
        key("split.count", _U16, struct.pack("<H", count)),
        key("split.tensors.count", _I32, struct.pack("<i", total)),
    ]
    return gguf([*(_LLAMA if first else ()), *keys], [tensor(name, [4, 2])], _DATA)


def _split(name: str, parts: dict[str, bytes], *says: str, command: str = "convert") -> Attack:
    def prepare(folder: Path, workshop: Workshop) -> list[str]:
        for file, data in parts.items():
            (folder / file).write_bytes(data)
        first = folder / next(iter(parts))
        if command == "merge":
            return ["merge", str(first), "-o", str(folder / OUT / "model.gguf")]
        return conversion(first, folder)

    return Attack("split GGUF", name, prepare, says)


_P1, _P2 = "m-00001-of-00002.gguf", "m-00002-of-00002.gguf"
_A, _B = _part(0, 2, 2, "token_embd.weight", first=True), _part(1, 2, 2, "output.weight")
_SPLIT: tuple[Attack, ...] = (
    _split("a part is missing", {_P1: _A}, _P2, "missing"),
    _split("65,535 parts are missing", {"m-00001-of-65535.gguf": _part(0, 65535, 2, "t", first=True)}, "m-00002-of-65535.gguf"),
    _split("a part of another name", {"model.gguf": _A}, "model.gguf", "00001-of-00002"),
    _split("a name of another count", {"m-00001-of-00009.gguf": _A}, "m-00001-of-00009.gguf"),
    _split("two first parts", {_P1: _A, _P2: _part(0, 2, 2, "output.weight")}, _P2, "part 0"),
    _split("counts that disagree", {_P1: _A, _P2: _part(1, 3, 2, "output.weight")}, _P2),
    _split("numbers of tensors that disagree", {_P1: _A, _P2: _part(1, 2, 7, "output.weight")}, _P2, "7"),
    _split("a number of tensors below zero", {_P1: _part(0, 2, -1, "a", first=True), _P2: _part(1, 2, -1, "b")}, _P1, "-1"),
    _split("a tensor in both parts", {_P1: _A, _P2: _part(1, 2, 2, "token_embd.weight")}, "token_embd.weight", "both"),
    _split("a second part that is damaged", {_P1: _A, _P2: _B[:-8]}, _P2, "truncated"),
    _split("a second part that is no GGUF", {_P1: _A, _P2: b"PK\x03\x04" + bytes(60)}, _P2, "not a GGUF file"),
    _split("a second part of nothing", {_P1: _A, _P2: b""}, _P2, "0 bytes"),
    _split("merged: a part is missing", {_P1: _A}, _P2, "missing", command="merge"),
    _split("merged: a tensor in both parts", {_P1: _A, _P2: _part(1, 2, 2, "token_embd.weight")}, "both", command="merge"),
    _split("merged: a second part that is damaged", {_P1: _A, _P2: _B[:-8]}, _P2, "truncated", command="merge"),
)  # fmt: skip


def _matrix(name: str, data: bytes | Callable[[Path], object], *says: str) -> Attack:
    """A sound model with a hostile importance matrix."""

    def prepare(folder: Path, workshop: Workshop) -> list[str]:
        path = folder / "hostile.dat"
        if isinstance(data, bytes):
            path.write_bytes(data)
        else:
            data(path)
        return conversion(workshop.gguf(), folder, "--type", "Q8_0", "--imatrix", str(path))

    return Attack("importance matrix", name, prepare, ("hostile.dat", *says))


def _legacy(
    *entries: tuple[bytes, int, Sequence[float]], count: int | None = None, tail: bytes = b""
) -> bytes:
    out = struct.pack("<i", len(entries) if count is None else count)
    for name, calls, values in entries:
        out += struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, len(values))
        out += struct.pack(f"<{len(values)}f", *values)
    return out + tail


_IM_KEYS = (
    array("imatrix.datasets", _STRING, 1, text("x")),
    u32("imatrix.chunk_count", 1),
    u32("imatrix.chunk_size", 512),
)


def _im(
    sums: Sequence[float], counts: Sequence[float], keys: Sequence[bytes] = _IM_KEYS, kind: int = _TYPE_F32
) -> bytes:
    """A GGUF importance matrix with one entry."""
    table = [
        tensor("blk.0.attn_q.weight.in_sum2", [len(sums)], kind=kind),
        tensor("blk.0.attn_q.weight.counts", [len(counts)], 256, kind=kind),
    ]
    data = struct.pack(f"<{len(sums)}f", *sums).ljust(256, b"\0") + struct.pack(
        f"<{len(counts)}f", *counts
    ).ljust(32, b"\0")
    return gguf(keys, table, data)


_Q = b"blk.0.attn_q.weight"
_NAN, _INF = float("nan"), float("inf")
_MATRIX: tuple[Attack, ...] = (
    _matrix("empty file", b"", "ends within"),
    _matrix("three bytes", b"\1\0\0", "ends within"),
    _matrix("a text", b"this is no matrix at all", "no importance matrix"),
    _matrix("no entries", _legacy(), "no importance matrix"),
    _matrix("entries below zero", _legacy(count=-1, tail=bytes(64)), "no importance matrix"),
    _matrix("two thousand million entries", _legacy(count=2**31 - 1, tail=bytes(64)), "no importance matrix"),
    _matrix("one entry too many", _legacy((_Q, 1, [1.0] * 64), count=2), "entry 1"),
    _matrix("a name longer than the file", struct.pack("<ii", 1, 2**31 - 1) + bytes(64), "name of entry 0"),
    _matrix("a name below zero", struct.pack("<ii", 1, -5) + bytes(64), "name of entry 0"),
    _matrix("no name", _legacy((b"", 1, [1.0] * 8)), "entry 0"),
    _matrix("an entry twice", _legacy((_Q, 1, [1.0] * 64), (_Q, 1, [1.0] * 64)), "entry 1"),
    _matrix("calls below zero", _legacy((_Q, -1, [1.0] * 64)), "entry 0"),
    _matrix("an entry of no values", _legacy((_Q, 1, [])), "entry 0"),
    _matrix("values below zero", _legacy((_Q, 1, [-1.0] * 64)), "attn_q"),
    _matrix("values of NaN", _legacy((_Q, 1, [_NAN] * 64)), "attn_q"),
    _matrix("values of infinity", _legacy((_Q, 1, [_INF] * 64)), "attn_q"),
    _matrix("more values than the file holds", struct.pack("<ii", 1, 19) + _Q + struct.pack("<ii", 1, 2**31 - 1), "attn_q"),
    _matrix("values below zero in number", struct.pack("<ii", 1, 19) + _Q + struct.pack("<ii", 1, -1) + bytes(8), "entry 0"),
    _matrix("the entry of another model", _legacy((_Q, 1, [1.0] * 63)), "attn_q", "another model"),
    _matrix("a text's name longer than the file", _legacy((_Q, 1, [1.0] * 64), tail=struct.pack("<ii", 5, 1 << 30)), "the text's name"),
    _matrix("GGUF: no entries", gguf(_IM_KEYS), "no entry"),
    _matrix("GGUF: sums without counts", gguf(_IM_KEYS, [tensor("a.in_sum2", [8])], _DATA), "pairs"),
    _matrix("GGUF: sums that counts do not divide", _im([1.0] * 7, [1.0] * 3), "7 sums for 3 counts"),
    _matrix("GGUF: no counts", _im([1.0] * 8, []), "counts"),
    _matrix("GGUF: sums below zero", _im([-1.0] * 8, [1.0]), "attn_q"),
    _matrix("GGUF: sums of NaN", _im([_NAN] * 8, [1.0]), "attn_q"),
    _matrix("GGUF: counts below zero", _im([1.0] * 8, [-1.0]), "attn_q"),
    _matrix("GGUF: counts of NaN", _im([1.0] * 8, [_NAN]), "attn_q"),
    _matrix("GGUF: counts of infinity", _im([1.0] * 8, [_INF]), "attn_q"),
    _matrix("GGUF: stored as F16", _im([1.0] * 8, [1.0], kind=_TYPE_F16), "F32"),
    _matrix("GGUF: no keys", _im([1.0] * 8, [1.0], keys=()), "imatrix.datasets"),
    _matrix("GGUF: chunks of a string", _im([1.0] * 8, [1.0], keys=(_IM_KEYS[0], string("imatrix.chunk_count", "x"), _IM_KEYS[2])), "chunk_count"),
    _matrix("GGUF: data cut off", _im([1.0] * 8, [1.0])[:-64], "truncated"),
    _matrix("GGUF: tensors without end", gguf(_IM_KEYS, n_tensors=1 << 60), "truncated"),
    _matrix("a gigabyte of zeros", lambda path: sparse(path, 1 << 30), "hostile.dat"),
)  # fmt: skip

ATTACKS: tuple[Attack, ...] = (
    *(_file(name, data, says) for name, (data, says) in _FILES.items()),
    *_SPARSE,
    *_COMMANDS,
    *_SPLIT,
    *_MATRIX,
)
