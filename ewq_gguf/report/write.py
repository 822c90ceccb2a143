"""The report as a file: for the command and for Python callers alike."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ewq_gguf.errors import EwqError
from ewq_gguf.report.fields import last_part
from ewq_gguf.report.page import page
from ewq_gguf.report.read import read_runs
from ewq_gguf.report.runs import Runs


@dataclass(frozen=True)
class Report:
    """What was written: the file, its bytes, and what went into it."""

    path: Path
    nbytes: int
    runs: Runs


def write_report(inputs: Sequence[Path | str] | Path | str, output: Path | str, *, title: str = "") -> Report:
    """Write one self-contained HTML page about plans, measurements, entropies and probes.

    The same inputs give the same bytes. Nothing half-written stands under the final name.

    Args:
        inputs: any of GGUF files, plan files, the JSON of `evaluate`, `analyze` and `calibrate probe`, folders of
            benchmark results, cached studies; recognised by content.
        output: the page; a file there is replaced.
        title: heading; made from the inputs by default.

    Raises:
        EwqError: an input is missing, damaged or of no known kind, or the page cannot be written.
    """
    paths = [Path(inputs)] if isinstance(inputs, str | Path) else [Path(p) for p in inputs]
    target = Path(output)
    if target.is_dir() or not target.parent.is_dir():
        raise EwqError(f"{target} is a folder" if target.is_dir() else f"the folder {target.parent} does not exist; create it first")  # fmt: skip
    if any(path.is_file() and target.exists() and path.samefile(target) for path in paths):
        raise EwqError(f"{target} is one of the inputs; give the page another name")
    runs = read_runs(paths)
    names = [last_part(str(path)) or str(path) for path in paths]
    command = shlex.join(["ewq-gguf", "report", *names, "-o", target.name])
    data = page(runs, title, command).encode("utf-8")
    _write(target, data)
    return Report(target, len(data), runs)


def _write(target: Path, data: bytes) -> None:
    part = target.with_name(f".{target.name[:100]}-{os.getpid()}.part")
    try:
        try:
            part.write_bytes(data)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise EwqError(f"cannot write {target}: {error.strerror or error}") from error
