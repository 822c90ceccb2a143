"""Which other programs read which types, as measured on files this package wrote.

The table, `clients.json` beside this file, is written by third_party/clients.py, which gives each program a
file of the reference model per type and compares its greedy text with llama.cpp's; benchmarks/CLIENTS.md shows
it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ewq_gguf.allocation.facts import fallback_type
from ewq_gguf.allocation.plan import Plan
from ewq_gguf.errors import PlanError
from ewq_gguf.ggml.types import GGMLType

TABLE = Path(__file__).with_name("clients.json")
ALL = "all"


@dataclass(frozen=True)
class Reading:
    """What one program made of one file.

    Attributes:
        client: the program.
        type: the type of the file's matrices as ggml spells it, or the name of another kind of file.
        loads: it took the file.
        same_text: its greedy text is the reference's; for a program that generates none, its values or its
            list of tensors are. None where it did not load.
        agreeing: tokens of text before it parts from the reference's; None where no text was asked for.
        tie: where it parts: the reference's margin between its two likeliest tokens, in logits.
        note: anything to know, such as an error's first line.
    """

    client: str
    type: str
    loads: bool
    same_text: bool | None
    agreeing: int | None = None
    tie: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Client:
    """A program that was tried; `llama_cpp` tells whether it is a build of llama.cpp."""

    name: str
    version: str
    llama_cpp: bool


@dataclass(frozen=True)
class ClientTable:
    """The measured table.

    Attributes:
        clients: by name.
        readings: one per program and type that was tried.
        near_tie: logits; where the reference's choice hangs on less, another text says nothing.
        first_tokens: of another engine's text that must be the reference's; its arithmetic differs from
            llama.cpp's, and a weight read wrongly shows at once.
    """

    clients: dict[str, Client]
    readings: tuple[Reading, ...]
    near_tie: float
    first_tokens: int

    def reads(self, reading: Reading) -> bool:
        """Whether the program can be said to read what it was given."""
        if not reading.loads or reading.same_text is None:
            return False
        if reading.same_text or (reading.tie is not None and reading.tie < self.near_tie):
            return True
        other = not self.clients[reading.client].llama_cpp
        return other and reading.agreeing is not None and reading.agreeing >= self.first_tokens

    def clients_of(self, names: Iterable[str]) -> tuple[str, ...]:
        """Programs by name, in the table's order; "all" stands for every one.

        Raises:
            PlanError: a program that was not measured.
        """
        wanted = [name.strip() for name in names if name.strip()]
        unknown = [name for name in wanted if name != ALL and name not in self.clients]
        if unknown or not wanted:
            raise PlanError(
                f"{' and '.join(unknown) or 'no program'} is not in the table of measured programs; choose "
                f"{ALL} or any of {', '.join(self.clients)}"
            )
        return tuple(name for name in self.clients if ALL in wanted or name in wanted)

    def types_read_by(self, names: Iterable[str]) -> frozenset[GGMLType]:
        """The types that every one of these programs was seen to read; a type not tried is not read.

        Raises:
            PlanError: a program that was not measured.
        """
        clients = self.clients_of(names)
        reads = {(r.client, r.type) for r in self.readings if self.reads(r)}
        return frozenset(kind for kind in GGMLType if all((name, kind.name) in reads for name in clients))

    def refusing(self, names: Iterable[str], kind: GGMLType) -> tuple[str, ...]:
        """Those of the programs that were not seen to read the type.

        Raises:
            PlanError: a program that was not measured.
        """
        return tuple(name for name in self.clients_of(names) if kind not in self.types_read_by([name]))


@functools.cache
def load_clients(path: Path = TABLE) -> ClientTable:
    """The committed table, or one of the same form.

    Raises:
        PlanError: the file is missing or of another form.
    """
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        clients = {
            entry["name"]: Client(entry["name"], entry["version"], entry["llama_cpp"])
            for entry in data["clients"]
        }
        readings = tuple(Reading(**row) for row in data["readings"])
        return ClientTable(clients, readings, float(data["near_tie"]), int(data["first_tokens"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PlanError(f"{path} is not a table of programs: {error}; make it with `make clients`") from error


def readable_pool(
    names: Sequence[str],
    pool: Sequence[GGMLType],
    row_lengths: Iterable[int] = (),
    table: ClientTable | None = None,
) -> tuple[GGMLType, ...]:
    """Those types of the pool that all the programs read.

    Args:
        row_lengths: of the model's matrices; a type drops out as well where a row would take a stand-in that
            some program does not read.

    Raises:
        PlanError: a program that was not measured, or none of the types is left.
    """
    table = table or load_clients()
    readable = table.types_read_by(names)
    lengths = set(row_lengths)
    left = tuple(
        kind
        for kind in pool
        if kind in readable and all(fallback_type(kind, length) in readable for length in lengths)
    )
    if not left:
        every = ", ".join(kind.name for kind in sorted(readable, key=lambda kind: -kind.bpw))
        raise PlanError(
            f"no type of the pool is read by all of {', '.join(table.clients_of(names))}; "
            f"they share {every or 'none'}: name some of them with --pool, or fewer programs with --compat"
        )
    return left


def check_readable(plan: Plan, names: Sequence[str], table: ClientTable | None = None) -> None:
    """Refuse a plan that stores a matrix in a type which one of the programs does not read.

    Vectors in F32, such as norms, stand in every file that was tried.

    Raises:
        PlanError: a program that was not measured, or such a tensor; it and the program are named.
    """
    table = table or load_clients()
    readable = table.types_read_by(names)
    for tensor in plan.tensors:
        vector = sum(extent > 1 for extent in tensor.shape) < 2 and tensor.type is GGMLType.F32
        if tensor.type not in readable and not vector and not tensor.type.is_integer:
            refusing = ", ".join(table.refusing(names, tensor.type))
            raise PlanError(
                f"{tensor.name} would be {tensor.type.name}, which {refusing} does not read; types that all "
                f"of them read: {', '.join(sorted(kind.name for kind in readable)) or 'none'}"
            )
