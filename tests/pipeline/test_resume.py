"""Interrupted runs: what is left, what can be gone on with, and that the result is the same."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ewq_gguf
from ewq_gguf.errors import CheckpointError, EwqError, QuantizationError
from ewq_gguf.pipeline.journal import Journal, journal_path
from ewq_gguf.pipeline.target import part_path, resumable
from ewq_gguf.pipeline.verify import open_gguf, verify
from tests.mounting import mounted
from tests.pipeline.odd_model import write_imatrix, write_odd_model
from tests.pipeline.test_convert import nan_in

Q4 = ewq_gguf.Decision(type="Q4_0")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_odd_model(tmp_path_factory.mktemp("odd") / "odd.gguf")


@pytest.fixture(scope="module")
def whole(odd: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("whole") / "m.gguf"
    ewq_gguf.convert(odd, out, Q4)
    return out.read_bytes()


def stop_at(share: float, error: BaseException) -> Callable[[str, int, int], None]:
    """A progress callback that fails when so much of the work is done."""

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "Quantizing" and done >= share * total:
            raise error

    return progress


def interrupted(odd: Path, out: Path, share: float = 0.5, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        ewq_gguf.convert(odd, out, Q4, progress=stop_at(share, KeyboardInterrupt()), **options)
    assert not out.exists()


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7, 0.98])
@pytest.mark.parametrize("checksums", [False, True])
def test_going_on_gives_the_same_file(
    odd: Path, whole: bytes, tmp_path: Path, share: float, checksums: bool
) -> None:
    out = tmp_path / "m.gguf"
    interrupted(odd, out, share, checksums=checksums)
    done = ewq_gguf.convert(odd, out, Q4, resume=True, checksums=checksums)
    assert 0 < done.resumed < len(done.plan.tensors)
    if checksums:
        verify(out)
        file, data = open_gguf(out), out.read_bytes()
        for e in file.entries:
            assert file.value(f"ewq.sha256.{e.name}") == hashlib.sha256(data[e.begin : e.end]).hexdigest()
    else:
        assert out.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_finished_tensors_are_verified_not_trusted(odd: Path, whole: bytes, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    interrupted(odd, out)
    part = part_path(out)
    data = bytearray(part.read_bytes())
    entry = next(e for e in open_gguf_table(whole, tmp_path) if e.name == "blk.1.attn_q.weight")
    data[entry.begin + 7] ^= 1
    part.write_bytes(data)
    done = ewq_gguf.convert(odd, out, Q4, resume=True)
    names = [t.name for t in done.plan.tensors]
    assert done.resumed == names.index("blk.1.attn_q.weight")
    assert out.read_bytes() == whole


def open_gguf_table(data: bytes, folder: Path) -> Any:
    path = folder / "table.gguf"
    path.write_bytes(data)
    entries = open_gguf(path).entries
    path.unlink()
    return entries


@pytest.mark.parametrize("harm", ["journal cut", "journal gone", "part cut", "part gone", "journal is noise"])
def test_damaged_leftovers_cost_work_not_correctness(
    odd: Path, whole: bytes, tmp_path: Path, harm: str
) -> None:
    out = tmp_path / "m.gguf"
    interrupted(odd, out)
    journal, part = journal_path(out), part_path(out)
    if harm == "journal cut":
        journal.write_bytes(journal.read_bytes()[:-30])
    elif harm == "journal gone":
        journal.unlink()
    elif harm == "part cut":
        part.write_bytes(part.read_bytes()[:-5000])
    elif harm == "part gone":
        part.unlink()
    else:
        journal.write_bytes(b'{"format": "ewq-gguf journal", "files": ["../x.part"], "facts": {}}\n\xff\xfe')
    ewq_gguf.convert(odd, out, Q4, resume=True)
    assert out.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_something_else_is_not_gone_on_with(odd: Path, whole: bytes, tmp_path: Path) -> None:
    out, imatrix = tmp_path / "m.gguf", tmp_path / "i.imatrix"
    interrupted(odd, out)
    write_imatrix(odd, imatrix)
    other = write_odd_model(tmp_path / "other.gguf", "BF16")
    for source, wish, named in (
        (odd, ewq_gguf.Decision(type="Q5_0"), "plan"),
        (odd, ewq_gguf.Decision(type="Q4_0", imatrix=imatrix), "importance matrix"),
        (other, Q4, "source"),
    ):
        with pytest.raises(QuantizationError, match=f"with another {named}; run again without --resume"):
            ewq_gguf.convert(source, out, wish, resume=True)
    odd_again = tmp_path / "again.gguf"
    odd_again.write_bytes(odd.read_bytes())
    with pytest.raises(QuantizationError, match="with another source"):
        ewq_gguf.convert(odd_again, out, Q4, resume=True)
    # None of these refusals spoiled anything.
    assert ewq_gguf.convert(odd, out, Q4, resume=True).resumed > 0
    assert out.read_bytes() == whole


def test_without_resume_a_stale_part_is_replaced(odd: Path, whole: bytes, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    interrupted(odd, out)
    assert ewq_gguf.convert(odd, out, Q4).resumed == 0
    assert out.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_resume_with_nothing_there_starts_from_the_beginning(odd: Path, whole: bytes, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    assert ewq_gguf.convert(odd, out, Q4, resume=True).resumed == 0
    assert out.read_bytes() == whole


def test_nothing_is_kept_that_cannot_be_gone_on_with(odd: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    interrupted(odd, out, share=0.0)
    assert list(tmp_path.iterdir()) == []
    assert not resumable(out)


def test_two_runs_under_one_name(odd: Path, whole: bytes, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    first = Journal(out)
    with pytest.raises(QuantizationError, match="another run is writing"):
        ewq_gguf.convert(odd, out, Q4)
    first.close(keep=False)
    ewq_gguf.convert(odd, out, Q4)
    assert out.read_bytes() == whole


def test_bad_weights_leave_nothing(checkpoint_copy: Path, tmp_path: Path) -> None:
    nan_in(checkpoint_copy, "model.layers.11.mlp.up_proj.weight")
    out = tmp_path / "out" / "m.gguf"
    out.parent.mkdir()
    with pytest.raises(CheckpointError):
        ewq_gguf.convert(checkpoint_copy, out, Q4)
    assert list(out.parent.iterdir()) == []


def test_full_disk_in_the_middle(
    odd: Path, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m.gguf"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(
        QuantizationError, match=r"No space left.*tensors are kept in m\.gguf\.part.*--resume"
    ):
        ewq_gguf.convert(odd, out, Q4, progress=stop_at(0.5, full))
    assert not out.exists()
    assert ewq_gguf.convert(odd, out, Q4, resume=True).resumed > 0
    assert out.read_bytes() == whole


def test_killed_between_two_renamings(odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = ewq_gguf.Split(max_tensors=40)
    good = tmp_path / "good"
    good.mkdir()
    ewq_gguf.convert(odd, good / "m.gguf", Q4, split=split, checksums=True)
    wanted = {p.name: p.read_bytes() for p in good.iterdir()}
    assert len(wanted) == 3
    folder = tmp_path / "cut"
    folder.mkdir()
    real, calls = Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        ewq_gguf.convert(odd, folder / "m.gguf", Q4, split=split, checksums=True)
    monkeypatch.undo()
    done = ewq_gguf.convert(odd, folder / "m.gguf", Q4, split=split, checksums=True, resume=True)
    assert done.resumed == len(done.plan.tensors)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == wanted


@pytest.mark.parametrize("share", [0.2, 0.6, 0.9])
def test_going_on_with_a_split_model(odd: Path, tmp_path: Path, share: float) -> None:
    split = ewq_gguf.Split(max_bytes=400_000)
    good, folder = tmp_path / "good", tmp_path / "cut"
    good.mkdir()
    folder.mkdir()
    ewq_gguf.convert(odd, good / "m.gguf", Q4, split=split)
    interrupted(odd, folder / "m.gguf", share, split=split)
    assert ewq_gguf.convert(odd, folder / "m.gguf", Q4, split=split, resume=True).resumed > 0
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in good.iterdir()
    }


def command(source: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "ewq_gguf", "-q", "convert", str(source), "-o", str(out), "--type", "Q6_K",
            "--threads", "1", *more]  # fmt: skip


def wait_for(path: Path, process: subprocess.Popen[Any]) -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(0.002)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_in_good_order(reference: Path, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "m.gguf"
    process = subprocess.Popen(command(reference, out), stderr=subprocess.PIPE, text=True)
    journal = journal_path(out)
    wait_for(journal, process)
    while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 12):
        time.sleep(0.002)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    if process.returncode == 0:
        pytest.skip("the run was over before the signal came")
    assert process.returncode == 128 + number
    assert "interrupted; what is done is kept: run the same command again with --resume" in said
    assert said.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.gguf.part", "m.gguf.part.journal"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_killed_at_twenty_random_moments(reference: Path, tmp_path: Path) -> None:
    good = tmp_path / "good.gguf"
    started = time.monotonic()
    subprocess.run(command(reference, good), check=True, capture_output=True)
    lasts = time.monotonic() - started
    rng, landed, folder = random.Random(4), 0, tmp_path / "cut"
    folder.mkdir()
    out = folder / "m.gguf"
    while landed < 20:
        process = subprocess.Popen(command(reference, out, "--resume"), stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.0, lasts))
        process.kill()
        code = process.wait()
        if out.exists():
            # Under the final name there is the whole file or nothing; the kill may have come after renaming.
            assert out.read_bytes() == good.read_bytes()
            assert not part_path(out).exists()
            out.unlink()
        if code == 0:
            continue
        landed += 1
        if rng.random() < 0.5:
            subprocess.run(command(reference, out, "--resume"), check=True, capture_output=True)
            assert out.read_bytes() == good.read_bytes()
            assert [p.name for p in folder.iterdir()] == ["m.gguf"]
            out.unlink()


@pytest.mark.slow
def test_a_small_disk(reference: Path, tmp_path: Path) -> None:
    """A file system that ends where another program has taken the space meanwhile."""
    with mounted(tmp_path / "disk", "size=12m") as disk:
        out = disk / "m.gguf"
        process = subprocess.Popen(command(reference, out), stderr=subprocess.PIPE, text=True)
        wait_for(part_path(out), process)
        (disk / "other").write_bytes(bytes(8 << 20))
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 1
        assert "No space left on device" in said
        assert said.count("\n") == 1
        assert not out.exists()
        (disk / "other").unlink()
        subprocess.run(command(reference, out, "--resume"), check=True, capture_output=True)
        assert [p.name for p in disk.iterdir()] == ["m.gguf"]
        verify(out)


def test_the_journal_says_what_is_there(odd: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    interrupted(odd, out)
    lines = [json.loads(line) for line in journal_path(out).read_text().splitlines()]
    assert lines[0]["files"] == ["m.gguf.part"]
    assert lines[1]["tensor"] == "token_embd.weight"
    assert lines[1]["checksum"].startswith("crc32:")
    with pytest.raises(EwqError):
        Journal(tmp_path / "no" / "m.gguf")
