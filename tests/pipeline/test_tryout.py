"""A plan tried out before its file is made: what is told is what the file does, and accuracies are kept."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import ewq_gguf
from ewq_gguf.allocation.methods import preset_plan, uniform_plan
from ewq_gguf.allocation.plan import Plan, raw_type
from ewq_gguf.allocation.scores import ScoreTable
from ewq_gguf.allocation.solver import Option
from ewq_gguf.allocation.targets import Target
from ewq_gguf.calibration.journal import Journal
from ewq_gguf.cli import cli
from ewq_gguf.cli.plan_table import prediction
from ewq_gguf.decision import Decision, decide
from ewq_gguf.errors import PlanError
from ewq_gguf.evaluation.divergence import divergence
from ewq_gguf.ggml import GGMLType
from ewq_gguf.model import Model
from ewq_gguf.pipeline import rd_plan as choosing
from ewq_gguf.pipeline import tryout as module
from ewq_gguf.pipeline.convert import file_size, write_model
from ewq_gguf.pipeline.importance import load_importance
from ewq_gguf.pipeline.optimize import DEFAULT_TEXT, Studied, Study
from ewq_gguf.pipeline.rd_plan import rd_plan, tried, tried_plan, tryout_of
from ewq_gguf.pipeline.scratch import ScratchCopies
from ewq_gguf.pipeline.source import load_model
from ewq_gguf.pipeline.tryout import Tryout

POOL = (GGMLType.Q3_K, GGMLType.Q4_K, GGMLType.Q5_K, GGMLType.Q6_K, GGMLType.Q8_0)
FLOOR = 0.001


@pytest.fixture(autouse=True)
def _few_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONTEXTS", 2)


@pytest.fixture(scope="module")
def model(reference: Path) -> Model:
    return load_model(reference)


@pytest.fixture(scope="module")
def studied(model: Model) -> Studied:
    """A table of the quantizers' usual errors, as though it had been measured."""
    costs = {GGMLType.Q3_K: 3e-4, GGMLType.Q4_K: 8e-5, GGMLType.Q5_K: 2e-5, GGMLType.Q6_K: 5e-6}
    options = {
        t.name: {kind: Option(kind.name, t.bytes_as(kind), costs.get(kind, 3e-7)) for kind in POOL}
        for t in model.tensors
        if t.fixed is None
    }
    lengths = {t.name: t.row_length for t in model.tensors if t.name in options}
    fixed = sum(t.bytes_as(t.fixed) for t in model.tensors if t.fixed is not None)
    table = ScoreTable("probe", "nats per token", options, lengths, fixed, floor=FLOOR)
    record = Journal(None, "study", {})
    return Studied(Study(use_imatrix=False), POOL, table, None, (), record)


class Scaled(Tryout):
    """Files that measure `factor` times what their sums foresee, above the floor."""

    def __init__(self, model: Model, table: ScoreTable, factor: float) -> None:
        self.model, self.importance, self.contexts = model, None, 2
        self.table, self.factor = table, factor
        self.asked: list[float] = []

    def kld(self, types: Mapping[str, GGMLType], progress: Any = None) -> float:
        chosen = {name: kind for name, kind in types.items() if name in self.table.options}
        self.asked.append(FLOOR + self.factor * (self.table.predict(chosen)[1] - FLOOR))
        return self.asked[-1]


def try_out(model: Model, studied: Studied, target: Target, tryout: Tryout) -> Plan:
    def again(other: Target) -> Plan:
        return rd_plan(model, studied, other)

    def size_of(plan: Plan) -> int:
        return file_size(model, plan)

    return tried_plan(tryout, again(target), target, again, size_of, lambda _: True)


def test_what_is_told_is_what_the_files_do(model: Model, tmp_path: Path) -> None:
    fast = Study(pool=POOL, chunks=1, imatrix_chunks=1, blocks=2, cache=tmp_path / "cache")
    wish = Decision(target=Target(like="Q3_K_M"), study=fast)
    plan = decide(model, wish, threads=1)
    assert plan.parameters["tried"] == 2
    matrix = load_importance(next((tmp_path / "cache").rglob("imatrix-*.gguf")))
    write_model(model, uniform_plan(model, raw_type(model)), tmp_path / "original.gguf")
    for name, chosen in (("predicted", plan), ("stock", preset_plan(model, "Q3_K_M", has_imatrix=True))):
        write_model(model, chosen, tmp_path / f"{name}.gguf", importance=matrix)
        [measured] = divergence(
            tmp_path / f"{name}.gguf", tmp_path / "original.gguf", DEFAULT_TEXT, chunks=2, spread=True
        )
        assert plan.parameters[name] == pytest.approx(measured.mean_kld, rel=1e-4)
    told = prediction(plan)
    assert told is not None
    ratio = plan.parameters["predicted"] / plan.parameters["stock"]
    assert f"as tried out, {plan.parameters['floor']:.4f} of it" in told
    assert f"{ratio:.2f} times that of Q3_K_M's own types" in told
    # Without it the sum is told.
    summed = decide(model, replace(wish, study=replace(fast, try_out=False)), threads=1)
    assert summed.types() == plan.types()
    assert summed.parameters["tried"] == 0
    assert summed.parameters["predicted"] != plan.parameters["predicted"]
    assert "stock" not in summed.parameters
    assert "tried out" not in str(prediction(summed))


@pytest.mark.parametrize("size", [5_000_000, 6_500_001, 8_000_017])
def test_a_size_is_kept(model: Model, studied: Studied, size: int) -> None:
    plan = try_out(model, studied, Target(size=size), Scaled(model, studied.table, 1.3))
    assert plan.parameters["tried"] == 2
    assert size - 60_000 < file_size(model, plan) <= size


@pytest.mark.parametrize("factor", [0.5, 0.96, 1.0, 1.3, 2.5])
def test_an_accuracy_is_kept_by_the_smallest_plan_found(
    model: Model, studied: Studied, factor: float
) -> None:
    tryout = Scaled(model, studied.table, factor)
    target = Target(max_kld=0.01)
    plan = try_out(model, studied, target, tryout)
    assert 0.9 * 0.01 < plan.parameters["predicted"] <= 0.01 * (1 + 1e-5)
    assert len(tryout.asked) <= 4
    assert plan.parameters["target"] == {"max_kld": 0.01}
    first = rd_plan(model, studied, target)
    assert (plan.data_bytes > first.data_bytes) == (factor > 1)
    if factor == 1.0:
        assert plan.types() == first.types()


def test_an_accuracy_out_of_reach_takes_what_comes_closest(model: Model, studied: Studied) -> None:
    tryout = Scaled(model, studied.table, 400.0)
    plan = try_out(model, studied, Target(max_kld=0.003), tryout)
    assert plan.parameters["predicted"] == pytest.approx(min(tryout.asked), rel=1e-5)
    assert plan.parameters["predicted"] > 0.003
    assert ", as tried out, more than the 0.003 asked for" in str(prediction(plan))


class PrefersStock(Scaled):
    """The types of a preset do half as bad as any other."""

    def __init__(self, model: Model, table: ScoreTable, preset: str) -> None:
        super().__init__(model, table, 1.0)
        self.types = preset_plan(model, preset, has_imatrix=False).types()

    def kld(self, types: Mapping[str, GGMLType], progress: Any = None) -> float:
        return super().kld(types) * (0.5 if types == self.types else 1)


