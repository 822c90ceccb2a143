"""Changing a running model in memory, and putting it back."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from ewq_gguf.calibration import workbench
from ewq_gguf.calibration.meter import Meter
from ewq_gguf.calibration.workbench import MappedWorkbench, Slot
from ewq_gguf.errors import EvaluationError
from ewq_gguf.evaluation.engine import Engine
from ewq_gguf.ggml import GGMLType

N_CTX = 64


def test_weights_reach_the_model_and_come_back(dense_model: Path, text: str) -> None:
    with (
        MappedWorkbench(dense_model, n_ctx=N_CTX, n_batch=N_CTX, n_threads=1) as bench,
        Meter(bench.engine, text, 2) as meter,
    ):
        assert np.all(meter.read().rows == 0)
        for name in ("token_embd.weight", "blk.0.attn_q.weight", "blk.1.ffn_down.weight"):
            slot = bench.slots[name]
            rows = bench.rows(name, 0, slot.n_rows)
            bench.write(name, 0, rows * np.float32(1.05))
            np.testing.assert_array_equal(bench.current(name, 0, slot.n_rows), rows * np.float32(1.05))
            assert not bench.intact()
            assert meter.read().mean.value > 1e-6, name
            bench.restore(name)
            assert bench.intact()
            assert np.all(meter.read().rows == 0)


def test_the_source_is_never_touched(dense_model: Path, text: str) -> None:
    before = dense_model.read_bytes()
    with MappedWorkbench(dense_model, n_ctx=N_CTX, n_threads=1) as bench:
        bench.write("blk.0.attn_q.weight", 0, np.zeros((4, 256), np.float32))
    assert dense_model.read_bytes() == before


def test_nothing_is_left_in_the_scratch_folder(dense_model: Path, tmp_path: Path) -> None:
    with MappedWorkbench(dense_model, n_ctx=N_CTX, n_threads=1, folder=tmp_path) as bench:
        assert bench.slots
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kind", "stored"), [("dense_model", "F32"), ("half_model", "F16")])
def test_divergence_grows_with_the_square_of_the_error(
    kind: str, stored: str, text: str, request: pytest.FixtureRequest
) -> None:
    model: Path = request.getfixturevalue(kind)
    noise = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32) * 2e-3
    found = []
    with (
        MappedWorkbench(model, n_ctx=N_CTX, n_threads=1) as bench,
        Meter(bench.engine, text, 4) as meter,
    ):
        name = "blk.0.attn_v.weight"
        assert bench.slots[name].type.name == stored
        rows = bench.rows(name, 0, 128)
        for scale in (1.0, 2.0, 4.0):
            bench.write(name, 0, rows + np.float32(scale) * noise[:128])
            found.append(meter.read().mean.value)
    assert found[1] / found[0] == pytest.approx(4, rel=0.1)
    assert found[2] / found[1] == pytest.approx(4, rel=0.1)


def test_divergence_is_the_textbook_formula(dense_model: Path, text: str) -> None:
    with (
        MappedWorkbench(dense_model, n_ctx=N_CTX, n_batch=N_CTX, n_threads=1) as bench,
        Meter(bench.engine, text, 1) as meter,
    ):
        (step,) = meter.contexts.steps(1, N_CTX)
        before = step.run(bench.engine).astype(np.float64)
        bench.write("blk.1.ffn_up.weight", 0, bench.rows("blk.1.ffn_up.weight", 0, 256) * np.float32(1.5))
        after = step.run(bench.engine).astype(np.float64)
        rows = meter.read().rows

    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x - x.max(axis=1, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=1, keepdims=True))

    p, q = log_softmax(before), log_softmax(after)
    np.testing.assert_allclose(rows, (np.exp(p) * (p - q)).sum(axis=1), rtol=1e-5)


def test_a_copy_that_does_not_reach_the_model_is_refused(
    dense_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a build that moves weights elsewhere: what is written lands in a private copy."""
    real = workbench._map

    def private(path: Path, mode: str) -> np.ndarray:
        return real(path, "r").copy() if mode == "r+" else real(path, mode)

    monkeypatch.setattr(workbench, "_map", private)
    with pytest.raises(EvaluationError, match="does not reach the running model"):
        MappedWorkbench(dense_model, n_ctx=N_CTX, n_threads=1)


def test_no_room_for_the_copy(dense_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type(usage)(usage.total, usage.used, 1000))
    with pytest.raises(EvaluationError, match="no room"):
        MappedWorkbench(dense_model, n_ctx=N_CTX, n_threads=1)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"x" * 100])
def test_what_is_no_model(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(EvaluationError, match=r"m\.gguf"):
        MappedWorkbench(path, n_threads=1)


def test_slabs_cover_every_row_once_and_cross_no_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbench, "_SLAB", 100)
    slot = Slot("x", GGMLType.F32, (3, 25, 10), 0, 3000)
    spans = list(slot.slabs())
    assert [row for start, stop in spans for row in range(start, stop)] == list(range(75))
    assert all(start // 25 == (stop - 1) // 25 for start, stop in spans)
    assert max(stop - start for start, stop in spans) == 10


def test_thinning_scores_evenly_spread_tokens(dense_model: Path, text: str) -> None:
    found = {}
    with MappedWorkbench(dense_model, n_ctx=N_CTX, n_batch=2 * N_CTX, n_threads=1) as bench:
        room = 8 * 2 * (N_CTX // 2 - 1) * bench.engine.n_vocab
        for share in (1, 4):
            with Meter(bench.engine, text, 2, max_bytes=room // share) as meter:
                assert np.all(meter.read().rows == 0)
                bench.write("blk.1.ffn_up.weight", 0, np.zeros((64, 256), np.float32))
                found[share] = meter.read().rows
                bench.restore("blk.1.ffn_up.weight")
                assert len(found[share]) == meter.tokens
    np.testing.assert_allclose(found[4], found[1][::4], rtol=1e-6)


def test_a_compact_baseline_says_the_same_in_half_the_memory(
    dense_model: Path, half_model: Path, text: str
) -> None:
    def opened(path: Path) -> Engine:
        return Engine(path, n_ctx=N_CTX, n_batch=2 * N_CTX, n_threads=1)

    found = []
    with opened(dense_model) as engine, opened(half_model) as other:
        room = 4 * 2 * (N_CTX // 2 - 1) * engine.n_vocab
        for compact, max_bytes in ((False, 2 * room), (True, room)):
            told: list[tuple[int, int]] = []
            with Meter(engine, text, 2, max_bytes, compact=compact, spread=True) as meter:
                assert np.all(meter.read().rows == 0)
                # Another file of the same vocabulary, run in the same way.
                found.append(meter.read(other, lambda *at, told=told: told.append(at)).rows)
                assert told == [(1, 1)]
    np.testing.assert_array_equal(*found)
    assert len(found[0]) == 2 * (N_CTX // 2 - 1)
    assert found[0].mean() > 0
