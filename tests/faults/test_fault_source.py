"""A source that is cut short, changes, or cannot be read while it is being converted."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ewq_gguf
from ewq_gguf.arch.views import TakeRows
from ewq_gguf.checkpoint import reading
from ewq_gguf.checkpoint.growing import GrowingPrefix
from ewq_gguf.checkpoint.reading import MAX_OPEN, SourceFiles
from ewq_gguf.checkpoint.tensor import AnyArray, ArrayTensor
from ewq_gguf.errors import CheckpointError, EvaluationError
from ewq_gguf.evaluation.baseline import open_baseline
from tests.faults.runs import command, left_in, run, tensors_done, wait
from tests.fuzz.targets import BY_NAME as TARGETS

Q4 = ewq_gguf.Decision(type="Q4_0")


@pytest.fixture
def source(odd: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copy2(odd, tmp_path / "source.gguf"))


def cut(source: Path) -> None:
    os.truncate(source, source.stat().st_size // 3)


def cut_and_regrown(source: Path) -> None:
    """Now full of zeros, with the size and time it had."""
    before = source.stat()
    os.truncate(source, before.st_size // 3)
    os.truncate(source, before.st_size)


def touched(source: Path) -> None:
    os.utime(source, ns=(1, 1))


def replaced(source: Path) -> None:
    other = source.with_name("new.gguf")
    other.write_bytes(source.read_bytes())
    other.replace(source)


def removed(source: Path) -> None:
    source.unlink()


def unreadable(source: Path) -> None:
    source.unlink()
    source.mkdir()


@pytest.mark.parametrize("harm", [cut, cut_and_regrown, touched, replaced, removed, unreadable])
@pytest.mark.parametrize("when", [0.3, 1.0])
def test_a_source_that_changes(source: Path, folder: Path, harm: Callable[[Path], None], when: float) -> None:
    """Even when every weight has been read: what stands under the name was made of one state of the source."""

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "Quantizing" and done >= when * total and not harmed:
            harmed.append(harm)
            harm(source)

    harmed: list[Any] = []
    with pytest.raises(CheckpointError, match=r"source\.gguf") as failed:
        ewq_gguf.convert(source, folder / "m.gguf", Q4, progress=progress, threads=1)
    assert "\n" not in str(failed.value)
    assert left_in(folder) == []


@pytest.mark.parametrize("harm", [cut, removed])
def test_a_checkpoint_shard_that_changes(
    checkpoint_copy: Path, folder: Path, harm: Callable[[Path], None]
) -> None:
    def progress(stage: str, done: int, total: int) -> None:
        if stage == "Quantizing" and done >= total / 2 and not harmed:
            harmed.append(harm)
            harm(sorted(checkpoint_copy.glob("*.safetensors"))[0])

    harmed: list[Any] = []
    with pytest.raises(CheckpointError):
        ewq_gguf.convert(checkpoint_copy, folder / "m.gguf", Q4, progress=progress)
    assert left_in(folder) == []


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be cut there")
def test_cut_short_at_any_moment_is_one_sentence(source: Path, odd: Path, whole: bytes, folder: Path) -> None:
    """From outside, while the command runs: no signal kills it."""
    out = folder / "m.gguf"
    process = subprocess.Popen(
        command(source, out, delay=0.01), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait(lambda: tensors_done(out) >= 5, process)
    cut(source)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert said.startswith(f"error: {source} ")
    assert said.count("\n") == 1
    assert left_in(folder) == []
    shutil.copyfile(odd, source)
    assert run(command(source, out)).returncode == 0
    assert out.read_bytes() == whole


def test_cut_short_between_the_check_and_the_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The moment in which a map of the file would have been a SIGBUS."""
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(range(256)) * 64)
    status = path.stat()
    files = SourceFiles()
    real = reading._OpenFile.fill

    def fill(self: Any, view: memoryview, offset: int) -> int:
        os.truncate(path, 1000)
        return real(self, view, offset)

    monkeypatch.setattr(reading._OpenFile, "fill", fill)
    with pytest.raises(CheckpointError, match=r"weights\.bin ends at byte 1,000, 16,384 were announced"):
        files.read(path, 512, 4096, status.st_size, status.st_mtime_ns)


