"""`ewq-gguf inspect` and `ewq-gguf verify`."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ewq_gguf.checkpoint.gguf_file import GGUFEntry, GGUFFile
from ewq_gguf.cli.options import json_option, threads_option
from ewq_gguf.cli.terminal import Terminal, format_bytes
from ewq_gguf.ggml.types import GGMLType
from ewq_gguf.model import block_of
from ewq_gguf.pipeline.convert import CHECKSUM_PREFIX
from ewq_gguf.pipeline.gguf_source import open_parts
from ewq_gguf.pipeline.source import load_model
from ewq_gguf.pipeline.verify import TensorCheck, verify

_path = click.Path(path_type=Path)


class _Tally:
    """Bytes and weights of some tensors, by type."""

    def __init__(self, entries: list[GGUFEntry]) -> None:
        self.tensors = len(entries)
        self.weights = sum(math.prod(e.shape) for e in entries)
        self.nbytes = sum(e.end - e.begin for e in entries)
        self.by_type: Counter[str] = Counter()
        for e in entries:
            self.by_type[GGMLType(e.type).name] += e.end - e.begin

    @property
    def types(self) -> list[str]:
        """The type with most bytes first."""
        return [name for name, _ in self.by_type.most_common()]

    @property
    def bpw(self) -> float:
        return 8 * self.nbytes / max(1, self.weights)


def _by_block(entries: list[GGUFEntry]) -> dict[int | None, _Tally]:
    """Tensors outside the blocks first (None), then block by block."""
    groups: dict[int | None, list[GGUFEntry]] = {}
    for e in entries:
        groups.setdefault(block_of(e.name), []).append(e)
    return {b: _Tally(groups[b]) for b in sorted(groups, key=lambda b: (b is not None, b or 0))}


@click.command("inspect")
@click.argument("gguf", type=_path)
@click.option("--tensors", is_flag=True, help="List every tensor.")
@json_option
@click.pass_obj
def inspect_command(terminal: Terminal, gguf: Path, tensors: bool, as_json: bool) -> None:
    """What is in a GGUF file: metadata, types, bytes and bits per weight, by block. Of a split model, any part."""
    parts = open_parts(gguf)
    entries = [e for part in parts for e in part.entries]
    if as_json:
        terminal.json(_as_json(parts, entries))
        return
    rows = [
        [key, _short(value.value)]
        for key, value in parts[0].metadata.items()
        if not key.startswith(CHECKSUM_PREFIX)
    ]
    sums = len(parts[0].metadata) - len(rows)
    if sums:
        rows.append([f"{CHECKSUM_PREFIX}*", f"{sums} checksums; `verify` looks at them"])
    terminal.table(str(gguf), [("key", False), ("value", False)], rows)
    if tensors:
        listed = [
            [e.name, GGMLType(e.type).name, "x".join(map(str, e.shape)), f"{e.end - e.begin:,}"]
            for e in entries
        ]
        terminal.table("", [("tensor", False), ("type", False), ("shape", False), ("bytes", True)], listed)
    by_block = [
        [
            "other" if b is None else str(b),
            " ".join(t.types),
            f"{t.weights:,}",
            f"{t.nbytes:,}",
            f"{t.bpw:.2f}",
        ]
        for b, t in _by_block(entries).items()
    ]
    columns = [("block", True), ("types", False), ("weights", True), ("bytes", True), ("bpw", True)]
    terminal.table("", columns, by_block)
    whole = _Tally(entries)
    by_type = [
        [name, f"{n:,}", f"{100 * n / max(1, whole.nbytes):.1f}"] for name, n in whole.by_type.most_common()
    ]
    terminal.table("", [("type", False), ("bytes", True), ("%", True)], by_type)
    files = "" if len(parts) == 1 else f" in {len(parts)} files"
    terminal.result(
        f"{whole.tensors} tensors{files}, {whole.weights:,} weights, {format_bytes(whole.nbytes)}, "
        f"{whole.bpw:.2f} bits per weight"
    )


def _short(value: Any) -> str:
    if isinstance(value, list):
        head = ", ".join(str(v)[:20] for v in value[:4])
        return f"[{len(value):,}] {head}{', ...' if len(value) > 4 else ''}"
    text = str(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _as_json(parts: tuple[GGUFFile, ...], entries: list[GGUFEntry]) -> dict[str, Any]:
    """Short metadata values in full; arrays by their length, which a vocabulary would otherwise swamp."""
    metadata = {
        k: v.value if not isinstance(v.value, list) else {"length": len(v.value)}
        for k, v in parts[0].metadata.items()
    }
    whole = _Tally(entries)
    return {
        "file": str(parts[0].path),
        "files": [str(part.path) for part in parts],
        "bytes": sum(part.size for part in parts),
        "data_bytes": whole.nbytes,
        "parameters": whole.weights,
        "bpw": whole.bpw,
        "types": dict(whole.by_type.most_common()),
        "blocks": [
            {"index": b, "types": t.types, "parameters": t.weights, "bytes": t.nbytes, "bpw": t.bpw}
            for b, t in _by_block(entries).items()
        ],
        "metadata": {
            k: v.decode("utf-8", "replace") if isinstance(v, bytes) else v for k, v in metadata.items()
        },
        "tensors": [
            {"name": e.name, "type": GGMLType(e.type).name, "shape": list(e.shape), "bytes": e.end - e.begin}
            for e in entries
        ],
    }


@click.command("verify")
@click.argument("gguf", type=_path)
@click.option("--against", type=_path, help="The checkpoint or GGUF it was made from.")
@click.option("--worst", type=click.IntRange(1, 100), help="With --against: list so many of the worst rows.")
@threads_option
@json_option
@click.pass_obj
def verify_command(
    terminal: Terminal,
    gguf: Path,
    against: Path | None,
    worst: int | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Check a GGUF file's structure, numbers and checksums, and how far its weights are from their source."""
    if worst is not None and against is None:
        raise click.UsageError("--worst needs a source to compare with: give --against")
    model = None if against is None else load_model(against)
    with terminal.progress() as progress:
        checks = verify(
            gguf, model, threads=threads, progress=lambda done, total: progress("Verifying", done, total)
        )
    if as_json:
        terminal.json([{**asdict(c), "type": c.type.name} for c in checks])
        return
    if model is not None:
        _show_errors(terminal, checks, worst)
    sums = sum(c.checksum for c in checks)
    told = f"; {sums} checksums are right" if sums else ""
    terminal.result(f"{gguf}: {len(checks)} tensors, structure and numbers are sound{told}")


def _show_errors(terminal: Terminal, checks: list[TensorCheck], worst: int | None) -> None:
    rows = [
        [c.name, c.type.name, f"{c.relative_error:.3e}", str(c.worst_row), f"{c.worst_row_error:.3e}"]
        for c in checks
        if c.relative_error
    ]
    columns = [
        ("tensor", False), ("type", False), ("relative error", True), ("worst row", True), ("its error", True),
    ]  # fmt: skip
    if rows:
        terminal.table("|W_q - W|^2 / |W|^2, tensors that changed", columns, rows)
    if worst is None:
        return
    found = sorted(((error, c, row) for c in checks for row, error in c.worst_rows), key=lambda r: -r[0])
    listed = [[c.name, c.type.name, str(row), f"{error:.3e}"] for error, c, row in found[:worst]]
    columns = [("tensor", False), ("type", False), ("row", True), ("relative error", True)]
    terminal.table(f"the {len(listed)} worst rows, at most 10 of a tensor", columns, listed)
