"""Shapiro and Wilk's W in Royston's approximation, algorithm AS R94."""

from __future__ import annotations

import functools
import math

import numpy as np
from numba import njit
from scipy import special

from tracelab.typing import Array, FloatArray

__all__ = ["ROYSTON_MAXIMUM", "complement_rows", "shapiro_rows", "shapiro_weights"]

# The largest sample size that Royston fitted the null distribution to.
ROYSTON_MAXIMUM = 5000

_SQRT_HALF = math.sqrt(0.5)


def shapiro_rows(
    z: FloatArray, n: int, status: Array, statistic: FloatArray, pvalue: FloatArray
) -> None:
    """Fill `statistic` and `pvalue` of the rows whose status is ``OK``.

    Parameters
    ----------
    z : ndarray, shape (row, n)
        Sorted, standardised rows.
    n : int
        Sample size, 3 to 1,000,000.
    status : ndarray of uint8, shape (row,)
        Rows other than ``OK`` are left as they are.
    statistic, pvalue : ndarray, shape (row,)
        Output; p-values are left as they are above 5,000 samples.
    """
    complement = np.empty(status.size)
    complement_rows(z, status, shapiro_weights(n), complement)
    ok = status == 0
    statistic[ok] = 1.0 - complement[ok]
    if n <= ROYSTON_MAXIMUM:
        _fill_pvalues(complement, n, status, *_null(n), pvalue)


# Eight of the longest hold 64 MB.
@functools.lru_cache(maxsize=8)
def shapiro_weights(n: int) -> FloatArray:
    """Return the antisymmetric unit vector a of W = (sum a_i x_(i))^2 / sum (x_i - mean)^2.

    Parameters
    ----------
    n : int
        Sample size, at least 3.

    Returns
    -------
    ndarray of float64, shape (n,)
        Ascending; read-only.

    References
    ----------
    P. Royston, "Approximating the Shapiro-Wilk W-test for non-normality", Statistics and
    Computing 2, 117-119 (1992), section 2.
    """
    half = n // 2
    # Blom's scores of the upper half, largest first.
    m = -special.ndtri((np.arange(half) + 0.625) / (n + 0.25))
    norm = math.sqrt(2.0 * math.fsum(m * m))
    u = 1.0 / math.sqrt(n)
    if n == 3:
        a = np.array([_SQRT_HALF])
    else:
        fixed = [
            m[0] / norm + _polynomial(u, 0.221157, -0.147981, -2.07119, 4.434685, -2.706056) * u
        ]
        if n > 5:
            fixed.append(
                m[1] / norm
                + _polynomial(u, 0.042981, -0.293762, -1.752461, 5.682633, -3.582633) * u
            )
        k = len(fixed)
        # The other weights stay proportional to the scores and bring the norm to one.
        phi = (norm**2 - 2.0 * math.fsum(m[:k] ** 2)) / (
            1.0 - 2.0 * math.fsum(v * v for v in fixed)
        )
        a = np.concatenate([fixed, m[k:] / math.sqrt(phi)])
    weights: FloatArray = np.concatenate([-a, np.zeros(n % 2), a[::-1]])
    weights.flags.writeable = False
    return weights


def _polynomial(x: float, *coefficients: float) -> float:
    """Return the polynomial with the given coefficients, constant term first."""
    value = 0.0
    for coefficient in reversed(coefficients):
        value = value * x + coefficient
    return value


def _null(n: int) -> tuple[float, float, float]:
    """Return (gamma, mean, sd) of the transformed 1 - W under normality (Royston 1995)."""
    if n <= 11:
        return (
            -2.273 + 0.459 * n,
            _polynomial(n, 0.5440, -0.39978, 0.025054, -6.714e-4),
            math.exp(_polynomial(n, 1.3822, -0.77857, 0.062767, -0.0020322)),
        )
    x = math.log(n)
    return (
        math.inf,
        _polynomial(x, -1.5861, -0.31082, -0.083751, 0.0038915),
        math.exp(_polynomial(x, -0.4803, -0.082676, 0.0030302)),
    )


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def complement_rows(z: FloatArray, status: Array, weights: FloatArray, out: FloatArray) -> None:
    """Fill `out` with 1 - W of the rows whose status is ``OK``.

    Parameters
    ----------
    z : ndarray, shape (row, n)
        Sorted, standardised rows.
    status : ndarray of uint8, shape (row,)
        Rows other than ``OK`` are left as they are.
    weights : ndarray, shape (n,)
        From `shapiro_weights`.
    out : ndarray, shape (row,)
        Output.
    """
    for r in range(z.shape[0]):
        if status[r] == 0:
            out[r] = _one_minus_w(z[r], weights)


@njit(inline="always")
def _one_minus_w(z: FloatArray, weights: FloatArray) -> float:
    # The share of the variance that the regression on the weights leaves: unlike 1 - W computed
    # from W it loses no digits when W is close to one.
    slope = 0.0
    squares = 0.0
    for i in range(z.size):
        slope += weights[i] * z[i]
        squares += z[i] * z[i]
    residual = 0.0
    for i in range(z.size):
        residual += (z[i] - slope * weights[i]) ** 2
    return residual / squares


@njit(nogil=True, cache=True, error_model="numpy")
def _fill_pvalues(
    complement: FloatArray,
    n: int,
    status: Array,
    gamma: float,
    mean: float,
    sd: float,
    pvalue: FloatArray,
) -> None:
    for r in range(status.size):
        if status[r] == 0:
            pvalue[r] = _pvalue(complement[r], n, gamma, mean, sd)


@njit(nogil=True, cache=True, error_model="numpy")
def _pvalue(complement: float, n: int, gamma: float, mean: float, sd: float) -> float:
    if n == 3:
        # Exact; W >= 3/4 (Shapiro & Wilk 1965).
        return max(0.0, 6.0 / math.pi * (math.asin(math.sqrt(1.0 - complement)) - math.pi / 3.0))
    y = math.log(complement)
    if n <= 11:
        if y >= gamma:
            # Beyond the reach of the transformation; the value R reports.
            return 1e-99
        y = -math.log(gamma - y)
    return 0.5 * math.erfc((y - mean) / sd * _SQRT_HALF)
