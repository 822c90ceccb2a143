"""`calibrate imatrix` and `calibrate probe`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import ewq_gguf
from ewq_gguf.calibration.imatrix_file import load_imatrix
from ewq_gguf.cli import cli


def test_imatrix_and_probe(reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EWQ_GGUF_CACHE", str(tmp_path / "cache"))
    baseline, matrix = tmp_path / "m.gguf", tmp_path / "imatrix.gguf"
    ewq_gguf.convert(reference, baseline, ewq_gguf.Decision(type="bf16"))
    run = CliRunner().invoke
    made = run(
        cli, ["calibrate", "imatrix", str(baseline), "-o", str(matrix), "--chunks", "1", "--threads", "1"]
    )
    assert made.exit_code == 0, made.output
    assert "blk.3.ffn_down.weight" in load_imatrix(matrix)
    probed = run(
        cli,
        ["calibrate", "probe", str(baseline), "--imatrix", str(matrix), "--chunks", "1", "--blocks", "2",
         "--threads", "1", "--json"],
    )  # fmt: skip
    assert probed.exit_code == 0, probed.output
    rows = json.loads(probed.stdout)
    assert {r["tensor"].split(".")[-2] for r in rows} >= {"attn_q", "ffn_down", "token_embd"}
    assert all(r["kld"] > 0 for r in rows)


def test_refusals(tmp_path: Path) -> None:
    missing = CliRunner().invoke(cli, ["calibrate", "imatrix", str(tmp_path / "no.gguf"), "-o", "x.gguf"])
    assert missing.exit_code == 1
    assert "no.gguf" in missing.stderr
