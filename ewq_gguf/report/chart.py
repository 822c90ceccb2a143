"""A coordinate system with points, lines, error bars and labels, as inline SVG that a style sheet colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ewq_gguf.report.labels import Box, place_labels
from ewq_gguf.report.markup import Markup, el, join
from ewq_gguf.report.scale import Scale, number, span

WIDTH, HEIGHT, _SQUARE = 760.0, 430.0, 450.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 66.0, 18.0, 14.0, 50.0
# As many as the style sheet has colours; shapes repeat with another period, so that no two series look alike.
COLOURS, _SHAPES = 9, ("circle", "square", "diamond", "up", "down", "cross", "star")


@dataclass(frozen=True)
class Point:
    """A measured point; errors are standard errors, drawn as bars of two of them."""

    x: float
    y: float
    title: str
    label: str = ""
    y_se: float = 0.0


@dataclass(frozen=True)
class Series:
    """Points of one kind.

    Attributes:
        style: picks colour and shape of the marks; series of the same style look alike.
        line: whether the points are joined, in order of x; `dashed` for what was predicted.
    """

    name: str
    style: int
    points: tuple[Point, ...]
    line: bool = True
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """What a picture's axis says; `zero` keeps zero in sight on a linear one."""

    title: str
    log: bool = False
    zero: bool = False


def marker(
    style: int, x: float, y: float, *content: object, hollow: bool = False, size: float = 5.0
) -> Markup:
    """A point's mark: its shape tells the series without colour."""
    shape = _SHAPES[style % len(_SHAPES)]
    classes = f"mark s{style % COLOURS}" + (" hollow" if hollow else "")
    a, b = size, size * 1.25
    paths = {
        "circle": f"M{x - a:.1f} {y:.1f}a{a} {a} 0 1 0 {2 * a} 0a{a} {a} 0 1 0 {-2 * a} 0z",
        "square": f"M{x - a:.1f} {y - a:.1f}h{2 * a}v{2 * a}h{-2 * a}z",
        "diamond": f"M{x - b:.1f} {y:.1f}l{b} {-b}l{b} {b}l{-b} {b}z",
        "up": f"M{x - b:.1f} {y + a:.1f}h{2 * b}l{-b} {-2 * b}z",
        "down": f"M{x - b:.1f} {y - a:.1f}h{2 * b}l{-b} {2 * b}z",
        "cross": f"M{x - a:.1f} {y - a / 3:.1f}h{a * 0.67:.1f}v{-a * 0.67:.1f}h{a * 0.67:.1f}v{a * 0.67:.1f}"
        f"h{a * 0.67:.1f}v{a * 0.67:.1f}h{-a * 0.67:.1f}v{a * 0.67:.1f}h{-a * 0.67:.1f}v{-a * 0.67:.1f}"
        f"h{-a * 0.67:.1f}z",
        "star": f"M{x - b:.1f} {y:.1f}l{b * 0.7:.1f} {-b * 0.3:.1f}l{b * 0.3:.1f} {-b * 0.7:.1f}"
        f"l{b * 0.3:.1f} {b * 0.7:.1f}l{b * 0.7:.1f} {b * 0.3:.1f}l{-b * 0.7:.1f} {b * 0.3:.1f}"
        f"l{-b * 0.3:.1f} {b * 0.7:.1f}l{-b * 0.3:.1f} {-b * 0.7:.1f}z",
    }
    return el("g", el("path", d=paths[shape]), *content, class_=classes)


def legend(series: Sequence[Series]) -> Markup:
    """The names of series beside their marks, as a list that wraps on a narrow screen."""
    items = []
    for one in series:
        line = el("line", x1=0, y1=8, x2=28, y2=8, class_=_line_class(one)) if one.line else ""
        mark = marker(one.style, 14, 8, hollow=one.dashed)
        items.append(
            el(
                "li",
                el("svg", line, mark, viewBox="0 0 28 16", width=28, height=16, aria_hidden="true"),
                one.name,
            )
        )
    return el("ul", *items, class_="legend")


def _line_class(series: Series) -> str:
    return f"curve s{series.style % COLOURS}" + (" dashed" if series.dashed else "")


