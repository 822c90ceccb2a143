"""Distortions and score tables: against direct computation, and what each damage model must do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from ewq_gguf.allocation.distortion import (
    PLAIN_POOL,
    choosable,
    measure_distortions,
    options_for,
    sampled_rows,
    types_to_measure,
)
from ewq_gguf.allocation.scores import DAMAGE_MODELS, ScoreTable, score_table
from ewq_gguf.calibration.imatrix import Entry, ImportanceMatrix
from ewq_gguf.calibration.journal import Journal
from ewq_gguf.calibration.probe import Probe
from ewq_gguf.checkpoint.tensor import ArrayTensor
from ewq_gguf.errors import PlanError
from ewq_gguf.ggml import GGMLType, ggml
from ewq_gguf.model import Model, ModelTensor

T = GGMLType
POOL = (T.Q2_K, T.Q4_K, T.Q6_K, T.Q8_0)


def build_model(n_blocks: int = 3, width: int = 256) -> Model:
    rng = np.random.default_rng(3)

    def tensor(name: str, *shape: int, fixed: GGMLType | None = None) -> ModelTensor:
        values = rng.standard_normal(shape).astype(np.float32) / 16
        return ModelTensor(name, ArrayTensor(values), fixed)

    tensors = [tensor("token_embd.weight", 64, width), tensor("output_norm.weight", width, fixed=T.F32)]
    for i in range(n_blocks):
        tensors += [
            tensor(f"blk.{i}.attn_norm.weight", width, fixed=T.F32),
            tensor(f"blk.{i}.attn_q.weight", width, width),
            tensor(f"blk.{i}.ffn_down.weight", width, width),
            tensor(f"blk.{i}.ffn_up_exps.weight", 2, 96, width),
        ]
    value = gguf.GGUFValueType
    metadata = {
        "general.architecture": gguf.GGUFValue("llama", value.STRING),
        "llama.block_count": gguf.GGUFValue(n_blocks, value.UINT32),
        "llama.attention.head_count": gguf.GGUFValue(4, value.UINT32),
    }
    return Model("llama", metadata, tuple(tensors), "f")


def importance(model: Model) -> ImportanceMatrix:
    rng = np.random.default_rng(4)
    entries = {}
    for t in choosable(model):
        n = t.shape[0] if len(t.shape) == 3 else 1
        sums = np.exp(rng.normal(0, 2, (n, t.row_length))).astype(np.float32)
        entries[t.name] = Entry(sums, np.full(n, 10))
    return ImportanceMatrix(entries)


def probe_of(
    tensor: str, kld: float, kind: GGMLType = T.Q4_K, scale: float = 1.0, noise: float = 0.0
) -> Probe:
    return Probe(tensor, kind.name, scale, kld, kld / 50, noise, 1000, 0.1)


@pytest.fixture(scope="module")
def model() -> Model:
    return build_model()


def probes_for(model: Model, kld: float = 1e-3) -> list[Probe]:
    return [probe_of(t.name, kld) for t in choosable(model)]


def test_distortion_is_the_quantizers_own_error(model: Model) -> None:
    matrix = importance(model)
    found = measure_distortions(model, POOL, imatrix=matrix)
    assert set(found) == {t.name for t in choosable(model)}
    for tensor in choosable(model):
        w = tensor.source.rows(0, tensor.n_rows)
        weights = matrix.weights(tensor.name)
        per = tensor.n_rows // len(weights)
        q = np.concatenate(
            [
                ggml().dequantize(T.Q4_K, ggml().quantize(T.Q4_K, w[i * per : (i + 1) * per], row), 256)
                for i, row in enumerate(weights)
            ]
        )
        squares = np.square(w.astype(np.float64) - q)
        got = found[tensor.name]
        assert got.types[T.Q4_K].plain == pytest.approx(squares.sum(), rel=1e-9)
        expected = (squares * np.repeat(weights.astype(np.float64), per, axis=0)).sum()
        assert got.types[T.Q4_K].weighted == pytest.approx(expected, rel=1e-9)
        assert got.energy == pytest.approx(np.square(w, dtype=np.float64).sum(), rel=1e-9)


def test_finer_types_have_smaller_errors(model: Model) -> None:
    for found in measure_distortions(model, POOL).values():
        errors = [found.types[t].plain for t in POOL]
        assert errors == sorted(errors, reverse=True)
        assert not found.has_weights
        assert all(d.plain == pytest.approx(d.weighted) for d in found.types.values())


def test_threads_and_interruption_change_nothing(model: Model, tmp_path: Path) -> None:
    once = measure_distortions(model, POOL, n_threads=1)
    journal = Journal(tmp_path, "distortion", {})
    half = replace(model, tensors=model.tensors[:6])
    measure_distortions(half, POOL, journal=journal)
    known = len(journal)
    seen: list[tuple[int, int]] = []
    resumed = measure_distortions(
        model,
        POOL,
        n_threads=2,
        journal=Journal(tmp_path, "distortion", {}),
        progress=lambda *at: seen.append(at),
    )
    assert resumed == once
    assert known == len(choosable(half)) * len(POOL)
    assert seen[-1] == (len(choosable(model)) * len(POOL),) * 2


def test_a_sample_estimates_the_whole() -> None:
    values = np.random.default_rng(0).standard_normal((3, 2048, 256)).astype(np.float32)
    tensor = ModelTensor("blk.0.ffn_up_exps.weight", ArrayTensor(values))
    spans = list(sampled_rows(tensor, values.size // 4))
    rows = [row for start, stop in spans for row in range(start, stop)]
    assert len(rows) == len(set(rows))
    assert len(rows) == pytest.approx(3 * 2048 / 4, rel=0.05)
    assert {row // 2048 for row in rows} == {0, 1, 2}
    assert all(start // 2048 == (stop - 1) // 2048 for start, stop in spans)
    assert [r for a, b in sampled_rows(tensor, 1 << 40) for r in range(a, b)] == list(range(3 * 2048))
    model = replace(build_model(0), tensors=(tensor,))
    whole = measure_distortions(model, [T.Q4_K], sample=1 << 40)[tensor.name].types[T.Q4_K]
    part = measure_distortions(model, [T.Q4_K], sample=values.size // 4)[tensor.name].types[T.Q4_K]
    assert part.plain == pytest.approx(whole.plain, rel=0.02)


def test_rows_that_do_not_fit_get_stand_ins() -> None:
    model = build_model(1, width=96)
    found = measure_distortions(model, PLAIN_POOL)
    assert set(found["blk.0.attn_q.weight"].types) == {T.Q4_0, T.Q5_0, T.Q5_1, T.Q8_0}
    table = score_table(model, found, "mse")
    (item, *_) = table.items(pool=[T.Q4_K, T.Q6_K])
    assert [option.type for option in item.options] == ["Q5_0", "Q8_0"]


def test_types_that_need_an_importance_matrix_wait_for_one(model: Model) -> None:
    tensor = choosable(model)[1]
    assert options_for(tensor, [T.Q4_K, T.IQ2_XS], has_weights=False) == (T.Q4_K,)
    assert options_for(tensor, [T.Q4_K, T.IQ2_XS], has_weights=True) == (T.Q4_K, T.IQ2_XS)
    with pytest.raises(PlanError, match="none of the types IQ2_XS"):
        options_for(tensor, [T.IQ2_XS], has_weights=False)
    assert set(types_to_measure([T.Q4_K, T.IQ4_XS])) >= {T.IQ4_XS, T.Q2_K, T.Q3_K, T.Q4_K, T.Q8_0}


def test_probe_damage_scales_the_error_ratio(model: Model) -> None:
    found = measure_distortions(model, POOL, imatrix=importance(model))
    name = "blk.1.ffn_down.weight"
    probes = [probe_of(name, 2e-3, T.Q4_K) if p.tensor == name else p for p in probes_for(model)]
    table = score_table(model, found, "probe", probes)
    errors = found[name].types
    assert table.options[name][T.Q4_K].damage == pytest.approx(2e-3)
    ratio = errors[T.Q2_K].weighted / errors[T.Q4_K].weighted
    assert table.options[name][T.Q2_K].damage == pytest.approx(2e-3 * ratio)
    # The same divergence from twice the error means a quarter of the cost.
    scaled = [probe_of(name, 2e-3, T.Q4_K, 2.0) if p.tensor == name else p for p in probes]
    assert score_table(model, found, "probe", scaled).options[name][T.Q4_K].damage == pytest.approx(5e-4)


def test_direct_damage_is_what_was_measured(model: Model) -> None:
    found = measure_distortions(model, POOL)
    measured = {T.Q2_K: 3e-2, T.Q4_K: 1e-3, T.Q8_0: 4e-6}
    probes = [probe_of(t.name, kld, kind) for t in choosable(model) for kind, kld in measured.items()]
    table = score_table(model, found, "direct", probes)
    for row in table.options.values():
        for kind, kld in measured.items():
            assert row[kind].damage == pytest.approx(kld)
        assert row[T.Q4_K].damage > row[T.Q6_K].damage > row[T.Q8_0].damage


def test_noise_does_not_pass_for_damage(model: Model) -> None:
    found = measure_distortions(model, POOL)
    noise = 1e-6
    probes = [probe_of(t.name, 1e-3 + noise, T.Q4_K, noise=noise) for t in choosable(model)]
    drowned = [probe_of(t.name, 1.5 * noise, T.Q8_0, noise=noise) for t in choosable(model)]
    clean = score_table(model, found, "direct", [probe_of(t.name, 1e-3) for t in choosable(model)])
    table = score_table(model, found, "direct", probes + drowned)
    for name, row in table.options.items():
        assert row[T.Q8_0].damage == pytest.approx(clean.options[name][T.Q8_0].damage, rel=1e-6)


def test_unprobed_blocks_take_their_neighbours_mean(model: Model) -> None:
    found = measure_distortions(model, POOL)
    probes = [p for p in probes_for(model) if not p.tensor.startswith("blk.1.")]
    probes = [replace(p, kld=4e-3) if p.tensor.startswith("blk.2.") else p for p in probes]
    table = score_table(model, found, "probe", probes)

    def cost(block: int) -> float:
        name = f"blk.{block}.attn_q.weight"
        return table.options[name][T.Q4_K].damage / found[name].types[T.Q4_K].weighted

    assert cost(1) == pytest.approx((cost(0) * cost(2)) ** 0.5)
    with pytest.raises(PlanError, match="attn_q"):
        score_table(model, found, "probe", [p for p in probes if "attn_q" not in p.tensor])


@pytest.mark.parametrize("damage_model", DAMAGE_MODELS)
def test_budgets_are_kept_and_paddings_counted(model: Model, damage_model: str) -> None:
    found = measure_distortions(model, POOL, imatrix=importance(model))
    table = score_table(model, found, damage_model, probes_for(model))
    smallest = sum(min(o.bytes for o in row.values()) for row in table.options.values()) + table.fixed_bytes
    for extra in (0, 5_000, 50_000):
        allocation = table.allocate(smallest + extra)
        assert allocation.data_bytes <= smallest + extra
        exact = 0
        for t in model.tensors:
            exact += -(-t.bytes_as(allocation.types[t.name] if t.fixed is None else t.fixed) // 32) * 32
        assert allocation.data_bytes == exact
        assert table.predict(allocation.types) == (allocation.data_bytes, pytest.approx(allocation.damage))
    assert list(allocation.types) == list(table.options)


def fresh_table(model: Model) -> ScoreTable:
    return score_table(model, measure_distortions(model, POOL), "probe", probes_for(model))


def test_pool_pins_and_groups_are_respected(model: Model) -> None:
    table = fresh_table(model)
    pins = {"token_embd.weight": T.Q8_0}
    groups = [["blk.0.attn_q.weight", "blk.2.attn_q.weight"]]
    budget = table.fixed_bytes + 400_000
    allocation = table.allocate(budget, pool=[T.Q4_K, T.Q6_K], pins=pins, groups=groups)
    assert allocation.types["token_embd.weight"] is T.Q8_0
    assert allocation.types["blk.0.attn_q.weight"] is allocation.types["blk.2.attn_q.weight"]
    rest = {t for n, t in allocation.types.items() if n != "token_embd.weight"}
    assert rest <= {T.Q4_K, T.Q6_K}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"pins": {"blk.0.attn_norm.weight": T.Q8_0}}, "no tensor whose type"),
        ({"pins": {"token_embd.weight": T.Q5_1}}, "cannot take Q5_1"),
        ({"pool": [T.IQ3_S]}, "cannot take IQ3_S"),
        ({"groups": [["blk.0.attn_q.weight", "x"]]}, "x is no tensor"),
        (
            {
                "groups": [
                    ["blk.0.attn_q.weight", "blk.1.attn_q.weight"],
                    ["blk.1.attn_q.weight", "blk.2.attn_q.weight"],
                ]
            },
            "two groups",
        ),
        (
            {
                "groups": [["blk.0.attn_q.weight", "blk.1.attn_q.weight"]],
                "pins": {"blk.0.attn_q.weight": T.Q4_K, "blk.1.attn_q.weight": T.Q6_K},
            },
            "pinned to different",
        ),
    ],
)
def test_contradictions_are_refused(model: Model, arguments: dict, reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        fresh_table(model).allocate(10**6, **arguments)


def test_fixed_damage_is_the_other_side_of_fixed_size(model: Model) -> None:
    table = fresh_table(model)
    small = table.allocate(table.fixed_bytes + 350_000)
    back = table.allocate_for_damage(small.damage)
    assert back.damage <= small.damage
    assert back.data_bytes <= small.data_bytes


def test_sensitive_tensors_get_more_bits(model: Model) -> None:
    found = measure_distortions(model, POOL)
    probes = [replace(p, kld=0.5) if p.tensor == "blk.1.ffn_down.weight" else p for p in probes_for(model)]
    table = score_table(model, found, "probe", probes)
    types = table.allocate(table.fixed_bytes + 350_000).types
    others = [t.bpw for n, t in types.items() if n.endswith("ffn_down.weight") and not n.startswith("blk.1")]
    assert types["blk.1.ffn_down.weight"].bpw > max(others)


def test_predicting_what_was_not_measured_is_refused(model: Model) -> None:
    table = fresh_table(model)
    types = dict.fromkeys(table.options, T.Q4_K)
    with pytest.raises(PlanError, match="IQ4_XS"):
        table.predict({**types, "token_embd.weight": T.IQ4_XS})
    with pytest.raises(PlanError, match="no type"):
        table.predict({})
