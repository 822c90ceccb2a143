"""`ewq-gguf analyze`."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ewq_gguf.allocation.analysis import Analysis
from ewq_gguf.allocation.entropy import DEFAULT_EPSILON, WeightStatistics
from ewq_gguf.allocation.ewq import BlockEntropy, Classification, check_parameters, classify
from ewq_gguf.allocation.methods import block_json
from ewq_gguf.api import analyze
from ewq_gguf.checkpoint.hub import located
from ewq_gguf.cli.options import json_option, model_argument, threads_option
from ewq_gguf.cli.terminal import Terminal


@click.command("analyze")
@model_argument
@click.option(
    "--epsilon", type=float, default=DEFAULT_EPSILON, show_default=True, help="Inside the logarithm."
)
@click.option("--x", type=float, default=1.0, show_default=True, help="T = mu - X sigma.")
@click.option("--block-entropy", type=click.Choice([r.value for r in BlockEntropy]),
              default=BlockEntropy.WEIGHTED_MEAN.value, show_default=True,
              help="How a block's matrices make one entropy.")  # fmt: skip
@click.option("--rank", is_flag=True, help="Effective ranks too; takes far longer.")
@click.option("--tensors", is_flag=True, help="A row per tensor instead of per block.")
@click.option(
    "--csv", "csv_path", type=click.Path(path_type=Path), help="Write a row per tensor and expert here."
)
@click.option("--plot", "plot_path", type=click.Path(path_type=Path),
              help="Draw block entropies with mu, T and the classes; .png, .svg or .pdf.")  # fmt: skip
@threads_option
@json_option
@click.pass_obj
def analyze_command(
    terminal: Terminal,
    model: Path,
    epsilon: float,
    x: float,
    block_entropy: str,
    rank: bool,
    tensors: bool,
    csv_path: Path | None,
    plot_path: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Entropy, variance and extremes of MODEL's weights, per block, with EWQ's classes."""
    check_parameters(epsilon=epsilon, x=x)
    if plot_path is not None:
        # Say what is missing before the work, not after it.
        from ewq_gguf.report.entropy_plot import check_plot, draw_blocks

        check_plot(plot_path)
    with terminal.progress() as progress:
        model = located(model, progress=progress)
        analysis = analyze(
            model,
            epsilon=epsilon,
            block_entropy=block_entropy,
            rank=rank,
            threads=threads,
            progress=progress,
        )
    found = classify([b.entropy for b in analysis.blocks], x)
    if csv_path is not None:
        try:
            csv_path.write_text(analysis_csv(analysis), encoding="utf-8")
        except OSError as error:
            raise click.FileError(str(csv_path), error.strerror or str(error)) from error
    if plot_path is not None:
        draw_blocks(analysis, found, x, model.resolve().name, plot_path)
    if as_json:
        terminal.json(analysis_json(analysis, found, x))
        return
    caption = f"mu {found.mu:.12f}, sigma {found.sigma:.3g}, T = mu - {x:g} sigma = {found.threshold:.12f}"
    title = f"entropy in nats, epsilon {epsilon:g}, {analysis.reading.value}"
    if tensors:
        _tensor_table(terminal, analysis, title)
    else:
        _block_table(terminal, analysis, found, title, caption)


def _figures(s: Any) -> list[str]:
    return [
        f"{s.entropy:.12f}", f"{s.variance:.4g}", f"{s.kurtosis:.2f}", f"{s.minimum:.3g}", f"{s.maximum:.3g}",
        f"{s.outliers:.2g}",
    ]  # fmt: skip


_FIGURES = [("entropy", True), ("variance", True), ("kurtosis", True), ("min", True), ("max", True),
            ("beyond 6 sigma", True)]  # fmt: skip


def _block_table(
    terminal: Terminal, analysis: Analysis, found: Classification, title: str, caption: str
) -> None:
    ranked = any(b.rank is not None for b in analysis.blocks)
    columns = [
        ("block", True),
        ("class", False),
        *_FIGURES,
        *([("rank", True)] if ranked else []),
        ("weights", True),
    ]
    rows = [
        [str(b.index), c.value, *_figures(b), *([_rank(b.rank)] if ranked else []), f"{b.parameters:,}"]
        for b, c in zip(analysis.blocks, found.classes)
    ]
    terminal.table(title, columns, rows, caption)


def _tensor_table(terminal: Terminal, analysis: Analysis, title: str) -> None:
    ranked = any(m.rank is not None for t in analysis.tensors for m in t.matrices)
    columns = [("tensor", False), *_FIGURES, *([("rank", True)] if ranked else []), ("weights", True)]
    rows = [
        [name, *_figures(m), *([_rank(m.rank)] if ranked else []), f"{m.n:,}"]
        for name, _, m in _matrices(analysis)
    ]
    terminal.table(title, columns, rows)


def _rank(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _matrices(analysis: Analysis) -> list[tuple[str, int | None, WeightStatistics]]:
    """Every matrix with a name and its block; experts are numbered."""
    return [
        (t.name if len(t.matrices) == 1 else f"{t.name}[{i}]", t.block, m)
        for t in analysis.tensors
        for i, m in enumerate(t.matrices)
    ]


def analysis_csv(analysis: Analysis) -> str:
    """A line per matrix, floats in full precision; an expert's index stands behind the tensor's name."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    matrices = _matrices(analysis)
    fields = list(asdict(matrices[0][2])) if matrices else []
    writer.writerow(["name", "block", *fields])
    for name, block, m in matrices:
        writer.writerow(
            [name, "" if block is None else block, *("" if v is None else v for v in asdict(m).values())]
        )
    return out.getvalue()


def analysis_json(analysis: Analysis, found: Classification, x: float) -> dict[str, object]:
    """The analysis as stable JSON fields: `epsilon`, `reading`, `x`, `mu`, `sigma`, `threshold`, `blocks[]`, `tensors[]`."""
    tensors = []
    for t in analysis.tensors:
        matrices = [{k: v for k, v in asdict(m).items() if v is not None} for m in t.matrices]
        entry = {"name": t.name, "block": t.block, "shape": list(t.shape)}
        tensors.append({**entry, **matrices[0]} if len(matrices) == 1 else {**entry, "matrices": matrices})
    return {
        "epsilon": analysis.epsilon,
        "reading": analysis.reading.value,
        "x": x,
        "mu": found.mu,
        "sigma": found.sigma,
        "threshold": found.threshold,
        "blocks": [{**block_json(b), "class": c.value} for b, c in zip(analysis.blocks, found.classes)],
        "tensors": tensors,
    }