def test_the_presets_own_types_where_they_do_better(
    model: Model, studied: Studied, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target(like="Q4_K_M")
    prefers = PrefersStock(model, studied.table, "Q4_K_M")

    @contextmanager
    def handed(*_: object, **__: object) -> Iterator[Tryout]:
        yield prefers

    monkeypatch.setattr(choosing, "tryout_of", handed)
    plan = rd_plan(model, studied, target)
    assert plan.types() != prefers.types
    found = tried(model, studied, target, plan)
    assert found.types() == prefers.types
    assert found.parameters["took_stock"]
    assert found.parameters["predicted"] == found.parameters["stock"] < plan.parameters["predicted"]
    assert {t.reason for t in found.tensors} == {"Q4_K_M's own type"}
    assert "these are Q4_K_M's own types, which did better" in str(prediction(found))
    # Not against a pin, nor with types that are not in the pool.
    pins = {"blk.0.attn_q.weight": GGMLType.Q8_0}
    assert tried(model, studied, target, plan, pins=pins).types() == plan.types()
    assert tried(model, studied, target, plan, pool=(GGMLType.Q4_K,)).types() == plan.types()
    pins["blk.0.attn_q.weight"] = prefers.types["blk.0.attn_q.weight"]
    assert tried(model, studied, target, plan, pins=pins).types() == prefers.types


def test_a_file_that_breaks_down_is_not_told(model: Model, studied: Studied) -> None:
    for target in (Target(bpw=4.5), Target(max_kld=0.01), Target(like="Q4_K_M")):
        plan = try_out(model, studied, target, Scaled(model, studied.table, math.inf))
        assert plan.parameters["tried"] == 0
        assert 0 < plan.parameters["predicted"] < 1


def test_what_was_measured_is_kept(model: Model, tmp_path: Path) -> None:
    journal = Journal(tmp_path, "study", {"of": "test"})
    kinds = dict.fromkeys((t.name for t in model.tensors if t.fixed is None), GGMLType.Q4_K)
    told: list[tuple[int, int]] = []
    with ScratchCopies(model, 1, None) as scratch:
        folder = scratch.original().parent
        with Tryout(model, scratch, DEFAULT_TEXT, None, journal, 1) as tryout:
            first = tryout.kld(kinds, lambda *at: told.append(at))
            finer = tryout.kld(dict.fromkeys(kinds, GGMLType.Q8_0))
        assert 0 < finer < first < 1
        assert told[-1][0] == told[-1][1] > 0
        # Only the original is left of what was written.
        assert len(list(folder.iterdir())) == 1
    again = Tryout(model, _NoScratch(), DEFAULT_TEXT, None, Journal(tmp_path, "study", {"of": "test"}), 1)
    # A tensor that is not named stays as it is in every file.
    assert again.kld({**kinds, **{t.name: t.fixed for t in model.tensors if t.fixed is not None}}) == first
    with pytest.raises(AssertionError, match="scratch copy"):
        again.kld(dict.fromkeys(kinds, GGMLType.Q6_K))


class _NoScratch(ScratchCopies):
    def __init__(self) -> None:
        pass

    def original(self) -> Path:
        raise AssertionError("a scratch copy was written")


def test_nothing_measured_nothing_to_try(model: Model, studied: Studied) -> None:
    with (
        pytest.raises(PlanError, match="leave --damage at probe"),
        tryout_of(model, replace(studied, record=None)),
    ):
        pass


def test_a_study_without_measurements_goes_without(model: Model) -> None:
    plain = Study(damage="mse", use_imatrix=False, pool=POOL, cache=None)
    plan = decide(model, Decision(target=Target(like="Q4_K_M"), study=plain))
    assert plan.parameters["unit"] != "nats per token"
    assert "stock" not in plan.parameters
    assert ewq_gguf.Decision().study.try_out


def test_the_command_tries_out_unless_told_not_to(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EWQ_GGUF_CACHE", str(tmp_path))
    wish = ["convert", str(reference), "--like", "Q4_K_M", "--pool", "Q3_K,Q4_K,Q6_K", "--blocks", "2"]
    found = []
    for more in (["--probe-chunks", "1"], ["--probe-chunks", "1", "--no-try-out"]):
        ran = CliRunner().invoke(cli, ["-q", *wish, *more, "--dry-run", "--json"])
        assert ran.exit_code == 0, ran.output
        found.append(json.loads(ran.stdout))
    tried, summed = found
    assert tried["tensors"] == summed["tensors"]
    assert tried["predicted_kld"] != summed["predicted_kld"]
    assert 0 < tried["predicted_kld"] < 1
    assert 0 < tried["stock_kld"] < 1
    assert summed["stock_kld"] is None
