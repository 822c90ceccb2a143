"""`ewq-gguf evaluate`: perplexity, divergence, baseline caches, multiple choice and speed of GGUF files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import numpy as np

from ewq_gguf.cli.divergence_table import figures_by_column, figures_by_line
from ewq_gguf.cli.terminal import Terminal, format_bytes
from ewq_gguf.evaluation.engine import Settings
from ewq_gguf.evaluation.native import CACHE_TYPES

if TYPE_CHECKING:
    pass

F = TypeVar("F", bound=Callable[..., Any])
_path = click.Path(path_type=Path)

files_argument = click.argument("files", nargs=-1, required=True, metavar="GGUF...", type=_path)
text_option = click.option("--text", type=_path, required=True, metavar="FILE", help="The text to predict.")
chunks_option = click.option(
    "--chunks", type=click.IntRange(1), help="Contexts at most; the whole text by default."
)
json_option = click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")


def settings_options(function: F) -> F:
    """Options of `Settings`, each under its own name."""
    kinds = click.Choice(list(CACHE_TYPES), case_sensitive=False)
    for option in (
        click.option(
            "--cache-type-v", type=kinds, help="Type of the V cache (default f16); a baseline keeps f16."
        ),
        click.option(
            "--cache-type-k", type=kinds, help="Type of the K cache (default f16); a baseline keeps f16."
        ),
        click.option("--threads", "n_threads", type=click.IntRange(1, 1024), help="Default: physical cores."),
        click.option(
            "--n-batch", type=click.IntRange(1), default=2048, show_default=True, help="Tokens per call."
        ),
        click.option(
            "--n-ctx", type=click.IntRange(4), default=512, show_default=True, help="Tokens per context."
        ),
    ):
        function = option(function)
    return function


@click.group("evaluate")
def evaluate() -> None:
    """Measure GGUF files, several side by side."""


@evaluate.command("perplexity")
@files_argument
@text_option
@click.option(
    "--baseline", type=_path, metavar="GGUF", help="Compare with this file as well (see divergence)."
)
@chunks_option
@settings_options
@json_option
@click.pass_obj
def perplexity_command(
    terminal: Terminal,
    /,
    files: tuple[Path, ...],
    text: Path,
    baseline: Path | None,
    chunks: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Perplexity of each file by llama-perplexity's rule, with its standard error."""
    from ewq_gguf.evaluation.evaluate import evaluate as measure
    from ewq_gguf.evaluation.paired import compare_perplexities

    if baseline is not None:
        _divergence(terminal, files, baseline, text, chunks, as_json, Settings(**options))
        return
    with terminal.progress() as progress:
        results = measure(files, text, settings=Settings(**options), chunks=chunks, progress=progress)
    if as_json:
        terminal.json({"text": str(text), **options, "files": [r.as_json() for r in results]})
        return
    columns = [
        ("file", False),
        ("size", True),
        ("perplexity", True),
        ("+/-", True),
        ("tokens", True),
        ("s", True),
    ]
    rows = [
        [
            r.file.name,
            format_bytes(r.n_bytes),
            f"{r.ppl:.4f}",
            f"{r.ppl_se:.4f}",
            f"{r.tokens:,}",
            f"{r.seconds:.1f}",
        ]
        for r in results
    ]
    first = results[0]
    terminal.table(f"perplexity of {text.name}", columns, rows, f"{first.chunks} contexts of {first.n_ctx}")
    for result in results[1:]:
        # Files of other vocabularies stand in the table, but their tokens cannot be paired.
        if np.array_equal(result.targets, first.targets):
            terminal.result(compare_perplexities(result, first).sentence)


@evaluate.command("divergence")
@files_argument
@click.option("--text", type=_path, metavar="FILE", help="The text; a baseline cache brings its own.")
@click.option("--baseline", type=_path, required=True, metavar="FILE",
              help="A GGUF, a cache of `evaluate baseline`, or a --kl-divergence-base.")  # fmt: skip
