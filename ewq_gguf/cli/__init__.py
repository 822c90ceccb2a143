"""The command line: parse, call, render. Nothing here that a Python caller would miss."""

from __future__ import annotations

import sys
from typing import Any

import click

from ewq_gguf._version import __version__
from ewq_gguf.errors import EwqError

# Command -> module under ewq_gguf.cli and the click object in it; a module is imported when its command is used.
_COMMANDS = {
    "convert": ("convert", "convert_command"),
    "merge": ("convert", "merge_command"),
    "analyze": ("analyze", "analyze_command"),
    "plan": ("plan", "plan_group"),
    "fastewq": ("fastewq", "fastewq_group"),
    "machines": ("machines", "machines_command"),
    "calibrate": ("calibrate", "calibrate_group"),
    "evaluate": ("evaluate", "evaluate"),
    "inspect": ("inspect", "inspect_command"),
    "verify": ("inspect", "verify_command"),
    "generate": ("generate", "generate_command"),
    "models": ("machine", "models_command"),
    "doctor": ("machine", "doctor_command"),
}


class _Main(click.Group):
    """Commands imported on demand; every error on purpose becomes one sentence and exit code 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        import importlib

        module, name = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(f"ewq_gguf.cli.{module}"), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EwqError as error:
            if ctx.params.get("debug"):
                raise
            _fail(str(error))
        except BrokenPipeError:
            # The reader went away (`| head`); there is nobody left to tell.
            sys.stderr.close()
            sys.exit(1)
        except MemoryError:
            if ctx.params.get("debug"):
                raise
            _fail("memory ran out; close other programs or use fewer --threads")


def _fail(message: str) -> None:
    click.echo(f"error: {message}", err=True)
    sys.exit(1)


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ewq-gguf")
@click.option("--quiet", "-q", is_flag=True, help="No progress and no notes; results and errors only.")
@click.option("--debug", is_flag=True, help="Show tracebacks and what happens inside.")
@click.pass_context
def cli(ctx: click.Context, quiet: bool, debug: bool) -> None:
    """Convert a Hugging Face checkpoint to a mixed-precision GGUF file and prove what it cost.

    \b
    First steps:
      ewq-gguf convert path/to/checkpoint -o model.gguf           types chosen by EWQ
      ewq-gguf convert path/to/checkpoint -o m.gguf --type Q4_K_M  a stock preset
      ewq-gguf evaluate perplexity m.gguf --text some.txt         measure it
      ewq-gguf doctor                                             is this machine ready?
    """
    from ewq_gguf.cli.terminal import Terminal

    ctx.obj = Terminal(quiet=quiet, debug=debug)


def main() -> None:
    """Entry point of the console script."""
    cli(prog_name="ewq-gguf")
