"""Several files instead of one: layout, names and keys as llama-gguf-split makes them, and merging."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import ewq_gguf
from ewq_gguf.cli import cli
from ewq_gguf.errors import CheckpointError, EwqError, PlanError, QuantizationError
from ewq_gguf.pipeline.merge import merge
from ewq_gguf.pipeline.split import Split, parse_split_size, split_tensors
from ewq_gguf.pipeline.verify import open_gguf
from tests.pipeline.llama_quantize import metadata, tensors, tool
from tests.pipeline.odd_model import write_odd_model

Q4 = ewq_gguf.Decision(type="Q4_0")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_odd_model(tmp_path_factory.mktemp("odd") / "odd.gguf")


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in args])


@pytest.mark.parametrize(
    ("nbytes", "split", "ranges"),
    [
        ([10, 20, 30], None, [(0, 3)]),
        ([32, 32, 32], Split(max_bytes=64), [(0, 2), (2, 3)]),
        ([1, 1, 1], Split(max_bytes=64), [(0, 2), (2, 3)]),  # padding counts
        ([640, 32, 640], Split(max_bytes=64), [(0, 1), (1, 2), (2, 3)]),  # none is empty
        ([1] * 5, Split(max_tensors=2), [(0, 2), (2, 4), (4, 5)]),
        ([64, 1, 1], Split(max_bytes=64, max_tensors=1), [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_what_goes_where(nbytes: list[int], split: Split | None, ranges: list[tuple[int, int]]) -> None:
    assert split_tensors(nbytes, split) == ranges


def test_more_files_than_the_format_can_number() -> None:
    with pytest.raises(QuantizationError, match="larger --split-max-size"):
        split_tensors([1] * 70_000, Split(max_tensors=1))


@pytest.mark.parametrize(
    ("text", "size"), [("2G", 2 * 1000**3), ("500M", 500 * 1000**2), ("1GiB", 1 << 30), ("3MB", 3_000_000)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_split_size(text) == size


@pytest.mark.parametrize("text", ["0G", "-1G", "2X", ""])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(PlanError):
        parse_split_size(text)


@pytest.mark.parametrize("split", [Split(max_tensors=33), Split(max_bytes=500_000)])
def test_merging_gives_back_the_whole(odd: Path, tmp_path: Path, split: Split) -> None:
    whole, merged = tmp_path / "whole.gguf", tmp_path / "merged.gguf"
    ewq_gguf.convert(odd, whole, Q4)
    done = ewq_gguf.convert(odd, tmp_path / "m.gguf", Q4, split=split)
    assert len(done.paths) > 1
    assert sum(p.stat().st_size for p in done.paths) == done.nbytes
    assert ewq_gguf.preview(odd, Q4, split=split)[1] == done.nbytes
    assert merge(done.paths[-1], merged) == whole.stat().st_size
    assert merged.read_bytes() == whole.read_bytes()


def test_on_the_command_line(odd: Path, tmp_path: Path) -> None:
    made = run("convert", odd, "-o", tmp_path / "m.gguf", "--type", "q4_0", "--split-max-size", "500K")
    assert made.exit_code == 0, made.stderr
    first = next(iter(sorted(tmp_path.glob("m-00001-of-*.gguf"))))
    joined = run("merge", first, "-o", tmp_path / "joined.gguf")
    assert joined.exit_code == 0, joined.stderr
    assert run("verify", tmp_path / "joined.gguf", "--against", odd).exit_code == 0


def test_merging_what_cannot_be_merged(odd: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not part of a split model"):
        merge(odd, tmp_path / "m.gguf")
    done = ewq_gguf.convert(odd, tmp_path / "s.gguf", Q4, split=Split(max_tensors=50))
    with pytest.raises(QuantizationError, match="one of the parts"):
        merge(done.paths[0], done.paths[1])
    done.paths[1].unlink()
    with pytest.raises(CheckpointError, match=r"missing, first s-00002-of-00002\.gguf"):
        merge(done.paths[0], tmp_path / "m.gguf")
    done.paths[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(CheckpointError, match="not named like NAME-00001-of-00002"):
        merge(tmp_path / "renamed.gguf", tmp_path / "m.gguf")
    with pytest.raises(EwqError):
        merge(tmp_path / "nothing.gguf", tmp_path / "m.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["renamed.gguf"]


def gguf_split(*arguments: object) -> None:
    program = tool("llama-gguf-split")
    if program is None:
        pytest.skip("llama-gguf-split is not built; run `make tools`")
    subprocess.run([str(program), *map(str, arguments)], check=True, capture_output=True)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("option", "value", "split"),
    [
        ("--split-max-tensors", "17", Split(max_tensors=17)),
        ("--split-max-size", "2M", Split(max_bytes=parse_split_size("2M"))),
    ],
)
def test_llama_gguf_split_both_ways(
    reference: Path, tmp_path: Path, option: str, value: str, split: Split
) -> None:
    whole = tmp_path / "whole.gguf"
    ewq_gguf.convert(reference, whole, Q4)
    done = ewq_gguf.convert(reference, tmp_path / "ours.gguf", Q4, split=split)
    gguf_split("--split", option, value, whole, tmp_path / "theirs")
    parts = sorted(tmp_path.glob("theirs-*.gguf"))
    assert [p.name.replace("theirs", "ours") for p in parts] == [p.name for p in done.paths]
    for ours, theirs in zip(done.paths, parts):
        assert tensors(ours) == tensors(theirs)
        assert metadata(open_gguf(ours)) == metadata(open_gguf(theirs))
    gguf_split("--merge", done.paths[0], tmp_path / "merged.gguf")
    assert tensors(tmp_path / "merged.gguf") == tensors(whole)
    merge(parts[0], tmp_path / "again.gguf")
    assert tensors(tmp_path / "again.gguf") == tensors(whole)
    assert metadata(open_gguf(tmp_path / "again.gguf")) == metadata(open_gguf(whole))
