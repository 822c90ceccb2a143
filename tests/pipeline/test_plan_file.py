"""Plans out of files, compared, stored in the GGUF, and handed to llama-quantize."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import ewq_gguf
from ewq_gguf.allocation.pins import read_pins
from ewq_gguf.allocation.presets import PRESETS
from ewq_gguf.cli import cli
from ewq_gguf.errors import EwqError, PlanError
from ewq_gguf.ggml import GGMLType
from ewq_gguf.pipeline.plan_file import llama_quantize_types, plan_changes, read_plan
from ewq_gguf.pipeline.verify import open_gguf
from tests.pipeline.llama_quantize import quantize, run_tool, tensors, tool
from tests.pipeline.odd_model import write_odd_model


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_odd_model(tmp_path_factory.mktemp("odd") / "odd.gguf")


@pytest.fixture(scope="module")
def plan_file(odd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    path.write_text(ewq_gguf.plan(odd, ewq_gguf.Decision(type="Q4_K_M")).to_json())
    return path


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in args])


def test_reading_gives_what_was_written(odd: Path, plan_file: Path) -> None:
    assert read_plan(plan_file) == ewq_gguf.plan(odd, ewq_gguf.Decision(type="Q4_K_M"))


def test_the_plan_is_in_the_file(odd: Path, plan_file: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "m.gguf", tmp_path / "again.gguf"
    ewq_gguf.convert(odd, out, ewq_gguf.Decision(plan=plan_file))
    stored = json.loads(open_gguf(out).value("ewq.plan"))
    assert stored["method"] == "preset"
    found, wanted = read_plan(out), read_plan(plan_file)
    assert found.types() == wanted.types()
    assert (found.method, found.parameters, found.arch, found.fingerprint) == (
        wanted.method, wanted.parameters, wanted.arch, wanted.fingerprint,
    )  # fmt: skip
    ewq_gguf.convert(odd, again, ewq_gguf.Decision(plan=out))
    assert tensors(again) == tensors(out)


def test_a_stored_plan_that_no_longer_holds_is_not_believed(odd: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "m.gguf", tmp_path / "other.gguf"
    ewq_gguf.convert(odd, out, ewq_gguf.Decision(type="F16"))
    assert quantize(out, other, PRESETS["Q4_0"].llama_ftype)
    assert "ewq.plan" in open_gguf(other).metadata
    found = read_plan(other)
    assert found.method == "as stored"
    assert found.types()["blk.0.attn_q.weight"] is GGMLType.Q4_0


def test_the_types_of_another_program_s_file(odd: Path, tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs.gguf", tmp_path / "ours.gguf"
    assert quantize(odd, theirs, PRESETS["Q3_K_L"].llama_ftype)
    ewq_gguf.convert(odd, ours, ewq_gguf.Decision(plan=theirs))
    assert tensors(ours) == tensors(theirs)


def test_changes(odd: Path, plan_file: Path) -> None:
    before = read_plan(plan_file)
    after = ewq_gguf.plan(odd, ewq_gguf.Decision(type="Q4_K_M", keep_output=True))
    (change,) = plan_changes(before, after)
    assert (change.name, change.after) == ("output.weight", GGMLType.F16)
    assert change.bytes_after - change.bytes_before == after.data_bytes - before.data_bytes
    assert plan_changes(before, before) == []


@pytest.mark.parametrize(
    "wish", [ewq_gguf.Decision(type="Q3_K_M"), ewq_gguf.Decision(method="ewq", classes="Q8_0,Q6_K,Q4_0")]
)
def test_export_gives_llama_quantize_the_same_types(
    odd: Path, tmp_path: Path, wish: ewq_gguf.Decision
) -> None:
    ours, theirs, exported = tmp_path / "ours.gguf", tmp_path / "theirs.gguf", tmp_path / "types.txt"
    done = ewq_gguf.convert(odd, ours, wish)
    exported.write_text(llama_quantize_types(done.plan))
    overrides = [(pin.pattern, int(pin.type)) for pin in read_pins(exported)]
    assert len(overrides) == 7 * 8 + 2
    assert quantize(odd, theirs, PRESETS["Q8_0"].llama_ftype, overrides=overrides)
    assert tensors(ours) == tensors(theirs)


@pytest.mark.parity
def test_export_for_the_program_itself(reference: Path, tmp_path: Path) -> None:
    if tool("llama-quantize") is None:
        pytest.skip("llama-quantize is not built; run `make tools`")
    baseline, ours, theirs = (tmp_path / f"{name}.gguf" for name in ("bf16", "ours", "theirs"))
    exported = tmp_path / "types.txt"
    ewq_gguf.convert(reference, baseline, ewq_gguf.Decision(type="bf16"))
    ewq_gguf.convert(reference, ours)
    assert run("plan", "export", ours, "-o", exported).exit_code == 0
    run_tool("--tensor-type-file", exported, baseline, theirs, "Q8_0", 2)
    assert tensors(ours) == tensors(theirs)


def test_commands(odd: Path, plan_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    assert run("plan", "--type", "Q8_0", odd, "-o", other).exit_code == 0
    assert run("plan", "make", odd, "--type", "Q8_0").stdout.strip() == other.read_text().strip()
    told = json.loads(run("plan", "diff", plan_file, other, "--json").stdout)
    assert {"name": "token_embd.weight", "shape": [64, 288]}.items() <= told["changes"][0].items()
    assert "tensors differ" in run("plan", "diff", plan_file, other).stdout
    assert json.loads(run("plan", "show", other, "--json").stdout) == json.loads(other.read_text())
    shown = run("plan", "show", plan_file, "--tensors")
    assert "blk.7.ffn_down_exps.weight" in shown.stdout
    assert run("plan", "export", plan_file, "-o", tmp_path / "types.txt").exit_code == 0
    assert (tmp_path / "types.txt").read_text() == llama_quantize_types(read_plan(plan_file))
    dry = run("plan", odd, "--type", "Q8_0", "--dry-run")
    assert dry.exit_code == 0
    ewq_gguf.convert(odd, tmp_path / "m.gguf", ewq_gguf.Decision(type="Q8_0"))
    assert f"{(tmp_path / 'm.gguf').stat().st_size:,} bytes" in dry.stdout


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d.pop("tensors"),
        lambda d: d.pop("source"),
        lambda d: d.update(format="another"),
        lambda d: d["tensors"].insert(0, 3),
        lambda d: d["tensors"][0].pop("name"),
        lambda d: d["tensors"][0].pop("shape"),
        lambda d: d["tensors"][0].update(shape=[4, -1]),
        lambda d: d["tensors"][0].update(shape=[4, 2.5]),
        lambda d: d["tensors"][0].update(type="Q9"),
        lambda d: d["tensors"][0].update(type="Q6_K"),
    ],
)
def test_plans_that_are_none(plan_file: Path, tmp_path: Path, edit: Any) -> None:
    data = json.loads(plan_file.read_text())
    edit(data)
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(data))
    with pytest.raises(PlanError):
        read_plan(bad)
    shown = run("plan", "show", bad)
    assert shown.exit_code == 1
    assert shown.stderr.startswith("error: ")


def test_other_models_are_refused(odd: Path, reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    ewq_gguf.convert(odd, out, ewq_gguf.Decision(type="Q8_0"))
    with pytest.raises(PlanError, match="do not have the same tensors"):
        ewq_gguf.plan(reference, ewq_gguf.Decision(plan=out))
    with pytest.raises(EwqError):
        read_plan(tmp_path / "nothing.json")
