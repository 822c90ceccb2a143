"""Block entropies as a picture: the classes' bands, mu and T. Needs matplotlib, the `plot` extra."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ewq_gguf.allocation.analysis import Analysis
from ewq_gguf.allocation.ewq import Classification, Precision
from ewq_gguf.errors import EwqError

SUFFIXES = (".png", ".svg", ".pdf")
_COLOURS = {Precision.RAW: "#1b7837", Precision.EIGHT_BIT: "#2166ac", Precision.FOUR_BIT: "#b2182b"}


def check_plot(path: Path) -> None:
    """Make sure that a picture can be drawn there, before the figures are computed.

    Raises:
        EwqError: matplotlib is not installed, the suffix is unknown, or there is no such folder.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise EwqError("plots need matplotlib, which is not installed: pip install 'ewq-gguf[plot]'")
    if path.suffix.lower() not in SUFFIXES:
        raise EwqError(f"{path}: a plot's name ends in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise EwqError(f"the folder {path.parent} does not exist; create it first")


def draw_blocks(analysis: Analysis, found: Classification, x: float, title: str, path: Path) -> None:
    """Draw entropy over the block's index, coloured by class, with the bands of the classes behind.

    The axis shows the distance from mu: entropies differ in their seventh digit.

    Raises:
        EwqError: see `check_plot`, or the file cannot be written.
    """
    check_plot(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    away = [b.entropy - found.mu for b in analysis.blocks]
    margin = 0.1 * (max(away) - min(away)) or 1e-12
    threshold = found.threshold - found.mu
    bottom, top = min(*away, threshold, 0.0) - margin, max(*away, 0.0) + margin
    bands = (
        (bottom, threshold, Precision.FOUR_BIT),
        (threshold, 0.0, Precision.EIGHT_BIT),
        (0.0, top, Precision.RAW),
    )
    for low, high, precision in bands:
        axes.axhspan(low, high, color=_COLOURS[precision], alpha=0.08, linewidth=0)
    axes.axhline(0.0, color="black", linewidth=0.8, label=f"mu = {found.mu:.9g}")
    axes.axhline(threshold, color="black", linewidth=0.8, linestyle="--", label=f"T = mu - {x:g} sigma")
    indices = [b.index for b in analysis.blocks]
    axes.plot(indices, away, color="grey", linewidth=0.8, zorder=1)
    for precision, colour in _COLOURS.items():
        chosen = [(i, d) for i, d, c in zip(indices, away, found.classes) if c is precision]
        if chosen:
            axes.scatter(*zip(*chosen), color=colour, label=precision.value, zorder=2)
    axes.set_ylim(bottom, top)
    axes.set_xlabel("block")
    axes.set_ylabel("entropy - mu, nats")
    axes.set_title(f"{title}: block entropy, epsilon {analysis.epsilon:g}, {analysis.reading.value}")
    axes.legend(fontsize="small")
    try:
        # Without the date the same figures give the same file.
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {}
        figure.savefig(path, dpi=120, metadata=metadata or None)
    except OSError as error:
        raise EwqError(f"cannot write {path}: {error.strerror or error}") from error
