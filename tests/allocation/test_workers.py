"""Measuring in other processes: the same numbers, the same errors, and no process left behind."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ewq_gguf.allocation import workers as module
from ewq_gguf.allocation.analysis import _shares, analyze_model, is_weight_matrix, matrix_ranges
from ewq_gguf.allocation.entropy import Part, WeightStatistics, measure
from ewq_gguf.allocation.workers import Workers, _question, workers
from ewq_gguf.arch.views import Computed, TakeRows, Transpose, stack
from ewq_gguf.checkpoint.tensor import ArrayTensor, Tensor
from ewq_gguf.errors import CheckpointError
from ewq_gguf.pipeline.source import load_model
from tests.pipeline.odd_model import write_odd_model
from tests.pipeline.test_convert import nan_in


def wait_until_up(pool: Workers) -> None:
    """Take every place, so that all workers have said hello, and give them back."""
    places = [pool._free.get(timeout=60) for _ in range(pool.places)]
    for place in sorted(places, key=lambda p: p is not None):
        pool._free.put(place)


@pytest.fixture
def one() -> Workers:
    pool = Workers(1)
    wait_until_up(pool)
    yield pool
    pool.close()
    assert all(w._process.returncode is not None for w in pool._all)


def test_the_same_analysis(reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = analyze_model(load_model(reference))
    monkeypatch.setattr(module, "WORTH_IT", 0)
    assert analyze_model(load_model(reference), threads=3) == alone


@pytest.mark.parametrize("kind", ["safetensors", "gguf", "views"])
def test_the_worker_itself(
    one: Workers, reference: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "views":
        rng = np.random.default_rng(3)
        plain = [ArrayTensor(rng.standard_normal((40, 30)).astype(np.float16)) for _ in range(3)]
        sources = [Transpose(stack(plain)), TakeRows(plain[0], np.arange(40)[::-1])]
    else:
        path = reference if kind == "safetensors" else write_odd_model(tmp_path / "odd.gguf")
        sources = [t.source for t in load_model(path).tensors if len(t.shape) >= 2][:9]
    expected = [measure(Part(s, 1, s.n_rows - 1), 0.01) for s in sources]

    def not_here(*_: object) -> None:
        raise AssertionError("measured in this process")

    monkeypatch.setattr(module, "measure", not_here)
    for source, (statistics, distribution) in zip(sources, expected):
        [(found, counted)] = one.measure([Part(source, 1, source.n_rows - 1)], 0.01)
        assert found == statistics
        assert (counted is None) == (distribution is None)
        if counted is None or distribution is None:
            continue
        np.testing.assert_array_equal(counted.values, distribution.values)
        np.testing.assert_array_equal(counted.counts, distribution.counts)


def test_what_cannot_be_sent_is_measured_here(one: Workers) -> None:
    source = Computed(ArrayTensor(np.arange(12, dtype=np.float32).reshape(3, 4)), lambda rows, _: rows + 1)
    assert one.measure([Part(source, 0, 3)], 0.01)[0][0].maximum == 12


def test_errors_are_the_same(one: Workers, checkpoint_copy: Path) -> None:
    nan_in(checkpoint_copy, "model.layers.3.mlp.up_proj.weight")
    tensor = next(t for t in load_model(checkpoint_copy).tensors if t.name == "blk.3.ffn_up.weight")
    with pytest.raises(CheckpointError, match=r"blk\.3\.ffn_up\.weight holds nan in row 1, column 44"):
        one.measure([Part(tensor.source, 0, tensor.n_rows, tensor.name)], 0.01)


def test_a_worker_that_dies_is_done_without(one: Workers, reference: Path) -> None:
    for worker in one._all:
        worker._process.kill()
        worker._process.wait()
    source = load_model(reference).tensors[0].source
    part = Part(source, 0, source.n_rows)
    for _ in range(3):
        assert one.measure([part], 0.01)[0][0] == measure(part, 0.01)[0]


def test_none_for_little_work_or_one_thread() -> None:
    for threads, weights in ((8, 1000), (1, 10**12)):
        with workers(threads, weights) as pool:
            assert pool._all == []


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_shares_are_all_of_it_in_order_and_end_small(reference: Path, threads: int) -> None:
    parts = [
        (t, Part(t.source, start, stop, t.name))
        for t in load_model(reference).tensors
        if is_weight_matrix(t)
        for start, stop in matrix_ranges(t)
    ]
    shares = list(_shares(parts, threads))
    assert [part for share in shares for part in share] == parts
    sizes = [sum((p.stop - p.start) * p.tensor.row_length for _, p in share) for share in shares]
    assert max(sizes) == sizes[0] or len(shares[0]) == 1
    assert len(shares[-1]) == 1


def test_questions_are_answered_in_turn(one: Workers, reference: Path) -> None:
    """Several callers at one worker: each gets the answer to its own question."""
    sources = [t.source for t in load_model(reference).tensors if len(t.shape) >= 2] * 3
    expected = [measure(Part(s, 0, s.n_rows))[0] for s in sources]
    worker = one._all[0]

    def ask(source: Tensor) -> WeightStatistics:
        question = _question([Part(source, 0, source.n_rows)], 0.01, False)
        assert question is not None
        answer = worker.ask(question)
        assert answer is not None
        assert answer[0][1] is None
        return answer[0][0]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, sources)) == expected
