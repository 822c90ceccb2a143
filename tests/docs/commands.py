"""Command lines as documents show them, cut out for running."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import click

from ewq_gguf.cli import cli

ROOT = Path(__file__).parents[2]
# Where the shell takes over from the program.
_SHELL = (">", ">>", "|", "&&")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Line:
    """One command line: where it stands, its words, and the file that the shell puts the result into."""

    place: str
    words: tuple[str, ...]
    into: str | None = None

    def __str__(self) -> str:
        return f"{self.place}: {shlex.join(self.words)}"


def fenced(path: Path, language: str) -> list[str]:
    """The code blocks of a markdown file in one language; '' are those without one."""
    return [body for kind, body in _FENCE.findall(path.read_text(encoding="utf-8")) if kind == language]


def commands_in(path: Path) -> list[Line]:
    """Lines of a markdown file's plain and shell blocks, explanations after `#` cut off."""
    found = []
    for language in ("", "sh", "console"):
        for block in fenced(path, language):
            for text in block.replace("\\\n", " ").splitlines():
                words, into = _words(text.removeprefix("$ "))
                if words:
                    found.append(Line(path.name, words, into))
    return found


def commands_in_help() -> list[Line]:
    """Lines that begin with the program's name in the help texts of all commands."""
    found = []
    for path, command in every_command():
        for text in (command.help or "").splitlines():
            if text.strip().startswith("ewq-gguf "):
                # Explanations stand behind at least two blanks.
                example = re.split(r"\s{2,}", text.strip())[0]
                found.append(Line(f"{path} --help", *_words(example)))
    return found


def _words(text: str) -> tuple[tuple[str, ...], str | None]:
    """The words that the program gets, and the file behind `>`."""
    words = shlex.split(text, comments=True)
    end = next((i for i, word in enumerate(words) if word in _SHELL), len(words))
    into = words[end + 1] if words[end : end + 1] == [">"] and len(words) > end + 1 else None
    return tuple(words[:end]), into


def every_command() -> list[tuple[str, click.Command]]:
    """All commands and groups, by the words that reach them."""
    out: list[tuple[str, click.Command]] = []

    def visit(path: str, command: click.Command) -> None:
        out.append((path, command))
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                assert child is not None
                visit(f"{path} {name}", child)

    visit("ewq-gguf", cli)
    return out


def parse(words: tuple[str, ...]) -> str:
    """Let click parse a command line without running it; returns the command reached.

    Raises:
        click.UsageError: no such command or option, or a value that does not fit.
    """
    context = cli.make_context("ewq-gguf", list(words[1:]))
    command: click.Command = cli
    while isinstance(command, click.Group):
        # What make_context leaves for a group is the name of the command and its arguments.
        left = [*context._protected_args, *context.args]
        name, found, rest = command.resolve_command(context, left)
        assert found is not None
        command = found
        context = found.make_context(name, rest, parent=context)
    return context.command_path
