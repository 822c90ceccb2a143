"""Importance matrix files: round trips, the legacy format, and damage of every kind."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from ewq_gguf.calibration.imatrix import Entry, ImportanceMatrix
from ewq_gguf.calibration.imatrix_file import load_imatrix, save_imatrix
from ewq_gguf.errors import CheckpointError


def sample() -> ImportanceMatrix:
    rng = np.random.default_rng(2)
    return ImportanceMatrix(
        {
            "blk.0.attn_q.weight": Entry(rng.random((1, 32), dtype=np.float32), np.array([1024])),
            "blk.0.ffn_up_exps.weight": Entry(rng.random((3, 32), dtype=np.float32), np.array([5, 0, 7])),
        },
        ("wiki.txt", "code.txt"),
        2,
        512,
    )


def legacy(entries: list[tuple[bytes, int, list[float]]], tail: bytes = b"") -> bytes:
    out = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        out += struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, len(values))
        out += np.array(values, dtype="<f4").tobytes()
    return out + tail


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    save_imatrix(sample(), path)
    back = load_imatrix(path)
    assert (back.datasets, back.chunk_count, back.chunk_size) == (("wiki.txt", "code.txt"), 2, 512)
    assert list(back.entries) == list(sample().entries)
    for name, entry in sample().entries.items():
        assert np.array_equal(back.entries[name].in_sum2, entry.in_sum2)
        assert np.array_equal(back.entries[name].counts, entry.counts)
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_what_llama_quantize_looks_for_is_there(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    save_imatrix(sample(), path)
    reader = gguf.GGUFReader(path)
    keys = [key for key in reader.fields if not key.startswith("GGUF.")]
    assert keys == ["general.type", "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"]
    shapes = {t.name: t.shape.tolist() for t in reader.tensors}
    assert shapes == {
        "blk.0.attn_q.weight.in_sum2": [32],
        "blk.0.attn_q.weight.counts": [1],
        "blk.0.ffn_up_exps.weight.in_sum2": [32, 3],
        "blk.0.ffn_up_exps.weight.counts": [1, 3],
    }


def test_legacy_values_are_divided_by_calls(tmp_path: Path) -> None:
    path = tmp_path / "m.dat"
    tail = struct.pack("<ii", 9, 5) + b"a.txt"
    path.write_bytes(legacy([(b"w", 4, [4.0, 8.0]), (b"v", 0, [3.0])], tail))
    matrix = load_imatrix(path)
    assert matrix.weights("w").tolist() == [[1.0, 2.0]]
    assert matrix.weights("v").tolist() == [[3.0]]
    assert (matrix.datasets, matrix.chunk_count, matrix.chunk_size) == (("a.txt",), 9, 0)


def test_legacy_without_tail(tmp_path: Path) -> None:
    path = tmp_path / "m.dat"
    path.write_bytes(legacy([(b"weight", 1, [4.0, 8.0])]))
    assert load_imatrix(path).weights("weight").tolist() == [[4.0, 8.0]]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        b"\0" * 64,
        b"not an importance matrix at all, but prose",
        legacy([]),
        legacy([(b"w", 1, [])]),
        legacy([(b"", 1, [1.0])]),
        legacy([(b"w", -1, [1.0])]),
        legacy([(b"w", 1, [-1.0])]),
        legacy([(b"w", 1, [float("nan")])]),
        legacy([(b"w", 1, [float("inf")])]),
        legacy([(b"same name", 1, [1.0]), (b"same name", 1, [1.0])]),
        legacy([(b"w", 1, [1.0])], struct.pack("<ii", 1, 1 << 30)),
        struct.pack("<ii", 1, -5) + b"\0" * 64,
        struct.pack("<iiiii", 1, 0, 1, 1 << 30, 1) + b"\0" * 64,
    ],
)
def test_nonsense_is_refused_in_one_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.dat"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m\.dat") as caught:
        load_imatrix(path)
    assert "\n" not in str(caught.value)


def test_missing_file() -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_imatrix(Path("/nonexistent/m.gguf"))


def write_raw(path: Path, tensors: dict[str, np.ndarray], *, metadata: bool = True) -> None:
    writer = gguf.GGUFWriter(path, "imatrix")
    if metadata:
        writer.add_array("imatrix.datasets", ["a"])
        writer.add_uint32("imatrix.chunk_count", 1)
        writer.add_uint32("imatrix.chunk_size", 512)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


SUMS, COUNT = np.ones(8, dtype=np.float32), np.ones(1, dtype=np.float32)


@pytest.mark.parametrize(
    ("tensors", "metadata", "reason"),
    [
        ({"w.in_sum2": SUMS}, True, "pairs"),
        ({"w.counts": COUNT}, True, "pairs"),
        ({"w.in_sum2": SUMS, "w.counts": COUNT}, False, "lacks"),
        ({"w.in_sum2": SUMS, "w.counts": np.ones(3, np.float32)}, True, "8 sums for 3 counts"),
        ({"w.in_sum2": -SUMS, "w.counts": COUNT}, True, "negative"),
        ({"w.in_sum2": SUMS * np.nan, "w.counts": COUNT}, True, "not finite"),
        ({"w.in_sum2": SUMS, "w.counts": -COUNT}, True, "impossible counts"),
        ({"w.in_sum2": SUMS, "w.counts": COUNT * np.nan}, True, "impossible counts"),
        ({"w.in_sum2": SUMS.astype(np.float16), "w.counts": COUNT}, True, "F32"),
        ({"blk.0.attn_q.weight": SUMS}, True, "no entry"),
    ],
)
def test_gguf_that_is_no_matrix(
    tensors: dict[str, np.ndarray], metadata: bool, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    write_raw(path, tensors, metadata=metadata)
    with pytest.raises(CheckpointError, match=reason):
        load_imatrix(path)


def test_damage_never_escapes_as_another_exception(tmp_path: Path) -> None:
    good = tmp_path / "good.gguf"
    save_imatrix(sample(), good)
    original = good.read_bytes()
    rng = random.Random(4)
    path = tmp_path / "bad.gguf"
    refused = 0
    for trial in range(150):
        data = bytearray(original)
        if trial % 2:
            data = data[: rng.randrange(1, len(data))]
        else:
            for _ in range(3):
                data[rng.randrange(4, 700)] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        path.write_bytes(bytes(data))
        try:
            matrix = load_imatrix(path)
        except CheckpointError:
            refused += 1
        else:
            assert all(np.isfinite(e.in_sum2).all() for e in matrix.entries.values())
    assert refused > 100


def test_empty_or_unwritable(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="empty"):
        save_imatrix(ImportanceMatrix({}), tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match="cannot write"):
        save_imatrix(sample(), tmp_path / "no" / "such" / "m.gguf")
    long = ImportanceMatrix({"x" * 70: Entry(SUMS[None], np.array([1]))})
    with pytest.raises(CheckpointError, match="too long"):
        save_imatrix(long, tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []
