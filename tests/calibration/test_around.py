"""Probes around a plan: what each tensor's error costs while all the others carry theirs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ewq_gguf.allocation.methods import uniform_plan
from ewq_gguf.allocation.targets import Target
from ewq_gguf.calibration.around import measure_plan, probe_around
from ewq_gguf.calibration.meter import Meter
from ewq_gguf.calibration.workbench import MappedWorkbench
from ewq_gguf.errors import PlanError
from ewq_gguf.evaluation.divergence import divergence
from ewq_gguf.ggml import GGMLType
from ewq_gguf.pipeline.convert import write_model
from ewq_gguf.pipeline.optimize import Study, study_model
from ewq_gguf.pipeline.rd_plan import rd_plan
from ewq_gguf.pipeline.refine import refined_plan
from ewq_gguf.pipeline.source import load_model
from ewq_gguf.pipeline.tryout import CONTEXTS

TYPES = {
    "blk.0.ffn_down.weight": GGMLType.Q2_K,
    "blk.1.attn_v.weight": GGMLType.Q4_K,
    "blk.1.ffn_up.weight": GGMLType.Q6_K,
}


@pytest.fixture
def bench(dense_model: Path, tmp_path: Path) -> Iterator[MappedWorkbench]:
    with MappedWorkbench(dense_model, n_ctx=128, n_threads=1, folder=tmp_path) as bench:
        yield bench


def test_a_lone_tensor_contributes_everything(bench: MappedWorkbench, text: str) -> None:
    name = "blk.0.ffn_down.weight"
    with Meter(bench.engine, text, 2) as meter:
        found = probe_around(bench, meter, {name: GGMLType.Q2_K}, None)
    assert found.kld > 1e-4
    assert found.relief == {name: pytest.approx(found.kld, rel=1e-6)}
    assert bench.intact()


def test_each_relief_is_the_fall_in_divergence(bench: MappedWorkbench, text: str) -> None:
    told: list[tuple[int, int]] = []
    with Meter(bench.engine, text, 2) as meter:
        found = probe_around(bench, meter, TYPES, None, lambda done, total: told.append((done, total)))
        assert bench.intact()
        for name in TYPES:
            others = {n: t for n, t in TYPES.items() if n != name}
            without = measure_plan(bench, meter, others, None)
            assert found.relief[name] == pytest.approx(found.kld - without, abs=1e-9)
            for other in others:
                bench.restore(other)
    assert found.relief["blk.0.ffn_down.weight"] > found.relief["blk.1.ffn_up.weight"]
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_the_model_is_whole_again_after_a_failure(bench: MappedWorkbench, text: str) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with Meter(bench.engine, text, 1) as meter, pytest.raises(KeyboardInterrupt):
        probe_around(bench, meter, TYPES, None, stop)
    assert bench.intact()


def test_a_refined_plan_measures_no_worse_and_keeps_its_size(
    dense_model: Path, tmp_path: Path, text: str
) -> None:
    model = load_model(dense_model)
    words = tmp_path / "text.txt"
    words.write_text(text * 3)
    pool = (GGMLType.Q2_K, GGMLType.Q4_K, GGMLType.Q6_K)
    studied = study_model(model, Study(text=words, use_imatrix=False, pool=pool, chunks=1, cache=tmp_path))
    target = Target(bpw=4.0)
    plan = rd_plan(model, studied, target)
    refined, rounds = refined_plan(model, studied, target, plan, 2)
    assert rounds[0].before > 0
    assert [r.helped for r in rounds[:-1]] == [True] * (len(rounds) - 1), (
        "a round that does not help is the last"
    )
    assert rounds[0].after < rounds[0].before or refined.types() == plan.types()
    assert refined.data_bytes <= model.n_parameters * 4 / 8
    assert refined.parameters["rounds"] == [{"before": r.before, "after": r.after} for r in rounds]
    with pytest.raises(PlanError, match="needs a size"):
        refined_plan(model, studied, Target(max_kld=0.1), plan, 1)


def test_what_activations_cost_is_measured_once_and_part_of_every_prediction(
    dense_model: Path, tmp_path: Path, text: str
) -> None:
    model = load_model(dense_model)
    words = tmp_path / "text.txt"
    words.write_text(text * 3)
    study = Study(
        text=words, use_imatrix=False, pool=(GGMLType.Q4_K, GGMLType.Q8_0), chunks=1, cache=tmp_path
    )
    table = study_model(model, study).table
    finest = dict.fromkeys(table.options, GGMLType.Q8_0)
    file = tmp_path / "finest.gguf"
    write_model(model, uniform_plan(model, GGMLType.Q8_0), file)
    [measured] = divergence(file, dense_model, words, chunks=CONTEXTS, spread=True)
    assert table.floor > 0
    assert table.predict(finest)[1] == pytest.approx(measured.mean_kld, rel=0.05)
    kept = sorted(p.name for p in tmp_path.rglob("study-*"))
    assert study_model(model, study).table.floor == table.floor
    assert sorted(p.name for p in tmp_path.rglob("study-*")) == kept
    with pytest.raises(PlanError, match="by their 8-bit activations alone"):
        table.allocate_for_damage(table.floor / 2)
