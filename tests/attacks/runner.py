"""Run an attack through the real command and say what came of it."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from click.testing import CliRunner

from ewq_gguf.cli import cli
from tests.attacks.attack import OUT, Attack
from tests.attacks.workshop import Workshop

MOST_SECONDS = 2.0
MOST_BYTES = 300 << 20
# Wall time at which an attack counts as one that never ends.
_ENDLESS = 20
_ADDRESS_SPACE = 6 << 30
_LONGEST_SENTENCE = 1001
_ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Outcome:
    """What an attack came to.

    Attributes:
        seconds: processor time, the system's share included; wall time would count what else the machine does.
        grown: bytes that the process's memory grew by at most.
        faults: what was not as it must be; empty where the attack was refused in good order.
        sentence: the error as it was shown.
    """

    attack: Attack
    seconds: float
    grown: int
    faults: tuple[str, ...]
    sentence: str


class _Endless(BaseException):
    """Raised by the alarm, past every `except Exception`."""


@contextlib.contextmanager
def _alarm(seconds: int) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise _Endless

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _memory(key: str) -> int:
    """`VmHWM` (peak) or `VmRSS` of this process in bytes; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) << 10
    return 0


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@contextlib.contextmanager
def _native_stderr(path: Path) -> Iterator[Path]:
    """What libraries write to standard error past Python, in a file."""
    before = os.dup(2)
    with path.open("wb") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield path
    finally:
        os.dup2(before, 2)
        os.close(before)


def _listing(folder: Path) -> dict[str, object]:
    """What lies below a folder: the content of small files, the size of others."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        small = stat.S_ISREG(status.st_mode) and status.st_size < 1 << 20
        found[str(path.relative_to(folder))] = (
            path.read_bytes() if small else (status.st_mode, status.st_size)
        )
    return found


def _judged(
    attack: Attack, code: int | None, output: str, shown: str, folder: Path, before: object
) -> tuple[list[str], str]:
    """Faults in what the command did and said, and the sentence it ended with."""
    lines = shown.rstrip("\n").split("\n")
    errors = [line for line in lines if line.startswith("error: ")]
    sentence = lines[-1].removeprefix("error: ")
    faults = []
    if code != 1:
        faults.append(f"exit code {code}")
    if "Traceback" in shown or "Traceback" in output:
        faults.append("a traceback")
    if len(errors) != 1 or not lines[-1].startswith("error: "):
        faults.append(f"{len(errors)} sentences, and the last line is {lines[-1]!r:.200}")
    if not sentence.isprintable() or not 20 < len(sentence) < _LONGEST_SENTENCE:
        faults.append(f"a sentence of {len(sentence)} characters, printable: {sentence.isprintable()}")
    faults += [f"no word of {word!r}" for word in attack.says if word not in sentence]
    after = _listing(folder / OUT)
    if after != before:
        faults.append(f"left behind: {sorted(set(after) ^ set(before)) or 'another content'}")  # type: ignore[call-overload]
    return faults, sentence


def run(attack: Attack, folder: Path, workshop: Workshop) -> Outcome:
    """In this process; `folder` is made and removed again."""
    args, before = _prepared(attack, folder, workshop)
    _forget_peak()
    resident, used = _memory("VmRSS"), time.process_time()
    endless = False
    code: int | None = None
    output = shown = ""
    told = ""
    try:
        with _alarm(_ENDLESS), _native_stderr(folder.parent / "native.txt") as native:
            result = CliRunner().invoke(cli, args, prog_name="ewq-gguf")
        told = native.read_text(encoding="utf-8", errors="replace")
        code, output, shown = result.exit_code, result.stdout, result.stderr
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            shown += f"\nTraceback: {result.exception!r:.300}"
    except _Endless:
        endless = True
    seconds, grown = time.process_time() - used, max(0, _memory("VmHWM") - resident)
    faults, sentence = _judged(attack, code, output, shown, folder, before)
    if endless:
        faults = [f"no end after {_ENDLESS} s"]
    if told:
        faults.append(f"a library told the terminal {told!r:.200}")
    if seconds > MOST_SECONDS:
        faults.append(f"{seconds:.1f} s")
    if grown > MOST_BYTES:
        faults.append(f"{grown >> 20} MB")
    shutil.rmtree(folder, ignore_errors=True)
    return Outcome(attack, seconds, grown, tuple(faults), sentence)


def run_apart(attack: Attack, folder: Path, workshop: Workshop, usual: tuple[float, int]) -> Outcome:
    """In a process of its own, with little address space; `usual` is what a sound conversion takes there."""
    args, before = _prepared(attack, folder, workshop)
    code, shown, seconds, most = command(args)
    faults, sentence = _judged(attack, code, "", shown, folder, before)
    seconds, grown = max(0.0, seconds - usual[0]), max(0, most - usual[1])
    if seconds > MOST_SECONDS:
        faults.append(f"{seconds:.1f} s")
    if grown > MOST_BYTES:
        faults.append(f"{grown >> 20} MB")
    shutil.rmtree(folder, ignore_errors=True)
    return Outcome(attack, seconds, grown, tuple(faults), sentence)


def command(args: Sequence[str]) -> tuple[int, str, float, int]:
    """The installed command: exit code, standard error, processor seconds, peak bytes in memory."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
        resource.setrlimit(resource.RLIMIT_CPU, (_ENDLESS, _ENDLESS))

    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    process = subprocess.Popen(
        [sys.executable, "-m", "ewq_gguf", *args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
        env=environment,
        preexec_fn=limit,
    )
    assert process.stderr is not None
    with process.stderr as stream:
        shown = stream.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, shown, usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10


def _prepared(attack: Attack, folder: Path, workshop: Workshop) -> tuple[list[str], dict[str, object]]:
    (folder / OUT).mkdir(parents=True)
    args = attack.prepare(folder, workshop)
    return args, _listing(folder / OUT)


def table(outcomes: Sequence[Outcome]) -> str:
    """Inputs, the slowest and the largest growth by kind."""
    kinds: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        kinds.setdefault(outcome.attack.kind, []).append(outcome)
    rows = [("kind", "inputs", "refused", "slowest, s", "most memory, MB")]
    for kind, found in [*kinds.items(), ("all", list(outcomes))]:
        refused = sum(not o.faults for o in found)
        slowest = max((o.seconds for o in found), default=0.0)
        largest = max((o.grown for o in found), default=0)
        rows.append((kind, str(len(found)), str(refused), f"{slowest:.2f}", f"{largest / (1 << 20):.0f}"))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join(
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        for row in rows
    )
