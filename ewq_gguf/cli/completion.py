"""`ewq-gguf completion`: completion of commands and options in the shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    """Print what makes SHELL complete ewq-gguf's commands and options.

    \b
    echo 'eval "$(ewq-gguf completion bash)"' >> ~/.bashrc
    echo 'eval "$(ewq-gguf completion zsh)"' >> ~/.zshrc
    ewq-gguf completion fish > ~/.config/fish/completions/ewq-gguf.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    # click's own check of bash's version would need bash to be there; the script itself does not.
    maker = kind(ctx.find_root().command, {}, "ewq-gguf", "_EWQ_GGUF_COMPLETE")
    click.echo(maker.source_template % maker.source_vars())
