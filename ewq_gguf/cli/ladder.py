"""`ewq-gguf ladder`."""

from __future__ import annotations

from pathlib import Path

import click

from ewq_gguf.cli.options import (
    decision_options,
    json_option,
    model_argument,
    parse_size_option,
    threads_option,
)
from ewq_gguf.cli.terminal import Terminal, format_bytes
from ewq_gguf.decision import Decision
from ewq_gguf.pipeline.memory import DEFAULT_MEMORY
from ewq_gguf.series import Rung, ladder, parse_rung


def _rungs(ctx: click.Context, param: click.Parameter, value: str) -> list[Rung]:
    return [parse_rung(part) for part in value.split(",")]


@click.command("ladder")
@model_argument
@click.option("--sizes", "rungs", required=True, callback=_rungs, metavar="TARGET,TARGET,...",
              help="Sizes (4.2GiB), bits per weight (4.5bpw) or presets whose bytes to take (Q4_K_M).")  # fmt: skip
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), required=True, help="The folder for the files."
)
@decision_options
@click.option("--memory", callback=parse_size_option, default=str(DEFAULT_MEMORY), metavar="SIZE",
              show_default="1GiB", help="What the process may take, whatever the model's size.")  # fmt: skip
@threads_option
@json_option
@click.pass_obj
def ladder_command(
    terminal: Terminal,
    model: Path,
    rungs: list[Rung],
    output: Path,
    decision: Decision,
    memory: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Several files of MODEL from one measurement, one per target.

    \b
    ewq-gguf ladder ./SmolLM2 --sizes 80MiB,100MiB,Q5_K_M -o files/
    """
    with terminal.progress() as progress:
        made = ladder(model, output, rungs, decision, threads=threads, memory=memory, progress=progress)
    rows = [
        {
            "target": rung.label,
            "output": str(done.path),
            "bytes": done.nbytes,
            "bpw": done.bpw,
            "predicted_kld": done.plan.predicted_kld,
        }
        for rung, done in zip(rungs, made)
    ]
    if as_json:
        terminal.json(rows)
        return
    columns = [("target", False), ("file", False), ("size", True), ("bpw", True), ("predicted KLD", True)]
    terminal.table(
        "",
        columns,
        [
            [
                rung.label,
                str(done.path),
                format_bytes(done.nbytes),
                f"{done.bpw:.2f}",
                "" if done.plan.predicted_kld is None else f"{done.plan.predicted_kld:.4f}",
            ]
            for rung, done in zip(rungs, made)
        ],
    )
