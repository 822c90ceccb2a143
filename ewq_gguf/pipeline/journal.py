"""What an unfinished file holds, so that a run that was killed can go on; and the lock on its name.

`NAME.part.journal` stands beside `NAME.part` while a run lasts. Its first line says what the run makes; then
comes one line for every tensor that is wholly in the part file, with the checksum of its bytes. It is a
claim, not a proof: whoever resumes reads the bytes again. The open journal is locked, so that no two runs
write under one name.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ewq_gguf.errors import QuantizationError

_FORMAT = "ewq-gguf journal"
# A line for each of 90,000 tensors is about 13 MB.
_MAX_BYTES = 1 << 26
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
# Windows forbids others to read a locked region, so the lock lies where nothing is written.
_LOCK_AT = 1 << 40


def journal_path(target: Path) -> Path:
    """Where the journal of the file `target` stands."""
    return target.with_name(target.name + ".part.journal")


@dataclass(frozen=True)
class Record:
    """A tensor in the part file: its name and the checksum of its bytes, as in "crc32:0badc0de"."""

    tensor: str
    checksum: str


@dataclass(frozen=True)
class Past:
    """What an earlier run left.

    Attributes:
        facts: what it was making (source, plan, ...).
        files: names of the files it was making.
        records: finished tensors, in order.
        complete: all data was written, and renaming had begun.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    records: tuple[Record, ...] = ()
    complete: bool = False


class Journal:
    """The journal of one target, open and locked; `past` is what stood in it."""

    def __init__(self, target: Path) -> None:
        """Raises:
        QuantizationError: another run is writing this file, or the folder refuses.
        """
        self.path = journal_path(target)
        try:
            self._file = os.fdopen(_locked(self.path, target), "r+b")
        except OSError as error:
            raise QuantizationError(
                f"cannot write {self.path}: {error.strerror or error}; choose another place with -o"
            ) from error
        try:
            self.past = _parse(self._file.read(_MAX_BYTES + 1))
        except OSError as error:
            self._file.close()
            raise QuantizationError(
                f"cannot read {self.path}: {error.strerror or error}; delete it"
            ) from error

    def begin(self, facts: Mapping[str, Any], files: tuple[str, ...], records: tuple[Record, ...]) -> None:
        """Start over with what this run makes, and what of it is already there."""
        self._file.seek(0)
        self._file.truncate()
        self._write({"format": _FORMAT, "facts": dict(facts), "files": list(files)})
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Note a finished tensor; its bytes must have been handed to the system before."""
        self._write({"tensor": record.tensor, "checksum": record.checksum})

    def complete(self) -> None:
        """Note that all data is there and renaming begins."""
        self._write({"complete": True})
        os.fsync(self._file.fileno())

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()

    def close(self, *, keep: bool) -> None:
        """Give up the lock; unless kept, the journal is removed."""
        if not keep and sys.platform != "win32":
            self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._file.close()
        if not keep and sys.platform == "win32":
            # An open file cannot be removed there; should another run have taken it meanwhile, it stays.
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)


def _parse(text: bytes) -> Past:
    """Whatever can be understood, up to the first line that was cut short."""
    entries: list[dict[str, Any]] = []
    for line in text.split(b"\n")[:-1]:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(entry, dict):
            break
        entries.append(entry)
    if not entries or entries[0].get("format") != _FORMAT:
        return Past()
    facts, files = entries[0].get("facts"), entries[0].get("files")
    if not isinstance(facts, dict) or not isinstance(files, list):
        return Past()
    # The names are joined to a folder and may be removed: nothing but a plain part name is believed.
    if not all(
        isinstance(f, str) and f.endswith(".part") and f.isprintable() and Path(f).name == f for f in files
    ):
        return Past()
    records = tuple(
        Record(e["tensor"], e["checksum"])
        for e in entries[1:]
        if isinstance(e.get("tensor"), str) and isinstance(e.get("checksum"), str)
    )
    return Past(facts, tuple(files), records, any(e.get("complete") is True for e in entries))


def _locked(path: Path, target: Path) -> int:
    """An open descriptor of the file at `path`, locked for this process."""
    while True:
        # Not through a link: what it leads to would be locked, emptied and written to.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        fd = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
        try:
            _refuse_strange(path, os.fstat(fd))
            if not _lock(fd):
                raise QuantizationError(
                    f"another run is writing {target} at this moment; wait for it or choose another name with -o"
                )
            # The run that held the lock before may have removed the file between our open and our lock.
            now = path.stat() if path.exists() else None
            if now is not None and (sys.platform == "win32" or os.path.samestat(now, os.fstat(fd))):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _refuse_strange(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
        raise QuantizationError(
            f"{path} is no journal of ours ({status.st_size:,} bytes, or no file at all); delete it and run again"
        )


def _lock(fd: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(fd, _LOCK_AT, os.SEEK_SET)
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
            os.lseek(fd, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
            return False
        # Some network file systems know no locks; working without one is better than not at all.
        if error.errno not in _NO_LOCKS:
            raise
    return True
