"""A process of its own that renders a chat template from a file that nobody vouches for.

Read as a script, never imported by the package: it limits its own memory and processor time first, then reads one
JSON request from stdin and writes one JSON answer to stdout. The environment is the one that Hugging Face's
libraries render chat templates in (documentation of `apply_chat_template`): trimmed blocks, loop controls,
`raise_exception`, `strftime_now`, `tojson` without HTML escapes, and the `generation` tag as plain text.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

MEMORY_BYTES = 1 << 30
CPU_SECONDS = 10
MAX_OUTPUT = 1 << 20
# Stand for what a template asks of the calendar, so that the answer can be found again in the text.
DATE_OPEN, DATE_CLOSE = "\ue000", "\ue001"


def limit_self() -> None:
    """Bound memory and processor time where the system can."""
    try:
        import resource
    except ImportError:
        return
    for what, value in ((resource.RLIMIT_CPU, CPU_SECONDS), (resource.RLIMIT_AS, MEMORY_BYTES)):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(what, (value, value))


def build_environment(today: str | None) -> Any:
    """The sandbox; `today` is an ISO date, or None for marks in place of dates."""
    from datetime import datetime

    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def raise_exception(message: object) -> None:
        raise ValueError(str(message))

    def strftime_now(form: object) -> str:
        if today is None:
            return f"{DATE_OPEN}{form}{DATE_CLOSE}"
        return datetime.fromisoformat(today).strftime(str(form))

    def tojson(value: object, indent: int | None = None, **_: object) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


def render(template: Any, values: dict[str, Any]) -> dict[str, str]:
    """{"text": ...} or {"error": ...} of one rendering."""
    pieces, size = [], 0
    try:
        for piece in template.generate(**values):
            size += len(piece)
            if size > MAX_OUTPUT:
                return {"error": "the text has no end"}
            pieces.append(piece)
    except Exception as error:
        # The template is the code at fault, whatever it raised.
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    return {"text": "".join(pieces)}


def main() -> None:
    """Answer the request on stdin."""
    limit_self()
    request = json.load(sys.stdin)
    answers: list[dict[str, str]] = []
    compiled: dict[str | None, Any] = {}
    for wish in request["requests"]:
        today = wish["today"]
        try:
            if today not in compiled:
                compiled[today] = build_environment(today).from_string(request["template"])
            answers.append(render(compiled[today], wish["values"]))
        except Exception as error:
            answers.append({"error": f"{type(error).__name__}: {error}"[:300]})
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
