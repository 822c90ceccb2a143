"""Measurements on disk, one JSON line each, so that hours of work survive an interruption.

The first line says what the measurements belong to. A file that belongs to something else is not touched: the
fingerprint is part of its name. A last line cut short by a crash is dropped.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ewq_gguf.errors import EvaluationError

_FORMAT = "ewq-gguf measurements"
_VERSION = 1


def fingerprint(facts: Mapping[str, Any]) -> str:
    """A sha256 in hexadecimal of JSON-like facts; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def file_fingerprint(path: Path) -> str:
    """A sha256 over a file's size and up to 64 evenly spread pieces of 64 KiB; time stamps do not matter.

    Raises:
        EvaluationError: the file cannot be read.
    """
    piece, most = 1 << 16, 64
    digest = hashlib.sha256()
    try:
        size = path.stat().st_size
        digest.update(str(size).encode())
        with path.open("rb") as file:
            count = min(most, math.ceil(size / piece))
            for i in range(count):
                file.seek((size - piece) * i // max(1, count - 1) if size > piece else 0)
                digest.update(file.read(piece))
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror or error}") from None
    return digest.hexdigest()


class Journal:
    """Records by key, appended as they are made.

    Args:
        folder: where journals lie; made if missing. None keeps records in memory only.
        kind: what is recorded, part of the file name.
        facts: what the records depend on; other facts, another file.

    Raises:
        EvaluationError: the folder or file cannot be written.
    """

    def __init__(self, folder: Path | None, kind: str, facts: Mapping[str, Any]) -> None:
        self._records: dict[str, dict[str, Any]] = {}
        self.path: Path | None = None
        if folder is None:
            return
        mark = fingerprint(facts)
        self.path = folder / f"{kind}-{mark[:16]}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            whole = self._read(mark)
            if not self.path.exists():
                head = {
                    "format": _FORMAT,
                    "version": _VERSION,
                    "kind": kind,
                    "fingerprint": mark,
                    "facts": facts,
                }
                self.path.write_text(json.dumps(head, default=str) + "\n", encoding="utf-8")
            elif not whole:
                self._rewrite()
        except OSError as error:
            raise EvaluationError(
                f"cannot keep measurements in {folder}: {error.strerror or error}"
            ) from None

    def _read(self, mark: str) -> bool:
        """Load the file; whether its last line is complete."""
        assert self.path is not None
        if not self.path.exists():
            return True
        lines = self.path.read_bytes().split(b"\n")
        whole = lines[-1] == b""
        for number, line in enumerate(lines[:-1], start=1):
            try:
                entry = json.loads(line)
                if number == 1:
                    known = entry["format"] == _FORMAT and entry["version"] == _VERSION
                    if not known or entry["fingerprint"] != mark:
                        raise ValueError("it belongs to something else")
                    continue
                self._records[str(entry["key"])] = dict(entry["value"])
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise EvaluationError(
                    f"{self.path} is damaged in line {number} ({error}); delete it to measure again"
                ) from None
        if len(lines) < 2:
            raise EvaluationError(f"{self.path} has no first line; delete it to measure again")
        return whole

    def _rewrite(self) -> None:
        assert self.path is not None
        kept = self.path.read_bytes().rsplit(b"\n", 1)[0] + b"\n"
        temporary = self.path.with_suffix(".partial")
        temporary.write_bytes(kept)
        temporary.replace(self.path)

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, key: object) -> bool:
        return key in self._records

    def get(self, key: str) -> dict[str, Any] | None:
        """The record under `key`, or None."""
        return self._records.get(key)

    def add(self, key: str, value: Mapping[str, Any]) -> None:
        """Keep a record, on disk before this returns.

        Raises:
            EvaluationError: the disk refuses.
        """
        self._records[key] = dict(value)
        if self.path is None:
            return
        line = json.dumps({"key": key, "value": value}, allow_nan=True) + "\n"
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise EvaluationError(f"cannot write {self.path}: {error.strerror or error}") from None
