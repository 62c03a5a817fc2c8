"""Skewness and kurtosis of rows in any order, and the two tests that are made of them."""

from __future__ import annotations

import math

from numba import njit

from tracelab.typing import Array, FloatArray, Status

__all__ = ["dagostino_rows", "jarque_bera_rows", "moment_rows", "scale_of"]

_OK = int(Status.OK)
_NON_FINITE = int(Status.NON_FINITE_INPUT)
_CONSTANT = int(Status.CONSTANT_INPUT)

# In one running sum the rounding errors of 1e6 like-signed terms would add up.
_CHUNK = 1024


# Within these variances no power of a sample overflows, nor underflows to where it would count.
_SAFE_LOW, _SAFE_HIGH = 1e-60, 1e60


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def moment_rows(x: FloatArray, status: Array, out: FloatArray) -> None:
    r"""Fill `out` with :math:`\sqrt{b_1} = m_3 / m_2^{3/2}` and :math:`b_2 = m_4 / m_2^2`.

    m are central moments with divisor n. Rows are shifted by their first sample before anything
    is squared, and scaled by a power of two, which changes no bit, where squares need it.

    Parameters
    ----------
    x : ndarray of float64, shape (row, n)
        Samples in any order; n >= 2.
    status : ndarray of uint8, shape (row,)
        Output: ``OK``, ``NON_FINITE_INPUT`` or ``CONSTANT_INPUT``.
    out : ndarray of float64, shape (row, 2)
        Output; meaningless where the status is not ``OK``.
    """
    for r in range(x.shape[0]):
        status[r] = _OK
        second, third, fourth = _central_moments(x[r], 1.0)
        if not _SAFE_LOW < second < _SAFE_HIGH:
            low, high = x[r].min(), x[r].max()
            # The extremes of a row with NaN are NaN.
            if not (low > -math.inf and high < math.inf):
                status[r] = _NON_FINITE
            elif low == high:
                status[r] = _CONSTANT
            else:
                second, third, fourth = _central_moments(x[r], scale_of(low, high))
        out[r, 0] = third / second**1.5
        out[r, 1] = fourth / second**2


@njit(nogil=True, cache=True, error_model="numpy")
def scale_of(low: float, high: float) -> float:
    """Return the power of two that brings the range below 1, and near it."""
    width = high - low
    exponent = math.frexp(width)[1] if width < math.inf else math.frexp(max(-low, high))[1] + 1
    # The smallest ranges are not brought to one: 2 to the power 1074 is no float64.
    return math.ldexp(1.0, -max(exponent, -1000))


@njit(inline="always")
def _central_moments(row: FloatArray, scale: float) -> tuple[float, float, float]:
    """Return m_2, m_3 and m_4 of the scaled row."""
    n = row.size
    origin = row[0] * scale
    total = 0.0
    for i in range(n):
        total += row[i] * scale - origin
    # The mean to the last digit of the samples; what that leaves is in the first moment below.
    centre = origin + total / n
    first = second = third = fourth = 0.0
    for start in range(0, n, _CHUNK):
        s1 = s2 = s3 = s4 = 0.0
        part = row[start : start + _CHUNK]
        for i in range(part.size):
            d = part[i] * scale - centre
            square = d * d
            s1 += d
            s2 += square
            s3 += square * d
            s4 += square * square
        first += s1
        second += s2
        third += s3
        fourth += s4
    first, second, third, fourth = first / n, second / n, third / n, fourth / n
    square = first * first
    return (
        second - square,
        third - first * (3.0 * second - 2.0 * square),
        fourth - first * (4.0 * third - first * (6.0 * second - 3.0 * square)),
    )


