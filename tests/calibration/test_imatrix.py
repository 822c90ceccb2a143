"""Collecting the importance matrix: against the model's own weights, and against llama-imatrix."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from ewq_gguf.calibration.imatrix import Entry, ImportanceMatrix, collect_imatrix
from ewq_gguf.calibration.imatrix_file import load_imatrix, save_imatrix
from ewq_gguf.errors import CheckpointError, EvaluationError
from ewq_gguf.evaluation.contexts import cut_contexts
from ewq_gguf.evaluation.engine import Engine

N_CTX = 64
TOOLS = Path.home() / ".cache" / "ewq-gguf"


def tool(name: str) -> Path:
    found = shutil.which(name) or next(iter(sorted(TOOLS.glob(f"*/bin/{name}"))), None)
    if found is None:
        pytest.skip(f"{name} is not built")
    return Path(found)


def weights_of(model: Path) -> dict[str, np.ndarray]:
    return {t.name: np.array(t.data) for t in gguf.GGUFReader(model).tensors}


def first_inputs(model: Path, text: str, chunks: int) -> np.ndarray:
    """What enters the first attention: the normalised embeddings of all tokens, float64 (tokens, columns)."""
    with Engine(model, n_ctx=N_CTX, n_batch=N_CTX) as engine:
        contexts = cut_contexts(engine, text, chunks)
    tokens = contexts.tokens.copy()
    tokens[:, 0] = contexts.bos
    weights = weights_of(model)
    x = weights["token_embd.weight"][tokens.reshape(-1)].astype(np.float64)
    x /= np.sqrt(np.square(x).mean(axis=1, keepdims=True) + 1e-5)
    return x * weights["blk.0.attn_norm.weight"]


def test_dense_sums_are_those_of_the_activations(dense_model: Path, text: str) -> None:
    matrix = collect_imatrix(dense_model, text, n_ctx=N_CTX, chunks=5, n_batch=2 * N_CTX, n_threads=1)
    x = first_inputs(dense_model, text, 5)
    for name in ("attn_q", "attn_k", "attn_v"):
        entry = matrix.entries[f"blk.0.{name}.weight"]
        np.testing.assert_allclose(entry.in_sum2[0], np.square(x).sum(axis=0), rtol=1e-5)
        assert entry.counts.tolist() == [5 * N_CTX]
    assert len(matrix.entries) == 2 * 7
    assert (matrix.chunk_count, matrix.chunk_size) == (5, N_CTX)


def test_tied_output_is_collected_on_request(dense_model: Path, text: str) -> None:
    matrix = collect_imatrix(dense_model, text, n_ctx=N_CTX, chunks=2, output=True, n_threads=1)
    gain = weights_of(dense_model)["output_norm.weight"]
    # What enters the output is normalised to mean square 1, then scaled per column.
    scaled = matrix.weights("token_embd.weight")[0] / np.square(gain)
    assert scaled.mean() == pytest.approx(1.0, rel=0.05)
    assert set(matrix.entries) - {"token_embd.weight"} == set(matrix.without("token_embd.weight").entries)


def test_experts_are_counted_apart(expert_model: Path, text: str) -> None:
    matrix = collect_imatrix(expert_model, text, n_ctx=N_CTX, chunks=4, output=True, n_threads=1)
    assert "output.weight" in matrix
    for block in range(2):
        gate = matrix.entries[f"blk.{block}.ffn_gate_exps.weight"]
        down = matrix.entries[f"blk.{block}.ffn_down_exps.weight"]
        router = matrix.entries[f"blk.{block}.ffn_gate_inp.weight"]
        assert gate.in_sum2.shape == (6, 256)
        assert gate.counts.sum() == 2 * 4 * N_CTX
        assert np.array_equal(gate.counts, down.counts)
        # Each token enters the router once and two experts: their sums add up to twice the router's.
        np.testing.assert_allclose(gate.in_sum2.sum(axis=0), 2 * router.in_sum2[0], rtol=1e-4)


def test_a_starved_expert_weighs_all_columns_alike() -> None:
    sums = np.arange(8, dtype=np.float32).reshape(2, 4)
    entry = Entry(sums, np.array([2, 0]))
    weights = ImportanceMatrix({"w": entry}).weights("w")
    assert weights.dtype == np.float32
    assert weights.tolist() == [[0, 0.5, 1, 1.5], [1, 1, 1, 1]]


def test_weights_fit_rows_or_say_why_not() -> None:
    matrix = ImportanceMatrix({"w": Entry(np.ones((1, 12), np.float32), np.array([1]))})
    assert matrix.weights("w", 4).shape == (3, 4)
    with pytest.raises(CheckpointError, match="another model"):
        matrix.weights("w", 5)
    with pytest.raises(CheckpointError, match="no entry for v"):
        matrix.weights("v")


def test_thread_count_does_not_matter(dense_model: Path, text: str) -> None:
    one, two = (collect_imatrix(dense_model, text, n_ctx=N_CTX, chunks=2, n_threads=n) for n in (1, 2))
    for name, entry in one.entries.items():
        assert np.array_equal(entry.in_sum2, two.entries[name].in_sum2)


def test_progress_counts_contexts(dense_model: Path, text: str) -> None:
    seen: list[tuple[int, int]] = []
    collect_imatrix(
        dense_model,
        text,
        n_ctx=N_CTX,
        chunks=3,
        n_batch=N_CTX,
        n_threads=1,
        progress=lambda *at: seen.append(at),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_failures_inside_the_callback_come_out(
    dense_model: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ewq_gguf.calibration import imatrix

    def fail(*_: object) -> None:
        raise EvaluationError("broken on purpose")

    monkeypatch.setattr(imatrix._Collector, "_take_dense", fail)
    with pytest.raises(EvaluationError, match="broken on purpose"):
        collect_imatrix(dense_model, text, n_ctx=N_CTX, chunks=1, n_threads=1)


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["dense_model", "expert_model"])
def test_equals_llama_imatrix(kind: str, text: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    model: Path = request.getfixturevalue(kind)
    source = tmp_path / "text.txt"
    source.write_text(text * 2)
    theirs = tmp_path / "theirs.gguf"
    command = [
        tool("llama-imatrix"),
        "-m",
        model,
        "-f",
        source,
        "-o",
        theirs,
        "-c",
        "128",
        "--no-ppl",
        "-t",
        "2",
    ]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    ours = collect_imatrix(model, source, n_ctx=128, n_threads=2)
    expected = load_imatrix(theirs)
    assert set(ours.entries) == set(expected.entries)
    for name, entry in expected.entries.items():
        np.testing.assert_allclose(ours.entries[name].in_sum2, entry.in_sum2, rtol=1e-3)
        assert np.array_equal(ours.entries[name].counts, entry.counts)
    saved = tmp_path / "ours.gguf"
    save_imatrix(replace(ours, datasets=expected.datasets), saved)
    assert saved.read_bytes() == theirs.read_bytes()
    quantized = []
    for matrix in (saved, theirs):
        out = tmp_path / f"{matrix.stem}-q.gguf"
        command = [tool("llama-quantize"), "--imatrix", matrix, model, out, "IQ2_XS", "2"]
        subprocess.run([str(part) for part in command], check=True, capture_output=True)
        quantized.append({t.name: t.data.tobytes() for t in gguf.GGUFReader(out).tensors})
    assert quantized[0] == quantized[1]
