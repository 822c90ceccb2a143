"""Entropy against the formula written out in float64, whatever dtype, chunk or thread count."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from ewq_gguf import api
from ewq_gguf.allocation import entropy as module
from ewq_gguf.allocation import rank as rank_module
from ewq_gguf.allocation.analysis import Analysis, analyze_model
from ewq_gguf.allocation.entropy import statistics
from ewq_gguf.allocation.ewq import BlockEntropy
from ewq_gguf.allocation.rank import effective_rank
from ewq_gguf.checkpoint import ArrayTensor, DType
from ewq_gguf.cli import cli
from ewq_gguf.errors import CheckpointError
from ewq_gguf.model import Model, ModelTensor
from ewq_gguf.pipeline.source import load_model


def formula(weights: np.ndarray, epsilon: float) -> float:
    """-sum p ln(p + eps) with p = softmax(w), straight from the paper, with exact summation."""
    w = weights.astype(np.float64).reshape(-1)
    e = np.exp(w - w.max())
    p = e / math.fsum(e)
    terms = p * np.log(p + epsilon) if epsilon else np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0)
    return -math.fsum(terms)


def bf16(values: np.ndarray) -> np.ndarray:
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2")


@pytest.mark.parametrize("epsilon", [0.0, 0.01, 1e-6])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F32 of BF16 values"])
def test_matches_the_formula(dtype: str, epsilon: float) -> None:
    values = np.random.default_rng(3).normal(scale=0.05, size=(300, 257)).astype(np.float32)
    if dtype == "BF16":
        tensor = ArrayTensor(bf16(values), DType.BF16)
    elif dtype == "F16":
        tensor = ArrayTensor(values.astype(np.float16))
    elif dtype == "F32":
        tensor = ArrayTensor(values)
    else:
        tensor = ArrayTensor((bf16(values).astype("<u4") << 16).view("<f4"))
    got = statistics(tensor, epsilon=epsilon)
    plain = tensor.rows(0, tensor.n_rows).astype(np.float64)
    assert got.entropy == pytest.approx(formula(plain, epsilon), rel=1e-12)
    assert got.n == values.size
    assert got.mean == pytest.approx(plain.mean(), rel=1e-9, abs=1e-15)
    assert got.variance == pytest.approx(plain.var(), rel=1e-12)
    centred = plain - plain.mean()
    assert got.kurtosis == pytest.approx((centred**4).mean() / plain.var() ** 2 - 3, rel=1e-9)
    assert (got.minimum, got.maximum) == (plain.min(), plain.max())


def test_bf16_and_its_f32_copy_agree_to_the_last_bit() -> None:
    codes = bf16(np.random.default_rng(5).normal(size=(64, 64)))
    copy = (codes.astype("<u4") << 16).view("<f4")
    assert statistics(ArrayTensor(codes, DType.BF16)) == statistics(ArrayTensor(copy))


@pytest.mark.parametrize("after", [1, 100, 1000])
def test_counts_are_carried_before_they_overflow(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    monkeypatch.setattr(module, "_CARRY_AFTER", after)
    monkeypatch.setattr(module, "_COUNT_AT_ONCE", 64)
    codes = np.random.default_rng(2).integers(0, 1 << 16, 3000, dtype=np.uint16)
    codes[::3] = 65535
    counter = module.CodeCounter()
    counter.add(codes[:1234])
    counter.add(codes[1234:])
    np.testing.assert_array_equal(counter.counts(), np.bincount(codes, minlength=1 << 16))


@pytest.mark.parametrize("chunk", [1, 100, 4096, 1 << 20])
def test_chunk_size_changes_nothing(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    values = np.random.default_rng(9).normal(size=(500, 300)).astype(np.float32)
    expected = [statistics(ArrayTensor(values)), statistics(ArrayTensor(bf16(values), DType.BF16))]
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", chunk)
    assert [statistics(ArrayTensor(values)), statistics(ArrayTensor(bf16(values), DType.BF16))] == expected


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e4, 1e4, width=16), min_size=1, max_size=300),
    st.sampled_from([0.0, 0.01, 1.0]),
)
def test_any_values(values: list[float], epsilon: float) -> None:
    array = np.array(values, dtype=np.float16)
    got = statistics(ArrayTensor(array.reshape(1, -1)), epsilon=epsilon)
    assert got.entropy == pytest.approx(formula(array, epsilon), rel=1e-12, abs=1e-13)
    assert got.variance >= 0


def test_constant_and_empty_matrices() -> None:
    assert statistics(ArrayTensor(np.zeros((4, 8), dtype=np.float32)), epsilon=0.0).entropy == pytest.approx(
        math.log(32)
    )
    assert statistics(ArrayTensor(np.empty((0, 8), dtype=np.float16))).n == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_weights_that_are_no_numbers_are_named(bad: float, dtype: type) -> None:
    values = np.ones((5, 4), dtype=dtype)
    values[3, 2] = bad
    with pytest.raises(CheckpointError, match=r"blk\.0\.x holds .* in row 3, column 2"):
        statistics(ArrayTensor(values), name="blk.0.x")


def block_formula(matrices: list[np.ndarray], epsilon: float, reading: BlockEntropy) -> float:
    """A block's entropy under each reading, straight from the definitions."""
    if reading is BlockEntropy.FLATTENED:
        return formula(np.concatenate([m.reshape(-1) for m in matrices]), epsilon)
    entropies = [formula(m, epsilon) for m in matrices]
    if reading is BlockEntropy.PLAIN_MEAN:
        return math.fsum(entropies) / len(entropies)
    total = sum(m.size for m in matrices)
    return math.fsum(h * m.size for h, m in zip(entropies, matrices)) / total


