"""Text that somebody else wrote stays text."""

from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st

from ewq_gguf.report.markup import Markup, clean, el, escaped, join


class Seen(HTMLParser):
    """What a parser makes of it: elements with attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_values_are_escaped_and_markup_is_not() -> None:
    made = el("p", "<b>&", el("i", "x"), class_="a", data_v='"><script>', hidden=True, id=None, x=1.23456)
    assert made == (
        '<p class="a" data-v="&quot;&gt;&lt;script&gt;" hidden x="1.23">&lt;b&gt;&amp;<i>x</i></p>'
    )
    assert isinstance(join("a", made), Markup)
    assert el("rect", width=3, height=False) == '<rect width="3"/>'


def test_controls_and_invisible_characters_show() -> None:
    assert clean("a\x00b\u202ec\ud800\u200bd\ne") == "a\ufffdb\ufffdc\ufffd\ufffdd e"
    assert len(clean("x" * 10_000)) == 2001


@settings(deadline=None, max_examples=40)
@given(st.text(), st.text())
def test_nothing_breaks_out(content: str, value: str) -> None:
    seen = Seen(el("p", content, title=value))
    assert seen.elements == [("p", {"title": clean(value)})]
    assert seen.text == clean(content)
    assert escaped(escaped(content)) == escaped(content)
