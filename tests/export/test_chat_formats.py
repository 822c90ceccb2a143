"""Every chat format, learned from its Jinja template and said again in Go's template language."""

from __future__ import annotations

from datetime import date
from functools import cache

import pytest

from ewq_gguf.export.chat_go import (
    OllamaTemplate,
    go_template_text,
    ollama_template,
    render_ollama,
    thinking_tag,
)
from ewq_gguf.export.chat_names import format_name
from ewq_gguf.export.chat_observe import Observation, observe
from ewq_gguf.export.chat_sandbox import Message, Rendering, render_chat
from ewq_gguf.export.go_template import parse_go_template

from .formats import FORMATS, TALK, TODAY

DAY = date.fromisoformat(TODAY)


@cache
def observed(name: str) -> Observation:
    form = FORMATS[name]
    return observe(form.jinja, form.tokens, implied_bos=form.implied_bos)


def template_of(name: str) -> OllamaTemplate:
    found = ollama_template(observed(name))
    assert found is not None
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_the_template_says_what_the_chat_template_says(name: str) -> None:
    form, found = FORMATS[name], template_of(name)
    [told] = render_chat(form.jinja, [Rendering(TALK, today=DAY)], form.tokens)
    assert told is not None
    assert told.removeprefix(form.implied_bos) == form.expected
    assert render_ollama(parse_go_template(found.text), TALK, today=DAY) == form.expected
    assert found.conversations == form.n_checks
    assert format_name(found.pieces) == form.name


def test_thinking_can_be_switched_off() -> None:
    found = template_of("qwen 3")
    template = parse_go_template(found.text)
    ask = (Message("user", "Why?"),)
    assert render_ollama(template, ask).endswith("<|im_start|>assistant\n")
    assert render_ollama(template, ask, think=True).endswith("<|im_start|>assistant\n")
    assert render_ollama(template, ask, think=False).endswith(
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert thinking_tag(found.pieces) == ("<think>\n", "\n</think>\n\n")
    assert "{{ .Thinking }}" in found.text


def test_the_level_of_thinking_is_the_users() -> None:
    template = parse_go_template(template_of("harmony").text)
    assert "Reasoning: high" in render_ollama(template, TALK, level="high")
    assert "Reasoning: medium" in render_ollama(template, TALK)


def test_an_answer_can_be_continued() -> None:
    template = parse_go_template(template_of("chatml").text)
    begun = (Message("user", "Count."), Message("assistant", "One, two"))
    assert render_ollama(template, begun) == (
        "<|im_start|>user\nCount.<|im_end|>\n<|im_start|>assistant\nOne, two"
    )


def test_a_format_without_a_system_message_puts_it_before_the_user() -> None:
    refusing = FORMATS["gemma"].jinja.replace(
        "{{ bos_token }}",
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}",
    )
    seen = observe(refusing, FORMATS["gemma"].tokens, implied_bos="<bos>")
    assert seen.pieces is not None
    assert seen.pieces.system is None
    found = ollama_template(seen)
    assert found is not None
    assert found.conversations == 3
    assert render_ollama(parse_go_template(found.text), TALK) == FORMATS["gemma"].expected


@pytest.mark.parametrize(
    "jinja",
    [
        "{{ messages | length }}",
        "{{ messages[0].content | upper }}{{ messages[-1].content }}",
        "{% for m in messages %}{{ loop.index }}: {{ m.content }}\n{% endfor %}",
        "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
        "{{ raise_exception('never') }}",
        "{% broken",
        # Right for plain words, and wrong for others: only the comparison finds it.
        "{% for m in messages %}<{{ m.role }}>{{ m.content | escape }}{% endfor %}<assistant>",
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ strftime_now('%A') }}",
    ],
)
def test_what_cannot_be_said_is_not_said(jinja: str) -> None:
    assert ollama_template(observe(jinja, {})) is None


def test_text_that_would_break_out_is_escaped() -> None:
    jinja = (
        "{% for m in messages %}{{ '{{' }}{{ m.role }}}} '''\"\"\"\u00a0\u200b {{ m.content }}\t\n{% endfor %}"
        "{% if add_generation_prompt %}{{ '{{assistant}} ' }}{% endif %}"
    )
    found = ollama_template(observe(jinja, {}))
    assert found is not None
    assert '"""' not in found.text
    assert all(c.isprintable() or c == "\n" for c in found.text)


def test_the_text_is_stable() -> None:
    pieces = observed("chatml").pieces
    assert pieces is not None
    assert go_template_text(pieces) == (
        "{{- if .System }}<|im_start|>system\n"
        '{{ .System }}<|im_end|>{{ "\\n" }}\n'
        "{{- end }}\n"
        "{{- range $i, $_ := .Messages }}\n"
        "{{- $last := eq (len (slice $.Messages $i)) 1 }}\n"
        '{{- if eq .Role "user" }}<|im_start|>user\n'
        '{{ .Content }}<|im_end|>{{ "\\n" }}\n'
        '{{- else if eq .Role "assistant" }}<|im_start|>assistant\n'
        "{{ .Content }}{{ if not $last }}<|im_end|>\n"
        "{{ end }}\n"
        "{{- end }}\n"
        '{{- if and $last (ne .Role "assistant") }}<|im_start|>assistant{{ "\\n" }}\n'
        "{{- end }}\n"
        "{{- end }}"
    )
