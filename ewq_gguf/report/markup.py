"""HTML and SVG as text that cannot be broken out of: every value is escaped where it enters."""

from __future__ import annotations

import html
import unicodedata

# Elements that never have content; SVG shapes may close themselves inside HTML as well.
_EMPTY = frozenset({"meta", "link", "br", "col", "rect", "line", "path", "circle", "use"})
_LONGEST = 2000


class Markup(str):
    """Text that is HTML already. Only this module and constants of this package make it."""

    __slots__ = ()


def clean(value: object, longest: int = _LONGEST) -> str:
    """A value as printable text: controls, surrogates and invisible characters become U+FFFD, length is bounded.

    Line breaks and tabs become blanks: a value is one line.
    """
    text = str(value)
    if len(text) > longest:
        text = text[:longest] + "…"
    return "".join(_printable(c) for c in text)


def _printable(character: str) -> str:
    if character in "\n\r\t":
        return " "
    return "\ufffd" if unicodedata.category(character) in ("Cc", "Cs", "Cf") else character


def escaped(value: object) -> Markup:
    """A value as text inside an element or a quoted attribute; `Markup` stays what it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(clean(value), quote=True))


def join(*parts: object) -> Markup:
    """Parts one after another, each escaped unless it is `Markup`."""
    return Markup("".join(escaped(part) for part in parts))


def el(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element; children and attribute values are escaped.

    Args:
        attributes: `class_` and `for_` lose the underscore at the end, other underscores become hyphens. None and
            False leave an attribute out, True writes its name alone; floats are rounded to two decimals.
    """
    written = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        if value is True:
            written.append(f" {attribute}")
        else:
            shown = f"{round(value, 2):g}" if isinstance(value, float) else value
            written.append(f' {attribute}="{escaped(shown)}"')
    head = "".join(written)
    if name in _EMPTY:
        return Markup(f"<{name}{head}/>")
    return Markup(f"<{name}{head}>{join(*children)}</{name}>")
