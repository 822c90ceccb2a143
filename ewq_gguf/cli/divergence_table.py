"""The figures of divergences as a table for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ewq_gguf.cli.terminal import format_bytes

if TYPE_CHECKING:
    from ewq_gguf.evaluation.divergence import Divergence

Table = tuple[list[tuple[str, bool]], list[list[str]]]
"""Columns (heading, whether it is right-aligned) and rows, as `Terminal.table` takes them."""


def _se(value: float, error: float, scale: float = 1.0, digits: int = 4) -> str:
    return f"{value * scale:.{digits}f} +/- {error * scale:.{digits}f}"


def figures_by_column(results: Sequence[Divergence]) -> Table:
    """Every figure, one column per file."""
    figures: list[tuple[str, Callable[[Divergence], str]]] = [
        ("size", lambda r: format_bytes(r.n_bytes)),
        ("perplexity", lambda r: _se(r.ppl, r.ppl_se)),
        ("ln(ppl / baseline's)", lambda r: _se(r.ln_ppl_ratio, r.ln_ppl_ratio_se, digits=5)),
        ("correlation of nll, %", lambda r: f"{100 * r.correlation:.2f}"),
        ("KLD mean", lambda r: _se(r.mean_kld, r.mean_kld_se, digits=6)),
        ("  error over contexts", lambda r: f"+/- {r.mean_kld_se_contexts:.6f}"),
        ("KLD median", lambda r: f"{r.median_kld:.6f}"),
        ("KLD 90 %", lambda r: f"{r.p90_kld:.6f}"),
        ("KLD 95 %", lambda r: f"{r.p95_kld:.6f}"),
        ("KLD 99 %", lambda r: f"{r.p99_kld:.6f}"),
        ("KLD 99.9 %", lambda r: f"{r.p999_kld:.6f}"),
        ("KLD max", lambda r: f"{r.max_kld:.6f}"),
        ("delta p mean, %", lambda r: _se(r.mean_delta_p, r.mean_delta_p_se, 100, 3)),
        ("delta p RMS, %", lambda r: _se(r.rms_delta_p, r.rms_delta_p_se, 100, 3)),
        ("same top token, %", lambda r: _se(r.top1_agreement, r.top1_agreement_se, 100, 2)),
    ]
    if any(r.kld_error for r in results):
        figures.append(("KLD lost by the cache", lambda r: f"{r.kld_error or 0:.2g}"))
    columns = [("", False), *((r.file.name, True) for r in results)]
    return columns, [[name, *(show(r) for r in results)] for name, show in figures]


def figures_by_line(results: Sequence[Divergence]) -> Table:
    """The main figures, one line per file."""
    columns = [
        ("file", False), ("size", True), ("perplexity", True), ("KLD mean", True), ("KLD median", True),
        ("KLD 99 %", True), ("KLD max", True), ("delta p RMS, %", True), ("same top, %", True),
    ]  # fmt: skip
    return columns, [
        [
            r.file.name, format_bytes(r.n_bytes), _se(r.ppl, r.ppl_se), _se(r.mean_kld, r.mean_kld_se, digits=6),
            f"{r.median_kld:.6f}", f"{r.p99_kld:.5f}", f"{r.max_kld:.4f}", f"{100 * r.rms_delta_p:.3f}",
            f"{100 * r.top1_agreement:.2f}",
        ]
        for r in results
    ]  # fmt: skip
