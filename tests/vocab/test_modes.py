"""The two ways to write tokenizer metadata, from the checkpoint to the file and from the command line."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from ewq_gguf import Decision, convert
from ewq_gguf.cli import cli
from ewq_gguf.errors import PlanError
from ewq_gguf.pipeline.source import load_model
from ewq_gguf.vocab import TokenizerMode
from tests.tiny.build import build
from tests.tiny.case import Case, config_of
from tests.tiny.shapes import llama

# Gemma's kind of tokenizer.json in a Llama's folder: the converter gives every token one score.
FALLBACK = Case(
    "fallback", config_of("LlamaForCausalLM", "llama", num_hidden_layers=1), llama, "gemma4", added=()
)
SCORES = "tokenizer.ggml.scores"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build(FALLBACK, tmp_path / "model")


def test_faithful_is_the_default_and_says_what_it_changes(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        model = load_model(folder)
    assert len(set(model.metadata[SCORES].value)) > 10
    assert model.metadata["tokenizer.ggml.add_space_prefix"].value is False
    assert "order of its merges" in caplog.text


def test_the_converters_metadata_on_request(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model = load_model(folder, tokenizer=TokenizerMode.CONVERTER)
    assert set(model.metadata[SCORES].value) == {-1000.0}
    assert "tokenizer.ggml.add_space_prefix" not in model.metadata
    assert "order of its merges" not in caplog.text


def test_the_option(folder: Path, tmp_path: Path) -> None:
    files = []
    for mode in ("faithful", "converter"):
        files.append(tmp_path / f"{mode}.gguf")
        command = ["convert", str(folder), "-o", str(files[-1]), "--type", "bf16", "--tokenizer", mode]
        result = CliRunner().invoke(cli, command)
        assert result.exit_code == 0, result.output
    ours, theirs = (load_model(file).metadata for file in files)
    changed = {key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)}
    assert {SCORES, "tokenizer.ggml.add_space_prefix"} <= changed
    assert all(key.startswith("tokenizer.ggml.") for key in changed)


def test_an_unknown_mode_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="give faithful or converter"):
        convert(folder, tmp_path / "m.gguf", replace(Decision(type="BF16"), tokenizer="best"))