def check_model(model: Model, epsilon: float, reading: BlockEntropy, threads: int) -> Analysis:
    """Every block of a model against the formulas; returns the analysis."""
    analysis = analyze_model(model, epsilon=epsilon, reading=reading, threads=threads, only_blocks=True)
    matrices: dict[int, list[np.ndarray]] = {}
    for t in model.tensors:
        if t.block is not None and len(t.shape) >= 2 and t.name.endswith(".weight"):
            rows = t.source.rows(0, t.n_rows)
            matrices.setdefault(t.block, []).extend(rows.reshape(-1, t.shape[-2], t.shape[-1]))
    assert [b.index for b in analysis.blocks] == sorted(matrices)
    for block in analysis.blocks:
        expected = block_formula(matrices[block.index], epsilon, reading)
        assert block.entropy == pytest.approx(expected, rel=1e-12)
        assert block.parameters == sum(m.size for m in matrices[block.index])
    return analysis


@pytest.mark.parametrize("epsilon", [0.01, 0.0])
@pytest.mark.parametrize("reading", BlockEntropy)
def test_reference_model_blocks(reference: Path, epsilon: float, reading: BlockEntropy) -> None:
    """Every block against the formula; threads change no bit."""
    model = load_model(reference)
    one = check_model(model, epsilon, reading, threads=1)
    assert len(one.blocks) == 12
    assert one == analyze_model(model, epsilon=epsilon, reading=reading, threads=3, only_blocks=True)


def small_model(kind: str, experts: int = 0) -> Model:
    """Three blocks of two matrices, or of a matrix and a stack of experts, the first block dense."""
    rng = np.random.default_rng(4)

    def tensor(name: str, *shape: int) -> ModelTensor:
        values = rng.normal(scale=0.2, size=shape).astype(np.float32)
        if kind == "BF16":
            return ModelTensor(name, ArrayTensor(bf16(values), DType.BF16))
        if kind == "F32 of BF16 values":
            return ModelTensor(name, ArrayTensor((bf16(values).astype("<u4") << 16).view("<f4")))
        # "mixed": half of the matrices can be counted and half cannot.
        half = kind == "F16" or (kind == "mixed" and "up" in name)
        return ModelTensor(name, ArrayTensor(values.astype(np.float16 if half else np.float32)))

    tensors = [tensor("token_embd.weight", 10, 64)]
    for i in range(3):
        tensors += [tensor(f"blk.{i}.ffn_norm.weight", 64), tensor(f"blk.{i}.attn_q.weight", 48 + i, 64)]
        stack = (experts,) if experts and i else ()
        tensors.append(tensor(f"blk.{i}.ffn_up{'_exps' if stack else ''}.weight", *stack, 300, 301))
    return Model("llama", {}, tuple(tensors), "small")


@pytest.mark.parametrize("epsilon", [0.01, 0.0])
@pytest.mark.parametrize("reading", BlockEntropy)
@pytest.mark.parametrize("kind", ["BF16", "F16", "F32", "F32 of BF16 values", "mixed"])
@pytest.mark.parametrize("experts", [0, 3])
def test_every_kind_of_block(
    monkeypatch: pytest.MonkeyPatch, kind: str, reading: BlockEntropy, epsilon: float, experts: int
) -> None:
    model = small_model(kind, experts)
    expected = check_model(model, epsilon, reading, threads=1)
    counts = [len(t.matrices) for t in expected.tensors]
    assert counts == ([1, 1, 1, 3, 1, 3] if experts else [1] * 6)
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 1000)
    again = analyze_model(model, epsilon=epsilon, reading=reading, threads=2, only_blocks=True)
    assert again == expected


