"""A chat format as an Ollama TEMPLATE: written out of its pieces, and executed the way Ollama does.

Source of the data model (`.System`, `.Messages` with `.Role`, `.Content`, `.Thinking`, and `.Think`,
`.IsThinkSet`, `.ThinkLevel`): template/template.go and docs/template.md of Ollama.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from ewq_gguf.export.chat_child import DATE_CLOSE, DATE_OPEN
from ewq_gguf.export.chat_observe import CHECK_DAY, Check, Observation, Pieces
from ewq_gguf.export.chat_sandbox import Message
from ewq_gguf.export.go_template import GoTemplate, GoTemplateError, parse_go_template

_DATE = re.compile(f"{DATE_OPEN}([^{DATE_CLOSE}]*){DATE_CLOSE}")
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
_MONTH = "$month"
_TAG = re.compile(r"</?([a-z_]*(?:think|thought|reason)[a-z_]*)>(\n?)")
# A system message that the format has no place for goes before the first words of the user.
_FOLDED = "\n\n"


def go_template_text(pieces: Pieces) -> str:
    """The TEMPLATE for a format; its text is the one that `render_ollama` and Ollama execute.

    Raises:
        GoTemplateError: the format asks for a date that Ollama cannot give.
    """
    lines: list[str] = []
    before, after = pieces.system or (pieces.head, _FOLDED)
    asking = pieces.user_prefix
    # Where every user turn opens alike, what is before the first is a part of its own.
    apart = not pieces.system_last and pieces.head.endswith(asking) and after.endswith(asking)
    if apart and pieces.system is not None:
        cut = len(asking)
        head, after = pieces.head[: len(pieces.head) - cut], after[: len(after) - cut]
        front = f"{{{{- if .System }}}}{_text(before, pieces)}{{{{ .System }}}}{_text(after, pieces, True)}"
        if head:
            front += f"\n{{{{- else }}}}{_text(head, pieces, True)}"
        lines += [front, "{{- end }}"]
        opening = _text(asking, pieces)
    else:
        lines.append("{{- $begun := false }}")
        if pieces.system_last:
            first = _text(pieces.head, pieces)
            inner = f"{{{{ if and $last $.System }}}}{{{{ $.System }}}}{_text(after, pieces)}{{{{ end }}}}"
        else:
            first = (
                f"{{{{ if $.System }}}}{_text(before, pieces)}{{{{ $.System }}}}{_text(after, pieces)}"
                f"{{{{ else }}}}{_text(pieces.head, pieces)}{{{{ end }}}}"
            )
            inner = ""
        opening = (
            f"{{{{ if $begun }}}}{_text(asking, pieces)}{{{{ else }}}}{first}{{{{ end }}}}"
            f"{{{{ $begun = true }}}}{inner}"
        )
    lines += [
        "{{- range $i, $_ := .Messages }}",
        "{{- $last := eq (len (slice $.Messages $i)) 1 }}",
        f'{{{{- if eq .Role "user" }}}}{opening}{{{{ .Content }}}}{_text(pieces.user_suffix, pieces, True)}',
        f'{{{{- else if eq .Role "assistant" }}}}{_text(pieces.answer_prefix, pieces)}{_thought(pieces)}'
        f"{{{{ .Content }}}}{{{{ if not $last }}}}{_text(pieces.answer_suffix, pieces)}{{{{ end }}}}",
        "{{- end }}",
    ]
    if pieces.thinking is not None:
        on, off = pieces.thinking
        inner = (
            f"{{{{ if $.IsThinkSet }}}}{{{{ if $.Think }}}}{_text(on, pieces)}{{{{ else }}}}{_text(off, pieces)}"
            f"{{{{ end }}}}{{{{ else }}}}{_text(pieces.generation, pieces)}{{{{ end }}}}"
        )
    else:
        inner = _text(pieces.generation, pieces, True)
    if inner:
        lines += [f'{{{{- if and $last (ne .Role "assistant") }}}}{inner}', "{{- end }}"]
    text = "\n".join([*lines, "{{- end }}"])
    return text if _MONTH not in text else f"{{{{- {_MONTH} := slice currentDate 5 7 }}}}\n{text}"


def thinking_tag(pieces: Pieces) -> tuple[str, str] | None:
    """What opens and closes a thought in this format, where it has thoughts."""
    for text in (pieces.generation, *(pieces.thinking or ())):
        found = _TAG.search(text)
        if found is not None:
            line = found[2]
            return f"<{found[1]}>{line}", f"{line}</{found[1]}>{line * 2}"
    return None


def _thought(pieces: Pieces) -> str:
    """The thought of an answer that is to be continued; Ollama learns the tags from it."""
    tags = thinking_tag(pieces)
    if tags is None:
        return ""
    return f"{{{{ if and $last .Thinking }}}}{tags[0]}{{{{ .Thinking }}}}{tags[1]}{{{{ end }}}}"


def _text(text: str, pieces: Pieces, trimmed: bool = False) -> str:
    """Text that a template writes as it is; `trimmed`: a trim marker comes next."""
    if pieces.effort is not None and text.startswith("".join(pieces.effort)):
        before, level = pieces.effort
        rest = text[len(before) + len(level) :]
        middle = f"{{{{ if $.ThinkLevel }}}}{{{{ $.ThinkLevel }}}}{{{{ else }}}}{level}{{{{ end }}}}"
        return _dated(before, False) + middle + _dated(rest, trimmed)
    return _dated(text, trimmed)


def _dated(text: str, trimmed: bool) -> str:
    parts = _DATE.split(text)
    return "".join(
        _date(part) if i % 2 else _literal(part, trimmed and i == len(parts) - 1)
        for i, part in enumerate(parts)
    )


def _literal(text: str, trimmed: bool) -> str:
    kept = text.rstrip() if trimmed else text
    out = []
    for piece in re.split(r'(\{\{|"""|[^\S\n ]+)', kept):
        # A Modelfile ends a text at three quotes and loses characters that do not print.
        special = piece in ("{{", '"""') or not piece.replace("\n", "").isprintable()
        out.append(_quoted(piece) if special else piece)
    rest = text[len(kept) :]
    return "".join(out) + (_quoted(rest) if rest else "")