def chart(
    series: Sequence[Series],
    x_axis: Axis,
    y_axis: Axis,
    description: str,
    *,
    identity: bool = False,
    level: tuple[tuple[str, float], ...] = (),
) -> Markup:
    """Draw series with axes, grid and legend.

    Args:
        description: what the picture shows, for those who cannot see it.
        identity: both axes alike, with the line of equal values.
        level: (name, y) of horizontal lines.
    """
    points = [p for s in series for p in s.points]
    xs, ys = [p.x for p in points], [p.y for p in points]
    ys += [value for _, value in level] + ([0.0] if y_axis.zero else [])
    ys += [
        p.y + sign * 2 * p.y_se for p in points for sign in (-1, 1) if p.y_se < 0.4 * p.y or not y_axis.log
    ]
    x_range, y_range = span(xs, x_axis.log), span(ys, y_axis.log)
    if identity:
        x_range = y_range = min(x_range[0], y_range[0]), max(x_range[1], y_range[1])
    if y_axis.zero and min(ys) == 0:
        y_range = (0.0, y_range[1])
    width = _SQUARE if identity else WIDTH
    right = width - _RIGHT
    x = Scale(*x_range, _LEFT, right, x_axis.log)
    y = Scale(*y_range, HEIGHT - _BOTTOM, _TOP, y_axis.log)
    parts = [_grid(x, y, x_axis, y_axis)]
    if identity:
        parts.append(
            el("line", x1=x.at(x.low), y1=y.at(y.low), x2=x.at(x.high), y2=y.at(y.high), class_="identity")
        )
    for name, value in level:
        parts.append(el("line", x1=_LEFT, x2=right, y1=y.at(value), y2=y.at(value), class_="level"))
        parts.append(el("text", name, x=right - 4, y=y.at(value) - 4, text_anchor="end", class_="small"))
    parts += [_line(s, x, y) for s in series if s.line and len(s.points) > 1]
    parts += [_marks(s, x, y) for s in series]
    wanted = [(p.label, x.at(p.x), y.at(p.y)) for s in series for p in s.points if p.label]
    frame = Box(_LEFT, _TOP, right - _LEFT, HEIGHT - _TOP - _BOTTOM)
    placed = place_labels(wanted, [(x.at(p.x), y.at(p.y)) for p in points], frame)
    parts += [el("text", p.text, x=p.x, y=p.y, class_="label") for p in placed]
    picture = el("svg", *parts, viewBox=f"0 0 {width:g} {HEIGHT:g}", class_="chart square" if identity else "chart", role="img", aria_label=description)  # fmt: skip
    named = [s for i, s in enumerate(series) if s.name and s.name not in {t.name for t in series[:i]}]
    shown = legend(named) if len(named) > 1 else Markup("")
    return join(scrolling(picture, description), shown)


def scrolling(picture: Markup, description: str) -> Markup:
    """A picture that a narrow screen moves sideways instead of making it too small to read."""
    return el("div", picture, class_="scroll", tabindex=0, role="group", aria_label=description)


def _grid(x: Scale, y: Scale, x_axis: Axis, y_axis: Axis) -> Markup:
    bottom, middle = HEIGHT - _BOTTOM, (_TOP + HEIGHT - _BOTTOM) / 2
    parts = []
    for tick in x.ticks(7):
        at = x.at(tick)
        parts.append(el("line", x1=at, x2=at, y1=_TOP, y2=bottom, class_="grid"))
        parts.append(el("text", number(tick), x=at, y=bottom + 18, text_anchor="middle"))
    for tick in y.ticks(6):
        at = y.at(tick)
        parts.append(el("line", x1=_LEFT, x2=x.stop, y1=at, y2=at, class_="grid"))
        parts.append(el("text", number(tick), x=_LEFT - 8, y=at + 4, text_anchor="end"))
    parts.append(el("path", d=f"M{_LEFT} {_TOP}V{bottom}H{x.stop}", class_="axis"))
    centre = (_LEFT + x.stop) / 2
    parts.append(el("text", x_axis.title, x=centre, y=HEIGHT - 10, text_anchor="middle", class_="title"))
    turned = f"rotate(-90 14 {middle:.1f})"
    parts.append(
        el("text", y_axis.title, x=14, y=middle, text_anchor="middle", transform=turned, class_="title")
    )
    return el("g", *parts)


def _line(series: Series, x: Scale, y: Scale) -> Markup:
    ordered = sorted(series.points, key=lambda p: p.x)
    path = "M" + "L".join(f"{x.at(p.x):.1f} {y.at(p.y):.1f}" for p in ordered)
    # Figures only, and possibly long.
    return el("path", d=Markup(path), class_=_line_class(series))


def _marks(series: Series, x: Scale, y: Scale) -> Markup:
    parts = []
    for p in series.points:
        at, centre = x.at(p.x), y.at(p.y)
        if p.y_se > 0:
            low = max(p.y - 2 * p.y_se, y.low)
            top, bottom = y.at(p.y + 2 * p.y_se), y.at(low)
            bar = f"M{at:.1f} {top:.1f}V{bottom:.1f}M{at - 4:.1f} {top:.1f}h8M{at - 4:.1f} {bottom:.1f}h8"
            parts.append(el("path", d=bar, class_=f"error s{series.style % COLOURS}"))
        parts.append(marker(series.style, at, centre, el("title", p.title), hollow=series.dashed))
    return el("g", *parts)
