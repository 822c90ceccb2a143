"""One parser, one process: inputs made up, kept when they reach new code, and reported when they break something."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import click

from ewq_gguf.errors import EwqError
from tests.fuzz.targets import Target

# What one input may take.
SECONDS, ADDRESS_SPACE = 10.0, 3 << 30
MAX_INPUT = 1 << 16
_PACKAGE = str(Path(__file__).parents[2] / "ewq_gguf")
_NUMBER = re.compile(rb"-?\d+(\.\d+)?")


class TooSlow(BaseException):
    """Raised inside a parser that takes longer than `SECONDS`."""


@dataclass
class Report:
    """What became of a parser.

    Attributes:
        runs: inputs tried; `accepted` of them raised nothing.
        reached: lines of the package that were run.
        findings: one line for each distinct failure, with the file that holds the input.
    """

    target: str
    engine: str
    runs: int = 0
    accepted: int = 0
    reached: int = 0
    slowest: float = 0.0
    findings: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Examiner:
    """Runs a target on inputs and judges what comes out."""

    def __init__(self, target: Target, engine: str, save: Path) -> None:
        shared = Path("/dev/shm")
        place = shared if os.access(shared, os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="ewq-fuzz-", dir=place))
        self.report = Report(target.name, engine)
        self._target, self._save = target, save

    def limit(self) -> None:
        """Bound this process's memory."""
        if sys.platform.startswith("linux"):
            resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, resource.getrlimit(resource.RLIMIT_AS)[1]))

    def _alarm(self, number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"took more than {SECONDS:.0f} s")

    def run(self, data: bytes, *, timer: bool = True) -> None:
        """One input; never raises what the parser raises."""
        started = time.monotonic()
        self.report.runs += 1
        try:
            if timer:
                signal.signal(signal.SIGALRM, self._alarm)
                signal.setitimer(signal.ITIMER_REAL, SECONDS)
            self._target.run(data, self.folder)
            self.report.accepted += 1
        except (EwqError, click.UsageError) as error:
            if "\n" in str(error)[:200] and not str(error).isprintable():
                self._found(data, f"{type(error).__name__} of several lines", error)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._found(data, type(error).__name__, error)
        finally:
            if timer:
                signal.setitimer(signal.ITIMER_REAL, 0)
        took = time.monotonic() - started
        self.report.slowest = max(self.report.slowest, took)
        if not timer and took > SECONDS:
            self._found(data, "TooSlow", TooSlow(f"took {took:.1f} s"))

    def _found(self, data: bytes, kind: str, error: BaseException) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if "/ewq_gguf/" in f.filename]
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
        key = f"{kind} at {where}"
        if key in self.report.findings and len(self._kept(key)) <= len(data):
            return
        self._save.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"\W+", "-", f"{self._target.name} {key}") + ".bin"
        (self._save / name).write_bytes(data)
        self.report.findings[key] = f"{name}: {str(error)[:160]!r}"

    def _kept(self, key: str) -> bytes:
        name = self.report.findings[key].partition(": ")[0]
        return (self._save / name).read_bytes()

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class Coverage:
    """Lines of the package that have been run, counted once; monitoring where Python has it, tracing otherwise."""

    def __init__(self) -> None:
        self.seen: set[tuple[CodeType, int]] = set()
        self._monitoring = getattr(sys, "monitoring", None)

    def __enter__(self) -> Coverage:
        if self._monitoring is not None:
            tool, events = self._monitoring.PROFILER_ID, self._monitoring.events
            self._monitoring.use_tool_id(tool, "fuzz")
            self._monitoring.register_callback(tool, events.LINE, self._line)
            self._monitoring.set_events(tool, events.LINE)
        else:
            sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        if self._monitoring is not None:
            self._monitoring.set_events(self._monitoring.PROFILER_ID, 0)
            self._monitoring.free_tool_id(self._monitoring.PROFILER_ID)
        else:
            sys.settrace(None)

    def _line(self, code: CodeType, line: int) -> Any:
        if code.co_filename.startswith(_PACKAGE):
            self.seen.add((code, line))
        return self._monitoring.DISABLE  # each line is told once

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._trace if frame.f_code.co_filename.startswith(_PACKAGE) else None

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.seen.add((frame.f_code, frame.f_lineno))
        return self._trace


_ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**40, 0.5, 1e308, "", "a", "\ud800", "\0", [], {}, [None], {"a": 1},
)  # fmt: skip


