"""Places that cannot be written to, and two runs that want the same one."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import ewq_gguf
from ewq_gguf.errors import QuantizationError
from tests.faults.runs import command, left_in, run, tensors_done, wait
from tests.mounting import mounted

Q4 = ewq_gguf.Decision(type="Q4_0")


def test_two_runs_under_one_name(odd: Path, whole: bytes, folder: Path) -> None:
    out, gate = folder / "m.gguf", folder.parent / "go"
    first = subprocess.Popen(
        command(odd, out, gate=gate), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait(lambda: tensors_done(out) >= 1, first)
    for more in ((), ("--resume",)):
        second = run(command(odd, out, *more))
        assert second.returncode == 1
        assert second.stderr == (
            f"error: another run is writing {out} at this moment; wait for it or choose another name with -o\n"
        )
    gate.touch()
    assert first.wait(60) == 0
    assert out.read_bytes() == whole
    assert left_in(folder) == ["m.gguf"]


# Root may write everywhere as long as it has CAP_DAC_OVERRIDE (Linux, linux/capability.h).
_WITHOUT_OVERRIDE = """
import ctypes, os, sys
if os.getuid() == 0:
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capget(header, sets):
        sys.exit(77)
    for i in range(3):
        sets[i] &= ~2
    if libc.capset(header, sets):
        sys.exit(77)
from ewq_gguf.cli import main
main()
"""


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_that_may_not_be_written(odd: Path, folder: Path, there: bool) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("Linux's capabilities")
    out = folder / "m.gguf"
    if there:
        out.write_bytes(b"what was there before")
    folder.chmod(0o555)
    try:
        failed = run([sys.executable, "-c", _WITHOUT_OVERRIDE, *command(odd, out)[3:]])
    finally:
        folder.chmod(0o755)
    if failed.returncode == 77:
        pytest.skip("root that cannot give up its rights")
    assert failed.returncode == 1
    assert failed.stderr == f"error: cannot write into {folder}; choose another place with -o\n"
    assert left_in(folder) == (["m.gguf"] if there else [])
    assert not there or out.read_bytes() == b"what was there before"


def test_a_file_system_mounted_read_only(odd: Path, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "ro,size=1m") as disk:
        with pytest.raises(QuantizationError, match=f"cannot write.*{disk}.*choose another place with -o"):
            ewq_gguf.convert(odd, disk / "m.gguf", Q4)
        assert left_in(disk) == []


def test_a_folder_under_the_name(odd: Path, folder: Path) -> None:
    with pytest.raises(QuantizationError, match="is a folder; name a file"):
        ewq_gguf.convert(odd, folder, Q4)
    assert left_in(folder) == []


@pytest.mark.parametrize("name", ["m.gguf.part", "m.gguf.part.journal"])
def test_a_folder_in_the_way_of_the_unfinished_file(odd: Path, folder: Path, name: str) -> None:
    (folder / name).mkdir()
    with pytest.raises(QuantizationError, match="cannot write"):
        ewq_gguf.convert(odd, folder / "m.gguf", Q4)
    assert left_in(folder) == [name]


def test_a_missing_folder(odd: Path, folder: Path) -> None:
    with pytest.raises(QuantizationError, match="does not exist; create it first"):
        ewq_gguf.convert(odd, folder / "missing" / "m.gguf", Q4)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_what_is_no_file_is_not_replaced(odd: Path, folder: Path) -> None:
    """Renaming over a device or a pipe would remove it."""
    os.mkfifo(folder / "pipe.gguf")
    with pytest.raises(QuantizationError, match="is no ordinary file"):
        ewq_gguf.convert(odd, folder / "pipe.gguf", Q4)
    assert stat.S_ISFIFO((folder / "pipe.gguf").stat().st_mode)
    assert left_in(folder) == ["pipe.gguf"]


def test_a_name_that_is_too_long(odd: Path, folder: Path) -> None:
    with pytest.raises(QuantizationError, match="File name too long"):
        ewq_gguf.convert(odd, folder / ("m" * 250 + ".gguf"), Q4)
    assert left_in(folder) == []


def test_an_older_file_stays_until_the_new_one_is_whole(odd: Path, whole: bytes, folder: Path) -> None:
    out = folder / "m.gguf"
    out.write_bytes(b"what was there before")

    def stop(stage: str, done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ewq_gguf.convert(odd, out, Q4, progress=stop)
    assert out.read_bytes() == b"what was there before"
    ewq_gguf.convert(odd, out, Q4, resume=True)
    assert out.read_bytes() == whole
    assert left_in(folder) == ["m.gguf"]
