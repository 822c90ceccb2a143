from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ewq_gguf.errors import EvaluationError
from ewq_gguf.evaluation import speed as speed_module
from ewq_gguf.evaluation.engine import Settings
from ewq_gguf.evaluation.speed import SpeedRun, speed


def test_a_real_run(model: Path) -> None:
    (found,) = speed(model, prompt_tokens=32, generated_tokens=4, repeats=1, settings=Settings(n_threads=1))
    assert found.prompt_tps > 0
    assert found.generate_tps > 0
    assert 0 < found.load_seconds < 60
    assert found.n_threads == 1
    if sys.platform.startswith(("linux", "darwin")):
        # An interpreter with numpy and the library needs more than 20 MB and less than a GB.
        assert 20e6 < found.rss_bytes < 1e9
    fields = json.loads(json.dumps(found.as_json()))
    assert fields["prompt_tps"] == found.prompt_tps
    assert len(fields["runs"]) == 1


def test_files_take_turns_and_medians_are_reported(
    model: Path, coarse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def child(path: Path, _order: object) -> tuple[SpeedRun, int]:
        asked.append(path)
        turn = len(asked)
        return SpeedRun(10.0**turn, 1.0 * turn, 0.1 * turn, 1000 * turn), 2

    monkeypatch.setattr(speed_module, "_run_child", child)
    seen: list[tuple[int, int]] = []
    one, other = speed([model, coarse], repeats=3, progress=lambda a, b: seen.append((a, b)))
    assert asked == [model, coarse] * 3
    assert (one.prompt_tps, other.prompt_tps) == (1e3, 1e4)
    assert one.generate_range == (1, 5)
    assert other.rss_bytes == 4000
    assert other.n_bytes == coarse.stat().st_size
    assert seen[-1] == (6, 6)


def test_errors(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EvaluationError, match="does not exist"):
        speed(tmp_path / "none.gguf")
    with pytest.raises(EvaluationError, match="at least one"):
        speed(model, repeats=0)
    with pytest.raises(EvaluationError, match="at least one"):
        speed([])
    # The child's own sentence comes through.
    with pytest.raises(EvaluationError, match="cannot open a context"):
        speed(model, repeats=1, prompt_tokens=8, settings=Settings(cache_type_k="q8_0", n_threads=1))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    if Path("/bin/false").exists():
        with pytest.raises(EvaluationError, match="ended with code 1"):
            speed(model, repeats=1)


def test_a_child_that_dies_is_reported(make_model: Callable[..., Path], tmp_path: Path) -> None:
    broken = tmp_path / "renamed.gguf"
    broken.write_bytes(make_model().read_bytes().replace(b"output_norm.weight", b"output_nerm.weight"))
    with pytest.raises(EvaluationError, match="cannot load"):
        speed(broken, repeats=1)
