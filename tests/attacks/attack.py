"""What an attack is, and short ways to make one from a sound checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.attacks.workshop import Workshop

OUT = "out"
"""The folder, inside the attack's own, where nothing may be left behind."""

# Prepares files in a folder of its own and returns the command's arguments.
Prepare = Callable[[Path, Workshop], list[str]]
Change = Callable[[Any], Any]


@dataclass(frozen=True)
class Attack:
    """A hostile input.

    Attributes:
        kind: the row of the table it is counted in.
        name: unique within its kind.
        prepare: makes the files and gives the command.
        says: words the one sentence must hold: the file and the place in it.
        target: the file the command was to write, inside `OUT`.
        left: files that were in `OUT` before and must still be there.
    """

    kind: str
    name: str
    prepare: Prepare
    says: tuple[str, ...]
    target: str = "model.gguf"

    @property
    def id(self) -> str:
        return f"{self.kind}: {self.name}"


def conversion(model: Path, folder: Path, *options: str) -> list[str]:
    """A plain conversion of `model` into the attack's output folder."""
    if not any(option.startswith(("--type", "--plan", "--method")) for option in options):
        options = ("--type", "f16", *options)
    return ["convert", str(model), "-o", str(folder / OUT / "model.gguf"), "--threads", "1", *options]


def raw(kind: str, name: str, file: str, content: bytes, *says: str, base: str = "llama") -> Attack:
    """A sound checkpoint in which `file` has other content."""

    def prepare(folder: Path, workshop: Workshop) -> list[str]:
        model = workshop.checkpoint(base, folder / "m")
        (model / file).write_bytes(content)
        return conversion(model, folder)

    return Attack(kind, name, prepare, (Path(file).name, *says))


def changed(kind: str, name: str, file: str, change: Change, *says: str, base: str = "llama") -> Attack:
    """A sound checkpoint in which the JSON of `file` went through `change`; text it returns is written as is."""

    def prepare(folder: Path, workshop: Workshop) -> list[str]:
        model = workshop.checkpoint(base, folder / "m")
        path = model / file
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        made = change(found)
        path.write_text(made if isinstance(made, str) else json.dumps(made), encoding="utf-8")
        return conversion(model, folder)

    return Attack(kind, name, prepare, (Path(file).name, *says))


def placed(*keys: str | int, value: object) -> Change:
    """A change that puts `value` at a place in a document."""

    def change(document: Any) -> Any:
        node = document
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value
        return document

    return change


def without(*keys: str) -> Change:
    """A change that removes keys from a document's top level."""
    return lambda document: {key: value for key, value in document.items() if key not in keys}


def literal(key: str, text: str) -> Change:
    """A change that gives `key` a value spelled as `text`, which need not be JSON."""
    mark = "@@here@@"
    return lambda document: json.dumps({**document, key: mark}).replace(f'"{mark}"', text)


def header(content: object, data: bytes = b"") -> bytes:
    """A safetensors file with that header, given as a document or as bytes."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + data


def sparse(path: Path, size: int, *pieces: tuple[int, bytes]) -> Path:
    """A file of `size` bytes of which only `pieces` (offset, bytes) take space on the disk."""
    with path.open("wb") as file:
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)
        file.truncate(max(size, file.tell()))
    return path


def fifo(path: Path) -> Path:
    """A named pipe that nobody writes into, in the place of `path`."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def linked(path: Path, to: str | Path) -> Path:
    """A symbolic link in the place of `path`."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(to)
    return path


def joined(*groups: Sequence[Attack]) -> tuple[Attack, ...]:
    """All attacks of several groups."""
    return tuple(attack for group in groups for attack in group)
