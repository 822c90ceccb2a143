"""GGUF headers are untrusted: whatever the bytes, the reader answers or refuses in one sentence."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ewq_gguf.errors import CheckpointError, EwqError, UnsupportedModelError
from ewq_gguf.ggml import GGMLType
from ewq_gguf.pipeline.gguf_source import model_from_gguf, open_gguf
from ewq_gguf.pipeline.header import HeaderTensor, header_bytes

V = gguf.GGUFValueType
KEYS = {
    "general.architecture": gguf.GGUFValue("llama", V.STRING),
    "llama.block_count": gguf.GGUFValue(1, V.UINT32),
    "split.count": gguf.GGUFValue(0, V.UINT16),
    "a.texts": gguf.GGUFValue(["one", "two"], V.ARRAY, V.STRING),
    "a.numbers": gguf.GGUFValue([1.5, 2.5], V.ARRAY, V.FLOAT64),
}
TABLE = [
    HeaderTensor("token_embd.weight", (4, 64), GGMLType.F16, 512),
    HeaderTensor("blk.0.attn_q.weight", (2, 64), GGMLType.Q8_0, 136),
    HeaderTensor("output_norm.weight", (64,), GGMLType.F32, 256),
]
HEADER = header_bytes(KEYS, TABLE)
DATA = bytes(512) + bytes(160) + bytes(256)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "m.gguf"


def test_the_file_itself_is_fine(path: Path) -> None:
    path.write_bytes(HEADER + DATA)
    file = open_gguf(path)
    assert [(e.name, e.shape, e.type, e.end - e.begin) for e in file.entries] == [
        (t.name, t.shape, t.type, t.nbytes) for t in TABLE
    ]
    assert {k: v.value for k, v in file.metadata.items()} == {k: v.value for k, v in KEYS.items()}
    assert model_from_gguf(path).n_parameters == 448


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, len(HEADER) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes(path: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(HEADER + DATA)
    for at, value in changes:
        data[at] = value
    assert read_or_refused_in_a_sentence(path, data)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(HEADER + DATA)), st.binary(max_size=40))
def test_cut_and_continued_with_noise(path: Path, length: int, noise: bytes) -> None:
    assert read_or_refused_in_a_sentence(path, (HEADER + DATA)[:length] + noise)


def read_or_refused_in_a_sentence(path: Path, data: bytes | bytearray) -> bool:
    """True where all rows can be read or one line says why not; any other exception is the test's."""
    path.write_bytes(data)
    try:
        for t in model_from_gguf(path).tensors:
            t.source.rows(0, t.n_rows)
    except EwqError as error:
        return "\n" not in str(error) and len(str(error)) >= 20
    return True


def _patched(fmt: str, value: int, after: bytes) -> bytes:
    """The header with the number that follows `after` replaced."""
    at = HEADER.index(after) + len(after)
    return HEADER[:at] + struct.pack(fmt, value) + HEADER[at + struct.calcsize(fmt) :] + DATA


@pytest.mark.parametrize(
    ("data", "kind", "says"),
    [
        (b"GGUF", CheckpointError, "no GGUF file"),
        (b"GGML" + HEADER[4:] + DATA, CheckpointError, "not a GGUF file"),
        (_patched("<I", 1, b"GGUF"), UnsupportedModelError, "version 1"),
        (_patched("<Q", 2**60, b"GGUF" + HEADER[4:8]), CheckpointError, "a second time"),
        (_patched("<Q", 2**63, b"GGUF" + HEADER[4:16]), CheckpointError, "truncated"),
        (_patched("<I", 77, b"token_embd.weight"), CheckpointError, "77 dimensions"),
        (_patched("<Q", 2**62, b"token_embd.weight" + struct.pack("<I", 2)), CheckpointError, "with a dimension of"),
        (_patched("<I", 99, b"llama.block_count"), CheckpointError, "unknown type 99"),
        (
            _patched("<Q", 2**40, b"a.texts" + struct.pack("<II", 9, 8)),
            CheckpointError,
            "array of 1,099,511,627,776 strings",
        ),
        (HEADER + DATA[:-1], CheckpointError, "truncated"),
    ],
)  # fmt: skip
def test_lies(path: Path, data: bytes, kind: type[EwqError], says: str) -> None:
    path.write_bytes(data)
    with pytest.raises(kind, match=says):
        open_gguf(path)