def _quoted(text: str) -> str:
    escaped = json.dumps(text, ensure_ascii=False)
    escaped = "".join(
        c if c.isprintable() else f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}"
        for c in escaped
    )
    return f"{{{{ {escaped} }}}}"


def _date(form: str) -> str:
    """A strftime format in terms of Ollama's `currentDate`, which is YYYY-MM-DD."""
    if form == "%Y-%m-%d":
        return "{{ currentDate }}"
    fields = {
        "%Y": "{{ slice currentDate 0 4 }}",
        "%y": "{{ slice currentDate 2 4 }}",
        "%m": "{{ slice currentDate 5 7 }}",
        "%d": "{{ slice currentDate 8 10 }}",
        "%b": _month_names(3),
        "%B": _month_names(None),
    }
    out = []
    for piece in re.split(r"(%.)", form):
        if piece.startswith("%") and piece not in fields:
            raise GoTemplateError(f"the chat template writes a date as {form!r}, which Ollama cannot")
        out.append(fields.get(piece) or _literal(piece, False))
    return "".join(out)


def _month_names(length: int | None) -> str:
    first, *others = [
        f'if eq {_MONTH} "{i:02d}" }}}}{name[:length]}' for i, name in enumerate(_MONTHS, start=1)
    ]
    return f"{{{{ {first}" + "".join(f"{{{{ else {case}" for case in others) + "{{ end }}"


def render_ollama(
    template: GoTemplate,
    messages: Sequence[Message],
    *,
    think: bool | None = None,
    level: str = "",
    today: date | None = None,
) -> str:
    """The prompt that Ollama makes of a conversation.

    Args:
        think: whether the user asked for thinking; None where nothing was said.
        level: how much thinking, where the format has levels.
        today: the day that a template may name.

    Raises:
        GoTemplateError: see `GoTemplate.execute`.
    """
    collated: list[dict[str, Any]] = []
    for message in messages:
        # Ollama makes one message of two in a row by the same speaker.
        if collated and collated[-1]["Role"] == message.role:
            collated[-1]["Content"] += "\n\n" + message.content
        else:
            collated.append({"Role": message.role, "Content": message.content, "Thinking": ""})
    values: Mapping[str, Any] = {
        "System": "\n\n".join(m.content for m in messages if m.role == "system"),
        "Messages": collated,
        "Response": "",
        "Think": bool(think),
        "ThinkLevel": level,
        "IsThinkSet": think is not None,
    }
    return template.execute(values, today=today)


@dataclass(frozen=True)
class OllamaTemplate:
    """A TEMPLATE that was compared with the model's own chat template.

    Attributes:
        text: in Go's template language.
        pieces: what it was made of.
        conversations: how many were compared; all of them were equal.
    """

    text: str
    pieces: Pieces
    conversations: int


def ollama_template(observation: Observation) -> OllamaTemplate | None:
    """The TEMPLATE that says what the observed chat template says; None where there is none that always does."""
    if observation.pieces is None or not observation.checks:
        return None
    # A switch for thinking that reaches further than the opening of the answer is left out.
    for pieces in dict.fromkeys((observation.pieces, replace(observation.pieces, thinking=None))):
        try:
            text = go_template_text(pieces)
            checks = [c for c in observation.checks if pieces.thinking is not None or not c.switches]
            if all(_is_equal(text, check) for check in checks):
                return OllamaTemplate(text, pieces, len(checks))
        except GoTemplateError:
            continue
    return None


def _is_equal(text: str, check: Check) -> bool:
    think = check.switches.get("enable_thinking")
    told = render_ollama(
        parse_go_template(text),
        check.messages,
        think=None if think is None else bool(think),
        today=CHECK_DAY,
    )
    return told == check.expected
