"""Reading a file back: checksums, damage, and distance from the source."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import ewq_gguf
from ewq_gguf.allocation.presets import PRESETS
from ewq_gguf.cli import cli
from ewq_gguf.errors import CheckpointError, QuantizationError
from ewq_gguf.ggml import ggml
from ewq_gguf.pipeline.source import load_model
from ewq_gguf.pipeline.verify import open_gguf, verify
from tests.pipeline.llama_quantize import quantize
from tests.pipeline.odd_model import write_odd_model


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_odd_model(tmp_path_factory.mktemp("odd") / "odd.gguf")


@pytest.fixture(scope="module")
def made(odd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "m.gguf"
    ewq_gguf.convert(odd, out, ewq_gguf.Decision(type="Q4_0"), checksums=True)
    return out


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in args])


def test_errors_are_those_of_the_definition(odd: Path, made: Path) -> None:
    checks = {c.name: c for c in verify(made, load_model(odd), threads=2)}
    assert all(c.checksum for c in checks.values())
    file, model = open_gguf(made), load_model(odd)
    for name in ("blk.3.ffn_up_exps.weight", "token_embd.weight"):
        entry = next(e for e in file.entries if e.name == name)
        source = next(t for t in model.tensors if t.name == name).source
        data = np.frombuffer(made.read_bytes()[entry.begin : entry.end], dtype=np.uint8)
        kept = ggml().dequantize(checks[name].type, data, source.row_length).astype(np.float64)
        wanted = source.rows(0, source.n_rows).astype(np.float64)
        per_row = ((kept - wanted) ** 2).sum(axis=1) / (wanted**2).sum(axis=1)
        assert checks[name].relative_error == pytest.approx(((kept - wanted) ** 2).sum() / (wanted**2).sum())
        assert checks[name].worst_row == per_row.argmax()
        assert [row for row, _ in checks[name].worst_rows] == np.argsort(-per_row)[:10].tolist()
    assert checks["blk.3.ffn_norm.weight"].relative_error == 0
    assert checks["blk.3.ffn_norm.weight"].worst_rows == ()


def test_the_same_for_any_number_of_threads(odd: Path, made: Path) -> None:
    assert verify(made, load_model(odd), threads=1) == verify(made, load_model(odd), threads=5)


def test_a_flipped_bit_is_found(made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "m.gguf"
    data = bytearray(made.read_bytes())
    data[next(e for e in open_gguf(made).entries if e.name == "blk.4.attn_k.weight").begin + 5] ^= 4
    copy.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"'blk\.4\.attn_k\.weight' do not have the checksum"):
        verify(copy)


def test_infinity_is_found(made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "m.gguf"
    data = bytearray(made.read_bytes())
    begin = next(e for e in open_gguf(made).entries if e.name == "blk.4.attn_k.weight").begin
    data[begin + 2 * 162 : begin + 2 * 162 + 2] = b"\x00\x7c"  # the scale of row 2's first block
    copy.write_bytes(data)
    with pytest.raises(QuantizationError, match=r"'blk\.4\.attn_k\.weight' holds .* in row 2"):
        verify(copy)


def test_checksums_of_another_program_s_rewrite_are_not_believed(made: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    assert quantize(made, other, PRESETS["Q8_0"].llama_ftype, allow_requantize=True)
    assert any(key.startswith("ewq.sha256.") for key in open_gguf(other).metadata)
    assert not any(c.checksum for c in verify(other))


def test_another_model(reference: Path, made: Path) -> None:
    with pytest.raises(CheckpointError, match="was the file made from this model"):
        verify(made, load_model(reference))


def test_commands(odd: Path, made: Path, tmp_path: Path) -> None:
    told = run("verify", made, "--against", odd, "--worst", 4)
    assert "the 4 worst rows" in told.stdout
    assert "83 checksums are right" in told.stdout
    assert run("verify", made, "--worst", 4).exit_code == 2
    rows = json.loads(run("verify", made, "--against", odd, "--json").stdout)
    assert rows[0]["checksum"] is True
    assert rows[0]["type"] == "Q4_0"
    assert len(rows[0]["worst_rows"]) == 10
    shown = run("inspect", made)
    assert "83 checksums" in shown.stdout
    assert "ewq.sha256.token" not in shown.stdout
    facts = json.loads(run("inspect", made, "--json").stdout)
    assert sum(b["bytes"] for b in facts["blocks"]) == facts["data_bytes"] == sum(facts["types"].values())
    parts = ewq_gguf.convert(
        odd,
        tmp_path / "s.gguf",
        ewq_gguf.Decision(type="Q4_0"),
        checksums=True,
        split=ewq_gguf.Split(max_tensors=30),
    )
    assert "in 3 files" in run("inspect", parts.paths[1]).stdout
    assert "83 checksums are right" in run("verify", parts.paths[1]).stdout
    shutil.copy(parts.paths[0], parts.paths[2])
    assert run("verify", parts.paths[1]).exit_code == 1
