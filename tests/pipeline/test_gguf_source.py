"""A GGUF file as MODEL: metadata and order carried over, refusals, and every command that takes it."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import gguf
import pytest
from click.testing import CliRunner, Result

import ewq_gguf
from ewq_gguf.cli import cli
from ewq_gguf.errors import CheckpointError, EwqError, QuantizationError
from ewq_gguf.ggml import GGMLType
from ewq_gguf.pipeline.header import HeaderTensor, header_bytes
from ewq_gguf.pipeline.source import load_model, source_state
from ewq_gguf.pipeline.verify import open_gguf
from tests.pipeline.llama_quantize import metadata, tensors
from tests.pipeline.odd_model import write_odd_model

V = gguf.GGUFValueType


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_odd_model(tmp_path_factory.mktemp("odd") / "odd.gguf")


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in args])


def test_metadata_and_order_are_carried_over(odd: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    ewq_gguf.convert(odd, out, ewq_gguf.Decision(type="Q8_0"))
    before, after = open_gguf(odd), open_gguf(out)
    assert [e.name for e in after.entries] == [e.name for e in before.entries]
    kept = metadata(before)
    assert kept.items() <= metadata(after).items()
    assert kept["odd.numbers"] == (V.ARRAY, V.INT32, [3, 1, 2])
    assert after.value("general.file_type") == gguf.LlamaFileType.MOSTLY_Q8_0


def unusual(path: Path) -> Path:
    """A file whose metadata the gguf package's own writer would refuse."""
    keys = {
        "general.architecture": gguf.GGUFValue("llama", V.STRING),
        "llama.block_count": gguf.GGUFValue(1, V.UINT32),
        "general.alignment": gguf.GGUFValue(32, V.UINT32),
        "ewq.version": gguf.GGUFValue("an older one", V.STRING),
        "odd.empty": gguf.GGUFValue([], V.ARRAY, V.STRING),
        "odd.no_numbers": gguf.GGUFValue([], V.ARRAY, V.FLOAT32),
        "odd.bytes": gguf.GGUFValue(b"\xff\xfe", V.STRING),
        "odd.texts": gguf.GGUFValue(["a", b"\x80", "\u00e4"], V.ARRAY, V.STRING),
        "odd.bools": gguf.GGUFValue([True, False], V.ARRAY, V.BOOL),
        **{
            f"odd.{kind.name}": gguf.GGUFValue(value, kind)
            for kind, value in {
                V.UINT8: 255, V.INT8: -1, V.UINT16: 65535, V.INT16: -2, V.UINT32: 2**32 - 1, V.INT32: -3,
                V.UINT64: 2**64 - 1, V.INT64: -(2**63), V.FLOAT32: 0.5, V.FLOAT64: 0.1, V.BOOL: True,
            }.items()
        },
    }  # fmt: skip
    head = header_bytes(keys, [HeaderTensor("token_embd.weight", (4, 64), GGMLType.F32, 1024)])
    path.write_bytes(head + struct.pack("<256f", *range(256)))
    return path


def test_every_kind_of_value_survives(tmp_path: Path) -> None:
    source, out = unusual(tmp_path / "in.gguf"), tmp_path / "out.gguf"
    ewq_gguf.convert(source, out, ewq_gguf.Decision(type="F16"))
    left_out = ("general.alignment", "general.file_type", "general.quantization_version", "ewq.")
    assert metadata(open_gguf(out), without=left_out) == metadata(open_gguf(source), without=left_out)
    assert open_gguf(out).value("ewq.version") == ewq_gguf.__version__


def test_same_model_in_one_file_or_in_parts(odd: Path, tmp_path: Path) -> None:
    whole, again = tmp_path / "whole.gguf", tmp_path / "again.gguf"
    assert (
        run("convert", odd, "-o", tmp_path / "s.gguf", "--type", "f16", "--split-max-tensors", 30).exit_code
        == 0
    )
    ewq_gguf.convert(odd, whole, ewq_gguf.Decision(type="Q4_K_M"))
    ewq_gguf.convert(tmp_path / "s-00002-of-00003.gguf", again, ewq_gguf.Decision(type="Q4_K_M"))
    assert whole.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_its_own_type_is_a_copy(kind: str, tmp_path: Path) -> None:
    source = write_odd_model(tmp_path / "in.gguf", kind)
    ewq_gguf.convert(source, tmp_path / "out.gguf", ewq_gguf.Decision(type=kind))
    assert tensors(tmp_path / "out.gguf") == tensors(source)


