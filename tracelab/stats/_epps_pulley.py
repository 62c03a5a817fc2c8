r"""Epps and Pulley's statistic: a weighted distance of characteristic functions.

A cosine and a sine a sample and node would cost several sorts. Of sorted samples those of one cell
lie side by side; within a cell, powers of the distance to its middle are summed instead, and the
sums of all cells meet the nodes afterwards.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numba import njit

from tracelab.typing import Array, FloatArray

__all__ = ["epps_pulley_rows", "gauss_hermite"]

_NODES = 24
_HALF = _NODES // 2

# Cells of this width cover [-_EDGE, _EDGE]; samples beyond, one in 16,000 of a Gaussian, are taken
# one by one. The terms left out of the series at this degree are below 3e-14 times the square
# root of their node's weight.
_WIDTH = 0.5
_EDGE = 4.0
_CELLS = round(2 * _EDGE / _WIDTH)
_DEGREE = 14


def gauss_hermite() -> tuple[FloatArray, FloatArray]:
    """Return the positive nodes t of the 24-node rule for a standard normal t, and their weights.

    The weights count -t too: they add up to 1 over the 12 nodes returned.
    """
    t, weight = np.polynomial.hermite_e.hermegauss(_NODES)
    return t[_HALF:], 2.0 * weight[_HALF:] / weight.sum()


def epps_pulley_rows(
    z: FloatArray, n: int, status: Array, statistic: FloatArray, pvalue: FloatArray
) -> None:
    """Fill `statistic` of the rows whose status is ``OK``; there is no published p-value.

    Parameters
    ----------
    z : ndarray, shape (row, n)
        Sorted rows of mean 0 and sample variance 1 (divisor n - 1).
    n : int
        Sample size.
    status : ndarray of uint8, shape (row,)
        Rows other than ``OK`` are left as they are.
    statistic : ndarray, shape (row,)
        Output.
    pvalue : ndarray, shape (row,)
        Left as it is.
    """
    _fill(z, status, *_constants(n), statistic)


@functools.lru_cache(maxsize=64)
def _constants(n: int) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return times, weights, the normal law's values, series (power, node), turns (2, cell, node).

    Scaling the times by sqrt(n / (n - 1)) scales the samples to variance 1 with divisor n.
    """
    t, weight = gauss_hermite()
    times = t * math.sqrt(n / (n - 1.0))
    power = np.arange(_DEGREE + 1)
    factorial = np.array([math.factorial(p) for p in power], dtype=np.float64)
    # exp(i t h u / 2) = sum of (i t h / 2)^p u^p / p!; real for even p, imaginary for odd.
    sign = np.where(power % 4 < 2, 1.0, -1.0) / factorial
    series = sign[:, None] * (0.5 * _WIDTH * times) ** power[:, None]
    middle = -_EDGE + _WIDTH * (np.arange(_CELLS) + 0.5)
    angle = middle[:, None] * times
    return times, weight, np.exp(-0.5 * t**2), series, np.stack([np.cos(angle), np.sin(angle)])


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def _fill(
    z: FloatArray,
    status: Array,
    times: FloatArray,
    weight: FloatArray,
    normal: FloatArray,
    series: FloatArray,
    turns: FloatArray,
    statistic: FloatArray,
) -> None:
    n = z.shape[1]
    cosine, sine = np.empty(_HALF), np.empty(_HALF)
    even, odd = np.empty(_HALF), np.empty(_HALF)
    power = np.empty(_DEGREE + 1)
    for r in range(z.shape[0]):
        if status[r] != 0:
            continue
        x = z[r]
        start = np.searchsorted(x, -_EDGE)
        cosine[:] = 0.0
        sine[:] = 0.0
        _add_samples(x[:start], times, cosine, sine)
        for cell in range(_CELLS):
            middle = -_EDGE + _WIDTH * (cell + 0.5)
            end = start + np.searchsorted(x[start:], -_EDGE + _WIDTH * (cell + 1))
            if end > start:
                _sum_powers(x[start:end], middle, power)
                even[:] = 0.0
                odd[:] = 0.0
                for p in range(0, _DEGREE + 1, 2):
                    for k in range(_HALF):
                        even[k] += series[p, k] * power[p]
                for p in range(1, _DEGREE + 1, 2):
                    for k in range(_HALF):
                        odd[k] += series[p, k] * power[p]
                for k in range(_HALF):
                    c, s = turns[0, cell, k], turns[1, cell, k]
                    cosine[k] += c * even[k] - s * odd[k]
                    sine[k] += s * even[k] + c * odd[k]
            start = end
        _add_samples(x[start:], times, cosine, sine)
        total = 0.0
        for k in range(_HALF):
            total += weight[k] * ((cosine[k] / n - normal[k]) ** 2 + (sine[k] / n) ** 2)
        statistic[r] = n * total


@njit(inline="always")
def _add_samples(x: FloatArray, times: FloatArray, cosine: FloatArray, sine: FloatArray) -> None:
    for i in range(x.size):
        for k in range(_HALF):
            cosine[k] += math.cos(times[k] * x[i])
            sine[k] += math.sin(times[k] * x[i])


@njit(inline="always")
def _sum_powers(x: FloatArray, middle: float, power: FloatArray) -> None:
    s1 = s2 = s3 = s4 = s5 = s6 = s7 = s8 = s9 = s10 = s11 = s12 = s13 = s14 = 0.0
    for i in range(x.size):
        u = (x[i] - middle) * (2.0 / _WIDTH)
        u2 = u * u
        u3 = u2 * u
        u4 = u2 * u2
        u5 = u4 * u
        u6 = u4 * u2
        u7 = u4 * u3
        u8 = u4 * u4
        s1 += u
        s2 += u2
        s3 += u3
        s4 += u4
        s5 += u5
        s6 += u6
        s7 += u7
        s8 += u8
        s9 += u8 * u
        s10 += u8 * u2
        s11 += u8 * u3
        s12 += u8 * u4
        s13 += u8 * u5
        s14 += u8 * u6
    power[0] = x.size
    power[1], power[2], power[3], power[4], power[5] = s1, s2, s3, s4, s5
    power[6], power[7], power[8], power[9], power[10] = s6, s7, s8, s9, s10
    power[11], power[12], power[13], power[14] = s11, s12, s13, s14
