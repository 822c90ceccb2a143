"""Importance matrices: what a type needs is said before work begins, and what lacks is treated as llama-quantize does."""

from __future__ import annotations

import hashlib
import logging
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ewq_gguf
from ewq_gguf.calibration.imatrix import Entry, ImportanceMatrix
from ewq_gguf.calibration.imatrix_file import save_imatrix
from ewq_gguf.errors import CheckpointError, EwqError, PlanError, QuantizationError
from ewq_gguf.pipeline.verify import open_gguf
from tests.pipeline.llama_quantize import tensors
from tests.pipeline.odd_model import N_EMBD, write_imatrix, write_odd_model


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_odd_model(tmp_path_factory.mktemp("odd") / "odd.gguf")


@pytest.fixture(scope="module")
def matrix(odd: Path, tmp_path_factory: pytest.TempPathFactory) -> ImportanceMatrix:
    return write_imatrix(odd, tmp_path_factory.mktemp("imatrix") / "i.gguf")


def saved(matrix: ImportanceMatrix, path: Path) -> Path:
    save_imatrix(matrix, path)
    return path


def without(matrix: ImportanceMatrix, *names: str) -> ImportanceMatrix:
    return replace(matrix, entries={n: e for n, e in matrix.entries.items() if n not in names})


def test_it_changes_the_bytes_and_is_recorded(odd: Path, matrix: ImportanceMatrix, tmp_path: Path) -> None:
    file, plain, weighted = saved(matrix, tmp_path / "i.gguf"), tmp_path / "plain.gguf", tmp_path / "w.gguf"
    ewq_gguf.convert(odd, plain, ewq_gguf.Decision(type="Q4_1", pure=True))
    ewq_gguf.convert(odd, weighted, ewq_gguf.Decision(type="Q4_1", pure=True, imatrix=file))
    a, b = tensors(plain), tensors(weighted)
    changed = {name for name in a if a[name] != b[name]}
    # Rows of 200 weights go to F16, which no weights can change.
    assert changed == {n for n in matrix.entries if "ffn_down" not in n}
    told = open_gguf(weighted)
    assert told.value("quantize.imatrix.file") == str(file)[:127]
    assert told.value("quantize.imatrix.dataset") == "some-text.txt"
    assert told.value("quantize.imatrix.entries_count") == len(matrix.entries)
    assert told.value("quantize.imatrix.chunks_count") == 12
    assert told.value("ewq.imatrix.sha256") == hashlib.sha256(file.read_bytes()).hexdigest()


def test_legacy_files_give_the_same_bytes(odd: Path, matrix: ImportanceMatrix, tmp_path: Path) -> None:
    name = "blk.0.attn_q.weight"
    sums, calls = matrix.entries[name].in_sum2, int(matrix.entries[name].counts[0])
    legacy, modern = tmp_path / "i.dat", replace(matrix, entries={name: matrix.entries[name]})
    head = struct.pack("<ii", 1, len(name)) + name.encode() + struct.pack("<ii", calls, sums.size)
    legacy.write_bytes(head + sums.astype("<f4").tobytes() + struct.pack("<i", 12))
    made = []
    for file in (legacy, saved(modern, tmp_path / "i.gguf")):
        ewq_gguf.convert(odd, tmp_path / "m.gguf", ewq_gguf.Decision(type="Q4_0", pure=True, imatrix=file))
        made.append(tensors(tmp_path / "m.gguf"))
    assert made[0] == made[1]


@pytest.mark.parametrize("kind", ["IQ2_XXS", "IQ1_S", "Q2_K_S"])
def test_what_needs_one_says_so_first(reference: Path, tmp_path: Path, kind: str) -> None:
    calls: list[object] = []
    with pytest.raises(EwqError, match="importance matrix; give one with --imatrix"):
        ewq_gguf.convert(
            reference, tmp_path / "m.gguf", ewq_gguf.Decision(type=kind), progress=lambda *c: calls.append(c)
        )
    assert not calls
    assert list(tmp_path.iterdir()) == []


def test_pins_and_plans_need_one_too(reference: Path, tmp_path: Path) -> None:
    from ewq_gguf.allocation.pins import parse_pin

    wish = ewq_gguf.Decision(type="Q8_0", pins=(parse_pin("blk.3.ffn_up=iq3_xxs"),))
    with pytest.raises(
        QuantizationError, match=r"blk\.3\.ffn_up\.weight as IQ3_XXS needs an importance matrix"
    ):
        ewq_gguf.convert(reference, tmp_path / "m.gguf", wish)


def test_a_missing_entry(reference: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tmp_path / "bf16.gguf"
    ewq_gguf.convert(reference, source, ewq_gguf.Decision(type="bf16"))
    full = write_imatrix(source, tmp_path / "full.imatrix")
    file = saved(without(full, "blk.3.ffn_up.weight"), tmp_path / "i.gguf")
    with pytest.raises(QuantizationError, match="has no entry for it"):
        ewq_gguf.convert(source, tmp_path / "m.gguf", ewq_gguf.Decision(type="IQ2_XXS", imatrix=file))
    # A type that can do without only warns.
    with caplog.at_level(logging.WARNING, "ewq_gguf"):
        ewq_gguf.convert(source, tmp_path / "m.gguf", ewq_gguf.Decision(type="Q4_0", imatrix=file))
    assert "has no entry for 3 tensors" in caplog.text


def test_entries_of_another_length(odd: Path, matrix: ImportanceMatrix, tmp_path: Path) -> None:
    bad = Entry(np.ones((1, N_EMBD - 32), dtype=np.float32), np.array([5]))
    for name, refused in (("blk.0.attn_q.weight", True), ("token_embd.weight", False)):
        file = saved(replace(matrix, entries={**matrix.entries, name: bad}), tmp_path / "i.gguf")
        wish = ewq_gguf.Decision(type="Q4_0", pure=True, imatrix=file)
        if refused:
            with pytest.raises(QuantizationError, match="made from another model"):
                ewq_gguf.convert(odd, tmp_path / "m.gguf", wish)
        else:
            ewq_gguf.convert(odd, tmp_path / "m.gguf", wish)


@pytest.mark.parametrize("content", [None, b"", b"GGUF", b"\x01\x00\x00\x00"])
def test_files_that_are_none(odd: Path, tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "i.dat"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises((CheckpointError, PlanError)):
        ewq_gguf.convert(odd, tmp_path / "m.gguf", ewq_gguf.Decision(type="Q4_0", imatrix=file))
    assert not (tmp_path / "m.gguf").exists()
