from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ewq_gguf.errors import EvaluationError
from ewq_gguf.evaluation.divergence import divergence
from ewq_gguf.evaluation.engine import Settings
from ewq_gguf.evaluation.paired import (
    compare_all,
    compare_divergences,
    compare_perplexities,
    compare_values,
    ranking,
)
from ewq_gguf.evaluation.perplexity import perplexity
from ewq_gguf.evaluation.statistics import mean_over_groups

A, B = Path("a.gguf"), Path("b.gguf")


def test_a_clear_difference_hidden_in_a_shared_spread() -> None:
    rng = np.random.default_rng(0)
    shared = rng.exponential(2.0, 4000)
    a, b = shared + rng.normal(0, 0.05, 4000), shared + rng.normal(0.02, 0.05, 4000)
    found = compare_values("nll", A, B, a, b)
    assert found.difference == pytest.approx((a - b).mean())
    assert found.se == pytest.approx((a - b).std(ddof=1) / np.sqrt(4000))
    # Unpaired, the same difference drowns.
    assert abs(found.difference) < np.hypot(a.std(), b.std()) / np.sqrt(4000)
    assert found.better == A
    assert "a.gguf has the smaller negative log-likelihood than b.gguf" in found.sentence
    assert compare_values("nll", A, B, b, a).better == B


def test_no_verdict_without_evidence() -> None:
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(200):
        a, b = rng.normal(size=(2, 400))
        found = compare_values("kld", A, B, a, b)
        assert (found.better is None) == (abs(found.z) < 2)
        assert ("told from chance" in found.sentence) == (found.better is None)
        wrong += abs(found.z) >= 3
    assert wrong <= 3


def test_a_verdict_between_two_and_three_errors_is_hedged() -> None:
    values = np.tile([1.0, -1.0], 50)
    values += 0.25
    found = compare_values("kld", A, B, values, np.zeros(100))
    assert 2 < found.z < 3
    assert "b.gguf probably has the smaller divergence" in found.sentence


def test_tokens_of_a_context_that_hang_together_do_not_feign_precision() -> None:
    rng = np.random.default_rng(2)
    contexts = np.repeat(rng.normal(0, 1, 20), 100)
    naive, clustered = mean_over_groups(contexts, 1), mean_over_groups(contexts, 20)
    assert clustered.se == pytest.approx(contexts[::100].std(ddof=1) / np.sqrt(20))
    assert clustered.se > 9 * naive.se
    independent = rng.normal(0, 1, 2000)
    assert mean_over_groups(independent, 20).se < 1.5 * mean_over_groups(independent, 1).se
    # Too few contexts to judge from.
    assert mean_over_groups(contexts, 4).se == naive.se


def test_equal_files_and_constant_gaps() -> None:
    values = np.arange(10.0)
    same = compare_values("kld", A, B, values, values)
    assert (same.z, same.se, same.better) == (0, 0, None)
    gap = compare_values("kld", A, B, values, values + 1)
    assert gap.z == -np.inf
    assert gap.better == A
    assert json.loads(json.dumps(gap.as_json(), allow_nan=False))["z"] is None


def test_on_models(model: Path, coarse: Path, fine: Path, text: str, settings: Settings) -> None:
    results = divergence([coarse, fine, model], model, text, settings=settings)
    pairs = compare_all(results)
    assert [(p.first, p.second) for p in pairs] == [(coarse, fine), (coarse, model), (fine, model)]
    assert pairs[0].better == fine
    assert pairs[0].difference == pytest.approx(results[0].mean_kld - results[1].mean_kld)
    steps = ranking(results)
    assert [(p.first, p.second) for p in steps] == [(model, fine), (fine, coarse)]
    assert [p.better for p in steps] == [model, fine]
    assert results[0].mean_kld_se_contexts >= results[0].mean_kld_se > 0
    one, other = (perplexity(path, text, settings=settings) for path in (coarse, fine))
    both = compare_perplexities(one, other)
    assert both.difference == pytest.approx(np.log(one.ppl / other.ppl))
    shorter = perplexity(fine, text, settings=settings, chunks=2)
    with pytest.raises(EvaluationError, match="use the same text"):
        compare_perplexities(one, shorter)
    reversed_text = perplexity(fine, text[::-1], settings=settings, chunks=one.chunks)
    with pytest.raises(EvaluationError, match="different tokens"):
        compare_perplexities(one, reversed_text)
    (elsewhere,) = divergence(fine, coarse, text, settings=settings)
    with pytest.raises(EvaluationError, match="different baselines"):
        compare_divergences(results[0], elsewhere)