@njit(nogil=True, cache=True, error_model="numpy")
def jarque_bera_rows(
    moments: FloatArray, n: int, status: Array, statistic: FloatArray, pvalue: FloatArray
) -> None:
    """Fill Jarque and Bera's `statistic`, and its `pvalue` by the limiting chi-square law.

    Parameters
    ----------
    moments : ndarray, shape (row, 2)
        From `moment_rows`.
    n : int
        Sample size.
    status : ndarray of uint8, shape (row,)
        Rows other than ``OK`` are left as they are.
    statistic, pvalue : ndarray, shape (row,)
        Output.
    """
    for r in range(status.size):
        if status[r] == _OK:
            skewness, excess = moments[r, 0], moments[r, 1] - 3.0
            statistic[r] = n / 6.0 * (skewness**2 + 0.25 * excess**2)
            pvalue[r] = math.exp(-0.5 * statistic[r])


def dagostino_rows(
    moments: FloatArray, n: int, status: Array, statistic: FloatArray, pvalue: FloatArray
) -> None:
    """Fill D'Agostino and Pearson's `statistic`, and its `pvalue` by the chi-square law.

    Parameters
    ----------
    moments : ndarray, shape (row, 2)
        From `moment_rows`.
    n : int
        Sample size, at least 8.
    status : ndarray of uint8, shape (row,)
        Rows other than ``OK`` are left as they are.
    statistic, pvalue : ndarray, shape (row,)
        Output.
    """
    _fill_dagostino(moments, *_skewness_null(n), *_kurtosis_null(n), status, statistic, pvalue)


def _skewness_null(n: int) -> tuple[float, float, float]:
    """Return (sd of sqrt(b1), delta, alpha): D'Agostino (1970), equations 6 to 10."""
    sd = math.sqrt(6.0 * (n - 2) / ((n + 1.0) * (n + 3)))
    beta2 = 3.0 * (n * n + 27.0 * n - 70) * (n + 1) * (n + 3)
    beta2 /= (n - 2.0) * (n + 5) * (n + 7) * (n + 9)
    w2 = math.sqrt(2.0 * (beta2 - 1.0)) - 1.0
    return sd, 1.0 / math.sqrt(0.5 * math.log(w2)), math.sqrt(2.0 / (w2 - 1.0))


def _kurtosis_null(n: int) -> tuple[float, float, float]:
    """Return (mean of b2, its sd, A): Anscombe & Glynn (1983), section 3."""
    mean = 3.0 * (n - 1) / (n + 1)
    variance = 24.0 * n * (n - 2) * (n - 3) / ((n + 1.0) ** 2 * (n + 3) * (n + 5))
    skewness = 6.0 * (n * n - 5.0 * n + 2) / ((n + 7.0) * (n + 9))
    skewness *= math.sqrt(6.0 * (n + 3) * (n + 5) / (n * (n - 2.0) * (n - 3)))
    a = 6.0 + 8.0 / skewness * (2.0 / skewness + math.sqrt(1.0 + 4.0 / skewness**2))
    return mean, math.sqrt(variance), a


@njit(nogil=True, cache=True, error_model="numpy")
def _fill_dagostino(
    moments: FloatArray,
    skewness_sd: float,
    delta: float,
    alpha: float,
    kurtosis_mean: float,
    kurtosis_sd: float,
    a: float,
    status: Array,
    statistic: FloatArray,
    pvalue: FloatArray,
) -> None:
    for r in range(status.size):
        if status[r] == _OK:
            skewness = delta * math.asinh(moments[r, 0] / skewness_sd / alpha)
            x = (moments[r, 1] - kurtosis_mean) / kurtosis_sd
            # Negative for kurtosis far below that of any unimodal sample: the real root.
            ratio = (1.0 - 2.0 / a) / (1.0 + x * math.sqrt(2.0 / (a - 4.0)))
            root = math.copysign(abs(ratio) ** (1.0 / 3.0), ratio)
            kurtosis = (1.0 - 2.0 / (9.0 * a) - root) / math.sqrt(2.0 / (9.0 * a))
            statistic[r] = skewness**2 + kurtosis**2
            pvalue[r] = math.exp(-0.5 * statistic[r])