def mutate_json(data: bytes, rng: random.Random) -> bytes | None:
    """The document with one value replaced, removed, doubled or moved; None where it is no JSON with parts."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, (dict, list)):
        return None
    nodes: list[Any] = [document]
    for node in nodes:
        if len(nodes) > 5000:
            break
        children = node.values() if isinstance(node, dict) else node
        nodes += [child for child in children if isinstance(child, (dict, list)) and child]
    node = rng.choice(nodes)
    if not isinstance(node, (dict, list)) or not node:
        return None
    key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
    kind = rng.randrange(5)
    if kind == 0:
        del node[key]
    elif kind == 1:
        node[key] = rng.choice(_ODD)
    elif kind == 2 and type(node[key]) in (int, float):
        node[key] = node[key] * rng.choice((-1, 2, 0, 1.5, 10**9)) + rng.choice((0, 1, -1))
    elif kind == 3 and isinstance(node, list):
        node.insert(rng.randrange(len(node) + 1), node[key])
    else:
        node[key] = rng.choice(nodes) if rng.random() < 0.5 else str(node[key])[:1000]
    try:
        return json.dumps(document).encode()[:MAX_INPUT]
    except ValueError:
        # A node was put into itself.
        return None


def mutate(data: bytes, rng: random.Random, corpus: list[bytes], words: tuple[bytes, ...]) -> bytes:
    """A few changes of the kinds that parsers stumble over; at most `MAX_INPUT` bytes."""
    if rng.random() < 0.5 and (changed := mutate_json(data, rng)) is not None:
        return changed
    out = bytearray(data)
    for _ in range(1 << rng.randrange(4)):
        kind, at = rng.randrange(9), rng.randrange(len(out) + 1)
        size = min(len(out) - at, 1 << rng.randrange(8))
        if kind == 0 and out:
            out[min(at, len(out) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at : at + size]
        elif kind == 2:
            out[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 3 and words:
            out[at : at + rng.choice((0, size))] = rng.choice(words)
        elif kind == 4:
            out[at:at] = out[at : at + size] * rng.randrange(1, 5)
        elif kind == 5:
            other = rng.choice(corpus)
            start = rng.randrange(len(other) + 1)
            out[at : at + size] = other[start : start + rng.randrange(1, 65)]
        elif kind == 6:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice(
                (0, 1, 1 << 7, 1 << 31, 1 << 32, 1 << 62, (1 << 63) - 1, rng.randrange(1 << 16))
            )
            out[at : at + width] = (number % (1 << 8 * width)).to_bytes(width, "little")
        elif kind == 7 and (numbers := list(_NUMBER.finditer(out))):
            found = rng.choice(numbers)
            out[found.start() : found.end()] = str(rng.choice((-1, 0, 1, 2**31, 2**63, 10**30, 0.5))).encode()
        elif kind == 8:
            del out[at:]
        if len(out) > MAX_INPUT:
            del out[MAX_INPUT:]
    return bytes(out)


def own_engine(
    target: Target,
    seconds: float,
    save: Path,
    corpus: Path | None = None,
    *,
    seed: int = 0,
    runs: int | None = None,
    bounded: bool = True,
) -> Report:
    """Mutate seeds, and whatever reached new lines, for so long or so often; `bounded` limits this process's memory."""
    rng = random.Random(f"{target.name} {seed}")
    examiner = Examiner(target, "own", save)
    if bounded:
        examiner.limit()
    pool = target.seeds()
    if corpus is not None and corpus.is_dir():
        pool += [p.read_bytes() for p in sorted(corpus.iterdir())]
    deadline = time.monotonic() + seconds
    try:
        with Coverage() as coverage:
            for data in list(pool):
                examiner.run(data)
            known = len(coverage.seen)
            while time.monotonic() < deadline and (runs is None or examiner.report.runs < runs):
                data = mutate(rng.choice(pool), rng, pool, target.words)
                examiner.run(data)
                if len(coverage.seen) > known:
                    known = len(coverage.seen)
                    pool.append(data)
                    if corpus is not None:
                        corpus.mkdir(parents=True, exist_ok=True)
                        (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
            examiner.report.reached = len(coverage.seen)
    finally:
        examiner.close()
    return examiner.report


def atheris_engine(
    target: Target, seconds: float, save: Path, corpus: Path, told: Callable[[Report], None]
) -> None:
    """libFuzzer through atheris, which ends the process itself; `told` gets the figures every second."""
    import atheris

    examiner = Examiner(target, "atheris", save)
    corpus.mkdir(parents=True, exist_ok=True)
    # The parsers import their modules when they are first called: that is when those are instrumented.
    with atheris.instrument_imports(include=["ewq_gguf"]):
        for data in target.seeds():
            (corpus / f"seed-{hashlib.sha256(data).hexdigest()[:16]}").write_bytes(data)
            examiner.run(data, timer=False)
    save.mkdir(parents=True, exist_ok=True)
    words = save / "words.txt"
    escaped = ("".join(rf"\x{byte:02x}" for byte in word) for word in target.words)
    words.write_text("".join(f'"{word}"\n' for word in escaped), encoding="ascii")
    last = 0.0

    def one(data: bytes) -> None:
        nonlocal last
        examiner.run(data, timer=False)
        if time.monotonic() - last > 1:
            last = time.monotonic()
            told(examiner.report)

    options = [
        f"-max_total_time={max(1, int(seconds))}",
        f"-max_len={MAX_INPUT}",
        f"-timeout={3 * int(SECONDS)}",
    ]
    options += [f"-rss_limit_mb={ADDRESS_SPACE >> 20}", f"-artifact_prefix={save}/", "-print_final_stats=1"]
    if target.words:
        options.append(f"-dict={words}")

    def change(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        found = mutate_json(data, rng) if rng.random() < 0.3 else None
        return found[:most] if found is not None else bytes(atheris.Mutate(data, most))

    atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=change)
    atheris.Fuzz()
