"""`ewq-gguf generate` and `ewq-gguf chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from ewq_gguf.cli.terminal import Terminal
from ewq_gguf.evaluation.generate import generate


@click.command("generate")
@click.argument("gguf", type=click.Path(path_type=Path))
@click.option("--prompt", default="Once upon a time", show_default=True, help="The words to continue.")
@click.option(
    "--tokens", type=click.IntRange(1, 65536), default=48, show_default=True, help="Tokens at most."
)
@click.pass_obj
def generate_command(terminal: Terminal, gguf: Path, prompt: str, tokens: int) -> None:
    """Continue a prompt with the likeliest words: a quick look at whether a file works."""
    terminal.note(f"{gguf} continues:")
    click.echo(prompt, nl=False)
    for piece in generate(gguf, prompt, tokens):
        click.echo(piece, nl=False)
    click.echo()


@click.command("chat")
@click.argument("gguf", type=click.Path(path_type=Path))
@click.option("--message", "-m", "messages", multiple=True, help="Say this and print the answer; repeatable.")
@click.option("--system", help="Instructions that stand before everything.")
@click.option(
    "--tokens", type=click.IntRange(1, 65536), default=256, show_default=True, help="Tokens of an answer."
)
@click.pass_obj
def chat_command(
    terminal: Terminal, gguf: Path, messages: tuple[str, ...], system: str | None, tokens: int
) -> None:
    """Talk with a model by its own chat template; without --message, line by line until Ctrl-D.

    \b
    ewq-gguf chat model.gguf -m "What is the capital of France?"
    """
    from ewq_gguf.talk import Conversation

    with Conversation(gguf, system) as conversation:
        for message in messages or _lines(terminal):
            for piece in conversation.say(message, tokens):
                click.echo(piece, nl=False)
                sys.stdout.flush()
            click.echo()


def _lines(terminal: Terminal) -> Iterator[str]:
    """What a person types or a pipe brings, line by line."""
    while True:
        if sys.stdin.isatty():
            terminal.note("> ")
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()