def test_a_quantized_file_is_refused_unless_allowed(odd: Path, tmp_path: Path) -> None:
    first, out = tmp_path / "q8.gguf", tmp_path / "out.gguf"
    ewq_gguf.convert(odd, first, ewq_gguf.Decision(type="Q8_0"))
    for wish in (ewq_gguf.Decision(type="Q4_0"), ewq_gguf.Decision()):
        with pytest.raises(QuantizationError, match=r"token_embd\.weight is already quantized as Q8_0"):
            ewq_gguf.convert(first, out, wish)
    assert [p.name for p in tmp_path.iterdir()] == ["q8.gguf"]
    # Nothing would change its type: that is no quantizing.
    ewq_gguf.convert(first, out, ewq_gguf.Decision(type="Q8_0"))
    assert tensors(out) == tensors(first)
    ewq_gguf.convert(first, out, ewq_gguf.Decision(type="Q4_0", pure=True, allow_requantize=True))
    assert {t[0] for name, t in tensors(out).items() if "attn_q" in name} == {GGMLType.Q4_0}


def test_the_source_is_not_written_over(odd: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    shutil.copy(odd, copy)
    with pytest.raises(QuantizationError, match="is the source itself"):
        ewq_gguf.convert(copy, copy, ewq_gguf.Decision(type="Q8_0"))
    assert copy.read_bytes() == odd.read_bytes()


def test_keeping_output_and_embedding(odd: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    ewq_gguf.convert(odd, out, ewq_gguf.Decision(type="Q4_0", keep_output=True, keep_embedding=True))
    made, source = tensors(out), tensors(odd)
    for name in ("output.weight", "token_embd.weight"):
        assert made[name] == source[name]
    assert made["blk.0.attn_q.weight"][0] == GGMLType.Q4_0


def test_every_command_takes_a_gguf(odd: Path, tmp_path: Path) -> None:
    told = run("analyze", odd, "--json")
    assert told.exit_code == 0, told.stderr
    assert len(json.loads(told.stdout)["blocks"]) == 8
    plan, out = tmp_path / "plan.json", tmp_path / "out.gguf"
    assert run("plan", odd, "-o", plan, "--type", "Q4_K_M").exit_code == 0
    assert run("convert", odd, "-o", out, "--plan", plan).exit_code == 0
    assert run("verify", out, "--against", odd).exit_code == 0
    told = run("convert", odd, "--dry-run", "--plan", plan, "--json")
    assert json.loads(told.stdout)["bytes"] == out.stat().st_size


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _nan(path: Path) -> None:
    file, data = open_gguf(path), bytearray(path.read_bytes())
    entry = next(e for e in file.entries if e.name == "blk.2.attn_q.weight")
    data[entry.begin + 4 : entry.begin + 6] = b"\x00\x7e"
    path.write_bytes(data)


def _no_tensors(path: Path) -> None:
    path.write_bytes(header_bytes({"general.architecture": gguf.GGUFValue("llama", V.STRING)}, []))


def _no_blocks(path: Path) -> None:
    keys = {"general.architecture": gguf.GGUFValue("llama", V.STRING)}
    head = header_bytes(keys, [HeaderTensor("token_embd.weight", (4, 64), GGMLType.F32, 1024)])
    path.write_bytes(head + bytes(1024))


def _lonely_part(path: Path) -> None:
    ewq_gguf.convert(
        path, path.with_name("s.gguf"), ewq_gguf.Decision(type="F16"), split=ewq_gguf.Split(max_tensors=50)
    )
    path.with_name("s-00001-of-00002.gguf").replace(path)
    path.with_name("s-00002-of-00002.gguf").unlink()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_cut, "truncated"),
        (_nan, r"blk\.2\.attn_q\.weight holds nan in row 0, column 2"),
        (_no_tensors, "no tensors"),
        (_no_blocks, "block_count"),
        (_lonely_part, "one of 2 parts"),
    ],
)
@pytest.mark.parametrize("kind", ["F16", "Q4_0"])
def test_damaged_files_are_refused(odd: Path, tmp_path: Path, damage: object, says: str, kind: str) -> None:
    copy = tmp_path / "copy.gguf"
    shutil.copy(odd, copy)
    assert callable(damage)
    damage(copy)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(EwqError, match=says):
        ewq_gguf.convert(copy, out / "m.gguf", ewq_gguf.Decision(type=kind))
    assert list(out.iterdir()) == []


def test_a_part_of_another_model_is_noticed(odd: Path, tmp_path: Path) -> None:
    wish = ewq_gguf.Decision(type="F16")
    for name, n in (("a", 50), ("b", 60)):
        ewq_gguf.convert(odd, tmp_path / f"{name}.gguf", wish, split=ewq_gguf.Split(max_tensors=n))
    (tmp_path / "b-00002-of-00002.gguf").replace(tmp_path / "a-00002-of-00002.gguf")
    with pytest.raises(CheckpointError, match="tensors in all"):
        load_model(tmp_path / "a-00001-of-00002.gguf")


def test_the_state_follows_the_file(odd: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    shutil.copy(odd, copy)
    before, same = source_state(copy), load_model(copy).fingerprint
    copy.touch()
    assert source_state(copy) != before
    assert load_model(copy).fingerprint == same == load_model(odd).fingerprint
