"""The command line: parse, call, render. Nothing here that a Python caller would miss."""

from __future__ import annotations

import signal
import sys
from typing import Any

import click

from ewq_gguf._version import __version__
from ewq_gguf.cli.streams import results_lost, steady_streams, stop_signals
from ewq_gguf.errors import EwqError

# Command -> module under ewq_gguf.cli and the click object in it; a module is imported when its command is used.
_COMMANDS = {
    "convert": ("convert", "convert_command"),
    "ladder": ("ladder", "ladder_command"),
    "merge": ("convert", "merge_command"),
    "analyze": ("analyze", "analyze_command"),
    "plan": ("plan", "plan_group"),
    "fastewq": ("fastewq", "fastewq_group"),
    "machines": ("machines", "machines_command"),
    "calibrate": ("calibrate", "calibrate_group"),
    "evaluate": ("evaluate", "evaluate"),
    "export": ("export", "export_group"),
    "report": ("report", "report_command"),
    "inspect": ("inspect", "inspect_command"),
    "verify": ("inspect", "verify_command"),
    "generate": ("generate", "generate_command"),
    "chat": ("generate", "chat_command"),
    "models": ("machine", "models_command"),
    "doctor": ("machine", "doctor_command"),
    "completion": ("completion", "completion_command"),
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
        except KeyboardInterrupt as error:
            if ctx.params.get("debug"):
                raise
            # As a shell reports a program that the signal ended.
            _fail(str(error) or "interrupted", 128 + getattr(error, "number", int(signal.SIGINT)))
        except OSError as error:
            lost = results_lost()
            if isinstance(lost, BrokenPipeError):
                # The reader went away (`| head`); there is nobody left to tell.
                sys.exit(1)
            if lost is not None:
                _fail(f"cannot write the results: {lost.strerror or lost}")
            # A path that the system itself refuses: too long, in a loop, on a disk that fails.
            if ctx.params.get("debug"):
                raise
            where = "" if error.filename is None else f"{error.filename!s:.200}: "
            _fail(f"{where}{error.strerror or error}; check the path and the disk")
        except MemoryError:
            if ctx.params.get("debug"):
                raise
            _fail("memory ran out; close other programs or use fewer --threads")


def _fail(message: str, code: int = 1) -> None:
    from ewq_gguf.cli.terminal import one_line

    click.echo(f"error: {one_line(message)}", err=True)
    sys.exit(code)


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
    steady_streams()
    with stop_signals():
        cli(prog_name="ewq-gguf")
