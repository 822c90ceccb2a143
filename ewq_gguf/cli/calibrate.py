"""`ewq-gguf calibrate`: what running the model tells."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ewq_gguf.allocation.distortion import choosable
from ewq_gguf.calibration.imatrix import collect_imatrix
from ewq_gguf.calibration.imatrix_file import load_imatrix, save_imatrix
from ewq_gguf.calibration.probe import Forecast
from ewq_gguf.calibration.session import ProbeSettings, probe_model
from ewq_gguf.cli.options import json_option, threads_option
from ewq_gguf.cli.terminal import Terminal
from ewq_gguf.pipeline.optimize import DEFAULT_TEXT, default_cache
from ewq_gguf.pipeline.source import load_model

_text_option = click.option(
    "--text", type=click.Path(path_type=Path), help="Calibration text; a short built-in one by default."
)


@click.group("calibrate")
def calibrate_group() -> None:
    """Run a model on a text: importance matrix, and how sensitive each tensor is."""


@calibrate_group.command("imatrix")
@click.argument("gguf", type=click.Path(path_type=Path))
@_text_option
@click.option(
    "--output", "-o", required=True, type=click.Path(path_type=Path), help="The .gguf file to write."
)
@click.option("--n-ctx", type=click.IntRange(16), default=512, show_default=True, help="Tokens per context.")
@click.option("--chunks", type=click.IntRange(1), help="Contexts at most; the whole text by default.")
@click.option("--with-output", is_flag=True, help="Also the output projection, tied to the embedding or not.")
@threads_option
@click.pass_obj
def imatrix_command(
    terminal: Terminal,
    gguf: Path,
    text: Path | None,
    output: Path,
    n_ctx: int,
    chunks: int | None,
    with_output: bool,
    threads: int | None,
) -> None:
    """Collect an importance matrix, as llama-imatrix does; llama-quantize reads the file."""
    with terminal.progress() as progress:
        matrix = collect_imatrix(
            gguf,
            text or DEFAULT_TEXT,
            n_ctx=n_ctx,
            chunks=chunks,
            output=with_output,
            n_threads=threads,
            progress=lambda done, total: progress("Importance matrix", done, total),
        )
    save_imatrix(matrix, output)
    terminal.result(
        f"wrote {output}: {len(matrix.entries)} tensors, {matrix.chunk_count} contexts of {n_ctx}"
    )


@calibrate_group.command("probe")
@click.argument("gguf", type=click.Path(path_type=Path))
@_text_option
@click.option("--imatrix", type=click.Path(path_type=Path), help="Importance weights used in quantizing.")
@click.option("--chunks", type=click.IntRange(1), default=2, show_default=True, help="Contexts per tensor.")
@click.option("--blocks", type=click.IntRange(1), help="Probe only so many blocks, evenly spread.")
@threads_option
@json_option
@click.pass_obj
def probe_command(
    terminal: Terminal,
    gguf: Path,
    text: Path | None,
    imatrix: Path | None,
    chunks: int,
    blocks: int | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure what an error in each tensor costs: KL divergence with that tensor alone disturbed."""
    model = load_model(gguf)

    def announce(forecast: Forecast) -> None:
        terminal.note(
            f"{forecast.probes} probes of {chunks} contexts, about {forecast.seconds / 60:.1f} minutes"
        )

    settings = ProbeSettings(
        chunks=chunks, n_threads=threads, blocks=blocks, cache=default_cache() / model.fingerprint[:16]
    )
    with terminal.progress() as progress:
        probes = probe_model(
            gguf,
            text or DEFAULT_TEXT,
            [t.name for t in choosable(model)],
            imatrix=None if imatrix is None else load_imatrix(imatrix),
            settings=settings,
            announce=announce,
            progress=lambda done, total: progress("Probing tensors", done, total),
        )
    if as_json:
        terminal.json([asdict(p) for p in probes])
        return
    rows = [
        [p.tensor, p.type, f"{p.kld:.3e}", f"{p.se:.1e}", "yes" if p.clear else "no"]
        for p in sorted(probes, key=lambda p: -p.kld)
    ]
    columns = [
        ("tensor", False),
        ("disturbed as", False),
        ("KLD", True),
        ("+/-", True),
        ("clear of noise", False),
    ]
    terminal.table("nats per token, one tensor disturbed at a time", columns, rows)
