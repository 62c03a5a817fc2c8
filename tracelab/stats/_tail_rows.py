"""Estimates of the extreme value index from the largest values of many rows."""

from __future__ import annotations

import math

import numba
import numpy as np

from tracelab.typing import FloatArray, IntArray

__all__ = ["distances", "exceedances", "hill_rows", "moment_rows", "pickands_rows"]

_LOG2 = math.log(2.0)
_MAX_ITERATIONS = 100
_SERIES = 1e-5


@numba.njit(nogil=True, cache=True, error_model="numpy")
def hill_rows(logs: FloatArray, ks: IntArray, out: FloatArray) -> None:
    """Write Hill's estimate of every row for each of its k to `out` (row, k).

    Parameters
    ----------
    logs : ndarray of float64, shape (row, m)
        Logarithms of the largest values, descending; -inf where a value is not positive.
    ks : ndarray of int64, shape (row, k)
        Ascending in each row, from 1 to m - 1.
    out : ndarray, shape (row, k)
        Output; NaN where the value below the k is not positive.
    """
    for r in range(logs.shape[0]):
        total, taken = 0.0, 0
        for j in range(ks.shape[1]):
            k = ks[r, j]
            # Below the largest: sums of logarithms of tiny or huge values would lose digits.
            while taken < k:
                total += logs[r, 0] - logs[r, taken]
                taken += 1
            reach = logs[r, 0] - logs[r, k]
            out[r, j] = reach - total / k if reach < np.inf else np.nan


@numba.njit(nogil=True, cache=True, error_model="numpy")
def moment_rows(logs: FloatArray, ks: IntArray, out: FloatArray) -> None:
    """Write the moment estimate of every row for each of its k; else as `hill_rows`."""
    for r in range(logs.shape[0]):
        first = second = 0.0
        taken = 0
        for j in range(ks.shape[1]):
            k = ks[r, j]
            while taken < k:
                below = logs[r, 0] - logs[r, taken]
                first += below
                second += below * below
                taken += 1
            reach = logs[r, 0] - logs[r, k]
            if not reach < np.inf:
                out[r, j] = np.nan
                continue
            m1 = reach - first / k
            m2 = reach * reach - 2.0 * reach * first / k + second / k
            # Zero where the values above the threshold are all equal; there is no tail then.
            spread = 1.0 - m1 * m1 / m2 if m2 > 0.0 else np.nan
            out[r, j] = m1 + 1.0 - 0.5 / spread if spread > 0.0 else np.nan


