"""Anderson and Darling's statistic for normality with estimated mean and variance."""

from __future__ import annotations

import functools
import math

import numpy as np
from numba import njit

from tracelab.stats._gaussian import log_cdf_sums
from tracelab.typing import Array, FloatArray

__all__ = ["anderson_pvalue", "anderson_rows"]


def anderson_rows(
    z: FloatArray, n: int, status: Array, statistic: FloatArray, pvalue: FloatArray
) -> None:
    """Fill `statistic` and `pvalue` of the rows whose status is ``OK``.

    Parameters
    ----------
    z : ndarray, shape (row, n)
        Sorted, standardised rows.
    n : int
        Sample size.
    status : ndarray of uint8, shape (row,)
        Rows other than ``OK`` are left as they are.
    statistic, pvalue : ndarray, shape (row,)
        Output.
    """
    # A^2 = -n - sum (2i - 1) [log Phi(z_i) + log Phi(-z_{n+1-i})] / n. Gathered by z_i, its term
    # is 1 + E(z_i) + (2i - 1 - n) O(z_i) / n: nothing of order n is left to cancel.
    log_cdf_sums(z, status, _weights(n), statistic)
    np.negative(statistic, out=statistic)
    _fill_pvalues(status, statistic, n, pvalue)


@functools.lru_cache(maxsize=8)
def _weights(n: int) -> FloatArray:
    """Return (2i - 1 - n) / n for i = 1 to n."""
    return np.arange(1 - n, n, 2) / n


@njit(nogil=True, cache=True, error_model="numpy")
def _fill_pvalues(status: Array, statistic: FloatArray, n: int, pvalue: FloatArray) -> None:
    for r in range(status.size):
        if status[r] == 0:
            pvalue[r] = anderson_pvalue(statistic[r], n)


@njit(nogil=True, cache=True, error_model="numpy")
def anderson_pvalue(a2: float, n: int) -> float:
    """Return the p-value of a statistic of n samples, mean and variance estimated."""
    # D'Agostino & Stephens (1986), table 4.9, case of both parameters estimated.
    a = a2 * (1.0 + 0.75 / n + 2.25 / (n * n))
    if a < 0.2:
        return 1.0 - math.exp(-13.436 + 101.14 * a - 223.73 * a * a)
    if a < 0.34:
        return 1.0 - math.exp(-8.318 + 42.796 * a - 59.938 * a * a)
    if a < 0.6:
        return math.exp(0.9177 - 4.279 * a - 1.38 * a * a)
    if a < 10.0:
        return math.exp(1.2937 - 5.709 * a + 0.0186 * a * a)
    # The parabola in the exponent turns up again at 153: its value at 10 is an upper bound.
    return 3.7e-24
