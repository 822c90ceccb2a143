"""Measurements survive interruption, and never mix."""

from __future__ import annotations

from pathlib import Path

import pytest

from ewq_gguf.calibration.journal import Journal, file_fingerprint, fingerprint
from ewq_gguf.errors import EvaluationError

FACTS = {"model": "m", "chunks": 4}


def test_records_come_back(tmp_path: Path) -> None:
    first = Journal(tmp_path / "new" / "folder", "probe", FACTS)
    first.add("a", {"kld": 0.1})
    first.add("b", {"kld": 1e-7})
    again = Journal(tmp_path / "new" / "folder", "probe", dict(reversed(FACTS.items())))
    assert again.get("a") == {"kld": 0.1}
    assert again.get("b") == {"kld": 1e-7}
    assert len(again) == 2
    assert "c" not in again


def test_other_facts_use_another_file(tmp_path: Path) -> None:
    Journal(tmp_path, "probe", FACTS).add("a", {"kld": 0.1})
    other = Journal(tmp_path, "probe", {**FACTS, "chunks": 5})
    assert len(other) == 0
    assert len(list(tmp_path.iterdir())) == 2


def test_a_line_cut_short_is_dropped_and_work_goes_on(tmp_path: Path) -> None:
    first = Journal(tmp_path, "probe", FACTS)
    first.add("a", {"kld": 0.1})
    first.add("b", {"kld": 0.2})
    assert first.path is not None
    first.path.write_bytes(first.path.read_bytes()[:-7])
    second = Journal(tmp_path, "probe", FACTS)
    assert second.get("a") == {"kld": 0.1}
    assert second.get("b") is None
    second.add("b", {"kld": 0.3})
    third = Journal(tmp_path, "probe", FACTS)
    assert third.get("b") == {"kld": 0.3}
    assert len(third) == 2


@pytest.mark.parametrize("damage", [b"no json\n", b'{"key": 1}\n', b"[]\n", b'{"value": {}}\n'])
def test_damage_is_named_with_its_line(tmp_path: Path, damage: bytes) -> None:
    journal = Journal(tmp_path, "probe", FACTS)
    journal.add("a", {"kld": 0.1})
    assert journal.path is not None
    journal.path.write_bytes(journal.path.read_bytes() + damage)
    with pytest.raises(EvaluationError, match="line 3"):
        Journal(tmp_path, "probe", FACTS)


def test_a_file_under_a_foreign_name_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "probe", FACTS)
    other = Journal(tmp_path, "probe", {"model": "other"})
    assert journal.path is not None
    assert other.path is not None
    other.path.write_bytes(journal.path.read_bytes())
    with pytest.raises(EvaluationError, match="something else"):
        Journal(tmp_path, "probe", {"model": "other"})


def test_in_memory_without_a_folder() -> None:
    journal = Journal(None, "probe", FACTS)
    journal.add("a", {"kld": 0.1})
    assert journal.get("a") == {"kld": 0.1}


def test_unwritable_folder(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("x")
    with pytest.raises(EvaluationError, match="cannot keep measurements"):
        Journal(blocker / "folder", "probe", FACTS)


def test_fingerprints(tmp_path: Path) -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    path = tmp_path / "model"
    path.write_bytes(bytes(200_000))
    before = file_fingerprint(path)
    data = bytearray(200_000)
    data[-1] = 1
    path.write_bytes(bytes(data))
    assert file_fingerprint(path) != before
    path.write_bytes(bytes(200_000))
    assert file_fingerprint(path) == before
    path.write_bytes(b"")
    assert file_fingerprint(path)
    with pytest.raises(EvaluationError, match="cannot be read"):
        file_fingerprint(tmp_path / "absent")