@numba.njit(nogil=True, cache=True, error_model="numpy")
def pickands_rows(values: FloatArray, ks: IntArray, out: FloatArray) -> None:
    """Write Pickands' estimate of every row for each of its k to `out` (row, k).

    `values` are descending; those of rank k / 4, k / 2 and k are used.
    """
    for r in range(values.shape[0]):
        for j in range(ks.shape[1]):
            quarter = ks[r, j] // 4
            if quarter < 1:
                out[r, j] = np.nan
                continue
            middle = values[r, 2 * quarter - 1]
            upper = values[r, quarter - 1] - middle
            lower = middle - values[r, 4 * quarter - 1]
            both = upper > 0.0 and lower > 0.0
            out[r, j] = math.log(upper / lower) / _LOG2 if both else np.nan


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _profile(y: FloatArray, k: int, theta: float) -> tuple[float, float, float]:
    """Return the profile log-likelihood a value, xi, and the log-likelihood's slope in theta.

    With theta = xi / sigma the likelihood is largest at xi = mean log(1 + theta y), and there it
    is -log(xi / theta) - xi - 1 a value (Grimshaw 1993).
    """
    if abs(theta) * y[0] < _SERIES:
        # Where xi / theta would be a quotient of what rounding leaves: its series.
        first = second = third = 0.0
        for i in range(k):
            first += y[i]
            second += y[i] * y[i]
            third += y[i] * y[i] * y[i]
        first, second, third = first / k, 0.5 * second / k, third / (3 * k)
        ratio = first - theta * second + theta * theta * third
        slope = (second - 2.0 * theta * third) / ratio - first + 2.0 * theta * second
        return -math.log(ratio) - theta * ratio - 1.0, theta * ratio, slope
    xi = slope = 0.0
    for i in range(k):
        z = theta * y[i]
        xi += math.log1p(z)
        slope += y[i] / (1.0 + z)
    xi, slope = xi / k, slope / k
    return -math.log(xi / theta) - xi - 1.0, xi, 1.0 / theta - slope / xi - slope


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _maximise(y: FloatArray, k: int) -> tuple[float, float]:
    """Return xi and sigma where the likelihood of k excesses is largest, or NaN.

    The profile has no bound as theta tends to -1 / max(y), where xi is below -1; the maximum is
    looked for where xi > -1: bracketed on a grid, then as the root of the slope.
    """
    largest = y[0]
    mean = 0.0
    for i in range(k):
        mean += y[i]
    mean /= k
    # Towards the end of the support the likelihood turns within a small part of theta.
    grid = np.empty(71)
    for i in range(30):
        grid[i] = -(1.0 - 10.0 ** (-7.0 + 7.0 * i / 30.0)) / largest
    grid[30] = 0.0
    for i in range(40):
        grid[31 + i] = 10.0 ** (-3.0 + 5.0 * i / 39.0) / mean
    best, place = -np.inf, -1
    for i in range(grid.size):
        value, xi, _ = _profile(y, k, grid[i])
        if xi > -1.0 and value > best:
            best, place = value, i
    if place <= 0 or place == grid.size - 1:
        return np.nan, np.nan
    a, b = grid[place - 1], grid[place + 1]
    _, xi_a, slope_a = _profile(y, k, a)
    _, _, slope_b = _profile(y, k, b)
    if not (slope_a > 0.0 and slope_b < 0.0 and xi_a > -1.0):
        return np.nan, np.nan
    # The root of the slope by the Illinois method: an end that stays twice counts half.
    theta, stayed = grid[place], 0
    for _ in range(_MAX_ITERATIONS):
        theta = (a * slope_b - b * slope_a) / (slope_b - slope_a)
        _, _, slope = _profile(y, k, theta)
        if abs(slope) * mean < 1e-12 or b - a < 1e-14 * (abs(a) + abs(b)):
            break
        if slope > 0.0:
            a, slope_a = theta, slope
            slope_b *= 0.5 if stayed > 0 else 1.0
            stayed = 1
        else:
            b, slope_b = theta, slope
            slope_a *= 0.5 if stayed < 0 else 1.0
            stayed = -1
    _, xi, _ = _profile(y, k, theta)
    return xi, xi / theta if theta != 0.0 else mean


@numba.njit(nogil=True, cache=True, error_model="numpy")
def exceedances(values: FloatArray, ks: IntArray, out: FloatArray, scale: FloatArray) -> None:
    """Fit the generalized Pareto law to the k excesses of every row over its next value.

    Parameters
    ----------
    values : ndarray of float64, shape (row, m)
        Descending.
    ks : ndarray of int64, shape (row, k)
        Below m.
    out, scale : ndarray, shape (row, k)
        Output: xi and sigma; NaN where the likelihood has no maximum with xi > -1.
    """
    y = np.empty(values.shape[1])
    for r in range(values.shape[0]):
        for j in range(ks.shape[1]):
            k = ks[r, j]
            largest = values[r, 0] - values[r, k]
            out[r, j] = scale[r, j] = np.nan
            if largest > 0.0:
                for i in range(k):
                    y[i] = (values[r, i] - values[r, k]) / largest
                xi, sigma = _maximise(y, k)
                out[r, j], scale[r, j] = xi, sigma * largest


@numba.njit(nogil=True, cache=True, error_model="numpy")
def distances(logs: FloatArray, ks: IntArray, xi: FloatArray, out: FloatArray) -> None:
    """Write the Kolmogorov-Smirnov distance of each tail from its Pareto law to `out` (row, k).

    The tail are the k values above the threshold, the law has Hill's index `xi` (row, k).
    """
    for r in range(logs.shape[0]):
        for j in range(ks.shape[1]):
            k = ks[r, j]
            if not xi[r, j] > 0.0:
                out[r, j] = np.nan
                continue
            largest = 0.0
            for i in range(k):
                # The share of the law above value i, beside i / k and (i + 1) / k of the data.
                above = math.exp((logs[r, k] - logs[r, i]) / xi[r, j])
                largest = max(largest, above - i / k, (i + 1) / k - above)
            out[r, j] = largest
