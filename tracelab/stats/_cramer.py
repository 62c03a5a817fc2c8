"""Cramer and von Mises' statistic for normality with estimated mean and variance."""

from __future__ import annotations

import math

from numba import njit

from tracelab.typing import Array, FloatArray

__all__ = ["cramer_pvalue", "cramer_rows"]


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def cramer_rows(
    probability: FloatArray, n: int, status: Array, statistic: FloatArray, pvalue: FloatArray
) -> None:
    """Fill `statistic` and the published `pvalue` of the rows whose status is ``OK``.

    Parameters
    ----------
    probability : ndarray, shape (row, n)
        Phi of sorted, standardised rows.
    n : int
        Sample size.
    status : ndarray of uint8, shape (row,)
        Rows other than ``OK`` are left as they are.
    statistic, pvalue : ndarray, shape (row,)
        Output.
    """
    step = 1.0 / n
    for r in range(probability.shape[0]):
        if status[r] == 0:
            total = 0.0
            for i in range(n):
                total += (probability[r, i] - (i + 0.5) * step) ** 2
            statistic[r] = total + 1.0 / (12.0 * n)
            pvalue[r] = cramer_pvalue(statistic[r], n)


@njit(nogil=True, cache=True, error_model="numpy")
def cramer_pvalue(w2: float, n: int) -> float:
    """Return the published p-value of a statistic of n samples, mean and variance estimated."""
    # D'Agostino & Stephens (1986), table 4.9, case of both parameters estimated.
    w = w2 * (1.0 + 0.5 / n)
    if w < 0.0275:
        return 1.0 - math.exp(-13.953 + 775.5 * w - 12542.61 * w * w)
    if w < 0.051:
        return 1.0 - math.exp(-5.903 + 179.546 * w - 1515.29 * w * w)
    if w < 0.092:
        return math.exp(0.886 - 31.62 * w + 10.897 * w * w)
    if w < 1.1:
        return math.exp(1.111 - 34.242 * w + 12.832 * w * w)
    # The parabola in the exponent turns up again at 1.33: its value at 1.1 is an upper bound.
    return 7.37e-10
