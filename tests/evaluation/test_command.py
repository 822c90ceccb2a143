from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ewq_gguf.cli import cli
from ewq_gguf.evaluation.divergence import divergence
from ewq_gguf.evaluation.engine import Settings
from ewq_gguf.evaluation.perplexity import perplexity

SMALL = ["--n-ctx", "64", "--n-batch", "256", "--threads", "1", "--chunks", "3"]


@pytest.fixture
def text_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(text + "\n")
    return path


def _run(*arguments: object, ok: bool = True) -> Result:
    result = CliRunner().invoke(cli, ["evaluate", *map(str, arguments)], catch_exceptions=False)
    assert (result.exit_code == 0) == ok, result.output
    return result


def test_perplexity(model: Path, coarse: Path, text_file: Path, settings: Settings) -> None:
    result = _run("perplexity", model, coarse, "--text", text_file, *SMALL, "--json")
    files = json.loads(result.stdout)["files"]
    for path, fields in zip((model, coarse), files):
        expected = perplexity(path, text_file, settings=settings, chunks=3)
        assert (fields["ppl"], fields["ppl_se"], fields["tokens"]) == (expected.ppl, expected.ppl_se, 93)
    table = _run("perplexity", model, coarse, "--text", text_file, *SMALL).stdout
    assert f"{files[0]['ppl']:.4f}" in table
    assert "3 contexts of 64" in table


def test_divergence(model: Path, coarse: Path, fine: Path, text_file: Path, settings: Settings) -> None:
    arguments = [coarse, fine, "--baseline", model, "--text", text_file, *SMALL]
    found = json.loads(_run("divergence", *arguments, "--json").stdout)
    expected = divergence([coarse, fine], model, text_file, settings=settings, chunks=3)
    assert [f["mean_kld"] for f in found["files"]] == [r.mean_kld for r in expected]
    assert found["pairs"][0]["better"] == str(fine)
    assert json.loads(_run("perplexity", *arguments, "--json").stdout)["files"][0]["mean_kld"]
    table = _run("divergence", *arguments).stdout
    for words in (
        "KLD 99.9 %",
        "same top token",
        f"{expected[0].mean_kld:.6f}",
        "has the smaller divergence",
    ):
        assert words in table


def test_many_files_are_lines(
    model: Path, coarse: Path, fine: Path, text_file: Path, settings: Settings
) -> None:
    files = [coarse, fine, model, coarse, fine]
    table = _run("divergence", *files, "--baseline", model, "--text", text_file, *SMALL).stdout
    lines = [line for line in table.splitlines() if coarse.name in line and "KiB" in line]
    assert len(lines) == 2
    (expected,) = divergence(coarse, model, text_file, settings=settings, chunks=3)
    assert f"{expected.mean_kld:.6f} +/- {expected.mean_kld_se:.6f}" in lines[0]


def test_baseline_cache(model: Path, coarse: Path, text_file: Path, tmp_path: Path) -> None:
    cache = tmp_path / "base.cache"
    words = _run("baseline", model, "--text", text_file, "-o", cache, "--form", "topk", "--top-k", 9, *SMALL)
    assert "of the probability is merged" in words.stdout
    header = json.loads(_run("baseline", model, "--text", text_file, "-o", cache, *SMALL, "--json").stdout)
    assert header["bytes"] == cache.stat().st_size
    assert header["form"] == "u16"
    table = _run("divergence", coarse, "--baseline", cache, "--threads", 1).stdout
    assert "93 tokens in 3 contexts of 64" in table


def test_choice(model: Path, coarse: Path, tmp_path: Path) -> None:
    source = tmp_path / "q.jsonl"
    entry = {"prompt": "the water is", "choices": [" small", " the house"], "answer": 0}
    source.write_text(json.dumps(entry))
    arguments = [coarse, "--questions", source, "--baseline", model, "--threads", 1]
    found = json.loads(_run("choice", *arguments, "--json").stdout)
    assert found["files"][0]["questions"] == 1
    assert found["flips"][0]["agreement"] in (0, 1)
    assert "same answer, %" in _run("choice", *arguments).stdout


def test_speed(model: Path) -> None:
    arguments = [model, "--prompt-tokens", 8, "--generated-tokens", 2, "--repeats", 1, "--threads", 1]
    found = json.loads(_run("speed", *arguments, "--json").stdout)
    assert found["files"][0]["prompt_tps"] > 0
    assert "medians of 1 runs" in _run("speed", *arguments).stdout


def test_errors_are_one_sentence(model: Path, tmp_path: Path, text_file: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model.read_bytes()[:-500])
    result = _run("perplexity", cut, "--text", text_file, ok=False)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "truncated" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert _run("perplexity", model, ok=False).exit_code == 2
