"""`ewq-gguf convert`."""

from __future__ import annotations

from pathlib import Path

import click

from ewq_gguf.api import Decision, convert, decide
from ewq_gguf.cli.options import decision_options, json_option, model_argument, threads_option
from ewq_gguf.cli.plan_table import show_plan
from ewq_gguf.cli.terminal import Terminal, format_bytes
from ewq_gguf.pipeline.convert import file_size
from ewq_gguf.pipeline.source import load_model


@click.command("convert")
@model_argument
@click.option("--output", "-o", type=click.Path(path_type=Path), help="The GGUF file to write.")
@decision_options
@click.option("--dry-run", is_flag=True, help="Decide and show exact sizes, write nothing.")
@threads_option
@json_option
@click.pass_obj
def convert_command(
    terminal: Terminal,
    model: Path,
    output: Path | None,
    decision: Decision,
    dry_run: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Convert MODEL, a checkpoint folder or .safetensors file, to one GGUF file.

    \b
    ewq-gguf convert ./SmolLM2 -o smol.gguf                 block types by EWQ
    ewq-gguf convert ./SmolLM2 -o smol.gguf --type Q4_K_M   llama-quantize's preset
    ewq-gguf convert ./SmolLM2 -o smol.gguf --tensor-type ffn_down=q6_k
    """
    if output is None and not dry_run:
        raise click.UsageError("give the file to write with -o, or --dry-run to only see the plan")
    if dry_run or output is None:
        loaded = load_model(model)
        with terminal.progress() as progress:
            plan = decide(loaded, decision, threads=threads, progress=progress)
        nbytes = file_size(loaded, plan)
    else:
        with terminal.progress() as progress:
            done = convert(model, output, decision, threads=threads, progress=progress)
        plan, nbytes = done.plan, done.nbytes
    source = source_bytes(model)
    if as_json:
        terminal.json(
            {
                "output": None if dry_run or output is None else str(output),
                "bytes": nbytes,
                "bpw": plan.bpw,
                "parameters": plan.n_parameters,
                "method": plan.method,
                "source_bytes": source,
                "tensors": [{"name": t.name, "type": t.type.name, "bytes": t.nbytes} for t in plan.tensors],
            }
        )
        return
    show_plan(terminal, plan, source)
    if dry_run:
        terminal.result(f"the file would take {nbytes:,} bytes ({format_bytes(nbytes)})")
    else:
        terminal.result(f"wrote {output}, {nbytes:,} bytes ({format_bytes(nbytes)})")


def source_bytes(model: Path) -> int:
    """Bytes of the weights that MODEL holds on disk."""
    if model.is_file():
        return model.stat().st_size
    return sum(p.stat().st_size for p in model.glob("*.safetensors"))
