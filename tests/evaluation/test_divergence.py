from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from reference import reference

from ewq_gguf.errors import EvaluationError
from ewq_gguf.evaluation.divergence import divergence
from ewq_gguf.evaluation.engine import Settings
from ewq_gguf.evaluation.perplexity import perplexity
from ewq_gguf.evaluation.scoring import LogitRows, Scorer

CHUNKS = 5


def test_a_file_against_itself_is_zero(coarse: Path, text: str, settings: Settings) -> None:
    (same,) = divergence(coarse, coarse, text, settings=settings, chunks=CHUNKS)
    assert same.max_kld == same.mean_kld == same.rms_delta_p == same.ln_ppl_ratio == 0
    assert same.top1_agreement == 1
    assert same.correlation == pytest.approx(1, abs=1e-12)


def test_equals_the_plain_computation(model: Path, coarse: Path, text: str, settings: Settings) -> None:
    (found,) = divergence(coarse, model, text, settings=settings, chunks=CHUNKS)
    p, q = reference(model, text, 64, CHUNKS), reference(coarse, text, 64, CHUNKS)
    kld = (np.exp(p.log_p) * (p.log_p - q.log_p)).sum(axis=1)
    delta = np.exp(-q.nll) - np.exp(-p.nll)
    n = len(kld)
    np.testing.assert_allclose(found.per_token.kld, kld, atol=2e-5)
    assert found.mean_kld == pytest.approx(kld.mean(), rel=1e-4)
    assert found.mean_kld_se == pytest.approx(kld.std() / np.sqrt(n - 1), rel=1e-4)
    for name, fraction in (("median", 50), ("p90", 90), ("p95", 95), ("p99", 99), ("p999", 99.9)):
        assert getattr(found, f"{name}_kld") == pytest.approx(np.percentile(kld, fraction), rel=1e-3)
    assert found.max_kld == pytest.approx(kld.max(), rel=1e-4)
    assert found.mean_delta_p == pytest.approx(delta.mean(), abs=1e-6)
    assert found.rms_delta_p == pytest.approx(np.sqrt((delta**2).mean()), rel=1e-4)
    agreement = (p.log_p.argmax(axis=1) == q.log_p.argmax(axis=1)).mean()
    assert 0 < found.top1_agreement == agreement < 1
    assert found.top1_agreement_se == pytest.approx(np.sqrt(agreement * (1 - agreement) / (n - 1)))
    gap = q.nll - p.nll
    assert found.ln_ppl_ratio == pytest.approx(gap.mean(), rel=1e-4)
    assert found.ln_ppl_ratio_se == pytest.approx(gap.std() / np.sqrt(n - 1), rel=1e-4)
    assert found.ppl_ratio == pytest.approx(np.exp(gap.mean()), rel=1e-4)
    assert found.correlation == pytest.approx(np.corrcoef(p.nll, q.nll)[0, 1], rel=1e-6)
    assert found.ppl == pytest.approx(np.exp(q.nll.mean()), rel=1e-5)
    assert found.baseline_ppl == pytest.approx(np.exp(p.nll.mean()), rel=1e-5)


def test_several_candidates_share_the_baseline(
    model: Path, coarse: Path, fine: Path, text: str, settings: Settings
) -> None:
    seen: list[tuple[int, int]] = []
    results = divergence(
        [coarse, fine, model],
        model,
        text,
        settings=settings,
        chunks=CHUNKS,
        progress=lambda a, b: seen.append((a, b)),
    )
    assert [r.file for r in results] == [coarse, fine, model]
    assert results[0].mean_kld > results[1].mean_kld > results[2].mean_kld == 0
    (alone,) = divergence(fine, model, text, settings=settings, chunks=CHUNKS)
    np.testing.assert_array_equal(alone.per_token.kld, results[1].per_token.kld)
    assert seen[-1] == (CHUNKS, CHUNKS)
    one = perplexity(fine, text, settings=settings, chunks=CHUNKS)
    assert one.ppl == results[1].ppl
    assert one.ppl_se == results[1].ppl_se


