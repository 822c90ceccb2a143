"""`ewq-gguf convert` and `ewq-gguf merge`."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import click

from ewq_gguf.allocation.plan import Plan
from ewq_gguf.api import convert, preview
from ewq_gguf.checkpoint.hub import located
from ewq_gguf.cli.options import (
    decision_options,
    json_option,
    model_argument,
    parse_size_option,
    threads_option,
)
from ewq_gguf.cli.plan_table import prediction, show_plan
from ewq_gguf.cli.streams import Stopped
from ewq_gguf.cli.terminal import Terminal, format_bytes
from ewq_gguf.decision import Decision
from ewq_gguf.export.card import export_card
from ewq_gguf.export.push import check_repository, push_files
from ewq_gguf.pipeline.memory import DEFAULT_MEMORY
from ewq_gguf.pipeline.source import source_files
from ewq_gguf.pipeline.split import Split, parse_split_size
from ewq_gguf.pipeline.target import resumable


def _split_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    return None if value is None else parse_split_size(value)


@click.command("convert")
@model_argument
@click.option("--output", "-o", type=click.Path(path_type=Path), help="The GGUF file to write.")
@decision_options
@click.option("--dry-run", is_flag=True, help="Decide and show exact sizes, write nothing.")
@click.option("--resume", is_flag=True, help="Go on where an interrupted run stopped.")
@click.option("--split-max-size", callback=_split_size, metavar="SIZE",
              help="Several files of at most this much tensor data each; 2G is 2 * 1000^3, as for llama-gguf-split.")  # fmt: skip
@click.option("--split-max-tensors", type=click.IntRange(1), help="Several files of at most so many tensors.")
@click.option("--checksums", is_flag=True, help="Store the sha256 of every tensor in the metadata.")
@click.option("--memory", callback=parse_size_option, default=str(DEFAULT_MEMORY), metavar="SIZE",
              show_default="1GiB", help="What the process may take, whatever the model's size.")  # fmt: skip
@click.option(
    "--push", metavar="ORG/NAME", help="Upload the result and a model card to this repository on the Hub."
)
@threads_option
@json_option
@click.pass_obj
def convert_command(
    terminal: Terminal,
    model: Path,
    output: Path | None,
    decision: Decision,
    dry_run: bool,
    resume: bool,
    split_max_size: int | None,
    split_max_tensors: int | None,
    checksums: bool,
    memory: int,
    push: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Convert MODEL to GGUF: a checkpoint folder, .safetensors or .gguf file, or org/name[@revision] on the Hub.

    \b
    ewq-gguf convert ./SmolLM2 -o smol.gguf --like Q4_K_M   as small, and measured to be closer
    ewq-gguf convert ./SmolLM2 -o smol.gguf --type Q4_K_M   llama-quantize's preset
    ewq-gguf convert ./SmolLM2 -o smol.gguf                 block types by EWQ
    ewq-gguf convert HuggingFaceTB/SmolLM2-135M -o smol.gguf --type Q4_K_M
    ewq-gguf convert big-f16.gguf -o big.gguf --type Q4_K_M --imatrix big.imatrix
    ewq-gguf convert ./SmolLM2 -o smol.gguf --tensor-type ffn_down=q6_k
    """
    if output is None and not dry_run:
        raise click.UsageError("give the file to write with -o, or --dry-run to only see the plan")
    if push is not None:
        check_repository(push)
    split = None
    if split_max_size is not None or split_max_tensors is not None:
        split = Split(split_max_size, split_max_tensors)
    with terminal.progress() as progress:
        only_headers = dry_run and not decision.reads_weights
        model = located(model, headers_only=only_headers, progress=progress)
    done = None
    if dry_run or output is None:
        with terminal.progress() as progress:
            plan, nbytes = preview(
                model, decision, threads=threads, split=split, checksums=checksums, progress=progress
            )
    else:
        with _told_how_to_resume(output), terminal.progress() as progress:
            done = convert(
                model, output, decision, threads=threads, memory=memory, split=split,
                checksums=checksums, resume=resume, progress=progress,
                on_plan=lambda plan: _tell_prediction(terminal, plan),
            )  # fmt: skip
        plan, nbytes = done.plan, done.nbytes
    if push is not None and done is not None:
        card = export_card(done.path, repository=push).text
        pushed = push_files(done.paths, push, card, replace_card=False, bars=terminal.draws)
        terminal.note(f"uploaded to {pushed.url}" + ("" if pushed.with_card else "; the card there was kept"))
    source = source_bytes(model)
    if as_json:
        terminal.json(
            {
                "output": None if done is None else str(done.path),
                "files": [] if done is None else [str(p) for p in done.paths],
                "bytes": nbytes,
                "bpw": plan.bpw,
                "parameters": plan.n_parameters,
                "method": plan.method,
                "predicted_kld": plan.predicted_kld,
                "stock_kld": plan.parameters.get("stock"),
                "source_bytes": source,
                "peak_rss_bytes": None if done is None else done.peak_rss,
                "resumed_tensors": 0 if done is None else done.resumed,
                "tensors": [{"name": t.name, "type": t.type.name, "bytes": t.nbytes} for t in plan.tensors],
            }
        )
        return
    show_plan(terminal, plan, source)
    if done is None:
        _tell_prediction(terminal, plan)
        terminal.result(f"the file would take {nbytes:,} bytes ({format_bytes(nbytes)})")
        return
    if done.resumed:
        terminal.note(
            f"{done.resumed} of {len(plan.tensors)} tensors were there already, read again and sound"
        )
    if done.peak_rss is not None:
        terminal.note(f"peak memory {format_bytes(done.peak_rss)}")
    what = str(done.path) if len(done.paths) == 1 else f"{done.path} and {len(done.paths) - 1} more"
    terminal.result(f"wrote {what}, {nbytes:,} bytes ({format_bytes(nbytes)})")


def _tell_prediction(terminal: Terminal, plan: Plan) -> None:
    told = prediction(plan)
    if told is not None:
        terminal.note(told)


@contextlib.contextmanager
def _told_how_to_resume(output: Path) -> Iterator[None]:
    """Ctrl-C and its like end the run in good order, with a sentence about what is left."""
    try:
        yield
    except KeyboardInterrupt as error:
        left = "nothing was left behind"
        if resumable(output):
            left = "what is done is kept: run the same command again with --resume to go on"
        raise Stopped(getattr(error, "number", int(signal.SIGINT)), left) from error


def source_bytes(model: Path) -> int:
    """Bytes of the weights that MODEL holds on disk."""
    return sum(p.stat().st_size for p in source_files(model))


@click.command("merge")
@click.argument("part", type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), required=True, help="The GGUF file to write."
)
@click.pass_obj
def merge_command(terminal: Terminal, part: Path, output: Path) -> None:
    """Join the files of a split model into one; PART is any of them.

    \b
    ewq-gguf merge big-00001-of-00003.gguf -o big.gguf
    """
    from ewq_gguf.pipeline.merge import merge

    with terminal.progress() as progress:
        nbytes = merge(part, output, progress=lambda done, total: progress("Merging", done, total))
    terminal.result(f"wrote {output}, {nbytes:,} bytes ({format_bytes(nbytes)})")
