"""`ewq-gguf inspect` and `ewq-gguf verify`."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import click

from ewq_gguf.checkpoint.gguf_file import GGUFFile
from ewq_gguf.cli.options import json_option
from ewq_gguf.cli.terminal import Terminal, format_bytes
from ewq_gguf.ggml.types import GGMLType
from ewq_gguf.model import block_of
from ewq_gguf.pipeline.source import load_model
from ewq_gguf.pipeline.verify import open_gguf, verify


@click.command("inspect")
@click.argument("gguf", type=click.Path(path_type=Path))
@click.option("--tensors", is_flag=True, help="List every tensor.")
@json_option
@click.pass_obj
def inspect_command(terminal: Terminal, gguf: Path, tensors: bool, as_json: bool) -> None:
    """What is in a GGUF file: metadata, types, bytes and bits per weight, by block."""
    file = open_gguf(gguf)
    if as_json:
        terminal.json(_as_json(file))
        return
    rows = [[key, _short(value.value)] for key, value in file.metadata.items()]
    terminal.table(str(gguf), [("key", False), ("value", False)], rows)
    if tensors:
        listed = [
            [e.name, GGMLType(e.type).name, "x".join(map(str, e.shape)), f"{e.end - e.begin:,}"]
            for e in file.entries
        ]
        terminal.table("", [("tensor", False), ("type", False), ("shape", False), ("bytes", True)], listed)
    groups: dict[int | None, Counter[str]] = {}
    nbytes: Counter[int | None] = Counter()
    weights: Counter[int | None] = Counter()
    for e in file.entries:
        block = block_of(e.name)
        groups.setdefault(block, Counter())[GGMLType(e.type).name] += e.end - e.begin
        nbytes[block] += e.end - e.begin
        weights[block] += math.prod(e.shape)
    by_block = [
        [
            "other" if b is None else str(b),
            " ".join(name for name, _ in groups[b].most_common()),
            f"{nbytes[b]:,}",
            f"{8 * nbytes[b] / max(1, weights[b]):.2f}",
        ]
        for b in sorted(groups, key=lambda b: (b is not None, b or 0))
    ]
    terminal.table("", [("block", True), ("types", False), ("bytes", True), ("bpw", True)], by_block)
    total, n = sum(nbytes.values()), sum(weights.values())
    terminal.result(
        f"{len(file.entries)} tensors, {n:,} weights, {format_bytes(total)}, {8 * total / max(1, n):.2f} bits per weight"
    )


def _short(value: Any) -> str:
    if isinstance(value, list):
        head = ", ".join(str(v)[:20] for v in value[:4])
        return f"[{len(value):,}] {head}{', ...' if len(value) > 4 else ''}".replace("[", "\\[")
    text = str(value).replace("\n", "\\n").replace("[", "\\[")
    return text if len(text) <= 100 else text[:97] + "..."


def _as_json(file: GGUFFile) -> dict[str, Any]:
    """Short metadata values in full; arrays by their length, which a vocabulary would otherwise swamp."""
    metadata = {
        k: v.value if not isinstance(v.value, list) else {"length": len(v.value)}
        for k, v in file.metadata.items()
    }
    tensors = [
        {"name": e.name, "type": GGMLType(e.type).name, "shape": list(e.shape), "bytes": e.end - e.begin}
        for e in file.entries
    ]
    total, weights = sum(t.end - t.begin for t in file.entries), sum(math.prod(e.shape) for e in file.entries)
    return {
        "file": str(file.path),
        "bytes": file.size,
        "data_bytes": total,
        "parameters": weights,
        "bpw": 8 * total / max(1, weights),
        "metadata": {
            k: v.decode("utf-8", "replace") if isinstance(v, bytes) else v for k, v in metadata.items()
        },
        "tensors": tensors,
    }


@click.command("verify")
@click.argument("gguf", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), help="The checkpoint it was made from.")
@json_option
@click.pass_obj
def verify_command(terminal: Terminal, gguf: Path, against: Path | None, as_json: bool) -> None:
    """Check a GGUF file's structure and numbers, and how far its weights are from their source."""
    model = None if against is None else load_model(against)
    with terminal.progress() as progress:
        checks = verify(gguf, model, progress=lambda done, total: progress("Verifying", done, total))
    if as_json:
        terminal.json([{**c.__dict__, "type": c.type.name} for c in checks])
        return
    if model is not None:
        rows = [
            [c.name, c.type.name, f"{c.relative_error:.3e}", str(c.worst_row), f"{c.worst_row_error:.3e}"]
            for c in checks
            if c.relative_error
        ]
        columns = [
            ("tensor", False),
            ("type", False),
            ("relative error", True),
            ("worst row", True),
            ("its error", True),
        ]
        if rows:
            terminal.table("|W_q - W|^2 / |W|^2, tensors that changed", columns, rows)
    terminal.result(f"{gguf}: {len(checks)} tensors, structure and numbers are sound")
