from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ewq_gguf.errors import EvaluationError
from ewq_gguf.evaluation import crash
from ewq_gguf.evaluation.engine import Engine

DIES = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty memory of its own."""
    monkeypatch.setenv("EWQ_GGUF_CACHE", str(tmp_path / "cache"))
    crash._probe_once.cache_clear()
    yield tmp_path / "cache" / "native-probe.json"
    crash._probe_once.cache_clear()


def _child(monkeypatch: pytest.MonkeyPatch, program: str) -> list[bool]:
    tried: list[bool] = []

    def command(_model: Path, use_extra_bufts: bool) -> list[str]:
        tried.append(use_extra_bufts)
        return [sys.executable, "-c", program]

    monkeypatch.setattr(crash, "_child_command", command)
    return tried


@pytest.mark.parametrize("use_extra_bufts", [False, True])
def test_this_machine(memory: Path, use_extra_bufts: bool) -> None:
    result = crash.probe_engine(use_extra_bufts)
    assert result.safe is not None, result.sentence
    (entry,) = json.loads(memory.read_text()).values()
    assert entry == {"safe": result.safe, "sentence": result.sentence}


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_crash_is_seen_and_remembered(
    memory: Path, monkeypatch: pytest.MonkeyPatch, coarse: Path, model: Path
) -> None:
    tried = _child(monkeypatch, DIES)
    assert not crash.engine_is_safe()
    assert "SIGSEGV" in crash.probe_engine().sentence
    assert tried == [False]
    crash._probe_once.cache_clear()
    with pytest.raises(EvaluationError, match=r"not loaded: .*SIGSEGV.*without AMX: CMAKE_ARGS"):
        Engine(coarse)
    assert tried == [False]
    # Nothing is quantized in it, so nothing can go wrong.
    Engine(model, n_ctx=64, n_threads=1).close()
    Engine(coarse, n_ctx=64, n_threads=1, probe=False).close()
    # After a repair the answer is asked for again.
    _child(monkeypatch, "print('survived')")
    assert crash.probe_engine(refresh=True).safe
    crash._probe_once.cache_clear()
    assert crash.engine_is_safe()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_repacking_alone_may_be_what_kills(
    memory: Path, monkeypatch: pytest.MonkeyPatch, coarse: Path
) -> None:
    def command(_model: Path, use_extra_bufts: bool) -> list[str]:
        return [sys.executable, "-c", DIES if use_extra_bufts else "print('survived')"]

    monkeypatch.setattr(crash, "_child_command", command)
    with pytest.raises(EvaluationError, match="leave use_extra_bufts off"):
        Engine(coarse, use_extra_bufts=True)
    assert len(json.loads(memory.read_text())) == 2


@pytest.mark.parametrize("program", ["raise SystemExit('no library')", "pass"])
def test_an_inconclusive_probe_stops_nobody_and_is_not_remembered(
    memory: Path, monkeypatch: pytest.MonkeyPatch, coarse: Path, program: str
) -> None:
    _child(monkeypatch, program)
    assert crash.probe_engine().safe is None
    assert crash.engine_is_safe()
    assert not memory.exists()
    Engine(coarse, n_ctx=64, n_threads=1).close()


def test_the_key_follows_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = tmp_path / "libllama.so"
    library.write_bytes(b"one")
    monkeypatch.setattr(crash, "library_path", lambda: library)
    before = crash.machine_key()
    assert crash.machine_key() == before
    library.write_bytes(b"other")
    assert crash.machine_key() != before


@pytest.mark.parametrize("content", ["{", "[]", '{"k": 1}', "\x00"])
def test_a_damaged_memory_is_ignored(memory: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    memory.parent.mkdir()
    memory.write_text(content)
    tried = _child(monkeypatch, "print('survived')")
    assert crash.engine_is_safe()
    assert tried == [False]


def test_an_unwritable_memory_is_no_error(
    memory: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EWQ_GGUF_CACHE", str(tmp_path / "file" / "below"))
    _child(monkeypatch, "print('survived')")
    assert crash.engine_is_safe()


def test_where_it_is_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EWQ_GGUF_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert crash.cache_folder() == tmp_path / "ewq-gguf"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert crash.cache_folder() == Path.home() / ".cache" / "ewq-gguf"


def test_causes() -> None:
    assert crash._cause(-signal.SIGABRT) == "SIGABRT"
    assert crash._cause(0xC0000005) == "exit code 0xc0000005"
