"""The measurement itself, with stand-ins for programs: answers, crashes, silence, judgement."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from client_check.catalogue import REFERENCE
from client_check.files import SampleFile
from client_check.install import Installed
from client_check.measure import Answer, Journal, ask, judged, run_worker

EXPECTED = Answer(" a b c", prompt="P", pieces=(" a", " b", " c"), margins=(2.0, 0.03, 1.0))

WORKER = """
import json, os, sys, time
wish = json.loads(open(sys.argv[1]).read())
print("loading", flush=True)
for item in wish["files"]:
    if item["label"] == "dies":
        print("bad magic", flush=True)
        os.abort()
    if item["label"] == "hangs":
        time.sleep(60)
    print("RESULT " + json.dumps({"label": item["label"], "text": item["prompt"].upper()}), flush=True)
"""


@pytest.fixture
def program(tmp_path: Path) -> Installed:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    return Installed(replace(REFERENCE, name="stand-in"), (sys.executable, "-S", str(script)), "1", {})


def _samples(tmp_path: Path, *labels: str) -> list[SampleFile]:
    made = []
    for label in labels:
        path = tmp_path / f"{label}.gguf"
        path.write_bytes(label.encode())
        made.append(SampleFile(label, path, ()))
    return made


def test_a_crash_is_an_answer_and_the_files_after_it_are_asked(program: Installed, tmp_path: Path) -> None:
    samples = _samples(tmp_path, "one", "dies", "two")
    prompts = {"one": "x", "dies": "y", "two": "z"}
    answers = ask(program, samples, Journal(None), prompts=prompts)
    assert answers["one"].text == "X"
    assert answers["two"].text == "Z"
    assert answers["dies"].text is None
    assert answers["dies"].error == "crashed (SIGABRT): bad magic"


def test_a_program_that_falls_silent_is_ended(program: Installed, tmp_path: Path) -> None:
    start = time.monotonic()
    answers = ask(program, _samples(tmp_path, "hangs"), Journal(None), prompts={"hangs": "x"}, seconds=1)
    assert answers["hangs"].error == "no answer within 1 seconds"
    assert time.monotonic() - start < 20


def test_what_was_answered_is_not_asked_again(program: Installed, tmp_path: Path) -> None:
    samples, path = _samples(tmp_path, "one", "dies"), tmp_path / "answers.jsonl"
    prompts = {"one": "x", "dies": "y"}
    first = ask(program, samples, Journal(path), prompts=prompts)
    broken = replace(program, command=("false",))
    assert ask(broken, samples, Journal(path), prompts=prompts) == first
    # Another version, prompt or file is another question.
    newer = ask(replace(broken, version="2"), samples[:1], Journal(path), prompts=prompts)
    assert newer["one"].error == "ended with 1: "
    samples[0].path.write_bytes(b"changed")
    assert ask(broken, samples[:1], Journal(path), prompts=prompts)["one"].error


def test_a_worker_that_leaves_files_out_is_not_asked_for_ever(tmp_path: Path) -> None:
    program = Installed(REFERENCE, ("true",), "1", {})
    answers = ask(program, _samples(tmp_path, "one"), Journal(None), prompts={"one": "x"})
    assert answers["one"].error == "ended without an answer: "


def test_output_that_is_no_answer_is_passed_over() -> None:
    code = "print('RESULT'); print('noise'); print('RESULT {\"label\": \"a\"}')"
    assert list(run_worker([sys.executable, "-S", "-c", code], {}, 20)) == [{"label": "a"}]


def test_the_same_text_is_read() -> None:
    reading = judged("other", "Q4_K", replace(EXPECTED, pieces=(), margins=()), EXPECTED)
    assert (reading.loads, reading.same_text, reading.agreeing, reading.tie) == (True, True, 3, None)


@pytest.mark.parametrize(
    ("text", "agreeing", "tie"),
    [(" a x", 1, 0.03), ("", 0, 2.0), (" a b", 2, 1.0), (" a b c d", 3, None)],
)
def test_where_a_text_parts_is_told_with_the_margin_there(
    text: str, agreeing: int, tie: float | None
) -> None:
    reading = judged("other", "Q4_K", Answer(text), EXPECTED)
    assert (reading.same_text, reading.agreeing, reading.tie) == (False, agreeing, tie)


def test_an_error_and_wrong_values_are_no_text() -> None:
    failed = judged("other", "Q4_K", Answer(error="no such type"), EXPECTED)
    assert (failed.loads, failed.same_text, failed.note) == (False, None, "no such type")
    wrong = judged("parser", "Q4_K", Answer(note="output.weight differs"), EXPECTED)
    assert (wrong.loads, wrong.same_text, wrong.note) == (True, False, "output.weight differs")
