"""A little fuzzing with fixed seeds for every parser, and that the engine notices what it is there to notice."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import pytest

from ewq_gguf.errors import CheckpointError
from tests.fuzz import engine
from tests.fuzz.engine import Examiner, mutate, mutate_json, own_engine
from tests.fuzz.targets import TARGETS, Target

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGALRM")


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_a_little_of_everything(target: Target, tmp_path: Path) -> None:
    report = own_engine(target, 1.0, tmp_path, runs=150, bounded=False)
    assert report.findings == {}
    assert report.runs >= 1


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_seeds_reach_the_end(target: Target, tmp_path: Path) -> None:
    """A seed that is refused at the door fuzzes the door only."""
    examiner = Examiner(target, "own", tmp_path)
    for data in target.seeds()[:3]:
        examiner.run(data)
    examiner.close()
    assert examiner.report.findings == {}
    assert examiner.report.accepted > 0


def broken(data: bytes, folder: Path) -> None:
    if data.startswith(b"index"):
        raise IndexError("a bug")
    if data.startswith(b"slow"):
        time.sleep(5)
    if data.startswith(b"huge"):
        raise MemoryError
    raise CheckpointError("refused, as it should be")


def test_bugs_slowness_and_hunger_are_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SECONDS", 0.05)
    examiner = Examiner(Target("broken", broken, list), "own", tmp_path)
    for data in (b"fine", b"index", b"index and more", b"slow", b"huge"):
        examiner.run(data)
    examiner.close()
    assert [key.split()[0] for key in examiner.report.findings] == ["IndexError", "TooSlow", "MemoryError"]
    assert (examiner.report.runs, examiner.report.accepted) == (5, 0)
    kept = {p.read_bytes() for p in tmp_path.iterdir()}
    # Of two inputs with the same failure the shorter one is kept.
    assert kept == {b"index", b"slow", b"huge"}
    assert not examiner.folder.exists()


def test_the_engine_finds_its_way_in(tmp_path: Path) -> None:
    """Coverage leads it through checks that blind chance would not pass in so few runs."""
    from ewq_gguf.allocation.parsing import parse_size

    found = []

    def run(data: bytes, folder: Path) -> None:
        text = data.decode("latin-1")
        size = parse_size(text)
        found.append(size)
        if size % 1024 == 0 and text.rstrip().endswith("iB"):
            raise ZeroDivisionError

    report = own_engine(
        Target("size", run, lambda: [b"1"], (b"KiB", b"MB")), 20, tmp_path, runs=4000, bounded=False
    )
    assert any(key.startswith("ZeroDivisionError") for key in report.findings)
    assert report.reached > 5


def test_mutations_repeat_with_their_seed_and_stay_in_bounds() -> None:
    words, corpus = (b"word",), [b"abc" * 20_000, b'{"a": [1, 2, {"b": null}]}', b""]
    for data in corpus:
        one = [mutate(data, random.Random(i), corpus, words) for i in range(200)]
        two = [mutate(data, random.Random(i), corpus, words) for i in range(200)]
        assert one == two
        assert max(map(len, one)) <= engine.MAX_INPUT
        assert len(set(one)) > 50
    assert mutate_json(b"3", random.Random(0)) is None
    assert mutate_json(b"not json", random.Random(0)) is None
