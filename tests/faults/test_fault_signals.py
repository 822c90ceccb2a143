"""Signals: what the user sees, what is left, how the next run goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.runs import as_in_a_terminal, command, left_in, run, tensors_done, wait

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

PART = ["m.gguf.part", "m.gguf.part.journal"]


def stopped(arguments: list[str], out: Path, number: signal.Signals, tensors: int) -> tuple[int, str]:
    """Exit code and stderr of a run that got a signal when so many tensors were done."""
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=as_in_a_terminal
    )
    wait(lambda: tensors_done(out) >= tensors, process)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    return process.returncode, said


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_it_stops_in_good_order_and_goes_on(
    odd: Path, whole: bytes, folder: Path, number: signal.Signals, code: int
) -> None:
    out = folder / "m.gguf"
    got, said = stopped(command(odd, out, delay=0.02), out, number, 10)
    assert got == code
    assert said == (
        "error: interrupted; what is done is kept: run the same command again with --resume to go on\n"
    )
    assert left_in(folder) == PART
    done = run(command(odd, out, "--resume"))
    assert done.returncode == 0
    assert "tensors were there already, read again and sound" in done.stderr
    assert out.read_bytes() == whole
    assert left_in(folder) == ["m.gguf"]


def test_nothing_done_leaves_nothing(odd: Path, folder: Path) -> None:
    out = folder / "m.gguf"
    process = subprocess.Popen(
        command(odd, out, delay=0.5), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=as_in_a_terminal,
    )  # fmt: skip
    wait(lambda: (folder / "m.gguf.part.journal").exists(), process)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert said == "error: interrupted; nothing was left behind\n"
    assert left_in(folder) == []


def test_killed(odd: Path, whole: bytes, folder: Path) -> None:
    out = folder / "m.gguf"
    got, said = stopped(command(odd, out, delay=0.02), out, signal.SIGKILL, 10)
    assert (got, said) == (-signal.SIGKILL, "")
    assert left_in(folder) == PART
    done = run(command(odd, out, "--resume"))
    assert done.returncode == 0
    assert "tensors were there already" in done.stderr
    assert out.read_bytes() == whole
    assert left_in(folder) == ["m.gguf"]


def test_killed_and_started_over(odd: Path, whole: bytes, folder: Path) -> None:
    out = folder / "m.gguf"
    stopped(command(odd, out, delay=0.02), out, signal.SIGKILL, 10)
    done = run(command(odd, out))
    assert done.returncode == 0
    assert "already" not in done.stderr
    assert out.read_bytes() == whole
    assert left_in(folder) == ["m.gguf"]


def test_an_ignored_hangup_stays_ignored(odd: Path, whole: bytes, folder: Path) -> None:
    """As under nohup."""
    out = folder / "m.gguf"
    process = subprocess.Popen(
        ["nohup", *command(odd, out, delay=0.01)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait(lambda: tensors_done(out) >= 5, process)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0
    assert out.read_bytes() == whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_other_commands_end_with_one_line(odd: Path, number: signal.Signals) -> None:
    slow = (
        "import sys, time\n"
        "from ewq_gguf.cli import machine, main\n"
        "def check():\n"
        "    print('begun', flush=True)\n"
        "    time.sleep(60)\n"
        "machine._CHECKS.clear()\n"
        "machine._CHECKS['slow'] = check\n"
        "sys.argv[1:] = ['doctor']\n"
        "main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=as_in_a_terminal,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number
    assert said == "error: interrupted\n"