def test_bf16_and_f32_copies_of_a_model_agree_to_the_last_bit() -> None:
    for reading in BlockEntropy:
        found = [
            analyze_model(small_model(kind), reading=reading).blocks
            for kind in ("BF16", "F32 of BF16 values")
        ]
        assert found[0] == found[1]


def test_merging_counts_is_counting_what_is_merged() -> None:
    rng = np.random.default_rng(6)
    parts = [rng.integers(-5, 5, size=(n, 7)).astype(np.float16) for n in (3, 8, 1)]
    merged = None
    for p in parts:
        counted = module.count_values(ArrayTensor(p), 0, len(p))
        assert counted is not None
        merged = module.merge(merged, counted)
    assert merged is not None
    values, counts = np.unique(np.concatenate(parts), return_counts=True)
    assert merged.values.tolist() == values.tolist()
    assert merged.counts.tolist() == counts.tolist()


@pytest.mark.parametrize("shape", [(40, 40), (90, 20), (20, 90), (1, 30), (30, 1)])
def test_effective_rank_against_the_singular_values(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    values = np.random.default_rng(7).normal(size=shape).astype(np.float32)
    s = np.linalg.svd(values.astype(np.float64), compute_uv=False)
    p = s / s.sum()
    expected = math.exp(-(p * np.log(p)).sum()) / min(shape)
    got = effective_rank(ArrayTensor(values), 0, shape[0])
    assert got == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr(rank_module, "_CHUNK_ELEMENTS", 100)
    assert effective_rank(ArrayTensor(values), 0, shape[0]) == pytest.approx(expected, rel=1e-9)


def test_effective_rank_at_the_edges() -> None:
    assert effective_rank(ArrayTensor(np.eye(16, dtype=np.float32)), 0, 16) == pytest.approx(1.0)
    one = np.outer(np.arange(1, 9), np.arange(1, 17)).astype(np.float32)
    assert effective_rank(ArrayTensor(one), 0, 8) == pytest.approx(1 / 8, rel=1e-5)
    assert effective_rank(ArrayTensor(np.zeros((4, 8), np.float32)), 0, 4) == 0.0
    assert effective_rank(ArrayTensor(np.ones((4, 8), np.float32)), 0, 4, limit=3) is None
    analysis = analyze_model(small_model("BF16"), rank=True)
    assert all(m.rank is not None and 0 < m.rank <= 1 for t in analysis.tensors for m in t.matrices)
    assert all(b.rank is not None for b in analysis.blocks)


def test_gguf_and_checkpoint_agree(reference: Path, tmp_path: Path) -> None:
    """The same weights from the folder and from a bf16 GGUF file made of it."""
    api.convert(reference, tmp_path / "m.gguf", api.Decision(type="bf16"))
    assert api.analyze(tmp_path / "m.gguf").blocks == api.analyze(reference).blocks


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # matplotlib's own, from pyparsing
def test_command_writes_tables_csv_and_plot(reference: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    table, plot = tmp_path / "a.csv", tmp_path / "a.svg"
    arguments = ["analyze", str(reference), "--csv", str(table), "--plot", str(plot), "--tensors"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    assert "blk.11.ffn_up.weight" in done.stdout
    with table.open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    analysis = api.analyze(reference)
    assert len(rows) == len(analysis.tensors)
    for t in analysis.tensors:
        assert float(rows[t.name]["entropy"]) == t.matrices[0].entropy
        assert rows[t.name]["block"] == ("" if t.block is None else str(t.block))
    drawn = plot.read_text()
    assert drawn.startswith("<?xml")
    assert (
        CliRunner().invoke(cli, ["analyze", str(reference), "--plot", str(tmp_path / "a.bmp")]).exit_code == 1
    )


def test_json_names_the_reading(reference: Path) -> None:
    told = json.loads(
        CliRunner().invoke(cli, ["analyze", str(reference), "--json", "--block-entropy", "flattened"]).stdout
    )
    assert told["reading"] == "flattened"
    assert "rank" not in told["blocks"][0]
    assert [b["class"] for b in told["blocks"]] == ["raw"] * 5 + ["8-bit"] * 5 + ["4-bit"] * 2
