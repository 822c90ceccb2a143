"""`ewq-gguf machines`."""

from __future__ import annotations

from pathlib import Path

import click

from ewq_gguf.allocation.machines import DEFAULT_RESERVE, Share, parse_machine
from ewq_gguf.allocation.parsing import parse_size
from ewq_gguf.api import spread
from ewq_gguf.cli.options import decision_options, json_option, model_argument, threads_option
from ewq_gguf.cli.terminal import Terminal, format_bytes
from ewq_gguf.decision import Decision


@click.command("machines")
@model_argument
@click.option("--machine", "machines", multiple=True, required=True, metavar="HOST[:PORT]=SIZE",
              help="A machine and the memory it gives; repeatable. The first runs llama.cpp.")  # fmt: skip
@click.option(
    "--n-ctx", type=click.IntRange(1), default=4096, show_default=True, help="Tokens in the KV cache."
)
@click.option("--reserve", default=f"{DEFAULT_RESERVE >> 20}MiB", show_default=True, metavar="SIZE",
              help="Memory of each machine kept for compute buffers; 0 for none.")  # fmt: skip
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="Write the plan here, for `convert --plan`."
)
@decision_options
@threads_option
@json_option
@click.pass_obj
def machines_command(
    terminal: Terminal,
    model: Path,
    machines: tuple[str, ...],
    n_ctx: int,
    reserve: str,
    output: Path | None,
    decision: Decision,
    threads: int | None,
    as_json: bool,
) -> None:
    """Plan which consecutive blocks of MODEL run on which machine, with llama.cpp's RPC.

    Blocks are demoted as for a size until all fits. With --type or --plan, types stay as they are and only the
    layout is planned.
    """
    given = [parse_machine(text) for text in machines]
    kept = 0 if reserve.strip() == "0" else parse_size(reserve)
    with terminal.progress() as progress:
        plan, found = spread(
            model, given, decision, n_ctx=n_ctx, reserve=kept, threads=threads, progress=progress
        )
    if output is not None:
        try:
            output.write_text(plan.to_json(), encoding="utf-8")
        except OSError as error:
            raise click.FileError(str(output), error.strerror or str(error)) from error
    name = model if model.suffix == ".gguf" and decision.type is None else Path("MODEL.gguf")
    commands = found.commands(name, n_ctx)
    if as_json:
        terminal.json(
            {
                "machines": [_share_json(s) for s in found.shares],
                "commands": commands,
                "n_ctx": n_ctx,
                "reserve": kept,
                "bytes": plan.data_bytes,
                "bpw": plan.bpw,
                "method": plan.method,
            }
        )
        return
    columns = [("machine", False), ("blocks", False), ("weights", True), ("cache", True), ("of", True)]
    rows = [
        [s.machine.address, _blocks(s), format_bytes(s.weights), format_bytes(s.cache), format_bytes(s.machine.memory)]
        for s in found.shares
    ]  # fmt: skip
    terminal.table(f"{plan.method}, {plan.bpw:.2f} bits per weight, cache of {n_ctx} tokens", columns, rows)
    for line in commands:
        terminal.result(line)
    if len(commands) > 1:
        terminal.note("llama.cpp's RPC servers check nobody who calls them: keep them off open networks")
    if output is not None:
        terminal.note(
            f"wrote {output}; make the file with: ewq-gguf convert {model} -o {name} --plan {output}"
        )


def _blocks(share: Share) -> str:
    parts = []
    if share.stop > share.first:
        last = share.stop - 1
        parts.append(str(share.first) if last == share.first else f"{share.first}-{last}")
    if share.output:
        parts.append("output")
    return ", ".join(parts) or "none"


def _share_json(share: Share) -> dict[str, object]:
    return {
        "address": share.machine.address,
        "memory": share.machine.memory,
        "first": share.first,
        "stop": share.stop,
        "output": share.output,
        "weights": share.weights,
        "cache": share.cache,
    }
