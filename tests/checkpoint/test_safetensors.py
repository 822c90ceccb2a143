"""The format, byte by byte, and every way a header can lie."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ewq_gguf.checkpoint.reading import SourceFiles
from ewq_gguf.checkpoint.safetensors import FileTensor, read_shard
from ewq_gguf.checkpoint.tensor import DType
from ewq_gguf.errors import CheckpointError, EwqError, UnsupportedModelError


def write(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def tensor(path: Path, name: str) -> FileTensor:
    shard = read_shard(path)
    return FileTensor(shard, next(e for e in shard.entries if e.name == name), SourceFiles())


def test_format_byte_by_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(
        b"\x43\x00\x00\x00\x00\x00\x00\x00"
        b'{"w":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]}          }'
        b"\x80\x3f\x00\x40\x00\xc0\x00\x00"
    )
    w = tensor(path, "w")
    assert (w.shape, w.dtype, w.n_rows, w.row_length) == ((2, 2), DType.BF16, 2, 2)
    assert w.rows(0, 2).tolist() == [[1.0, 2.0], [-2.0, 0.0]]
    assert w.raw_rows(1, 2).tolist() == [[0xC000, 0x0000]]


@pytest.mark.parametrize(
    ("dtype", "data", "expected"),
    [
        ("F64", struct.pack("<2d", 0.5, -3.0), [0.5, -3.0]),
        ("F32", struct.pack("<2f", 0.5, -3.0), [0.5, -3.0]),
        ("F16", struct.pack("<2e", 0.5, -3.0), [0.5, -3.0]),
        ("BF16", b"\x00\x3f\x40\xc0", [0.5, -3.0]),
        ("F8_E4M3", b"\x38\xb8", [1.0, -1.0]),
        ("F8_E5M2", b"\x3c\xc0", [1.0, -2.0]),
        ("F8_E8M0", b"\x7f\x80", [1.0, 2.0]),
        ("I64", struct.pack("<2q", 7, -7), [7.0, -7.0]),
        ("I32", struct.pack("<2i", 7, -7), [7.0, -7.0]),
        ("I16", struct.pack("<2h", 7, -7), [7.0, -7.0]),
        ("I8", struct.pack("<2b", 7, -7), [7.0, -7.0]),
        ("U8", b"\x07\xff", [7.0, 255.0]),
        ("BOOL", b"\x01\x00", [1.0, 0.0]),
    ],
)
def test_every_dtype_decodes(tmp_path: Path, dtype: str, data: bytes, expected: list[float]) -> None:
    path = write(tmp_path / "a.safetensors", {"w": entry(dtype, [2], [0, len(data)])}, data)
    assert tensor(path, "w").rows(0, 1).tolist() == [expected]


def test_all_bf16_codes_widen_exactly(tmp_path: Path) -> None:
    codes = np.arange(1 << 16, dtype="<u2")
    path = write(tmp_path / "a.safetensors", {"w": entry("BF16", [256, 256], [0, 1 << 17])}, codes.tobytes())
    got = tensor(path, "w").rows(0, 256).reshape(-1).view("<u4")
    assert np.array_equal(got, codes.astype("<u4") << 16)


def test_scalars_vectors_and_empty_tensors(tmp_path: Path) -> None:
    header = {
        "s": entry("F32", [], [0, 4]),
        "v": entry("F32", [3], [4, 16]),
        "e": entry("F32", [0, 4], [16, 16]),
    }
    path = write(tmp_path / "a.safetensors", header, struct.pack("<4f", 9, 1, 2, 3))
    assert tensor(path, "s").rows(0, 1).tolist() == [[9.0]]
    assert tensor(path, "v").rows(0, 1).tolist() == [[1.0, 2.0, 3.0]]
    assert tensor(path, "e").n_rows == 0


HOSTILE: dict[str, tuple[object, bytes, str]] = {
    "no object": ([], b"", "not an object"),
    "not JSON": (b"{", b"", "not valid JSON"),
    "not UTF-8": (b"\xff\xfe", b"", "not UTF-8"),
    "nested deeply": (b"[" * 200_000, b"", "nested too deeply"),
    "key twice": (b'{"w":{"dtype":"F32","dtype":"F32"}}', b"", "twice"),
    "entry is a list": ({"w": []}, b"", "not an object"),
    "no dtype": ({"w": {"shape": [1], "data_offsets": [0, 4]}}, b"1234", "'dtype'"),
    "no shape": ({"w": {"dtype": "F32", "data_offsets": [0, 4]}}, b"1234", "'shape'"),
    "no offsets": ({"w": {"dtype": "F32", "shape": [1]}}, b"1234", "'data_offsets'"),
    "unknown dtype": ({"w": entry("F13")}, b"12345678", "F13"),
    "dtype is a number": ({"w": {**entry(), "dtype": 5}}, b"12345678", "dtype"),
    "negative dimension": ({"w": entry(shape=[-1])}, b"12345678", "shape"),
    "fractional dimension": ({"w": entry(shape=[2.0])}, b"12345678", "shape"),
    "boolean dimension": ({"w": entry(shape=[True])}, b"12345678", "shape"),
    "nine dimensions": ({"w": entry(shape=[1] * 9)}, b"1234", "shape"),
    "huge dimension": ({"w": entry(shape=[2**63])}, b"12345678", "shape"),
    "huge product": ({"w": entry(shape=[2**40, 2**40])}, b"12345678", "needs"),
    "offsets reversed": ({"w": entry(offsets=[8, 0])}, b"12345678", "occupies"),
    "three offsets": ({"w": entry(offsets=[0, 8, 8])}, b"12345678", "data_offsets"),
    "negative offset": ({"w": entry(offsets=[-8, 0])}, b"12345678", "data_offsets"),
    "size is not shape x dtype": ({"w": entry(shape=[3])}, b"12345678", "needs 12"),
    "overlap": ({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12), "overlap"),
    "hole": ({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20), "belong to no tensor"),
    "trailing bytes": ({"a": entry()}, bytes(12), "belong to no tensor"),
    "data cut off": ({"a": entry()}, b"1234", "truncated"),
    "metadata is a list": ({"__metadata__": [], "a": entry()}, bytes(8), "__metadata__"),
    "metadata holds numbers": ({"__metadata__": {"a": 1}, "a": entry()}, bytes(8), "__metadata__"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_headers_are_refused(tmp_path: Path, kind: str) -> None:
    header, data, says = HOSTILE[kind]
    path = write(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(EwqError) as caught:
        read_shard(path)
    assert says in str(caught.value)
    assert "bad.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "too short"),
        (b"\x01\x02\x03", "too short"),
        (struct.pack("<Q", 2**60), "claims a header"),
        (struct.pack("<Q", 1000) + b"{}", "truncated"),
    ],
)
def test_files_that_end_early(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=says):
        read_shard(path)


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {"w": entry()}, bytes(8))
    w = tensor(path, "w")
    assert w.rows(0, 1).shape == (1, 2)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="changed while it was being read"):
        w.rows(0, 1)


def test_rows_read_one_by_one_stay_valid(tmp_path: Path) -> None:
    values = np.arange(4096, dtype="<f4").reshape(64, 64)
    path = write(
        tmp_path / "a.safetensors", {"w": entry("F32", [64, 64], [0, values.nbytes])}, values.tobytes()
    )
    shard = read_shard(path)
    w = FileTensor(shard, shard.entries[0], SourceFiles())
    views = [w.raw_rows(i, i + 1) for i in range(64)]
    assert np.array_equal(np.concatenate(views), values)


def test_unknown_dtype_is_unsupported_not_damaged(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {"w": entry("F4", [2], [0, 1])}, b"1")
    with pytest.raises(UnsupportedModelError, match="F4"):
        read_shard(path)
