"""`ewq-gguf generate`."""

from __future__ import annotations

from pathlib import Path

import click

from ewq_gguf.cli.terminal import Terminal
from ewq_gguf.evaluation.generate import generate


@click.command("generate")
@click.argument("gguf", type=click.Path(path_type=Path))
@click.option("--prompt", default="Once upon a time", show_default=True)
@click.option("--tokens", type=click.IntRange(1, 65536), default=48, show_default=True)
@click.pass_obj
def generate_command(terminal: Terminal, gguf: Path, prompt: str, tokens: int) -> None:
    """Continue a prompt with the likeliest words: a quick look at whether a file works."""
    terminal.note(f"{gguf} continues:")
    click.echo(prompt, nl=False)
    for piece in generate(gguf, prompt, tokens):
        click.echo(piece, nl=False)
    click.echo()
