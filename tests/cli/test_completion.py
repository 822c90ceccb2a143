"""The scripts that `completion` prints, and what they complete."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

from ewq_gguf.cli import cli


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_name_the_program(shell: str) -> None:
    ran = CliRunner().invoke(cli, ["completion", shell])
    assert ran.exit_code == 0, ran.output
    assert "ewq-gguf" in ran.stdout
    assert "_EWQ_GGUF_COMPLETE" in ran.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not here")
def test_bash_accepts_the_script() -> None:
    script = CliRunner().invoke(cli, ["completion", "bash"]).stdout
    ran = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "at", "expected"),
    [("ewq-gguf con", 1, "convert"), ("ewq-gguf convert --ten", 2, "--tensor-type")],
)
def test_commands_and_options_are_completed(words: str, at: int, expected: str) -> None:
    asked = {"_EWQ_GGUF_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(at)}
    ran = subprocess.run(
        [sys.executable, "-c", "from ewq_gguf.cli import main; main()"],
        env={**os.environ, **asked}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"plain,{expected}" in ran.stdout.split()
