"""`ewq-gguf plan`: decide without doing."""

from __future__ import annotations

from pathlib import Path

import click

from ewq_gguf.api import Decision, decide
from ewq_gguf.cli.options import decision_options, model_argument, threads_option
from ewq_gguf.cli.plan_table import show_plan
from ewq_gguf.cli.terminal import Terminal
from ewq_gguf.pipeline.source import load_model


@click.command("plan")
@model_argument
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="Write the plan here; stdout by default."
)
@decision_options
@threads_option
@click.pass_obj
def plan_group(
    terminal: Terminal, model: Path, output: Path | None, decision: Decision, threads: int | None
) -> None:
    """Decide a type for every tensor of MODEL and write the plan as JSON.

    The plan can be read, edited and replayed with `convert --plan`.
    """
    loaded = load_model(model)
    with terminal.progress() as progress:
        plan = decide(loaded, decision, threads=threads, progress=progress)
    if output is None:
        terminal.result(plan.to_json())
        return
    try:
        output.write_text(plan.to_json(), encoding="utf-8")
    except OSError as error:
        raise click.FileError(str(output), error.strerror or str(error)) from error
    show_plan(terminal, plan)
    terminal.note(f"wrote {output}")