@pytest.mark.parametrize("code", [errno.EIO, getattr(errno, "ESTALE", errno.EIO)])
def test_a_disk_that_fails(source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    calls = []
    real = reading._OpenFile.fill

    def fill(self: Any, view: memoryview, offset: int) -> int:
        calls.append(offset)
        if len(calls) > 40:
            raise OSError(code, os.strerror(code))
        return real(self, view, offset)

    monkeypatch.setattr(reading._OpenFile, "fill", fill)
    with pytest.raises(
        CheckpointError, match=rf"cannot read .*source\.gguf at byte [\d,]+: {os.strerror(code)}"
    ):
        ewq_gguf.convert(source, folder / "m.gguf", Q4)
    assert left_in(folder) == []


def test_reads_that_come_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.bin"
    content = os.urandom(10_000)
    path.write_bytes(content)
    status = path.stat()
    real = reading._OpenFile.fill
    monkeypatch.setattr(reading._OpenFile, "fill", lambda self, view, at: real(self, view[:777], at))
    data = SourceFiles().read(path, 5, 9_999, status.st_size, status.st_mtime_ns)
    assert data.tobytes() == content[5:9_999]


def test_what_is_read_does_not_change_any_more(tmp_path: Path) -> None:
    """The bytes that were checked are the bytes that are written."""
    path = tmp_path / "weights.bin"
    path.write_bytes(b"a" * 5000)
    status = path.stat()
    data = SourceFiles().read(path, 0, 5000, status.st_size, status.st_mtime_ns)
    with path.open("r+b") as file:
        file.write(b"b" * 5000)
    assert data.tobytes() == b"a" * 5000
    assert not data.flags.writeable


def test_many_files_at_once(tmp_path: Path) -> None:
    """More files than may be open, from several threads: each gets its own bytes."""
    states = []
    for i in range(2 * MAX_OPEN):
        path = tmp_path / f"{i}.bin"
        path.write_bytes(i.to_bytes(2, "little") * 100)
        states.append((path, path.stat()))
    files = SourceFiles()
    wrong: list[int] = []

    def read(offset: int) -> None:
        for turn in range(3 * len(states)):
            i = (turn * 7 + offset) % len(states)
            path, status = states[i]
            data = files.read(path, 100, 200, status.st_size, status.st_mtime_ns)
            if data.tobytes() != i.to_bytes(2, "little") * 50:
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(i * 31,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(files._open) == MAX_OPEN
    if Path("/proc/self/fd").is_dir():
        links = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.exists()]
        assert sum(link.parent == tmp_path for link in links) == MAX_OPEN


@pytest.mark.parametrize("seed", range(4), ids=("f32", "u16", "topk", "llama-perplexity"))
def test_a_baseline_that_is_cut_short_while_in_use(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "baseline"
    path.write_bytes(TARGETS["baseline"].seeds()[seed])
    with open_baseline(path, None) as baseline:
        step = next(iter(baseline.contexts.steps(1, 512)))
        baseline.rows(step)
        os.truncate(path, 4100 if seed < 3 else 60)
        with pytest.raises(EvaluationError, match=r"baseline changed while it was being read"):
            baseline.rows(step)


@pytest.mark.parametrize("end", [30, 1_500_000])
def test_a_header_that_is_cut_short_while_it_is_read(tmp_path: Path, end: int) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(bytes(2_000_000))
    with path.open("rb") as file:
        prefix = GrowingPrefix(file, 2_000_000)
        prefix.reach(24)
        os.truncate(path, end)
        with pytest.raises(OSError, match="2,000,000 were there before"):
            prefix.reach(1_900_000)


class Counted(ArrayTensor):
    """Remembers which rows were read."""

    def raw_rows(self, start: int, stop: int) -> AnyArray:
        self.read = [*getattr(self, "read", []), (start, stop)]
        return super().raw_rows(start, stop)


def test_rows_far_apart_are_not_read_with_all_between() -> None:
    """What is read is copied, so rows nobody asked for would cost memory."""
    values = np.arange(40_000, dtype=np.float32).reshape(10_000, 4)
    source = Counted(values)
    order = np.random.default_rng(3).permutation(10_000)
    view = TakeRows(source, order)
    assert np.array_equal(view.raw_rows(100, 160), values[order[100:160]])
    assert sum(stop - start for start, stop in source.read) < 60 * 9
    ordered = TakeRows(Counted(values), np.arange(10_000)[::-1])
    assert np.array_equal(ordered.raw_rows(0, 10_000), values[::-1])
    assert ordered._source.read == [(0, 10_000)]
