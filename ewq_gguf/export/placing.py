"""Put a file under another name without ever leaving half of it there."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from ewq_gguf.errors import EwqError

LINKS = ("copy", "hard", "symlink")


class ExportError(EwqError):
    """A file cannot be handed to the other program."""


def place(source: Path, target: Path, link: str, *, force: bool = False) -> None:
    """Copy or link a file to `target`; the name appears when the file is whole.

    Args:
        link: "copy", "hard" (no more disk, same file system) or "symlink" (the source must stay where it is).
        force: replace another file of that name.

    Raises:
        ExportError: a file in the way, no room, or a file system that does not link.
    """
    if link not in LINKS:
        raise ExportError(f"there is no way {link!r} to place a file; choose one of {', '.join(LINKS)}")
    source = source.resolve()
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        if os.path.lexists(target):
            if _is_there(source, target, link):
                return
            if not force:
                raise ExportError(f"{target} exists; use --force to replace it")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if link == "hard":
                os.link(source, partial)
            elif link == "symlink":
                partial.symlink_to(source)
            else:
                _check_room(source, target.parent)
                shutil.copyfile(source, partial)
            partial.replace(target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                partial.unlink()
    except OSError as error:
        other = "" if link == "copy" else "; --link copy works everywhere"
        raise ExportError(f"cannot place {target}: {error.strerror or error}{other}") from error


def _is_there(source: Path, target: Path, link: str) -> bool:
    """Whether there is nothing to do; a file that is the source itself must never be replaced by a link to it."""
    if not target.exists():
        return False
    if target.is_symlink():
        return link == "symlink" and target.resolve() == source
    if target.parent.resolve() / target.name == source:
        return True
    return link == "hard" and target.samefile(source)


def _check_room(source: Path, folder: Path) -> None:
    needed, free = source.stat().st_size, shutil.disk_usage(folder).free
    if needed > free:
        raise ExportError(
            f"{folder} has {free:,} bytes left and {source.name} takes {needed:,}; use --link hard or symlink"
        )
