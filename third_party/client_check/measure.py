"""Ask each program about each file, in a child process with a time limit, and judge what it answers.

A worker is given a JSON request and prints a line `RESULT {...}` per file; what it prints else, how it ends and
how long it takes cannot hurt the caller: a crash is a row of the table, and a new process goes on after it.
Answers are kept in the cache folder, by program, version, worker and file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from client_check.catalogue import WORKERS
from client_check.files import SampleFile
from client_check.install import Installed
from client_check.judge import header_difference, read_header, reference_values, values_difference
from ewq_gguf.allocation.clients import Reading

N_TOKENS = 24
SECONDS = 180
# The reference takes, for each file, the one of these whose text hangs least on rounding.
PROMPTS = (
    "The history of the city", "The first album was released in", "In the early 20th century", "The storm",
    "The game was", "During the First World War ,", "The United States", "She made her debut in",
    "The species is", "The song was written by", "The film was directed by", "The team finished the season",
    "The ship was", "According to", "The battle", "The king",
)  # fmt: skip
_MARK = "RESULT "


@dataclass(frozen=True)
class Answer:
    """What a worker said of one file.

    Attributes:
        text: the continuation without the prompt; None from a program that generates none.
        read_as_is: whether a program that generates none found what is in the file.
        prompt, pieces, margins: of the reference alone: what it chose to continue, the text of each token, and
            by how many logits each won.
        error: why there is nothing, "" where there is.
        note: anything the worker wants to be known.
    """

    text: str | None = None
    read_as_is: bool = False
    prompt: str = ""
    pieces: tuple[str, ...] = ()
    margins: tuple[float, ...] = ()
    error: str = ""
    note: str = ""


@dataclass
class Journal:
    """Answers of earlier runs, one JSON object per line; None keeps nothing."""

    path: Path | None
    _known: dict[str, Answer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path is not None and self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                fields = {key: tuple(v) if isinstance(v, list) else v for key, v in entry["answer"].items()}
                self._known[entry["key"]] = Answer(**fields)

    def get(self, key: str) -> Answer | None:
        return self._known.get(key)

    def add(self, key: str, answer: Answer) -> None:
        self._known[key] = answer
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "answer": asdict(answer)}) + "\n")


def ask(
    program: Installed,
    samples: Sequence[SampleFile],
    journal: Journal,
    *,
    prompts: Mapping[str, str] | None = None,
    seconds: int = SECONDS,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Answer]:
    """A program's answers by label, from the journal where it was asked before.

    Args:
        prompts: what to continue, by label; None lets the program choose among all (the reference does).
        seconds: that a program may take for a file, starting up included.
    """
    keys = {s.label: _key(program, s, None if prompts is None else prompts[s.label]) for s in samples}
    left = [sample for sample in samples if journal.get(keys[sample.label]) is None]
    with tempfile.TemporaryDirectory(prefix="ewq-clients-") as scratch:
        while left:
            request = {
                "tokens": N_TOKENS,
                "scratch": scratch,
                "prompts": PROMPTS,
                "files": [
                    {
                        "label": s.label,
                        "file": str(s.path),
                        **({"prompt": prompts[s.label]} if prompts else {}),
                    }
                    for s in left
                ],
            }
            written = Path(scratch) / "request.json"
            written.write_text(json.dumps(request))
            by_label = {sample.label: sample for sample in left}
            for found in run_worker([*program.command, str(written)], program.environment, seconds):
                # A worker that died says no label: it was at the first file that is left.
                sample = by_label.pop(found.get("label", left[0].label))
                left.remove(sample)
                answer = _answer(program, sample, found)
                journal.add(keys[sample.label], answer)
                tell(
                    f"{program.client.name} {sample.label}: {answer.error or answer.text or answer.note or 'read'}"
                )
    return {sample.label: journal.get(keys[sample.label]) or Answer(error="not asked") for sample in samples}


def _key(program: Installed, sample: SampleFile, prompt: str | None) -> str:
    parts = [program.client.name, program.version, sample.sha256]
    sources = [WORKERS / program.client.worker]
    if program.client.duty == "text":
        parts += [prompt or repr(PROMPTS), str(N_TOKENS)]
    else:
        sources.append(Path(__file__).with_name("judge.py"))
    parts += [hashlib.sha256(source.read_bytes()).hexdigest() for source in sources]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _answer(program: Installed, sample: SampleFile, found: dict[str, Any]) -> Answer:
    if found.get("error"):
        return Answer(error=found["error"])
    if "values" in found:
        differs = values_difference(reference_values(sample.path), Path(found["values"]))
        Path(found["values"]).unlink()
        return Answer(read_as_is=not differs, note=differs)
    if "header" in found:
        differs = header_difference(read_header(sample.path), json.loads(Path(found["header"]).read_text()))
        return Answer(read_as_is=not differs, note=differs)
    return Answer(
        found["text"],
        prompt=found.get("prompt", ""),
        pieces=tuple(found.get("pieces", ())),
        margins=tuple(found.get("margins", ())),
        note=found.get("note", ""),
    )


def run_worker(command: Sequence[str], environment: dict[str, str], seconds: int) -> Iterator[dict[str, Any]]:
    """What a worker prints, as it comes; one that dies or falls silent yields how, under "error", and ends.

    The worker has a process group of its own, which is ended with it.

    Args:
        seconds: of silence that are allowed.
    """
    quiet = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **quiet, **environment},
        start_new_session=True,
    )
    assert process.stdout is not None
    silent = threading.Event()
    last, answered = "", False
    try:
        timer = _watch(process, seconds, silent)
        for raw in process.stdout:
            line = raw.decode("utf-8", "replace").strip()
            if line.startswith(_MARK):
                timer.cancel()
                answered = True
                yield json.loads(line.removeprefix(_MARK))
                timer = _watch(process, seconds, silent)
            last = line or last
        timer.cancel()
        status = process.wait()
        if silent.is_set():
            yield {"error": f"no answer within {seconds} seconds"}
        elif status < 0:
            yield {"error": f"crashed ({signal.Signals(-status).name}): {last[:160]}"}
        elif status > 0:
            yield {"error": f"ended with {status}: {last[:160]}"}
        elif not answered:
            yield {"error": f"ended without an answer: {last[:160]}"}
    finally:
        timer.cancel()
        _end(process)
        process.stdout.close()


def _watch(process: subprocess.Popen[bytes], seconds: int, silent: threading.Event) -> threading.Timer:
    def end() -> None:
        silent.set()
        _end(process)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    return timer


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a worker and what it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def measure(
    reference: Installed,
    clients: Iterable[Installed],
    samples: Sequence[SampleFile],
    journal: Journal,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Reading]:
    """A reading per program and file; the reference's own come first."""
    expected = ask(reference, samples, journal, tell=tell)
    prompts = {label: answer.prompt or PROMPTS[0] for label, answer in expected.items()}
    readings = [judged(reference.client.name, label, said, said) for label, said in expected.items()]
    for program in clients:
        if program.client != reference.client:
            answers = ask(program, samples, journal, prompts=prompts, tell=tell)
            readings += [judged(program.client.name, k, said, expected[k]) for k, said in answers.items()]
    return readings


def judged(name: str, label: str, answer: Answer, expected: Answer) -> Reading:
    """What an answer amounts to beside the reference's."""
    if answer.error:
        return Reading(name, label, False, None, note=answer.error)
    if answer.text is None:
        return Reading(name, label, True, answer.read_as_is, note=answer.note)
    if expected.text is None:
        return Reading(name, label, True, None, note="the reference does not load it")
    if answer.text == expected.text:
        return Reading(name, label, True, True, len(expected.pieces), note=answer.note)
    agreeing, margin = _parting(answer.text, expected)
    return Reading(name, label, True, False, agreeing, margin, answer.note)


def _parting(text: str, expected: Answer) -> tuple[int, float | None]:
    """How many of the reference's tokens a text has, and by how much the reference's next one won."""
    common = len(os.path.commonprefix([text, expected.text or ""]))
    end = 0
    for number, (piece, margin) in enumerate(zip(expected.pieces, expected.margins)):
        end += len(piece)
        if common < end:
            return number, margin
    return len(expected.pieces), None
