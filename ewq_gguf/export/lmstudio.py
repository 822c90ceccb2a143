"""Hand a GGUF file to LM Studio: put it where LM Studio looks, as publisher/model/file.gguf.

Source of the folders: LM Studio's documentation (import models), and the pointer file and settings.json that it
writes; its home was ~/.cache/lm-studio before it was ~/.lmstudio.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ewq_gguf.checkpoint.json_file import load_json_object
from ewq_gguf.errors import CheckpointError
from ewq_gguf.export.placing import ExportError, place
from ewq_gguf.pipeline.gguf_source import open_parts

_POINTER = ".lmstudio-home-pointer"
_HOMES = (".lmstudio", ".cache/lm-studio")
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]*")
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
DEFAULT_PUBLISHER = "local"


@dataclass(frozen=True)
class LMStudioExport:
    """The files as LM Studio finds them, and the folder it looks in."""

    paths: tuple[Path, ...]
    models_folder: Path


def export_lmstudio(
    gguf: str | os.PathLike[str],
    *,
    publisher: str | None = None,
    model: str | None = None,
    link: str = "hard",
    models_folder: str | os.PathLike[str] | None = None,
    force: bool = False,
) -> LMStudioExport:
    """Place a GGUF file, or all parts of a split one, under LM Studio's models folder.

    Args:
        publisher: the first folder; the organization in the file's metadata, or "local", by default.
        model: the second; the file's name by default.
        link: "copy", "hard" or "symlink"; see `placing.place`.
        models_folder: LM Studio's folder; see `find_models_folder`.
        force: replace files of the same name.

    Raises:
        ExportError: no LM Studio folder, a name with a path in it, or a file in the way.
        CheckpointError, UnsupportedModelError: the GGUF file is damaged or of an unknown version.
    """
    parts = open_parts(Path(gguf))
    organization = parts[0].value("general.organization")
    if publisher is None:
        found = organization if isinstance(organization, str) else ""
        publisher = _as_folder(found) or DEFAULT_PUBLISHER
    model = _SHARD.sub("", Path(gguf).stem) if model is None else model
    for name in (publisher, model):
        if not _PART.fullmatch(name):
            raise ExportError(f"{name!r:.80} is no folder name; take letters, digits, and . _ -")
    root = find_models_folder() if models_folder is None else Path(models_folder)
    folder = root / publisher / model
    placed = []
    for part in parts:
        target = folder / part.path.name
        place(part.path, target, link, force=force)
        placed.append(target)
    return LMStudioExport(tuple(placed), root)


def find_models_folder(home: Path | None = None) -> Path:
    """Where LM Studio keeps its models on this machine.

    The folder chosen in its settings, else `models` in its home.

    Args:
        home: the user's home folder.

    Raises:
        ExportError: LM Studio has not run here.
    """
    user = Path.home() if home is None else home
    for folder in _homes(user):
        if not folder.is_dir():
            continue
        chosen = _settings(folder / "settings.json").get("downloadsFolder")
        if isinstance(chosen, str) and Path(chosen).is_absolute():
            return Path(chosen)
        return folder / "models"
    raise ExportError(
        f"there is no folder of LM Studio in {user}; start LM Studio once, or name its folder with --models-folder"
    )


def _homes(user: Path) -> list[Path]:
    found = [user / name for name in _HOMES]
    try:
        pointed = (user / _POINTER).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return found
    return [Path(pointed), *found] if pointed and Path(pointed).is_absolute() else found


def _settings(path: Path) -> dict[str, Any]:
    try:
        return load_json_object(path) if path.is_file() else {}
    except CheckpointError:
        # Somebody else's settings: what cannot be read is not used.
        return {}


def _as_folder(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")
