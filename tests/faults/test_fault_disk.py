"""A disk that is full, or refuses, in every phase of writing."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ewq_gguf
from ewq_gguf.errors import QuantizationError
from ewq_gguf.pipeline.gguf_source import open_gguf
from ewq_gguf.pipeline.verify import verify
from tests.faults.runs import command, left_in, run
from tests.mounting import mounted

Q4 = ewq_gguf.Decision(type="Q4_0")
PART = ["m.gguf.part", "m.gguf.part.journal"]


def limited(nbytes: int) -> Callable[[], None]:
    """For a child: no file may grow beyond so many bytes."""

    def limit() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes))

    return limit


def header_size(data: bytes, folder: Path) -> int:
    path = folder.parent / "table.gguf"
    path.write_bytes(data)
    return min(e.begin for e in open_gguf(path).entries)


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
@pytest.mark.parametrize("phase", ["journal", "header", "first tensor", "middle", "last byte"])
def test_full_at_every_phase(odd: Path, whole: bytes, folder: Path, phase: str) -> None:
    header = header_size(whole, folder)
    limit = {
        "journal": 64,
        "header": header - 8,
        "first tensor": header + 100,
        "middle": len(whole) // 2,
        "last byte": len(whole) - 1,
    }[phase]
    out = folder / "m.gguf"
    failed = run(command(odd, out), preexec_fn=limited(limit))
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"error: cannot write {out}: File too large")
    assert failed.stderr.count("\n") == 1
    assert not out.exists()
    if phase in ("middle", "last byte"):
        assert "tensors are kept in m.gguf.part: run again with --resume" in failed.stderr
        assert left_in(folder) == PART
    else:
        assert left_in(folder) == []
    done = run(command(odd, out, "--resume"))
    assert done.returncode == 0, done.stderr
    assert ("already" in done.stderr) == (phase in ("middle", "last byte"))
    assert out.read_bytes() == whole
    assert left_in(folder) == ["m.gguf"]


@pytest.mark.parametrize("call", ["fsync", "seal", "replace"])
def test_refusals_after_the_last_tensor(
    odd: Path, whole: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Space that was promised and is not there shows as late as that on network file systems."""
    out = folder / "m.gguf"

    calls = []

    def full(*_: Any, **__: Any) -> None:
        calls.append(call)
        # The second time is when the checksums are written into the header.
        if call != "seal" or len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call == "replace":
        monkeypatch.setattr(Path, "replace", full)
    else:
        monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(QuantizationError, match=r"No space left on device; 83 of 83 tensors are kept"):
        ewq_gguf.convert(odd, out, Q4, checksums=call == "seal")
    monkeypatch.undo()
    assert not out.exists()
    assert left_in(folder) == PART
    done = ewq_gguf.convert(odd, out, Q4, resume=True, checksums=call == "seal")
    assert done.resumed == len(done.plan.tensors)
    assert left_in(folder) == ["m.gguf"]
    if call != "seal":
        assert out.read_bytes() == whole
    verify(out)


def test_too_small_from_the_start(odd: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ewq_gguf.pipeline import target

    class Usage:
        free = 1000

    monkeypatch.setattr(target.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(QuantizationError, match=r"has 1,000 bytes free and the file needs [\d,]+; free some"):
        ewq_gguf.convert(odd, folder / "m.gguf", Q4)
    assert left_in(folder) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "size=8m") as disk:
        yield disk


def test_another_program_takes_the_space(odd: Path, whole: bytes, small_disk: Path) -> None:
    out = small_disk / "m.gguf"

    def take(stage: str, done: int, total: int) -> None:
        if stage == "Quantizing" and done > total / 2 and not (small_disk / "other").exists():
            free = os.statvfs(small_disk)
            (small_disk / "other").write_bytes(bytes(free.f_bavail * free.f_frsize))

    with pytest.raises(QuantizationError, match=r"No space left on device; \d+ of 83 tensors are kept"):
        ewq_gguf.convert(odd, out, Q4, progress=take)
    assert left_in(small_disk) == [*PART, "other"]
    (small_disk / "other").unlink()
    assert ewq_gguf.convert(odd, out, Q4, resume=True).resumed > 10
    assert out.read_bytes() == whole
    assert left_in(small_disk) == ["m.gguf"]


def test_no_space_for_the_scratch_copy(
    odd: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rate-distortion allocation writes the model once into the folder for temporary files."""
    from ewq_gguf.pipeline import scratch as copies
    from ewq_gguf.pipeline import target

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(copies, "_scratch_folder", lambda _: scratch)

    class Usage:
        free = 1000

    monkeypatch.setattr(target.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(QuantizationError, match=r"has 1,000 bytes free and the file needs"):
        ewq_gguf.convert(odd, folder / "m.gguf", ewq_gguf.Decision(size=800_000))
    assert left_in(folder) == []
    assert left_in(scratch) == []


def test_no_folder_for_temporary_files(odd: Path, folder: Path) -> None:
    missing = folder.parent / "missing"
    environment = {**os.environ, "TMPDIR": str(missing), "TMP": str(missing), "TEMP": str(missing)}
    done = run(command(odd, folder / "m.gguf"), env=environment)
    assert done.returncode == 0, done.stderr
    assert left_in(folder) == ["m.gguf"]