def test_json_fields(model: Path, coarse: Path, text: str, settings: Settings) -> None:
    (found,) = divergence(coarse, model, text, settings=settings, chunks=2)
    fields = json.loads(json.dumps(found.as_json(), allow_nan=False))
    promised = {
        "ppl", "ppl_se", "tokens", "mean_kld", "mean_kld_se", "median_kld", "p99_kld", "max_kld",
        "top1_agreement", "rms_delta_p",
    }  # fmt: skip
    assert promised <= set(fields)
    assert fields["mean_kld"] == found.mean_kld
    assert "per_token" not in fields


def test_small_batches_give_the_same(model: Path, coarse: Path, text: str, settings: Settings) -> None:
    (whole,) = divergence(coarse, model, text, settings=settings, chunks=3)
    (pieces,) = divergence(
        coarse, model, text, settings=Settings(n_ctx=64, n_batch=24, n_threads=2), chunks=3
    )
    np.testing.assert_allclose(pieces.per_token.kld, whole.per_token.kld, atol=0.02)


def test_what_a_quantized_cache_costs(make_model: Callable[..., Path], text: str) -> None:
    path = make_model(n_head=2, n_head_kv=1)
    costs = []
    for kind in (None, "q8_0", "q4_0"):
        settings = Settings(n_ctx=64, n_batch=256, n_threads=1, cache_type_k=kind, cache_type_v=kind)
        costs.append(divergence(path, path, text, settings=settings, chunks=4)[0].mean_kld)
    assert 0 == costs[0] < costs[1] < costs[2]


def test_another_vocabulary_is_refused(
    model: Path, make_model: Callable[..., Path], text: str, settings: Settings
) -> None:
    larger = make_model(extra_tokens=8)
    with pytest.raises(EvaluationError, match=r"has 368 tokens, its baseline .* has 360"):
        divergence(larger, model, text, settings=settings, chunks=2)


def test_the_same_number_of_other_tokens_is_refused(
    model: Path, tmp_path: Path, text: str, settings: Settings
) -> None:
    # Two single letters change places in the list: the counts agree, the ids do not.
    data = model.read_bytes()
    one, other = (len(piece).to_bytes(8, "little") + piece for piece in (b"e", b"t"))
    swapped = data.replace(one + other, other + one, 1)
    assert swapped != data
    path = tmp_path / "swapped.gguf"
    path.write_bytes(swapped)
    with pytest.raises(EvaluationError, match="split the text into different tokens"):
        divergence(path, model, text, settings=settings, chunks=2)


def test_nan_names_the_guilty_file(
    model: Path, make_model: Callable[..., Path], text: str, settings: Settings
) -> None:
    broken = make_model(poison=float("nan"))
    with pytest.raises(EvaluationError, match=f"{broken.name} yields nan"):
        divergence([model, broken], model, text, settings=settings, chunks=2)
    with pytest.raises(EvaluationError, match=f"{broken.name} yields nan"):
        divergence(model, broken, text, settings=settings, chunks=2)


def test_no_candidate(model: Path, text: str) -> None:
    with pytest.raises(EvaluationError, match="no file"):
        divergence([], model, text)


def test_masked_tokens_have_no_share() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(size=(5, 40)).astype(np.float32)
    other = rng.normal(size=(5, 40)).astype(np.float32)
    masked_base, masked_other = base.copy(), other.copy()
    masked_base[2, 7] = masked_other[2, 7] = -np.inf
    masked_base[3, 8] = -np.inf
    targets = np.zeros(5, dtype=np.int32)
    with Scorer(1) as scorer:
        scores, kld, missing = scorer.compare(masked_other, targets, LogitRows(masked_base, targets))
    p = np.exp(masked_base.astype(np.float64))
    p /= p.sum(axis=1, keepdims=True)
    q = np.exp(masked_other.astype(np.float64))
    q /= q.sum(axis=1, keepdims=True)
    with np.errstate(all="ignore"):
        expected = np.where(p > 0, p * np.log(p / q), 0).sum(axis=1)
    np.testing.assert_allclose(kld, expected, atol=1e-12)
    np.testing.assert_allclose(scores.nll, -np.log(q[:, 0]), atol=1e-12)
    assert not missing.any()
