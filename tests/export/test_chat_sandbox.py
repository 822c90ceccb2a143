"""A chat template is a stranger's program: what it may not do."""

from __future__ import annotations

import time
from datetime import date
from pathlib import Path

import pytest

from ewq_gguf.export import chat_child
from ewq_gguf.export.chat_sandbox import ChatTemplateError, Message, Rendering, render_chat

ASK = Rendering((Message("user", "Hi"),))


def test_the_usual_environment() -> None:
    template = (
        "{% for m in messages %}\n  {%- if loop.first %}\n    {{ bos_token }}{{ m.content | tojson }}\n"
        "  {%- endif %}\n  {% continue %}\n{% endfor %}"
        "{% generation %}{{ strftime_now('%d.%m.%Y') }}{% endgeneration %}"
    )
    [marked, dated] = render_chat(
        template,
        [Rendering(ASK.messages), Rendering((Message("user", "ä<"),), today=date(2031, 7, 4))],
        {"bos_token": "<s>"},
    )
    assert marked is not None
    assert marked.endswith(f"{chat_child.DATE_OPEN}%d.%m.%Y{chat_child.DATE_CLOSE}")
    assert dated == '    <s>"ä<"04.07.2031'


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}{{ ''.__class__.__mro__[1].__subclasses__()[0] }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ raise_exception('no') }}",
        "{{ undefined.attribute }}",
        "{% for i in range(1000000) %}{% endfor %}",
        "{{ lipsum.__globals__.os }}",
        "{% for i in range(90000) %}{{ '0123456789' * 100 }}{% endfor %}",
    ],
)
def test_mischief_comes_to_nothing(template: str) -> None:
    assert render_chat(template, [ASK], {}) == [None]


def test_one_error_does_not_spoil_the_others() -> None:
    template = "{% if messages | length > 1 %}{{ raise_exception('no') }}{% endif %}ok"
    two = Rendering((Message("user", "a"), Message("user", "b")))
    assert render_chat(template, [ASK, two, ASK], {}) == ["ok", None, "ok"]


def test_time_is_bounded() -> None:
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    start = time.monotonic()
    with pytest.raises(ChatTemplateError, match="longer than 1 seconds"):
        render_chat(endless, [ASK], {}, timeout=1.0)
    assert time.monotonic() - start < 20


def test_memory_is_bounded() -> None:
    pytest.importorskip("resource")
    assert render_chat("{{ ('a' * 1500000000) | length }}", [ASK], {}) == [None]


def test_length_is_bounded() -> None:
    with pytest.raises(ChatTemplateError, match="more than any genuine one"):
        render_chat("a" * 500_000, [ASK], {})


def test_the_child_reads_nothing_of_the_package() -> None:
    """It runs isolated, so what it imports must be found without the package's folder."""
    text = Path(chat_child.__file__).read_text(encoding="utf-8")
    assert "ewq_gguf" not in text
