"""`ewq-gguf fastewq`: label, train, show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ewq_gguf.allocation.entropy import DEFAULT_EPSILON
from ewq_gguf.allocation.ewq import check_parameters
from ewq_gguf.allocation.fastewq import DEFAULT_FOREST
from ewq_gguf.allocation.labels import (
    RULES,
    Row,
    accuracy,
    leave_one_model_out,
    read_rows,
    rows_to_csv,
    split_rows,
    train,
)
from ewq_gguf.api import guess, label
from ewq_gguf.cli.options import json_option, model_argument, threads_option
from ewq_gguf.cli.terminal import Terminal


@click.group("fastewq")
def fastewq_group() -> None:
    """EWQ's verdict guessed from names and shapes: see it, and train the classifier anew."""


@fastewq_group.command("show")
@model_argument
@click.option("--forest", default=DEFAULT_FOREST, show_default=True, metavar="NAME|FILE",
              help="fast, fast-train, or a file of `fastewq train`.")  # fmt: skip
@click.option(
    "--x", type=float, default=1.0, show_default=True, help="Share of 4-bit blocks, as T = mu - X sigma."
)
@json_option
@click.pass_obj
def show_command(terminal: Terminal, model: Path, forest: str, x: float, as_json: bool) -> None:
    """What the classifier says of MODEL's blocks; no weight and no tokenizer is read."""
    found, verdicts = guess(model, forest=forest, x=x)
    if as_json:
        blocks = [
            {"index": v.index, "exec_index": v.exec_index, "parameters": v.parameters,
             "probability": v.probability, "class": v.precision.value}
            for v in verdicts
        ]  # fmt: skip
        about = {"forest": found.name, "digest": found.digest, "about": dict(found.about)}
        terminal.json({**about, "x": x, "blocks": blocks})
        return
    columns = [
        ("block", True),
        ("exec_index", True),
        ("weights", True),
        ("probability", True),
        ("class", False),
    ]
    rows = [
        [str(v.index), str(v.exec_index), f"{v.parameters:,}", f"{v.probability:.3f}", v.precision.value]
        for v in verdicts
    ]
    terminal.table(f"FastEWQ, {found.name}", columns, rows, _honest(found.about))


def _honest(about: Any) -> str:
    """One line on what the classifier is worth, from its own file."""
    tested = about.get("leave_one_model_out")
    if not tested:
        return f"trained on {about.get('rows')} blocks; not tested on a model that it had not seen"
    parts = [f"{kind} {_percent(tested[kind])}" for kind in RULES]
    return (
        f"trained on {about['rows']} blocks of {len(about['models'])} models; agreement with full analysis on a "
        f"model not trained on: {', '.join(parts)}"
    )


def _percent(value: dict[str, float]) -> str:
    return f"{100 * value['mean']:.0f} +/- {100 * value['se']:.0f} %"


@fastewq_group.command("label")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--name", "names", multiple=True, metavar="NAME",
              help="What to call the models, in their order; their file names by default.")  # fmt: skip
@click.option(
    "--epsilon", type=float, default=DEFAULT_EPSILON, show_default=True, help="Inside the logarithm."
)
@click.option("--x", type=float, default=1.0, show_default=True, help="T = mu - X sigma.")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="The CSV to write; stdout by default.")
@threads_option
@click.pass_obj
def label_command(
    terminal: Terminal,
    models: tuple[Path, ...],
    names: tuple[str, ...],
    epsilon: float,
    x: float,
    output: Path | None,
    threads: int | None,
) -> None:
    """Analyze MODELS in full and write a row per block for `fastewq train`."""
    if names and len(names) != len(models):
        raise click.UsageError(f"{len(names)} names for {len(models)} models; give one for each")
    check_parameters(epsilon=epsilon, x=x)
    rows: list[Row] = []
    for model, name in zip(models, names or tuple(m.resolve().name for m in models)):
        with terminal.progress() as progress:
            rows.extend(label(model, name, epsilon=epsilon, x=x, threads=threads, progress=progress))
    text = rows_to_csv(rows)
    if output is None:
        click.echo(text, nl=False)
        return
    _write(output, text)
    terminal.note(f"wrote {output}, {len(rows)} rows")


@fastewq_group.command("train")
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--name", default="fast", show_default=True, help="What to call the classifier.")
@click.option(
    "--split", is_flag=True, help="Train on 70 % of the rows and test on the others: the paper's fast train."
)
@click.option("--note", help="A sentence on where the rows come from, kept in the file.")
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), help="The JSON to write.")
@json_option
@click.pass_obj
def train_command(
    terminal: Terminal, dataset: Path, name: str, split: bool, note: str | None, output: Path, as_json: bool
) -> None:
    """Train the classifier on DATASET, a CSV of `fastewq label`; needs scikit-learn."""
    rows = read_rows(dataset)
    about: dict[str, Any] = {"note": note} if note else {}
    about["leave_one_model_out"] = leave_one_model_out(rows)
    used = rows
    if split:
        used, tested = split_rows(rows)
        about |= {"test_rows": len(tested), "test_accuracy": accuracy(train(used, name), tested)}
    forest = train(used, name, about)
    _write(output, forest.to_json())
    if as_json:
        terminal.json({"output": str(output), "digest": forest.digest, "about": dict(forest.about)})
        return
    found = about["leave_one_model_out"]
    if found is not None:
        columns = [
            ("model left out", False),
            ("blocks", True),
            ("forest", True),
            ("majority", True),
            ("position", True),
            ("always raw", True),
        ]
        table = [
            [m["model"], str(m["rows"]), *(f"{100 * m[k]:.0f} %" for k in RULES)] for m in found["models"]
        ]
        terminal.table("agreement with full analysis on a model not trained on", columns, table)
    terminal.result(_honest(forest.about))
    if split:
        terminal.result(f"on {about['test_rows']} rows held back: {100 * about['test_accuracy']:.0f} %")
    terminal.result(f"wrote {output}, sha256 of the trees {forest.digest}")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.FileError(str(path), error.strerror or str(error)) from error
