"""Means with their standard errors, percentiles, and what is derived from per-token figures.

Formulas are those of `kl_divergence` in llama.cpp's tools/perplexity/perplexity.cpp, so that the figures can
be laid side by side: variances divide by n, squared standard errors by n - 1 again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64Array = npt.NDArray[np.float64]
_ENOUGH_GROUPS = 8


@dataclass(frozen=True)
class Mean:
    """A mean and its standard error, in the unit of the values."""

    value: float
    se: float


def mean(values: F64Array) -> Mean:
    """Mean and standard error of independent values (n,); the error of fewer than two values is 0."""
    n = len(values)
    value = float(values.mean())
    if n < 2:
        return Mean(value, 0.0)
    return Mean(value, math.sqrt(float(np.square(values - value).mean()) / (n - 1)))


def mean_over_groups(values: F64Array, groups: int) -> Mean:
    """Mean of values (n,) of which those of one group may hang together, with the larger of two standard
    errors.

    Tokens of one context share its topic and its difficulty: taken as independent they feign a precision that
        is
    not there. So the error is also estimated from the means of the groups, where there are enough of them.

    Args:
        groups: number of equal consecutive runs, such as contexts; fewer than 8 are not enough to judge from.
    """
    plain = mean(values)
    if groups < _ENOUGH_GROUPS or len(values) % groups:
        return plain
    clustered = mean(values.reshape(groups, -1).mean(axis=1))
    return Mean(plain.value, max(plain.se, clustered.se))


def covariance_of_means(a: F64Array, b: F64Array) -> float:
    """Covariance of the means of paired values (n,)."""
    if len(a) < 2:
        return 0.0
    return float(((a - a.mean()) * (b - b.mean())).mean()) / (len(a) - 1)


def correlation(a: F64Array, b: F64Array) -> float:
    """Pearson's correlation of paired values; 1 for two constants that are equal, else NaN for a constant."""
    spread = mean(a).se * mean(b).se
    if spread == 0:
        return 1.0 if np.array_equal(a, b) else math.nan
    return covariance_of_means(a, b) / spread


def exp_of_mean(log_mean: Mean) -> Mean:
    """exp of a mean with the error carried over to first order: perplexity from mean nll."""
    value = math.exp(log_mean.value) if log_mean.value < 700 else math.inf
    return Mean(value, value * log_mean.se)


def proportion(hits: npt.NDArray[np.bool_]) -> Mean:
    """Share of True and its binomial standard error, sqrt(p (1 - p) / (n - 1))."""
    n = len(hits)
    p = float(hits.mean())
    return Mean(p, math.sqrt(p * (1 - p) / (n - 1)) if n > 1 else 0.0)


def root_mean_square(values: F64Array) -> Mean:
    """sqrt(mean(x^2)) with its error to first order."""
    squares = mean(np.square(values))
    root = math.sqrt(squares.value)
    return Mean(root, 0.5 * squares.se / root if root > 0 else 0.0)


def percentile(values: F64Array, fraction: float) -> float:
    """Linear interpolation between order statistics at fraction * (n - 1)."""
    return float(np.quantile(values, fraction))
