"""`ewq-gguf plan`: decide without doing; look at, compare and export what was decided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ewq_gguf.allocation.plan import Plan
from ewq_gguf.api import preview
from ewq_gguf.cli.options import decision_options, json_option, model_argument, threads_option
from ewq_gguf.cli.plan_table import show_plan
from ewq_gguf.cli.terminal import Terminal, format_bytes
from ewq_gguf.decision import Decision
from ewq_gguf.pipeline.plan_file import Change, llama_quantize_types, plan_changes, read_plan

_path = click.Path(path_type=Path)


class _PlanGroup(click.Group):
    """A group whose first command may be left out: `plan MODEL` is `plan make MODEL`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["make", *args]
        return super().parse_args(ctx, args)


@click.group("plan", cls=_PlanGroup)
def plan_group() -> None:
    """Decide a type for every tensor without writing a model; show, compare and export plans.

    \b
    ewq-gguf plan ./SmolLM2 -o plan.json --type Q4_K_M     (short for `plan make`; its options: plan make -h)
    ewq-gguf plan show plan.json
    ewq-gguf plan diff plan.json other.gguf
    ewq-gguf plan export plan.json --format llama-quantize
    """


@plan_group.command("make")
@model_argument
@click.option("--output", "-o", type=_path, help="Write the plan here; stdout by default.")
@decision_options
@click.option("--dry-run", is_flag=True, help="Write no plan: show the table and the exact size of the file.")
@threads_option
@click.pass_obj
def make_command(
    terminal: Terminal,
    model: Path,
    output: Path | None,
    decision: Decision,
    dry_run: bool,
    threads: int | None,
) -> None:
    """Decide a type for every tensor of MODEL and write the plan as JSON.

    The plan can be read, edited and replayed with `convert --plan`. Only the headers of MODEL are read, unless
    the method looks at the weights.
    """
    with terminal.progress() as progress:
        plan, nbytes = preview(model, decision, threads=threads, progress=progress)
    if dry_run:
        show_plan(terminal, plan)
        terminal.result(f"the file would take {nbytes:,} bytes ({format_bytes(nbytes)})")
        return
    if output is None:
        terminal.result(plan.to_json())
        return
    _write(output, plan.to_json())
    show_plan(terminal, plan)
    terminal.note(f"wrote {output}; the file will take {nbytes:,} bytes ({format_bytes(nbytes)})")


@plan_group.command("show")
@click.argument("plan", type=_path)
@click.option("--tensors", is_flag=True, help="List every tensor.")
@json_option
@click.pass_obj
def show_command(terminal: Terminal, plan: Path, tensors: bool, as_json: bool) -> None:
    """Show a plan file, or the plan that a GGUF file was made with."""
    found = read_plan(plan)
    if as_json:
        terminal.result(found.to_json().rstrip("\n"))
        return
    if tensors:
        columns = [("tensor", False), ("type", False), ("shape", False), ("bytes", True), ("why", False)]
        rows = [
            [t.name, t.type.name, "x".join(map(str, t.shape)), f"{t.nbytes:,}", t.reason]
            for t in found.tensors
        ]
        terminal.table("", columns, rows)
    show_plan(terminal, found)


@plan_group.command("diff")
@click.argument("before", type=_path)
@click.argument("after", type=_path)
@json_option
@click.pass_obj
def diff_command(terminal: Terminal, before: Path, after: Path, as_json: bool) -> None:
    """Compare two plans; either may be a plan file or a GGUF file."""
    plans = read_plan(before), read_plan(after)
    changes = plan_changes(*plans)
    if as_json:
        terminal.json(_diff_json(plans, changes))
        return
    if changes:
        columns = [
            ("tensor", False), ("weights", True), (before.name, False), (after.name, False), ("bytes", True),
        ]  # fmt: skip
        rows = [
            [
                c.name,
                "x".join(map(str, c.shape)),
                "-" if c.before is None else c.before.name,
                "-" if c.after is None else c.after.name,
                f"{c.bytes_after - c.bytes_before:+,}",
            ]
            for c in changes
        ]
        terminal.table("", columns, rows)
    a, b = (plan.data_bytes for plan in plans)
    terminal.result(
        f"{len(changes)} of {len(plans[0].tensors)} tensors differ; {a:,} and {b:,} bytes of weights ({b - a:+,})"
    )


def _diff_json(plans: tuple[Plan, Plan], changes: list[Change]) -> dict[str, Any]:
    return {
        "data_bytes": [plan.data_bytes for plan in plans],
        "changes": [
            {
                "name": c.name,
                "shape": list(c.shape),
                "types": [None if kind is None else kind.name for kind in (c.before, c.after)],
                "bytes": [c.bytes_before, c.bytes_after],
            }
            for c in changes
        ],
    }


@plan_group.command("export")
@click.argument("plan", type=_path)
@click.option("--format", "form", type=click.Choice(["llama-quantize", "json"]), default="llama-quantize",
              show_default=True, help="llama-quantize: a file for its --tensor-type-file.")  # fmt: skip
@click.option("--output", "-o", type=_path, help="Write it here; stdout by default.")
@click.pass_obj
def export_command(terminal: Terminal, plan: Path, form: str, output: Path | None) -> None:
    """Hand a plan to another program.

    \b
    ewq-gguf plan export plan.json -o types.txt
    llama-quantize --tensor-type-file types.txt model-bf16.gguf model.gguf Q8_0
    """
    found = read_plan(plan)
    text = llama_quantize_types(found) if form == "llama-quantize" else found.to_json()
    if output is None:
        terminal.result(text.rstrip("\n"))
        return
    _write(output, text)
    terminal.note(f"wrote {output}")
    if form == "llama-quantize":
        terminal.note(
            f"use it: llama-quantize --tensor-type-file {json.dumps(str(output))} IN.gguf OUT.gguf Q8_0"
        )


def _write(output: Path, text: str) -> None:
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.FileError(str(output), error.strerror or str(error)) from error
