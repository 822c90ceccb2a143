"""Standard streams that are closed, full, or that nobody reads."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.runs import command, left_in, run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX streams")


def shell(redirection: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return run(["sh", "-c", f'"$@" {redirection}', "sh", *arguments])


@pytest.mark.parametrize("redirection", ["2>&-", ">&-", ">&- 2>&-", "2>/dev/full", "<&- >&- 2>&-"])
def test_streams_that_take_nothing_do_not_cost_the_file(
    odd: Path, whole: bytes, folder: Path, redirection: str
) -> None:
    if "full" in redirection and not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    done = shell(redirection, command(odd, folder / "m.gguf"))
    assert done.returncode == 0, done.stderr
    assert (folder / "m.gguf").read_bytes() == whole
    assert left_in(folder) == ["m.gguf"]


def test_results_that_cannot_be_written_are_an_error(odd: Path, whole: bytes, folder: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    done = shell(">/dev/full", command(odd, folder / "m.gguf"))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == "error: cannot write the results: No space left on device"
    assert "Traceback" not in done.stderr
    assert (folder / "m.gguf").read_bytes() == whole


def test_a_reader_that_went_away(odd: Path, whole: bytes, folder: Path) -> None:
    """`ewq-gguf ... | head`: no traceback, no complaint, and the file is there."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            command(odd, folder / "m.gguf"), stdout=writing, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(writing)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    assert "Broken pipe" not in done.stderr
    assert (folder / "m.gguf").read_bytes() == whole


def test_head(odd: Path) -> None:
    listing = [sys.executable, "-m", "ewq_gguf", "inspect", str(odd)]
    done = run(["sh", "-c", '"$@" | head -n 2', "sh", *listing])
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr == ""


def test_an_stderr_whose_reader_went_away(odd: Path, whole: bytes, folder: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            command(odd, folder / "m.gguf"), stdout=subprocess.PIPE, stderr=writing, text=True, check=False
        )
    finally:
        os.close(writing)
    assert done.returncode == 0
    assert f"wrote {folder / 'm.gguf'}" in done.stdout
    assert (folder / "m.gguf").read_bytes() == whole


def test_a_full_pipe_that_nobody_reads(odd: Path, whole: bytes, folder: Path) -> None:
    """Notes are dropped after some patience, once; the file is made."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    impatient = "import ewq_gguf.cli.streams as s; s._PATIENCE = 0.2; import ewq_gguf.cli as c; c.main()"
    arguments = [sys.executable, "-c", impatient, *command(odd, folder / "m.gguf")[3:]]
    started = time.monotonic()
    try:
        done = subprocess.run(
            arguments, stdout=subprocess.PIPE, stderr=writing, text=True, timeout=60, check=False
        )
    finally:
        os.close(writing)
        os.close(reading)
    assert done.returncode == 0
    assert time.monotonic() - started < 30
    assert (folder / "m.gguf").read_bytes() == whole


def test_a_slow_reader_gets_everything(odd: Path, folder: Path) -> None:
    """What fits into the pipe in time is not cut: a long error message comes through whole."""
    name = "n" * 200
    deep = folder / name / name / name
    reading, writing = os.pipe()
    process = subprocess.Popen(command(odd, deep / "m.gguf"), stdout=subprocess.DEVNULL, stderr=writing)
    os.close(writing)
    time.sleep(0.5)
    with os.fdopen(reading) as stream:
        said = stream.read()
    assert process.wait(60) == 1
    assert said == f"error: the folder {deep} does not exist; create it first\n"
