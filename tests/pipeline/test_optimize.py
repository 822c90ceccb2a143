"""Rate-distortion plans: targets are kept, refusals come first, and measuring beats guessing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import ewq_gguf
from ewq_gguf.allocation.methods import preset_plan
from ewq_gguf.allocation.targets import Target, running_memory
from ewq_gguf.decision import Decision, decide, study
from ewq_gguf.errors import PlanError
from ewq_gguf.ggml import GGMLType
from ewq_gguf.model import Model
from ewq_gguf.pipeline.convert import file_size
from ewq_gguf.pipeline.header import padded
from ewq_gguf.pipeline.optimize import Studied, Study
from ewq_gguf.pipeline.rd_plan import rd_plan
from ewq_gguf.pipeline.source import load_model

K_QUANTS = (GGMLType.Q2_K, GGMLType.Q3_K, GGMLType.Q4_K, GGMLType.Q5_K, GGMLType.Q6_K, GGMLType.Q8_0)
# No model is run: the fastest study there is.
PLAIN = Study(damage="mse", use_imatrix=False, pool=K_QUANTS, cache=None)


@pytest.fixture(scope="module")
def model(reference: Path) -> Model:
    return load_model(reference)


@pytest.fixture(scope="module")
def studied(model: Model) -> Studied:
    return study(model, Decision(study=PLAIN))


@pytest.mark.parametrize("size", [4_000_000, 6_500_000, 6_500_001, 9_999_999])
def test_a_size_is_never_exceeded_and_nearly_used(model: Model, studied: Studied, size: int) -> None:
    plan = rd_plan(model, studied, Target(size=size))
    assert size - 60_000 < file_size(model, plan) <= size


@pytest.mark.parametrize("preset", ["Q2_K", "Q3_K_M", "Q4_K_M", "Q6_K"])
def test_like_a_preset_takes_no_more_bytes(model: Model, studied: Studied, preset: str) -> None:
    stock = preset_plan(model, preset, has_imatrix=True)
    plan = rd_plan(model, studied, Target(like=preset))
    assert sum(padded(t.nbytes) for t in plan.tensors) <= sum(padded(t.nbytes) for t in stock.tensors)
    assert plan.data_bytes > 0.98 * stock.data_bytes
    predicted = studied.table.predict({n: t for n, t in plan.types().items() if n in studied.table.options})
    assert predicted[1] == pytest.approx(plan.parameters["predicted"])


def test_bits_per_weight(model: Model, studied: Studied) -> None:
    assert rd_plan(model, studied, Target(bpw=4.5)).bpw == pytest.approx(4.5, abs=0.02)


def test_vram_counts_the_cache(model: Model, studied: Studied) -> None:
    plain = {key: value.value for key, value in model.metadata.items()}
    # 12 blocks, 1024 cells, 2 key-value heads of 64, K and V, 2 bytes each
    assert running_memory(plain, 1000, GGMLType.F16).kv_cache == 12 * 1024 * 2 * 64 * 2 * 2
    room = 40 << 20
    plan = rd_plan(model, studied, Target(vram=room, context=1024))
    beside = running_memory(plain, 1024, GGMLType.F16).total
    assert file_size(model, plan) + beside <= room
    with pytest.raises(PlanError, match="--context"):
        rd_plan(model, studied, Target(vram=1 << 20, context=100_000))


def test_targets_out_of_reach_name_the_range(model: Model, studied: Studied) -> None:
    with pytest.raises(PlanError, match="smallest"):
        rd_plan(model, studied, Target(size=2_000_000))
    with pytest.raises(PlanError, match="header alone"):
        rd_plan(model, studied, Target(size=1_000))
    # More room than the best types need is simply not used.
    assert rd_plan(model, studied, Target(size=10**9)).types()["blk.0.attn_q.weight"] is GGMLType.Q8_0


def test_targets_exclude_each_other(model: Model) -> None:
    with pytest.raises(PlanError, match="exclude"):
        Target(size=1, bpw=4.0)
    with pytest.raises(PlanError, match="positive"):
        Target(bpw=-1.0)
    with pytest.raises(PlanError, match="exclude"):
        decide(model, Decision(size=5_000_000, target=Target(bpw=4.0), study=PLAIN))
    with pytest.raises(PlanError, match="without a plan or a type"):
        decide(model, Decision(type="Q8_0", target=Target(bpw=4.0)))
    with pytest.raises(PlanError, match="--max-kld"):
        decide(model, Decision(target=Target(max_kld=0.1), study=PLAIN))


def test_pins_and_kept_tensors_hold(model: Model) -> None:
    from ewq_gguf.allocation.pins import parse_pin

    wish = Decision(
        target=Target(like="Q4_K_M"), study=PLAIN, pins=(parse_pin("ffn_down=q8_0"),), keep_embedding=True
    )
    wish = replace(wish, target=Target(bpw=8.0))
    types = decide(model, wish).types()
    assert {types[f"blk.{b}.ffn_down.weight"] for b in range(12)} == {GGMLType.Q8_0}
    assert types["token_embd.weight"] is GGMLType.BF16


def test_method_follows_the_wish() -> None:
    assert Decision().chosen_method == "ewq"
    assert Decision(size=10**6).chosen_method == "rd"
    assert Decision(target=Target(like="Q4_K_M")).chosen_method == "rd"
    assert Decision(method="ewq", size=10**6).chosen_method == "ewq"


@pytest.mark.parametrize("method", ["ewq", "fastewq"])
def test_ewq_takes_the_same_targets(model: Model, method: str) -> None:
    wish = Decision(method=method, target=Target(bpw=9.0), embedding="Q8_0")
    assert decide(model, wish).bpw <= 9.0


def test_measured_allocation_end_to_end(reference: Path, tmp_path: Path) -> None:
    """One context, two blocks probed: everything runs, is cached, and the same file comes out again."""
    fast = Study(pool=K_QUANTS, chunks=1, imatrix_chunks=1, blocks=2, cache=tmp_path / "cache")
    wish = Decision(target=Target(like="Q3_K_M"), study=fast)
    first = ewq_gguf.convert(reference, tmp_path / "a.gguf", wish, threads=1)
    stages: list[str] = []
    second = ewq_gguf.convert(
        reference, tmp_path / "b.gguf", wish, threads=1, progress=lambda stage, *_: stages.append(stage)
    )
    assert first.plan.types() == second.plan.types()
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert "Importance matrix" not in stages
    assert first.plan.parameters["unit"] == "nats per token"
    assert 0 < first.plan.parameters["predicted"] < 5
