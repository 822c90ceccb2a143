"""What a table predicts is brought to what files measure, on contexts from the whole text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ewq_gguf
from ewq_gguf.allocation.facts import Assignment
from ewq_gguf.allocation.methods import uniform_plan
from ewq_gguf.allocation.plan import make_plan, raw_type
from ewq_gguf.allocation.scores import ScoreTable
from ewq_gguf.allocation.solver import Option
from ewq_gguf.calibration.journal import Journal
from ewq_gguf.errors import PlanError
from ewq_gguf.evaluation.contexts import cut_contexts
from ewq_gguf.evaluation.divergence import divergence
from ewq_gguf.evaluation.engine import Engine
from ewq_gguf.ggml import GGMLType
from ewq_gguf.pipeline import tryout as module
from ewq_gguf.pipeline.convert import write_model
from ewq_gguf.pipeline.levels import leveled, line
from ewq_gguf.pipeline.scratch import ScratchCopies
from ewq_gguf.pipeline.source import load_model
from ewq_gguf.pipeline.tryout import Tryout

TEXT = Path(ewq_gguf.__file__).parent / "calibration" / "default.txt"
FINE, COARSE = GGMLType.Q8_0, GGMLType.Q4_0


@pytest.mark.parametrize(
    ("fine", "coarse", "expected"),
    [
        # (predicted, measured) of the finest and of the middle file; level and floor
        ((0.001, 0.003), (0.05, 0.052), (1.0, 0.002)),
        ((0.001, 0.0027), (0.05, 0.042), (0.8020, 0.001898)),
        # A line that would cross below zero goes through it.
        ((0.010, 0.005), (0.05, 0.060), (1.2, 0.0)),
        # Nothing between the two files: no level.
        ((0.010, 0.013), (0.012, 0.018), (1.0, 0.003)),
        # Out of all proportion: bounded.
        ((0.001, 0.001), (0.01, 0.5), (4.0, 0.0)),
    ],
)
def test_line(fine: tuple[float, float], coarse: tuple[float, float], expected: tuple[float, float]) -> None:
    level, floor = line(*fine, *coarse)
    assert (level, floor) == pytest.approx(expected, rel=1e-3, abs=1e-12)


def test_contexts_spread_over_the_text(reference: Path, tmp_path: Path) -> None:
    model = load_model(reference)
    write_model(model, uniform_plan(model, raw_type(model)), tmp_path / "m.gguf")
    with Engine(tmp_path / "m.gguf", n_ctx=64) as engine:
        every = cut_contexts(engine, TEXT).tokens
        assert len(every) > 40
        some = cut_contexts(engine, TEXT, 5, spread=True).tokens
        places = [int(np.flatnonzero((every == row).all(axis=1))[0]) for row in some]
        assert places == [len(every) * i // 5 for i in range(5)]
        np.testing.assert_array_equal(cut_contexts(engine, TEXT, 10**6, spread=True).tokens, every)
        np.testing.assert_array_equal(cut_contexts(engine, TEXT, 5).tokens, every[:5])


def test_predictions_meet_the_two_files(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that is wrong by a factor and knows no floor predicts what files measure afterwards."""
    monkeypatch.setattr(module, "CONTEXTS", 2)
    model = load_model(reference)
    chosen = [t for t in model.tensors if t.fixed is None and len(t.shape) == 2][:8]
    options = {
        t.name: {
            FINE: Option(FINE.name, t.bytes_as(FINE), 1e-5),
            COARSE: Option(COARSE.name, t.bytes_as(COARSE), 1e-2),
        }
        for t in chosen
    }
    # So that the smallest choice is the one of middle size.
    rest = int(4.5 * model.n_parameters / 8) - sum(row[COARSE].bytes for row in options.values())
    table = ScoreTable("probe", "nats per token", options, {t.name: t.row_length for t in chosen}, rest)
    journal = Journal(tmp_path, "study", {"of": "test"})
    with ScratchCopies(model, 1, None) as scratch:
        with Tryout(model, scratch, TEXT, None, journal, 1) as tryout:
            found = leveled(table, tryout)
        original = scratch.original()
        for kind in (FINE, COARSE):
            assignments = {
                t.name: Assignment(k, k, "test")
                for t in model.tensors
                for k in [kind if t.name in options else raw_type(model) if t.fixed is None else t.fixed]
            }
            out = tmp_path / f"{kind.name}.gguf"
            write_model(model, make_plan(model, "rd", {}, assignments), out)
            [measured] = divergence(out, original, TEXT, chunks=2, spread=True)
            predicted = found.predict(dict.fromkeys(options, kind))[1]
            assert predicted == pytest.approx(measured.mean_kld, rel=1e-4)
    assert found.level < 1
    assert found.floor > 0
    again = leveled(table, Tryout(model, _NoScratch(), TEXT, None, journal, 1))
    assert again == found


class _NoScratch(ScratchCopies):
    """What the record holds is not measured again."""

    def __init__(self) -> None:
        pass

    def original(self) -> Path:
        raise AssertionError("a scratch copy was written")


def test_choices_do_not_depend_on_the_level() -> None:
    rows = {
        f"t{i}": {
            k: Option(k.name, 100 * b, d / (i + 1)) for k, b, d in zip((COARSE, FINE), (1, 2), (3.0, 1.0))
        }
        for i in range(6)
    }
    table = ScoreTable("probe", "nats per token", rows, dict.fromkeys(rows, 32), 0)
    other = replace(table, level=0.7, floor=0.01)
    for size in (600, 700, 900, 1200):
        plain, changed = table.allocate(size), other.allocate(size)
        assert changed.types == plain.types
        assert changed.damage == pytest.approx(0.7 * plain.damage + 0.01)
        assert other.predict(changed.types) == (changed.data_bytes, pytest.approx(changed.damage))
        assert other.allocate_for_damage(changed.damage * (1 + 1e-9)).types == plain.types
    # All fine: 0.7 * (1 + 1/2 + ... + 1/6) above the floor.
    assert other.allocate_for_damage(1.7251).data_bytes == 1200
    with pytest.raises(
        PlanError, match=r"1\.72 nats per token is out of reach: with the most precise .* is 1\.7;"
    ):
        other.allocate_for_damage(1.72)
    with pytest.raises(PlanError, match="by their 8-bit activations alone"):
        other.allocate_for_damage(0.01)
