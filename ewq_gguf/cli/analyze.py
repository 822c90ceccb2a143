"""`ewq-gguf analyze`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ewq_gguf.allocation.analysis import Analysis
from ewq_gguf.allocation.entropy import DEFAULT_EPSILON
from ewq_gguf.allocation.ewq import Classification, check_parameters, classify
from ewq_gguf.api import analyze
from ewq_gguf.cli.options import json_option, model_argument, threads_option
from ewq_gguf.cli.terminal import Terminal


@click.command("analyze")
@model_argument
@click.option(
    "--epsilon", type=float, default=DEFAULT_EPSILON, show_default=True, help="Inside the logarithm."
)
@click.option("--x", type=float, default=1.0, show_default=True, help="T = mu - X sigma.")
@threads_option
@json_option
@click.pass_obj
def analyze_command(
    terminal: Terminal, model: Path, epsilon: float, x: float, threads: int | None, as_json: bool
) -> None:
    """Entropy, variance and extremes of MODEL's weights, per block, with EWQ's classes."""
    check_parameters(epsilon=epsilon, x=x)
    with terminal.progress() as progress:
        analysis = analyze(model, epsilon=epsilon, threads=threads, progress=progress)
    found = classify([b.entropy for b in analysis.blocks], x)
    if as_json:
        terminal.json(analysis_json(analysis, found, x))
        return
    columns = [
        ("block", True), ("entropy", True), ("class", False), ("variance", True), ("kurtosis", True),
        ("min", True), ("max", True), ("weights", True),
    ]  # fmt: skip
    rows = [
        [
            str(b.index), f"{b.entropy:.9f}", c.value, f"{b.variance:.4g}", f"{b.kurtosis:.2f}",
            f"{b.minimum:.3g}", f"{b.maximum:.3g}", f"{b.parameters:,}",
        ]
        for b, c in zip(analysis.blocks, found.classes)
    ]  # fmt: skip
    caption = f"mu {found.mu:.9f}, sigma {found.sigma:.3g}, T = mu - {x:g} sigma = {found.threshold:.9f}"
    terminal.table(f"entropy in nats, epsilon {epsilon:g}", columns, rows, caption)


def analysis_json(analysis: Analysis, found: Classification, x: float) -> dict[str, object]:
    """The analysis as stable JSON fields: `epsilon`, `x`, `mu`, `sigma`, `threshold`, `blocks[]`, `tensors[]`."""
    tensors = []
    for t in analysis.tensors:
        matrices = [asdict(m) for m in t.matrices]
        entry = {"name": t.name, "block": t.block, "shape": list(t.shape)}
        tensors.append({**entry, **matrices[0]} if len(matrices) == 1 else {**entry, "matrices": matrices})
    return {
        "epsilon": analysis.epsilon,
        "x": x,
        "mu": found.mu,
        "sigma": found.sigma,
        "threshold": found.threshold,
        "blocks": [{**asdict(b), "class": c.value} for b, c in zip(analysis.blocks, found.classes)],
        "tensors": tensors,
    }
