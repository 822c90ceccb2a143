"""Render a model's own chat template, which is a program from an untrusted file, at arm's length.

Jinja's immutable sandbox keeps a template away from Python's attributes; a process of its own with bounded time,
memory and output keeps it from taking the machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from ewq_gguf.errors import EwqError

# The longest published chat templates have some 30,000 characters.
MAX_TEMPLATE = 400_000
TIMEOUT = 30.0
_CHILD = Path(__file__).with_name("chat_child.py")


class ChatTemplateError(EwqError):
    """A chat template that cannot be rendered in bounds."""


@dataclass(frozen=True)
class Message:
    """One turn: `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Rendering:
    """A wish: a conversation, whether the assistant is to speak next, and the template's own switches.

    Attributes:
        today: the day that the template may ask for; None puts marks where it asks.
    """

    messages: tuple[Message, ...]
    generate: bool = True
    switches: Mapping[str, Any] = field(default_factory=dict)
    today: date | None = None


def render_chat(
    template: str, wishes: Sequence[Rendering], tokens: Mapping[str, str], *, timeout: float = TIMEOUT
) -> list[str | None]:
    """The texts that a Jinja chat template gives, in the order of the wishes; None where it raises an error.

    Args:
        tokens: `bos_token`, `eos_token` and the like, as the template expects them.
        timeout: seconds for all of them together.

    Raises:
        ChatTemplateError: too long, or it took too much time or memory.
    """
    if len(template) > MAX_TEMPLATE:
        raise ChatTemplateError(
            f"the chat template has {len(template):,} characters, more than any genuine one"
        )
    requests = [
        {
            "today": None if wish.today is None else wish.today.isoformat(),
            "values": {
                **tokens,
                **wish.switches,
                "messages": [{"role": m.role, "content": m.content} for m in wish.messages],
                "add_generation_prompt": wish.generate,
            },
        }
        for wish in wishes
    ]
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(_CHILD)],
            input=json.dumps({"template": template, "requests": requests}),
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ChatTemplateError(f"the chat template took longer than {timeout:g} seconds") from error
    except OSError as error:
        raise ChatTemplateError(f"the chat template cannot be rendered: {error}") from error
    try:
        answers = json.loads(done.stdout) if done.returncode == 0 else None
    except ValueError:
        answers = None
    if not isinstance(answers, list) or len(answers) != len(wishes):
        raise ChatTemplateError("the chat template took more time or memory than any genuine one")
    return [answer.get("text") for answer in answers]
