"""`export` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ewq_gguf.cli import cli
from tests.export.formats import FORMATS
from tests.export.tiny_gguf import write_gguf


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, ["export", *map(str, args)])


@pytest.fixture(autouse=True)
def no_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def test_ollama(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", FORMATS["chatml"].jinja)
    done = run("ollama", path)
    assert done.exit_code == 0, done.output
    assert f"ollama create m -f {tmp_path}/m.Modelfile" in done.stdout
    assert "ChatML" in done.stderr
    told = json.loads(run("ollama", path, "--json", "--output", tmp_path / "o", "--name", "x").stdout)
    assert told["conversations"] == 6
    assert told["name"] == "x"
    failed = run("ollama", path, "--create")
    assert failed.exit_code == 1
    assert failed.stderr.startswith("error: there is no program")


def test_lmstudio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    path = write_gguf(tmp_path / "m.gguf")
    failed = run("lmstudio", path)
    assert failed.exit_code == 1
    assert "--models-folder" in failed.stderr
    (tmp_path / ".lmstudio").mkdir()
    done = run("lmstudio", path, "--publisher", "me")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{tmp_path}/.lmstudio/models/me/m/m.gguf\n"
    told = json.loads(run("lmstudio", path, "--publisher", "me", "--json").stdout)
    assert told["files"] == [f"{tmp_path}/.lmstudio/models/me/m/m.gguf"]


def test_card(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    assert run("card", path).stdout.startswith("---\n")
    assert run("card", path, "-o", tmp_path / "README.md").exit_code == 0
    (tmp_path / "README.md").write_text("mine")
    failed = run("card", path, "-o", tmp_path / "README.md")
    assert failed.exit_code == 1
    assert failed.stderr.count("\n") == 1
    assert run("card", path, "--push", "no-organization").exit_code == 1


@pytest.mark.parametrize("command", ["ollama", "lmstudio", "card"])
def test_what_is_no_model(tmp_path: Path, command: str) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\xff" * 40)
    for path in (broken, tmp_path / "missing.gguf"):
        failed = run(command, path)
        assert failed.exit_code == 1
        assert failed.stderr.startswith("error: ")
        assert failed.stderr.count("\n") == 1
