"""Lilliefors' test: Kolmogorov's distance to the normal law of the sample's mean and variance."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from tracelab.typing import Array, FloatArray

__all__ = ["lilliefors_rows"]


# Numba takes one running maximum sample by sample; this many side by side fill vector registers.
_LANES = 16


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz"})
def lilliefors_rows(
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
    # max(i/n - p, p - (i - 1)/n) is half a step more than the distance to its middle.
    step = 1.0 / n
    furthest = np.empty(_LANES)
    whole = n - n % _LANES
    for r in range(probability.shape[0]):
        if status[r] == 0:
            furthest[:] = 0.0
            for start in range(0, whole, _LANES):
                part = probability[r, start : start + _LANES]
                for k in range(_LANES):
                    distance = abs(part[k] - (start + k + 0.5) * step)
                    furthest[k] = distance if distance > furthest[k] else furthest[k]
            for i in range(whole, n):
                furthest[0] = max(furthest[0], abs(probability[r, i] - (i + 0.5) * step))
            statistic[r] = furthest.max() + 0.5 * step
            pvalue[r] = _pvalue(statistic[r], n)


@njit(nogil=True, cache=True, error_model="numpy")
def _pvalue(d: float, n: int) -> float:
    # Dallal & Wilkinson (1986), equation 2, made for p <= .1 and n <= 100.
    size = min(n, 100)
    k = d if n <= 100 else d * (n / 100.0) ** 0.49
    p = math.exp(
        -7.01256 * k * k * (size + 2.78019)
        + 2.99587 * k * math.sqrt(size + 2.78019)
        - 0.122119
        + 0.974598 / math.sqrt(size)
        + 1.67997 / size
    )
    if p <= 0.1:
        return p
    # Stephens' modified statistic, by the polynomials that R's package nortest fitted.
    k = (math.sqrt(n) - 0.01 + 0.85 / math.sqrt(n)) * d
    if k <= 0.302:
        return 1.0
    if k <= 0.5:
        return 2.76773 + k * (-19.828315 + k * (80.709644 + k * (-138.55152 + k * 81.218052)))
    if k <= 0.9:
        return -4.901232 + k * (40.662806 + k * (-97.490286 + k * (94.029866 - k * 32.355711)))
    if k <= 1.31:
        return 6.198765 + k * (-19.558097 + k * (23.186922 + k * (-12.234627 + k * 2.423045)))
    return 0.0
