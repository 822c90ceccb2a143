"""The terminal: progress and notes on stderr, results on stdout, nothing where nobody looks."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


class Terminal:
    """Where a command writes. One per run, made by the main group.

    Rich honours NO_COLOR and pipes by itself; `quiet` silences progress and notes but never results.
    """

    def __init__(self, quiet: bool = False, debug: bool = False) -> None:
        self.quiet = quiet
        self.debug = debug
        # A table cut off at 80 columns in a pipe would lose figures.
        self.out = Console(soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 160)
        self.err = Console(stderr=True, quiet=quiet)
        handler = RichHandler(console=self.err, show_time=False, show_path=False, show_level=False)
        logger = logging.getLogger("ewq_gguf")
        logger.handlers[:] = [handler]
        logger.setLevel(logging.DEBUG if debug else logging.WARNING)
        logging.getLogger("gguf").setLevel(logging.ERROR)

    @property
    def draws(self) -> bool:
        """Whether anybody sees progress."""
        return not self.quiet and self.err.is_terminal

    def note(self, text: str) -> None:
        """A line for the person, on stderr."""
        self.err.print(printable(text), highlight=False, soft_wrap=True, markup=False)

    def result(self, text: str) -> None:
        """A line of the result, on stdout, as it is."""
        click.echo(text)

    def json(self, value: Any) -> None:
        """The result for a machine: one JSON document on stdout, floats in full precision."""
        click.echo(json.dumps(value, indent=2))

    def table(
        self,
        title: str,
        columns: Sequence[tuple[str, bool]],
        rows: Sequence[Sequence[str]],
        caption: str = "",
    ) -> None:
        """A table on stdout; each column is (heading, right-aligned)."""
        table = Table(
            title=title or None, title_justify="left", caption=caption or None, caption_justify="left"
        )
        for heading, right in columns:
            table.add_column(heading, justify="right" if right else "left", overflow="fold")
        for row in rows:
            # Not as markup: names out of files may hold brackets, or commands for the terminal.
            table.add_row(*(Text(printable(cell)) for cell in row))
        self.out.print(table)

    @contextmanager
    def progress(self) -> Iterator[Callable[[str, int, int], None]]:
        """A bar with an estimate of the time left, one line per stage."""
        if self.quiet or not self.err.is_terminal:
            yield lambda stage, done, total: None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        tasks: dict[str, TaskID] = {}
        with Progress(*columns, console=self.err) as bar:

            def update(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bar.add_task(stage, total=total)
                bar.update(tasks[stage], completed=done, total=total)

            yield update


# A message quotes what a file says; none of ours is longer by itself.
_LONGEST = 1000


def printable(text: str) -> str:
    """`text` with control characters spelled out: what a file says must not command the terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(message: str) -> str:
    """A message as one printable line, its middle left out where it is endless."""
    text = printable(message)
    if len(text) <= _LONGEST:
        return text
    return f"{text[:700]} [{len(text) - 900:,} characters left out] {text[-200:]}"


def format_bytes(n: int) -> str:
    """Bytes as people read them, in binary units: 15543904 -> "14.8 MiB"."""
    size = float(n)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} TiB"
