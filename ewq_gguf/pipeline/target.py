"""Where output goes: names of unfinished files, what a file consists of, and refusals before any work."""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ewq_gguf.errors import QuantizationError
from ewq_gguf.pipeline.journal import journal_path


@dataclass(frozen=True)
class Slot:
    """A tensor's place: its name and its bytes, without padding."""

    name: str
    nbytes: int


@dataclass(frozen=True)
class OutputFile:
    """One file: where it will stand, its header, and which of the run's tensors follow it."""

    path: Path
    header: bytes
    first: int
    stop: int

    @property
    def part(self) -> Path:
        return part_path(self.path)


class Checksum(Protocol):
    """A sum over bytes that come in pieces; `text` names its kind, as in "crc32:0badc0de"."""

    def update(self, data: memoryview | bytes, /) -> None: ...

    def text(self) -> str: ...


class Crc32:
    """Guards against what a crash or a disk does; four times as fast as a sha256."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: memoryview | bytes, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def text(self) -> str:
        return f"crc32:{self._value:08x}"


class Sha256:
    """For sums that are stored in the file."""

    def __init__(self) -> None:
        self._state = hashlib.sha256()

    def update(self, data: memoryview | bytes, /) -> None:
        self._state.update(data)

    def text(self) -> str:
        return f"sha256:{self._state.hexdigest()}"


def part_path(target: Path) -> Path:
    """Where the unfinished file stands."""
    return target.with_name(target.name + ".part")


def resumable(target: Path) -> bool:
    """Whether an interrupted run left something under `target` that `resume` can go on with."""
    return journal_path(target).is_file()


def check_target(target: Path) -> None:
    """Refuse a target that cannot be written, before any work.

    Raises:
        QuantizationError: no such folder, or the target is a folder, a device or a pipe.
    """
    folder = target.parent
    if target.is_dir():
        raise QuantizationError(f"{target} is a folder; name a file, for example {target / 'model.gguf'}")
    if target.exists() and not target.is_file():
        # Renaming would remove what is there: `-o /dev/null` as root must not.
        raise QuantizationError(f"{target} is no ordinary file; choose another name with -o")
    if not folder.is_dir():
        raise QuantizationError(f"the folder {folder} does not exist; create it first")
    if not os.access(folder, os.W_OK):
        raise QuantizationError(f"cannot write into {folder}; choose another place with -o")


def check_space(folder: Path, nbytes: int) -> None:
    """Raises:
    QuantizationError: the disk has fewer bytes free than are to be written.
    """
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise QuantizationError(
            f"{folder} has {free:,} bytes free and the file needs {nbytes:,}; free some space or choose a smaller size"
        )