@chunks_option
@settings_options
@json_option
@click.pass_obj
def divergence_command(
    terminal: Terminal,
    /,
    files: tuple[Path, ...],
    text: Path | None,
    baseline: Path,
    chunks: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """KL divergence and agreement of each file with a baseline, and of the files with one another."""
    _divergence(terminal, files, baseline, text, chunks, as_json, Settings(**options))


def _divergence(
    terminal: Terminal,
    files: tuple[Path, ...],
    baseline: Path,
    text: Path | None,
    chunks: int | None,
    as_json: bool,
    settings: Settings,
) -> None:
    from ewq_gguf.evaluation.evaluate import evaluate as measure
    from ewq_gguf.evaluation.paired import compare_all, ranking

    with terminal.progress() as progress:
        results = measure(files, text, baseline=baseline, settings=settings, chunks=chunks, progress=progress)
    pairs = compare_all(results)
    if as_json:
        terminal.json(
            {
                "baseline": str(baseline),
                "text": None if text is None else str(text),
                "files": [r.as_json() for r in results],
                "pairs": [pair.as_json() for pair in pairs],
            }
        )
        return
    first = results[0]
    caption = (
        f"baseline {baseline.name}, perplexity {first.baseline_ppl:.4f}; "
        f"{first.tokens:,} tokens in {first.chunks} contexts of {first.n_ctx}; KLD in nats"
    )
    # Few files stand side by side with every figure; many become lines with the main ones.
    columns, rows = figures_by_column(results) if len(results) <= 4 else figures_by_line(results)
    terminal.table("divergence from the baseline", columns, rows, caption)
    for pair in ranking(results):
        terminal.result(pair.sentence)


@evaluate.command("baseline")
@click.argument("model", metavar="GGUF", type=_path)
@text_option
@click.option("--output", "-o", type=_path, required=True, metavar="FILE", help="Where the cache goes.")
@click.option("--form", type=click.Choice(["f32", "u16", "topk"]), default="u16", show_default=True,
              help="Exact logits, 16-bit log-probabilities (half the size), or top tokens only.")  # fmt: skip
@click.option("--top-k", type=click.IntRange(1), default=256, show_default=True, help="Tokens kept by topk.")
@chunks_option
@settings_options
@json_option
@click.pass_obj
def baseline_command(
    terminal: Terminal,
    /,
    model: Path,
    text: Path,
    output: Path,
    form: str,
    top_k: int,
    chunks: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Keep a baseline's distributions in a file, so that later comparisons need not run it again."""
    from ewq_gguf.evaluation.baseline_cache import write_baseline

    with terminal.progress() as progress:
        header = write_baseline(
            model,
            text,
            output,
            form=form,
            top_k=top_k,
            settings=Settings(**options),
            chunks=chunks,
            progress=lambda done, total: progress("baseline", done, total),
        )
    if as_json:
        terminal.json({"file": str(output), "bytes": header.n_bytes, **header.as_json()})
        return
    lost = {
        "f32": "exact",
        "u16": f"rounding costs {header.rounding:.2g} nats",
        "topk": f"{header.tail:.2%} of the probability is merged",
    }[form]
    terminal.result(f"{output}: {header.chunks} contexts, {format_bytes(header.n_bytes)}, {lost}")


@evaluate.command("choice")
@files_argument
@click.option("--questions", type=_path, multiple=True, required=True, metavar="FILE",
              help="MMLU .csv, HellaSwag/ARC/PIQA/WinoGrande-style .jsonl, or a folder of them; repeatable.")  # fmt: skip
@click.option(
    "--shots", type=click.IntRange(0), default=0, show_default=True, help="Solved MMLU examples before."
)
@click.option("--limit", type=click.IntRange(1), help="Questions per question file at most.")
@click.option("--normalize", type=click.Choice(["bytes", "tokens", "none"]), default="bytes", show_default=True,
              help="What the log-likelihood of an answer is divided by.")  # fmt: skip
@click.option(
    "--baseline", type=_path, metavar="GGUF", help="Count the answers that differ from this file's."
)
@settings_options
@json_option
@click.pass_obj
def choice_command(
    terminal: Terminal,
    /,
    files: tuple[Path, ...],
    questions: tuple[Path, ...],
    shots: int,
    limit: int | None,
    normalize: str,
    baseline: Path | None,
    as_json: bool,
    n_ctx: int,
    **options: Any,
) -> None:
    """Multiple-choice accuracy of each file, and the answers that flip against a baseline."""
    from ewq_gguf.evaluation.choice import answer_questions
    from ewq_gguf.evaluation.flips import compare_answers
    from ewq_gguf.evaluation.questions import load_questions

    asked = load_questions(questions, shots=shots, limit=limit)
    settings = Settings(n_ctx=n_ctx, **options)
    results = []
    with terminal.progress() as progress:
        for path in (*files, *([baseline] if baseline else [])):

            def update(done: int, total: int, name: str = path.name) -> None:
                progress(name, done, total)

            results.append(
                answer_questions(path, asked, normalize=normalize, settings=settings, progress=update)
            )
    reference = results.pop() if baseline else None
    flips = [compare_answers(reference, result) for result in results] if reference else []
    if as_json:
        terminal.json(
            {
                "questions": [str(path) for path in questions],
                "shots": shots,
                "baseline": reference.as_json() if reference else None,
                "files": [result.as_json() for result in results],
                "flips": [flip.as_json() for flip in flips],
            }
        )
        return
    columns = [("file", False), ("size", True), ("accuracy, %", True), ("+/-", True), ("questions", True)]
    if flips:
        columns += [("same answer, %", True), ("lost", True), ("gained", True)]
    rows = []
    for at, r in enumerate([*results, *([reference] if reference else [])]):
        row = [r.file.name, format_bytes(r.n_bytes), f"{100 * r.accuracy:.2f}", f"{100 * r.accuracy_se:.2f}"]
        row.append(f"{r.questions:,}")
        if at < len(flips):
            flip = flips[at]
            row += [f"{100 * flip.agreement:.2f}", str(flip.lost), str(flip.gained)]
        elif flips:
            row += ["baseline", "", ""]
        rows.append(row)
    terminal.table(f"multiple choice, {shots} shots", columns, rows)
    for flip in flips:
        terminal.result(flip.sentence)


@evaluate.command("speed")
@files_argument
@click.option(
    "--prompt-tokens", type=click.IntRange(1), default=512, show_default=True, help="Tokens read at once."
)
@click.option(
    "--generated-tokens",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Tokens made one by one.",
)
@click.option(
    "--repeats", type=click.IntRange(1), default=5, show_default=True, help="Runs per file, in turn."
)
@settings_options
@json_option
@click.pass_obj
def speed_command(
    terminal: Terminal,
    /,
    files: tuple[Path, ...],
    prompt_tokens: int,
    generated_tokens: int,
    repeats: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Tokens per second, load time and memory of each file; medians of runs that take turns."""
    from ewq_gguf.evaluation.speed import speed

    with terminal.progress() as progress:
        results = speed(
            files,
            prompt_tokens=prompt_tokens,
            generated_tokens=generated_tokens,
            repeats=repeats,
            settings=Settings(**options),
            progress=lambda done, total: progress("speed", done, total),
        )
    if as_json:
        terminal.json({"files": [result.as_json() for result in results]})
        return
    columns = [("file", False), ("size", True), ("prompt t/s", True), ("from - to", True), ("generation t/s", True),
               ("from - to", True), ("load, s", True), ("memory", True)]  # fmt: skip
    rows = [
        [
            r.file.name, format_bytes(r.n_bytes), f"{r.prompt_tps:.1f}", "{:.0f} - {:.0f}".format(*r.prompt_range),
            f"{r.generate_tps:.1f}", "{:.1f} - {:.1f}".format(*r.generate_range), f"{r.load_seconds:.3f}",
            format_bytes(r.rss_bytes),
        ]
        for r in results
    ]  # fmt: skip
    caption = f"medians of {repeats} runs, {results[0].n_threads} threads, {prompt_tokens} + {generated_tokens} tokens"
    terminal.table("speed", columns, rows, caption)
