"""What the documents say can be typed can be typed, and does what they say."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from docs.commands import ROOT, Line, commands_in, commands_in_help, every_command, fenced, parse
from ewq_gguf.cli import cli

README = ROOT / "README.md"
LINES = commands_in(README)
OURS = [line for line in LINES if line.words[0].endswith("ewq-gguf")]
# These run a model for minutes.
SLOW = {"--like", "--size", "--bpw", "--max-kld", "--vram", "--sizes", "calibrate"}
# These need a program or a network that is not everywhere; they are parsed only.
ELSEWHERE = {"org/name", "export"}


@pytest.mark.parametrize("line", [*OURS, *commands_in_help()], ids=str)
def test_every_command_line_is_understood(line: Line) -> None:
    assert parse(line.words).startswith("ewq-gguf")


def test_a_wrong_command_line_is_noticed() -> None:
    for wrong in (
        "ewq-gguf convrt model",
        "ewq-gguf convert model --no-such",
        "ewq-gguf plan model --x many",
    ):
        with pytest.raises(click.UsageError):
            parse(tuple(wrong.split()))


@pytest.mark.parametrize("line", [line for line in LINES if line.words[0] == "make"], ids=str)
def test_every_make_target_exists(line: Line) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {w for w in line.words[1:] if "=" not in w and not w.startswith("-")} <= targets


@pytest.mark.parametrize(
    ("path", "command"), every_command(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_explains_itself(path: str, command: click.Command) -> None:
    ran = CliRunner().invoke(cli, [*path.split()[1:], "--help"])
    assert ran.exit_code == 0
    assert command.help, f"{path} has no help text"
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, f"{path} --{parameter.name}"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: Path) -> Path:
    """A folder with a checkpoint and a text under the names that the documents use."""
    shutil.copytree(reference, tmp_path / "reference-10m")
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    (tmp_path / "reference-10m" / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "checkpoint").symlink_to(tmp_path / "reference-10m")
    text = (ROOT / "benchmarks" / "data" / "evaluation.txt").read_text(encoding="utf-8")
    for name in ("some-text.txt", "text.txt"):
        (tmp_path / name).write_text(text[:8_000], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EWQ_GGUF_CACHE", str(tmp_path / "cache"))
    return tmp_path


def _run(lines: list[Line]) -> None:
    for line in lines:
        ran = CliRunner().invoke(cli, ["-q", *line.words[1:]])
        assert ran.exit_code == 0, f"{line}\n{ran.output}"
        if line.into is not None:
            Path(line.into).write_text(ran.stdout, encoding="utf-8")


def _is(line: Line, kinds: set[str]) -> bool:
    return any(word in kinds or word.split("@")[0] in kinds for word in line.words)


@pytest.mark.slow
def test_the_readme_can_be_followed_to_the_end(desk: Path) -> None:
    lines = [line for line in OURS if not _is(line, ELSEWHERE)]
    assert len(lines) >= 8
    _run(lines)


def test_the_readme_can_be_followed(desk: Path) -> None:
    quick = [line for line in OURS if not _is(line, SLOW | ELSEWHERE)]
    assert len(quick) >= 5
    # A file that a slow line makes is made here in a second.
    made = [
        w for line in OURS if _is(line, SLOW) for flag, w in zip(line.words, line.words[1:]) if flag == "-o"
    ]
    for name in dict.fromkeys(w for w in made if w.endswith(".gguf")):
        _run([Line("here", ("ewq-gguf", "convert", "path/to/checkpoint", "-o", name, "--type", "Q4_K_M"))])
    _run(quick)


@pytest.mark.parametrize("code", fenced(README, "python"))
def test_python_in_the_readme_runs(code: str, desk: Path) -> None:
    env = {**os.environ, "PYTHONWARNINGS": "error"}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout


@pytest.mark.parametrize(
    "name",
    [
        "api:convert",
        "api:plan",
        "api:analyze",
        "api:preview",
        "evaluation.evaluate:evaluate",
        "series:ladder",
    ],
)
def test_examples_of_the_library_run(name: str, desk: Path) -> None:
    module_name, function = name.split(":")
    module = importlib.import_module(f"ewq_gguf.{module_name}")
    found = doctest.DocTestFinder(recurse=False).find(getattr(module, function), name, globs={})
    examples = [test for test in found if test.examples]
    assert examples, f"{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in examples:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
