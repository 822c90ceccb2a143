"""`ewq-gguf report`."""

from __future__ import annotations

from pathlib import Path

import click

from ewq_gguf.cli.options import json_option
from ewq_gguf.cli.terminal import Terminal, format_bytes

_path = click.Path(path_type=Path)


@click.command("report")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=_path)
@click.option("--output", "-o", type=_path, required=True, metavar="FILE", help="The page, e.g. report.html.")
@click.option("--title", default="", help="Heading; made from the inputs by default.")
@json_option
@click.pass_obj
def report_command(
    terminal: Terminal, runs: tuple[Path, ...], output: Path, title: str, as_json: bool
) -> None:
    """One HTML page about plans and measurements, which loads nothing from the network.

    RUN is any of: a GGUF file (the plan is in its metadata), a plan, the --json output of evaluate, analyze or
    calibrate probe, a folder of benchmarks/results, a folder of a cached study. Several are shown together; a
    measurement finds the plan of its file by name and size.

    \b
    ewq-gguf evaluate divergence q4.gguf like.gguf --baseline base.gguf --text t.txt --json > kld.json
    ewq-gguf analyze path/to/checkpoint --json > entropy.json
    ewq-gguf report q4.gguf like.gguf kld.json entropy.json -o report.html
    """
    from ewq_gguf.report import write_report

    done = write_report(runs, output, title=title)
    if as_json:
        sources = [{"name": name, "holds": what} for name, what in done.runs.sources]
        terminal.json({"output": str(done.path), "bytes": done.nbytes, "sources": sources})
        return
    for name, what in done.runs.sources:
        terminal.note(f"{name}: {what}")
    terminal.result(f"wrote {done.path}: {format_bytes(done.nbytes)}")
