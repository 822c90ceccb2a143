"""The subset of Go's text/template against what Go itself says."""

from __future__ import annotations

from datetime import date

import pytest

from ewq_gguf.export.go_template import GoTemplateError, parse_go_template

from .go_cases import CASES, TODAY, VALUES, WRONG


@pytest.mark.parametrize("text", CASES)
def test_as_go(text: str) -> None:
    assert parse_go_template(text).execute(VALUES, today=date.fromisoformat(TODAY)) == CASES[text]


@pytest.mark.parametrize("text", WRONG)
def test_what_go_refuses(text: str) -> None:
    with pytest.raises(GoTemplateError):
        parse_go_template(text).execute(VALUES)


@pytest.mark.parametrize(
    "text",
    [
        "{{ range 3 }}{{ end }}",
        '{{ printf "%s" .Name }}',
        "{{ template `x` }}",
        "{{ .List }}",
        "{{ range .List }}{{ break }}{{ end }}",
    ],
)
def test_what_is_not_covered_is_refused(text: str) -> None:
    with pytest.raises(GoTemplateError):
        parse_go_template(text).execute(VALUES)


def test_work_is_bounded() -> None:
    many = ["x"] * 1000
    with pytest.raises(GoTemplateError, match="without end"):
        parse_go_template("{{ range .A }}{{ range $.A }}{{ end }}{{ end }}").execute({"A": many})
