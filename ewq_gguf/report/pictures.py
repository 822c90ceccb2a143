"""The report's charts: size against divergence, predicted against measured, and what blocks are like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ewq_gguf.model import block_of
from ewq_gguf.report.chart import Axis, Point, Series, chart
from ewq_gguf.report.markup import Markup
from ewq_gguf.report.methods import LABELS, STOCK, Ratio, label, style
from ewq_gguf.report.runs import BlockCosts, Entropies, Measurement, ProbeFigure
from ewq_gguf.report.scale import byte_unit, number, size

_KLD = "mean KL divergence, nats per token"


def size_picture(
    group: Sequence[Measurement], ladder: Sequence[tuple[str, int, float, str]] = ()
) -> Markup | None:
    """Size against divergence, a curve per method; None without a point.

    Args:
        ladder: (file, bytes, predicted divergence, label) of plans that were not measured.
    """
    points = [m for m in group if m.nbytes and m.kld is not None and m.kld > 0]
    name, unit = byte_unit(max([m.nbytes or 0 for m in points] + [n for _, n, _, _ in ladder], default=0))
    series: list[Series] = []
    for method in sorted({m.method for m in points}, key=_order):
        mine = [m for m in points if m.method == method]
        curve = tuple(_measured(m, _named(m, points), unit) for m in mine if m.preset and method)
        alone = tuple(_measured(m, _stem(m.file), unit) for m in mine if not (m.preset and method))
        series += [Series(label(method), style(method), curve)] if curve else []
        series += [Series(label(method), style(method), alone, line=False)] if alone else []
    foretold = [(m.file, m.nbytes, m.predicted, "") for m in points if m.predicted and m.method == "rd"]
    both = [
        Point(n / unit, p, f"{file}: {p:.4g} nats predicted at {size(n)}", place)
        for file, n, p, place in (*foretold, *ladder)
        if n and p is not None and p > 0
    ]
    if both:
        series.append(Series("rate-distortion, predicted", style("rd"), tuple(both), dashed=True))
    if not series:
        return None
    return chart(series, Axis(f"file size, {name}"), Axis(_KLD, log=True), "Divergence from the original by file size, one curve per method")  # fmt: skip


def ratio_picture(group: Sequence[Measurement], found: Mapping[Measurement, Ratio]) -> Markup | None:
    """Divergence relative to the stock preset of the same size; None with fewer than two sizes."""
    stocks = {r.stock for r in found.values() if r.stock.nbytes}
    if len(stocks) < 2:
        return None
    name, unit = byte_unit(max(s.nbytes or 0 for s in stocks))
    series = []
    for method in sorted({m.method for m in found}, key=_order):
        points = tuple(
            Point(
                r.stock.nbytes / unit,
                r.value,
                f"{m.file} ({label(method)}): {r.value:.3f} ± {r.se:.2g} of {r.stock.file}",
                "",
                r.se,
            )
            for m, r in found.items()
            if m.method == method and r.stock.nbytes
        )
        series.append(Series(label(method), style(method), points))
    level = tuple(Point((s.nbytes or 0) / unit, 1.0, s.file, s.preset[:40]) for s in stocks)
    method = next(iter(stocks)).method
    series.append(Series(label(method), style(method), level))
    axes = Axis(f"file size of the preset, {name}"), Axis("divergence / stock preset's", log=True)
    return chart(series, *axes, "Divergence relative to the stock preset of the same size")


def _order(method: str) -> tuple[int, str]:
    known = list(LABELS)
    return (known.index(method) if method in LABELS else len(known), method)


def _named(m: Measurement, points: Sequence[Measurement]) -> str:
    """The label of a point on a curve: stock presets are named once, others told apart by their place."""
    present = [s for s in reversed(STOCK) if any(p.method == s for p in points)]
    if present:
        return m.preset if m.method == present[0] else ""
    return m.preset


def _measured(m: Measurement, name: str, unit: int) -> Point:
    assert m.nbytes is not None
    assert m.kld is not None
    error = "" if m.kld_se is None else f" ± {m.kld_se:.2g}"
    title = f"{m.file} ({label(m.method)}): {m.kld:.4g}{error} nats, {m.nbytes:,} bytes"
    return Point(m.nbytes / unit, m.kld, title, name[:40], m.kld_se or 0.0)


def _stem(file: str) -> str:
    return file.removesuffix(".gguf")


def prediction_picture(measurements: Sequence[Measurement]) -> tuple[Markup, list[str]] | None:
    """Predicted against measured divergence with the line of equal values, and what it comes to on each text."""
    points = [m for m in measurements if m.predicted and m.kld and m.predicted > 0 and m.kld > 0]
    if not points:
        return None
    groups = list(dict.fromkeys((m.model, m.text) for m in points))
    texts = {text for _, text in groups}
    series = [
        Series(
            model if len(texts) == 1 else f"{model}, {text}",
            i,
            tuple(_foretold(m) for m in points if (m.model, m.text) == (model, text)),
            line=False,
        )
        for i, (model, text) in enumerate(groups)
    ]
    picture = chart(
        series,
        Axis("predicted KL divergence, nats per token", log=True),
        Axis("measured KL divergence, nats per token", log=True),
        "Predicted against measured divergence; points on the diagonal were predicted exactly",
        identity=True,
    )
    return picture, [_verdict([m for m in points if (m.model, m.text) == group]) for group in groups]


def _verdict(points: Sequence[Measurement]) -> str:
    ratios = [(m.predicted or 1.0) / (m.kld or 1.0) for m in points]
    middle = math.exp(sum(map(math.log, ratios)) / len(ratios))
    near = sum(abs(r - 1) <= 0.25 for r in ratios)
    return (
        f"{points[0].model}, {points[0].text}: predicted over measured is {middle:.2f} in the geometric mean, from "
        f"{min(ratios):.2f} to {max(ratios):.2f}; {near} of {len(points)} within 25 %."
    )


def _foretold(m: Measurement) -> Point:
    assert m.predicted is not None
    assert m.kld is not None
    title = f"{m.model}, {m.text}, {m.file}: predicted {m.predicted:.4g}, measured {m.kld:.4g} nats"
    return Point(m.predicted, m.kld, title, m.preset[:40] if m.method == "rd" else "", m.kld_se or 0.0)


def entropy_picture(found: Entropies) -> Markup:
    """Block entropies as distances from their mean: they differ in late digits only."""
    mu = found.mu if found.mu is not None else math.fsum(b.entropy for b in found.blocks) / len(found.blocks)
    threshold = None if found.threshold is None else found.threshold - mu
    largest = max([abs(b.entropy - mu) for b in found.blocks] + [abs(threshold or 0.0)])
    power = math.floor(math.log10(largest)) if largest > 0 else 0
    power = power if power < -2 else 0
    unit = 10.0**power
    verdicts = sorted({b.verdict for b in found.blocks})
    series = [
        Series(
            verdict or "block entropy",
            i,
            tuple(
                Point(b.index, (b.entropy - mu) / unit, f"block {b.index}: {b.entropy:.12g} nats{_class(b.verdict)}")
                for b in found.blocks
                if b.verdict == verdict
            ),
            line=False,
        )
        for i, verdict in enumerate(verdicts)
    ]  # fmt: skip
    scaled = "" if power == 0 else f", in 1e{power} nats"
    levels = [("μ", 0.0), *([] if threshold is None else [("T", threshold / unit)])]
    return chart(
        series,
        Axis("block"),
        Axis(f"entropy − μ{scaled or ', nats'}"),
        f"Entropy of {len(found.blocks)} blocks as distance from the mean",
        level=tuple(levels),
    )


def _class(verdict: str) -> str:
    return f", {verdict}" if verdict else ""


def by_block(probes: Sequence[ProbeFigure]) -> dict[int, tuple[float, float]]:
    """Block -> sum of its tensors' divergences and the standard error of that sum, nats per token."""
    out: dict[int, tuple[float, float]] = {}
    for p in probes:
        block = block_of(p.tensor)
        if block is not None:
            total, se = out.get(block, (0.0, 0.0))
            out[block] = (total + p.kld, math.hypot(se, p.se))
    return dict(sorted(out.items()))


