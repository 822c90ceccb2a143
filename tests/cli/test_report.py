"""`ewq-gguf report` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from ewq_gguf.cli import cli
from ewq_gguf.report import write_report
from tests.report.documents import analysis, divergence, figures, plan, written


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in args])


def test_the_command_and_the_function_write_the_same(tmp_path: Path) -> None:
    inputs = [
        written(tmp_path / "p.json", plan()),
        written(tmp_path / "e.json", analysis()),
        written(tmp_path / "k.json", divergence(figures("a.gguf", 5, 0.1))),
    ]
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    done = run("report", *inputs, "-o", tmp_path / "one" / "r.html")
    assert done.exit_code == 0, done.output
    assert "r.html" in done.stdout
    assert "p.json: plan, rd" in done.stderr
    write_report(inputs, tmp_path / "two" / "r.html")
    assert (tmp_path / "one" / "r.html").read_bytes() == (tmp_path / "two" / "r.html").read_bytes()


def test_json_tells_what_was_recognised(tmp_path: Path) -> None:
    source = written(tmp_path / "p.json", plan())
    told = json.loads(run("report", source, "-o", tmp_path / "r.html", "--json").stdout)
    assert told["sources"] == [{"name": "p.json", "holds": "plan, rd"}]
    assert told["bytes"] == (tmp_path / "r.html").stat().st_size


def test_unknown_input_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "x.bin"
    source.write_bytes(b"\0\1\2")
    done = run("report", source, "-o", tmp_path / "r.html")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.output
    assert not (tmp_path / "r.html").exists()


def test_usage(tmp_path: Path) -> None:
    assert run("report", "-o", tmp_path / "r.html").exit_code == 2
    assert run("report", tmp_path).exit_code == 2
