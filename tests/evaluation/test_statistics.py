from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from ewq_gguf.evaluation.statistics import (
    Mean,
    correlation,
    covariance_of_means,
    exp_of_mean,
    mean,
    proportion,
    root_mean_square,
)


def test_against_scipy() -> None:
    rng = np.random.default_rng(0)
    a = rng.exponential(1.0, 500)
    b = 0.3 * a + rng.normal(size=500)
    assert mean(a).value == pytest.approx(a.mean())
    assert mean(a).se == pytest.approx(stats.sem(a))
    assert correlation(a, b) == pytest.approx(stats.pearsonr(a, b).statistic)
    spread = mean(a).se ** 2 + mean(b).se ** 2 - 2 * covariance_of_means(a, b)
    assert mean(a - b).se == pytest.approx(math.sqrt(spread))


def test_proportion_and_root_mean_square() -> None:
    hits = np.array([True] * 30 + [False] * 10)
    assert proportion(hits) == Mean(0.75, math.sqrt(0.75 * 0.25 / 39))
    rng = np.random.default_rng(1)
    draws = np.array([root_mean_square(rng.normal(0, 2, 1000)).value for _ in range(400)])
    claimed = root_mean_square(rng.normal(0, 2, 1000))
    assert claimed.value == pytest.approx(2, rel=0.1)
    assert claimed.se == pytest.approx(draws.std(), rel=0.15)


def test_few_or_constant_values() -> None:
    assert mean(np.array([3.0])) == Mean(3.0, 0.0)
    assert root_mean_square(np.zeros(4)) == Mean(0.0, 0.0)
    assert proportion(np.array([True])) == Mean(1.0, 0.0)
    assert correlation(np.ones(5), np.ones(5)) == 1
    assert math.isnan(correlation(np.ones(5), np.arange(5.0)))
    assert covariance_of_means(np.ones(1), np.ones(1)) == 0
    assert exp_of_mean(Mean(1000.0, 1.0)).value == math.inf
