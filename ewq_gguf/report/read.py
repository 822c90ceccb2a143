"""What an input is, found out from its content and not from its name."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ewq_gguf.allocation.plan import FORMAT
from ewq_gguf.checkpoint.json_file import MAX_JSON_BYTES, parse_json
from ewq_gguf.errors import EwqError
from ewq_gguf.pipeline.gguf_source import is_gguf
from ewq_gguf.report.fields import objects
from ewq_gguf.report.measured import of_evaluation, of_record, of_study_rows
from ewq_gguf.report.planned import journal_rows, of_analysis, of_gguf, of_plan, of_probes
from ewq_gguf.report.runs import Runs

EXPECTED = (
    "a GGUF file, a plan, the --json output of evaluate, analyze or calibrate probe, "
    "or a folder of benchmark results or of a cached study"
)
_LATER_PART = re.compile(r".*-(?!00001-of-)\d{5}-of-\d{5}\.gguf")
_SUFFIXES = (".gguf", ".json", ".jsonl")


def read_runs(paths: Sequence[Path]) -> Runs:
    """All inputs together; one given twice counts once.

    Raises:
        EwqError: nothing was given, or an input is missing, damaged or nothing that a report can show.
    """
    if not paths:
        raise EwqError(f"there is nothing to report; give {EXPECTED}")
    # By real path, which unlike `resolve` never fails; shown as it was given.
    once = {os.path.realpath(path): Path(path) for path in reversed(paths)}
    found = Runs()
    for path in reversed(once.values()):
        found += _folder(path) if path.is_dir() else read_file(path)
    return found


def read_file(path: Path) -> Runs:
    """One file.

    Raises:
        EwqError: see `read_runs`.
    """
    if not path.is_file():
        raise EwqError(f"{path} does not exist" if not path.exists() else f"{path} is no regular file")
    if is_gguf(path):
        model = of_gguf(path)
        if model is None:
            raise EwqError(f"{path} is an importance matrix; give the report a model made with it")
        return model
    text = _text(path)
    kind, rows = journal_rows(text.split("\n")) if text.startswith('{"format"') else ("", [])
    if kind:
        found = of_probes(rows, path.name) if kind == "probe" else None
        if found is None:
            raise EwqError(f"{path} holds {kind} records and no probes; give the whole folder of the study")
        return found
    found = _of_json(parse_json(text, str(path)), path)
    if found is None:
        raise EwqError(f"{path} is JSON, but nothing that a report can show; expected {EXPECTED}")
    return found


def _text(path: Path) -> str:
    """The file as text, if it can be JSON at all."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(512).removeprefix(b"\xef\xbb\xbf").lstrip()
            if size <= MAX_JSON_BYTES and start[:1] in (b"{", b"["):
                file.seek(0)
                return file.read().decode("utf-8-sig")
    except OSError as error:
        raise EwqError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError:
        pass
    raise EwqError(f"{path} is nothing that a report can show; expected {EXPECTED}")


def _of_json(data: Any, path: Path) -> Runs | None:
    if isinstance(data, list):
        rows = objects(data)
        return of_probes(rows, path.name) or of_study_rows(rows, path.name)
    if not isinstance(data, dict):
        return None
    if data.get("format") == FORMAT:
        return of_plan(path)
    # A record is called results.json everywhere; its folder says which model it is of.
    folder = path.absolute().parent.name if path.name == "results.json" else path.stem
    return of_record(data, folder) or of_evaluation(data, path.name) or of_analysis(data, path.name)


def _folder(path: Path) -> Runs:
    """What of a folder's files a report can show; what it cannot is passed over, but not what is damaged."""
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise EwqError(f"cannot read {path}: {error.strerror or error}") from error
    found = Runs()
    probes: list[Runs] = []
    for name in names:
        file = path / name
        if not name.endswith(_SUFFIXES) or _LATER_PART.fullmatch(name) or not file.is_file():
            continue
        if name.endswith(".gguf"):
            found += of_gguf(file) or Runs()
        elif name.endswith(".jsonl"):
            kind, rows = journal_rows(_text(file).split("\n"))
            one = of_probes(rows, f"{path.absolute().name}/{name}") if kind == "probe" else None
            probes += [] if one is None else [one]
        else:
            found += _of_json(parse_json(_text(file), str(file)), file) or Runs()
    # Journals of the same study differ in what their probes rest on; the fullest tells most.
    found += max(probes, key=lambda r: len(r.sensitivities[0].probes), default=Runs())
    if not found.sources:
        raise EwqError(f"the folder {path} holds nothing that a report can show; expected {EXPECTED}")
    return found
