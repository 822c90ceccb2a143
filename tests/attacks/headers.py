"""Hostile safetensors headers and shard indexes."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from tests.attacks.attack import Attack, changed, conversion, header, linked, raw, sparse
from tests.attacks.workshop import Workshop

SHARD, INDEX = "model.safetensors", "model.safetensors.index.json"


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


_EIGHT = b"12345678"
_HEADERS: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "0 bytes"),
    "three bytes": (b"\x01\x02\x03", "3 bytes"),
    "length alone": (struct.pack("<Q", 2), "truncated"),
    "length of 2^64-1": (b"\xff" * 8 + b"{}", "claims a header"),
    "length of 2^63": (struct.pack("<Q", 1 << 63) + b"{}", "claims a header"),
    "length past the limit": (struct.pack("<Q", 100_000_001) + b"{}", "claims a header"),
    "length past the end": (struct.pack("<Q", 1000) + b"{}", "truncated"),
    "length of nothing": (struct.pack("<Q", 0) + _EIGHT, "not valid JSON"),
    "a ZIP archive": (b"PK\x03\x04" + bytes(60), "truncated"),
    "a pickle": (b"\x80\x02}q\x00X\x06\x00\x00\x00.", "claims a header"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "claims a header"),
    "a web page": (b"<!DOCTYPE html><html><body>404</body></html>", "claims a header"),
    "no JSON": (header(b"{"), "not valid JSON"),
    "a header of zeros": (header(bytes(64)), "not valid JSON"),
    "no UTF-8": (header(b'{"\xff":1}'), "not UTF-8"),
    "UTF-16": (header('{"a": 1}'.encode("utf-16")), "not UTF-8"),
    "byte order mark": (header(b"\xef\xbb\xbf{}"), "not valid JSON"),
    "two documents": (header(b"{}{}"), "not valid JSON"),
    "a list": (header([]), "not an object"),
    "a string": (header("x"), "not an object"),
    "null": (header(None), "not an object"),
    "lists nested deeply": (header(b"[" * 200_000), "nested too deeply"),
    "objects nested deeply": (header(b'{"a":' * 200_000), "nested too deeply"),
    "a number of 10,000 digits": (header(b'{"a":' + b"9" * 10_000 + b"}"), "not valid JSON"),
    "millions of empty lists": (header(b'{"a":[' + b"[]," * 6_000_000 + b"[]]}"), "items"),
    "a key twice": (header(b'{"w":{"dtype":"F32","dtype":"F16"}}'), "twice"),
    "a tensor twice": (
        header(b'{"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
        "twice",
    ),
    "no tensors": (header({}), "no tensors"),
    "only metadata": (header({"__metadata__": {"format": "pt"}}), "no tensors"),
    "entry is a list": (header({"w": []}), "not an object"),
    "entry is null": (header({"w": None}), "not an object"),
    "no dtype": (header({"w": {"shape": [2], "data_offsets": [0, 8]}}, _EIGHT), "dtype"),
    "no shape": (header({"w": {"dtype": "F32", "data_offsets": [0, 8]}}, _EIGHT), "shape"),
    "no offsets": (header({"w": {"dtype": "F32", "shape": [2]}}, _EIGHT), "data_offsets"),
    "dtype of a number": (header({"w": entry(5)}, _EIGHT), "dtype"),
    "dtype of a list": (header({"w": entry(["F32"])}, _EIGHT), "dtype"),
    "dtype unknown": (header({"w": entry("F13")}, _EIGHT), "F13"),
    "dtype in lower case": (header({"w": entry("f32")}, _EIGHT), "dtype"),
    "dtype of four bits": (header({"w": entry("F4")}, _EIGHT), "F4"),
    "dtype of a megabyte": (header({"w": entry("F" * (1 << 20))}, _EIGHT), "dtype"),
    "shape of a number": (header({"w": entry(shape=2)}, _EIGHT), "shape"),
    "shape of a string": (header({"w": entry(shape="2")}, _EIGHT), "shape"),
    "dimension below zero": (header({"w": entry(shape=[-2])}, _EIGHT), "shape"),
    "two dimensions below zero": (header({"w": entry(shape=[-1, -2])}, _EIGHT), "shape"),
    "dimension of a fraction": (header({"w": entry(shape=[2.0])}, _EIGHT), "shape"),
    "dimension of a boolean": (header({"w": entry(shape=[True])}, _EIGHT), "shape"),
    "dimension of a string": (header({"w": entry(shape=["2"])}, _EIGHT), "shape"),
    "dimension NaN": (header(b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', _EIGHT), "shape"),
    "dimension of 1e400": (header(b'{"w":{"dtype":"F32","shape":[1e400],"data_offsets":[0,8]}}', _EIGHT), "shape"),
    "dimension of 2^64": (header({"w": entry(shape=[2**64])}, _EIGHT), "shape"),
    "dimensions that overflow": (header({"w": entry(shape=[2**33, 2**33])}, _EIGHT), "needs"),
    "dimensions that wrap to the right size": (header({"w": entry("U8", [2**61, 8], [0, 0])}), "needs"),
    "nine dimensions": (header({"w": entry(shape=[1] * 9, offsets=[0, 4])}, b"1234"), "shape"),
    "a million dimensions": (header({"w": entry(shape=[1] * 1_000_000, offsets=[0, 4])}, b"1234"), "shape"),
    "offsets of a number": (header({"w": entry(offsets=8)}, _EIGHT), "data_offsets"),
    "one offset": (header({"w": entry(offsets=[8])}, _EIGHT), "data_offsets"),
    "three offsets": (header({"w": entry(offsets=[0, 8, 8])}, _EIGHT), "data_offsets"),
    "offset of a string": (header({"w": entry(offsets=["0", "8"])}, _EIGHT), "data_offsets"),
    "offset below zero": (header({"w": entry(offsets=[-8, 0])}, _EIGHT), "data_offsets"),
    "offsets reversed": (header({"w": entry(offsets=[8, 0])}, _EIGHT), "occupies"),
    "offsets of 2^63": (header({"w": entry(offsets=[2**63, 2**63 + 8])}, _EIGHT), "data_offsets"),
    "offsets past the end": (header({"w": entry(offsets=[2**40, 2**40 + 8])}, _EIGHT), "truncated"),
    "size is not shape times dtype": (header({"w": entry(shape=[3])}, _EIGHT), "needs 12"),
    "two tensors on the same bytes": (header({"a": entry(), "b": entry()}, _EIGHT), "overlap"),
    "tensors overlap by half": (header({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "overlap"),
    "a hole between tensors": (header({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20)), "belong to no tensor"),
    "bytes before the first tensor": (header({"a": entry(offsets=[4, 12])}, bytes(12)), "belong to no tensor"),
    "bytes behind the last tensor": (header({"a": entry()}, bytes(12)), "belong to no tensor"),
    "data cut off": (header({"a": entry()}, b"1234"), "truncated"),
    "metadata of a list": (header({"__metadata__": [], "a": entry()}, _EIGHT), "__metadata__"),
    "metadata of numbers": (header({"__metadata__": {"a": 1}, "a": entry()}, _EIGHT), "__metadata__"),
    "metadata nested": (header({"__metadata__": {"a": {"b": "c"}}, "a": entry()}, _EIGHT), "__metadata__"),
    "a name of half a surrogate pair": (header(b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}'), "needs"),
    "a name of a megabyte": (header({"n" * (1 << 20): entry(offsets=[0, 4])}, b"1234"), "needs"),
    "a name of control characters": (header({"\x1b]0;owned\x07\n\r": entry(offsets=[0, 4])}, b"1234"), "needs"),
}  # fmt: skip


def _sparse_header(folder: Path, workshop: Workshop) -> list[str]:
    model = workshop.checkpoint("llama", folder / "m")
    sparse(model / SHARD, 100_000_008, (0, struct.pack("<Q", 100_000_000)))
    return conversion(model, folder)


def _other_family(folder: Path, workshop: Workshop) -> list[str]:
    model = workshop.checkpoint("llama", folder / "m")
    (model / SHARD).write_bytes(header({"transformer.h.0.x.weight": entry()}, _EIGHT))
    return conversion(model, folder)


def _index(name: str, content: object, *says: str) -> Attack:
    """A sharded Llama whose index is `content`: bytes, or what a function makes of the sound one."""

    def prepare(folder: Path, workshop: Workshop) -> list[str]:
        model = workshop.sharded(folder / "m")
        path = model / INDEX
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            assert callable(content)
            path.write_text(json.dumps(content(json.loads(path.read_text()))), encoding="utf-8")
        return conversion(model, folder)

    return Attack("shard index", name, prepare, says)


def _named(name: str) -> bytes:
    return json.dumps({"weight_map": {"w": name}}).encode()


def _moved(index: dict[str, Any]) -> dict[str, Any]:
    return {"weight_map": {**index["weight_map"], "model.norm.weight": "other.safetensors"}}


def _invented(index: dict[str, Any]) -> dict[str, Any]:
    return {
        "weight_map": {**index["weight_map"], "model.layers.9.w": next(iter(index["weight_map"].values()))}
    }


def _forgotten(index: dict[str, Any]) -> dict[str, Any]:
    return {"weight_map": {k: v for k, v in index["weight_map"].items() if k != "model.norm.weight"}}


def _two_shards_hold_it(folder: Path, workshop: Workshop) -> list[str]:
    model = workshop.checkpoint("llama", folder / "m")
    (model / "model-2.safetensors").write_bytes((model / SHARD).read_bytes())
    return conversion(model, folder)


def _index_of_a_loop(folder: Path, workshop: Workshop) -> list[str]:
    model = workshop.sharded(folder / "m")
    linked(model / "model-00001-of-00001.safetensors", "model-00001-of-00001.safetensors")
    return conversion(model, folder)


_SHARD_INDEX = "shard index"


def _guessed(name: str, file: str, content: bytes, *says: str) -> Attack:
    """The command that reads headers alone."""

    def prepare(folder: Path, workshop: Workshop) -> list[str]:
        model = workshop.sharded(folder / "m")
        (model / file).write_bytes(content)
        return ["fastewq", "show", str(model)]

    return Attack("headers alone", name, prepare, (file, *says))


_FIRST = "model-00001-of-00001.safetensors"
_GUESSED: tuple[Attack, ...] = (
    _guessed("a header nested deeply", _FIRST, header(b"[" * 200_000), "nested too deeply"),
    _guessed("a header of a list", _FIRST, header([]), "not an object"),
    _guessed("a dtype of a list", _FIRST, header({"w": entry(["F32"])}, _EIGHT), "dtype"),
    _guessed("a length of 2^64-1", _FIRST, b"\xff" * 8, "claims a header"),
    _guessed("an index of a list", INDEX, b"[]", "object"),
    _guessed("an index nested deeply", INDEX, b"[" * 200_000, "nested too deeply"),
    _guessed("an index of a path upwards", INDEX, _named("../x.safetensors"), "not a plain file name"),
    _guessed("a config of a list", "config.json", b"[]", "object"),
    _guessed("a config of blocks without end", "config.json", b'{"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2147483647}', "2,147,483,647"),
    _guessed("a config without heads", "config.json", b'{"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2}', "hidden_size"),
)  # fmt: skip

ATTACKS: tuple[Attack, ...] = (
    *(raw("safetensors header", name, SHARD, data, says) for name, (data, says) in _HEADERS.items()),
    Attack("safetensors header", "100 MB of zeros", _sparse_header, (SHARD, "not valid JSON")),
    Attack("safetensors header", "names of another family", _other_family, ("transformer.h.0.x.weight", "no place")),
    _index("empty file", b"", INDEX, "not valid JSON"),
    _index("cut off", b'{"weight_map": {"w": "model', INDEX, "not valid JSON"),
    _index("a list", b"[]", INDEX, "object"),
    _index("no map", b"{}", INDEX, "weight_map"),
    _index("an empty map", b'{"weight_map": {}}', INDEX, "weight_map"),
    _index("a map of a list", b'{"weight_map": [1]}', INDEX, "weight_map"),
    _index("a shard of a number", b'{"weight_map": {"w": 7}}', INDEX, "'w'"),
    _index("a shard of null", b'{"weight_map": {"w": null}}', INDEX, "'w'"),
    _index("a shard of a list", b'{"weight_map": {"w": ["a.safetensors"]}}', INDEX, "'w'"),
    _index("a tensor twice", b'{"weight_map": {"w": "a.safetensors", "w": "b.safetensors"}}', INDEX, "twice"),
    _index("nested deeply", b'{"weight_map":' * 100_000, INDEX, "nested too deeply"),
    _index("millions of items", b'{"x":[' + b"1," * 6_000_000 + b"1]}", INDEX, "items"),
    _index("no UTF-8", b'{"weight_map": {"\xff": "a"}}', INDEX, "UTF-8"),
    _index("a shard that is not there", _named("x.safetensors"), INDEX, "x.safetensors"),
    _index("a pickled shard", _named("pytorch_model.bin"), INDEX, "pytorch_model.bin"),
    _index("a shard without a name", _named(""), INDEX, "not a plain file name"),
    _index("the folder itself", _named("."), INDEX, "not a plain file name"),
    _index("the folder above", _named(".."), INDEX, "not a plain file name"),
    _index("a path upwards", _named("../../../etc/passwd"), INDEX, "not a plain file name"),
    _index("a path upwards with the right ending", _named("../x.safetensors"), INDEX, "not a plain file name"),
    _index("an absolute path", _named("/etc/passwd"), INDEX, "not a plain file name"),
    _index("a Windows path", _named("..\\x.safetensors"), INDEX, "not a plain file name"),
    _index("a Windows drive", _named("C:x.safetensors"), INDEX, "C:x.safetensors"),
    _index("a path below", _named("sub/x.safetensors"), INDEX, "not a plain file name"),
    _index("a zero byte", _named("a\0.safetensors"), INDEX, "not a plain file name"),
    _index("half a surrogate pair", _named("\ud800.safetensors"), INDEX, "safetensors"),
    _index("a name too long for any disk", _named("x" * 5000 + ".safetensors"), INDEX, "xxx"),
    _index("control characters", _named("\x1b[2J\n.safetensors"), INDEX, "safetensors"),
    _index("a tensor in another shard than it says", _moved, INDEX, "other.safetensors"),
    _index("a tensor that no shard holds", _invented, INDEX, "model.layers.9.w"),
    _index("a tensor that the index forgets", _forgotten, INDEX, "model.norm.weight"),
    Attack(_SHARD_INDEX, "two shards hold every tensor", _two_shards_hold_it, ("model-2.safetensors", "both")),
    Attack(_SHARD_INDEX, "a shard that is a link to itself", _index_of_a_loop, ("model-00001-of-00001.safetensors",)),
    changed(_SHARD_INDEX, "an index of one that is no file", INDEX, lambda _: {"weight_map": {"w": "config.json"}}, "config.json"),
    *_GUESSED,
)  # fmt: skip
