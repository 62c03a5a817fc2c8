"""Combining p-values of tests that depend on each other."""

from __future__ import annotations

import numpy as np

from tracelab.typing import FloatArray

__all__ = ["cauchy_combination"]


def cauchy_combination(pvalue: FloatArray, axis: int = -1) -> FloatArray:
    r"""Return one p-value for several, right in size also when the tests depend on each other.

    .. math:: T = \frac1n \sum_i \tan((1/2 - p_i) \pi), \qquad p = 1/2 - \arctan(T) / \pi.

    The mean of p-values is not a p-value; this is, in the tail, under arbitrary dependence.

    Parameters
    ----------
    pvalue : ndarray
        P-values in [0, 1].
    axis : int
        Along which they are combined.

    Returns
    -------
    ndarray of float64
        `pvalue` without `axis`; NaN where any is NaN.

    References
    ----------
    Liu, Xie, "Cauchy Combination Test: A Powerful Test With Analytic p-Value Calculation Under
    Arbitrary Dependency Structures", Journal of the American Statistical Association 115 (2020)
    393-402, equation 1 with equal weights.

    Examples
    --------
    >>> float(cauchy_combination(np.array([0.02, 0.02, 0.02])).round(12))
    0.02
    """
    p = np.asarray(pvalue, dtype=np.float64)
    # cot(pi p) near its pole is 1 / (pi p): tan would round p to the pole itself. p = 1 has the
    # opposite pole, which may not cancel evidence entirely: R's and the authors' code clip alike.
    clipped = np.clip(p, 1e-300, 1 - 1e-15)
    small = clipped < 1e-8
    cotangent = np.where(
        small, 1 / (np.pi * np.where(small, clipped, 1.0)), np.tan((0.5 - clipped) * np.pi)
    )
    statistic = cotangent.mean(axis=axis)
    # arctan(T) = pi/2 - arctan(1/T) keeps the digits of a small combined p-value.
    combined: FloatArray = np.where(
        statistic > 1,
        np.arctan(1 / np.where(statistic > 1, statistic, 1.0)) / np.pi,
        0.5 - np.arctan(statistic) / np.pi,
    )
    return combined
