"""The command line: what a person types, sees and gets back."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ewq_gguf.checkpoint.folder import INDEX_NAME
from ewq_gguf.cli import cli


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in args])


def test_help_lists_every_command() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for name in ("convert", "analyze", "plan", "evaluate", "inspect", "verify", "models", "doctor"):
        assert name in result.output
        assert run(name, "--help").exit_code == 0


def test_convert_and_inspect(reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    result = run("convert", reference, "-o", out)
    assert result.exit_code == 0, result.output
    assert "4.604279" in result.stdout
    assert f"{out.stat().st_size:,} bytes" in result.stdout.replace("\n", " ")
    shown = json.loads(run("inspect", out, "--json").stdout)
    types = {t["name"]: t["type"] for t in shown["tensors"]}
    assert types["blk.11.ffn_up.weight"] == "Q4_K"
    assert shown["metadata"]["ewq.method"] == "ewq"
    assert run("verify", out, "--against", reference).exit_code == 0


def test_plan_edit_convert_inspect(reference: Path, tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "m.gguf"
    assert run("plan", reference, "-o", plan, "--type", "Q4_K_M").exit_code == 0
    text = plan.read_text()
    line = next(line for line in text.splitlines() if '"blk.7.ffn_gate.weight"' in line)
    plan.write_text(text.replace(line, line.replace('"type": "Q4_K"', '"type": "Q3_K"')))
    assert run("convert", reference, "-o", out, "--plan", plan).exit_code == 0
    types = {t["name"]: t["type"] for t in json.loads(run("inspect", out, "--json").stdout)["tensors"]}
    assert types["blk.7.ffn_gate.weight"] == "Q3_K"
    assert types["blk.6.ffn_gate.weight"] == "Q4_K"


def test_dry_run_writes_nothing(reference: Path, tmp_path: Path) -> None:
    result = run("convert", reference, "--dry-run", "--type", "q8_0", "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["output"] is None
    assert told["bytes"] > 11_000_000
    assert list(tmp_path.iterdir()) == []


def test_analyze_json_fields(reference: Path) -> None:
    told = json.loads(run("analyze", reference, "--json").stdout)
    assert len(told["blocks"]) == 12
    assert {"index", "entropy", "variance", "kurtosis", "parameters", "class"} <= told["blocks"][0].keys()
    assert {"name", "block", "shape", "entropy", "n"} <= told["tensors"][0].keys()
    assert told["threshold"] < told["mu"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--type", "Q9_K"], "Q9_K"),
        (["--tensor-type", "nothing=q8_0"], "no tensor"),
        (["--tensor-type", "ffn_up"], "ffn_up"),
        (["--x", "-1"], "--x"),
        (["--epsilon", "nan"], "--epsilon"),
        (["--plan", "missing.json"], "missing.json"),
        (["--four-bit", "int4"], "int4"),
    ],
)
def test_bad_wishes_are_one_sentence(
    reference: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    result = run("convert", reference, "-o", tmp_path / "m.gguf", *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_usage_errors_exit_with_2(reference: Path) -> None:
    assert run("convert", reference).exit_code == 2
    assert run("convert", reference, "-o", "x", "--method", "guess").exit_code == 2
    assert run("no-such-command").exit_code == 2


SHARD = "model-00002-of-00002.safetensors"


def _truncate(folder: Path) -> None:
    path = folder / SHARD
    path.write_bytes(path.read_bytes()[:-1000])


def _huge_header(folder: Path) -> None:
    path = folder / SHARD
    path.write_bytes(struct.pack("<Q", 2**60) + path.read_bytes()[8:])


def _edit_header(folder: Path, old: bytes, new: bytes) -> None:
    path = folder / SHARD
    raw = path.read_bytes()
    assert len(old) == len(new)
    assert old in raw
    path.write_bytes(raw.replace(old, new, 1))


def _edit_json(folder: Path, name: str, **changes: object) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _index_outside(folder: Path) -> None:
    index = json.loads((folder / INDEX_NAME).read_text())
    index["weight_map"]["model.norm.weight"] = "../x.safetensors"
    (folder / INDEX_NAME).write_text(json.dumps(index))


def _nan(folder: Path) -> None:
    path = folder / SHARD
    raw = bytearray(path.read_bytes())
    raw[-2:] = b"\xc0\x7f"
    path.write_bytes(raw)


MALFORMED = {
    "truncated shard": _truncate,
    "header of 2^60 bytes": _huge_header,
    "overlapping offsets": lambda f: _edit_header(f, b'"data_offsets":[0,512]', b'"data_offsets":[2,514]'),
    "wrong dtype": lambda f: _edit_header(f, b'"dtype":"BF16"', b'"dtype":"QF16"'),
    "dtype of another size": lambda f: _edit_header(f, b'"dtype":"BF16"', b'"dtype":"F32" '),
    "missing shard": lambda f: (f / SHARD).unlink(),
    "empty shard": lambda f: (f / SHARD).write_bytes(b""),
    "index naming ../x": _index_outside,
    "NaN weights": _nan,
    "no config": lambda f: (f / "config.json").unlink(),
    "config is no JSON": lambda f: (f / "config.json").write_text("{"),
    "unknown architecture": lambda f: _edit_json(f, "config.json", architectures=["NobodyForCausalLM"]),
    "negative heads": lambda f: _edit_json(f, "config.json", num_attention_heads=-4),
    "heads that do not divide": lambda f: _edit_json(f, "config.json", num_attention_heads=7),
    "layers as text": lambda f: _edit_json(f, "config.json", num_hidden_layers="twelve"),
    "too few layers": lambda f: _edit_json(f, "config.json", num_hidden_layers=3),
    "vocabulary of another size": lambda f: _edit_json(f, "config.json", vocab_size=5000),
    "no tokenizer": lambda f: (f / "tokenizer.model").unlink(),
    "broken tokenizer": lambda f: (f / "tokenizer.model").write_bytes(b"\x0a\xff\xff"),
    "quantized by GPTQ": lambda f: _edit_json(f, "config.json", quantization_config={"quant_method": "gptq"}),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_checkpoints(checkpoint_copy: Path, tmp_path: Path, kind: str) -> None:
    MALFORMED[kind](checkpoint_copy)
    out = tmp_path / "out"
    out.mkdir()
    result = run("convert", checkpoint_copy, "-o", out / "m.gguf", "--type", "Q8_0")
    assert result.exit_code == 1, result.output
    message = result.stderr.strip()
    assert message.startswith("error: ")
    assert "\n" not in message
    assert len(message) > 30
    assert list(out.iterdir()) == []


def test_the_process_itself(reference: Path, tmp_path: Path) -> None:
    """Outside of the test runner: exit code, streams, no traceback, no torch."""
    command = [sys.executable, "-X", "importtime", "-m", "ewq_gguf", "-q", "convert", str(reference)]
    done = subprocess.run([*command, "-o", str(tmp_path / "m.gguf")], capture_output=True, text=True)
    assert done.returncode == 0
    assert "wrote" in done.stdout
    assert " torch" not in done.stderr
    assert " transformers" not in done.stderr
    failed = subprocess.run(
        [sys.executable, "-m", "ewq_gguf", "convert", str(tmp_path), "-o", "x.gguf"],
        capture_output=True,
        text=True,
    )
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
    assert "Traceback" not in failed.stderr
