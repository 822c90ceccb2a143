"""benchmarks/CLIENTS.md, made from the table and nothing else."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from ewq_gguf.allocation.clients import ClientTable, Reading

_DUTY = {
    "text": "greedy text",
    "values": "values of every tensor",
    "header": "metadata and tensor list",
}


def render(data: dict[str, Any], table: ClientTable) -> str:
    """The page, from the table's JSON and the same table as the package reads it."""
    clients = data["clients"]
    readings = {(r.client, r.type): r for r in table.readings}
    labels = list(dict.fromkeys(r.type for r in table.readings))
    lines = [
        "# Which programs read which types",
        "",
        f"Made by `make clients`: the reference model (`{data['model']}`) with all its matrices, embedding included, "
        "in one type, converted by ewq-gguf and given to each program as its registry has it. A program's "
        f"{data['tokens']} greedy tokens must be those of llama-cpp-python {table.clients['llama-cpp-python'].version}; the "
        "prompt is, for each file, the one of 16 whose text hangs least on rounding. The tokenizer is the model's "
        "own vocabulary spelled as byte-level BPE, which more programs read from GGUF than SentencePiece; one row "
        f"keeps SentencePiece. `mixed` is a rate-distortion file "
        f"({', '.join(data['mixed_types'])}), and so is the one below it, with `--compat openvino-genai`.",
        "",
        "| program | version | what it is | llama.cpp | compared by |",
        "|---|---|---|---|---|",
    ]
    for client in clients:
        lines.append(
            f"| {client['name']} | {client['version']} | {client['about']} | "
            f"{'yes' if client['llama_cpp'] else 'no'} | {_DUTY[client['duty']]} |"
        )
    for skipped in data["skipped"]:
        lines.append(f"| {skipped['name']} | not installed | {skipped['reason']} | | |")
    lines += ["", "| type | " + " | ".join(client["name"] for client in clients) + " |"]
    lines.append("|---|" + "---|" * len(clients))
    for label in labels:
        cells = [_cell(readings.get((client["name"], label)), table) for client in clients]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "yes: the same to the last token. tie: the same until a token that won by less than "
        f"{table.near_tie} logits in the reference, where any other order of additions may choose otherwise. first N: "
        f"the same for N tokens, {table.first_tokens} at least, in an engine with other arithmetic than llama.cpp's. "
        "differs: another text, or other values. no: does not load. `--compat` counts yes, tie and first N as read.",
        "",
        "## What was said",
        "",
    ]
    for client in clients:
        lines += _notes(client["name"], [r for r in table.readings if r.client == client["name"]], table)
    return "\n".join(lines).rstrip() + "\n"


def _cell(reading: Reading | None, table: ClientTable) -> str:
    if reading is None:
        return ""
    if not reading.loads:
        return "no"
    if reading.same_text:
        return "yes"
    if reading.same_text is None:
        return "loads"
    if not table.reads(reading):
        return "differs"
    tie = reading.tie is not None and reading.tie < table.near_tie
    return "tie" if tie else f"first {reading.agreeing}"


def _notes(name: str, readings: list[Reading], table: ClientTable) -> list[str]:
    """What a program said, types with the same message together."""
    said: dict[str, list[str]] = {}
    for reading in readings:
        message = reading.note
        if reading.loads and reading.same_text is False and reading.agreeing is not None:
            margin = (
                "" if reading.tie is None else f" (the reference's margin there: {reading.tie:.3f} logits)"
            )
            message = f"text parts after {reading.agreeing} tokens{margin}. {message}"
        if message:
            # One line for all types of which the same was said.
            common = re.sub(r" ?\(\d+\)", "", message.strip().replace(reading.type, "TYPE").replace("|", "/"))
            said.setdefault(textwrap.shorten(common, 160, placeholder=" ..."), []).append(reading.type)
    if not said:
        return []
    return [f"- {name}", *(f"  - {', '.join(types)}: {message}" for message, types in said.items())]