def block_picture(costs: Mapping[str, Mapping[int, tuple[float, float]]]) -> Markup:
    """What each block costs, a curve per way of measuring it."""
    series = [
        Series(
            name,
            i,
            tuple(
                Point(block, kld, f"block {block}: {number(kld)} ± {number(se)} nats", "", se)
                for block, (kld, se) in values.items()
                if kld > 0
            ),
        )
        for i, (name, values) in enumerate(costs.items())
    ]
    return chart(series, Axis("block"), Axis(_KLD, log=True), "Divergence caused by each block alone")


def as_costs(found: BlockCosts) -> dict[int, tuple[float, float]]:
    """Block -> divergence and standard error."""
    return {block: (kld, se) for block, kld, se in found.blocks}


def rank_correlation(a: Mapping[int, float], b: Mapping[int, float]) -> float | None:
    """Spearman's correlation over the keys that both have; None with fewer than four or without spread."""
    keys = sorted(a.keys() & b.keys())
    if len(keys) < 4:
        return None
    ranks = [_ranks([values[k] for k in keys]) for values in (a, b)]
    if any(float(np.std(r)) == 0 for r in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of theirs."""
    array = np.asarray(values)
    return np.array([(array < v).sum() + ((array == v).sum() + 1) / 2 for v in values], dtype=np.float64)
