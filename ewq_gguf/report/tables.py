"""Tables that can be sorted by any column, and the small blocks of text around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ewq_gguf.report.markup import Markup, el, join


@dataclass(frozen=True)
class Cell:
    """What stands in a cell, and the figure it is sorted by where it has one."""

    text: object
    value: float | None = None


def figure(value: float | None, form: str = "{:.4g}", se: float | None = None) -> Cell:
    """A number in a cell, with its standard error; empty where it was not measured."""
    if value is None:
        return Cell("")
    text = form.format(value)
    return Cell(text if se is None else f"{text} ±\u00a0{form.format(se)}", value)


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, name: str = "") -> Markup:
    """A table; columns without a figure in any row are text and may wrap, empty columns are left out.

    Args:
        caption: shown above the table; where a heading says the same, give it as `name` instead.
    """
    kept = [i for i in range(len(columns)) if any(row[i].text != "" for row in rows)]
    numeric = {i for i in kept if any(row[i].value is not None for row in rows)}
    head = [el("th", columns[i], scope="col", class_="n" if i in numeric else None) for i in kept]
    body = [
        el("tr", *(
            el("td", row[i].text, class_="n" if i in numeric else "w",
               data_v=None if row[i].value is None else repr(row[i].value))
            for i in kept
        ))
        for row in rows
    ]  # fmt: skip
    above = el("caption", caption) if caption else ""
    found = el("table", above, el("thead", el("tr", *head)), el("tbody", *body), class_="sort")
    return el("div", found, class_="scroll", tabindex=0, role="group", aria_label=caption or name)


def facts(pairs: Sequence[tuple[str, object]]) -> Markup:
    """Names and values, one below the other."""
    return el("dl", *(el("div", el("dt", name), el("dd", value)) for name, value in pairs))


def numbers(pairs: Sequence[tuple[str, str]]) -> Markup:
    """The few figures that matter most, large."""
    return el("ul", *(el("li", el("b", value), el("span", name, class_="quiet")) for name, value in pairs), class_="numbers")  # fmt: skip


def command(purpose: str, line: str) -> Markup:
    """A command line with a button that copies it."""
    # Word by word: options stay whole where the line wraps, and no long line is cut short.
    words = line.split(" ")
    text = el("code", *(join(" " if i else "", el("span", word)) for i, word in enumerate(words)))
    button = el("button", "Copy", type="button", class_="copy", hidden=True)
    return join(el("h3", purpose), el("div", el("pre", text, tabindex=0), button, class_="command"))


def details(summary: str, content: Markup, print_it: bool = True) -> Markup:
    """Content that is folded away at first."""
    return el("details", el("summary", summary), content, class_="print" if print_it else None)


def section(identifier: str, title: str, *content: object) -> Markup:
    """A part of the page that the navigation can lead to."""
    return el("section", el("h2", title), *content, id=identifier)
