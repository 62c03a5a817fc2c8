"""Kernels of the tests of multivariate normality, one sample of shape (n, d) after another."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from tracelab.stats._moments import scale_of
from tracelab.stats._normal_distance import gamma_ratio, mean_distance
from tracelab.typing import Array, FloatArray, Status

__all__ = ["energy_cells", "kernel_cells", "kurtosis_cells", "skewness_cells", "whiten_cells"]

_OK = int(Status.OK)
_NON_FINITE = int(Status.NON_FINITE_INPUT)
_CONSTANT = int(Status.CONSTANT_INPUT)

# Of a column of variance 1, the part that the columns before it leave unexplained: below this
# share, in units of n eps, it is rounding.
_SINGULAR = 10.0 * np.finfo(np.float64).eps


@njit(nogil=True, cache=True, error_model="numpy")
def whiten_cells(x: FloatArray, status: Array) -> None:
    """Bring every sample, in place, to mean 0 and covariance (divisor n) the identity.

    Parameters
    ----------
    x : ndarray of float64, shape (cell, n, d)
        Samples; meaningless afterwards where the status is not ``OK``.
    status : ndarray of uint8, shape (cell,)
        Output: ``OK``, ``NON_FINITE_INPUT``, or ``CONSTANT_INPUT`` where the covariance is
        singular.
    """
    d = x.shape[2]
    factor = np.empty((d, d))
    for cell in range(x.shape[0]):
        y = x[cell]
        status[cell] = _standardize_columns(y)
        if status[cell] == _OK and not _factorize(y, factor):
            status[cell] = _CONSTANT
        if status[cell] == _OK:
            for i in range(y.shape[0]):
                for j in range(d):
                    value = y[i, j]
                    for k in range(j):
                        value -= factor[j, k] * y[i, k]
                    y[i, j] = value / factor[j, j]


@njit(nogil=True, cache=True, error_model="numpy")
def _standardize_columns(y: FloatArray) -> int:
    """Bring every column to mean 0 and variance 1; return a status."""
    n, d = y.shape
    status = _OK
    for j in range(d):
        low, high = y[:, j].min(), y[:, j].max()
        # The extremes of a column with NaN are NaN.
        if not (low > -math.inf and high < math.inf):
            return _NON_FINITE
        if low == high:
            status = _CONSTANT
    if status != _OK:
        return status
    for j in range(d):
        scale = scale_of(y[:, j].min(), y[:, j].max())
        origin = y[0, j] * scale
        total = 0.0
        for i in range(n):
            y[i, j] = y[i, j] * scale - origin
            total += y[i, j]
        squares = 0.0
        for i in range(n):
            y[i, j] -= total / n
            squares += y[i, j] ** 2
        for i in range(n):
            y[i, j] *= math.sqrt(n / squares)
    return status


@njit(nogil=True, cache=True, error_model="numpy")
def _factorize(y: FloatArray, factor: FloatArray) -> bool:
    """Fill the Cholesky factor of the covariance of the rows; return whether it has full rank."""
    n, d = y.shape
    for j in range(d):
        for k in range(j + 1):
            total = 0.0
            for i in range(n):
                total += y[i, j] * y[i, k]
            value = total / n
            for m in range(k):
                value -= factor[j, m] * factor[k, m]
            if k < j:
                factor[j, k] = value / factor[k, k]
            elif value <= _SINGULAR * n:
                return False
            else:
                factor[j, j] = math.sqrt(value)
    return True


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def skewness_cells(y: FloatArray, status: Array, out: FloatArray) -> None:
    """Fill `out` with Mardia's b_{1,d} of the cells whose status is ``OK``.

    It is the sum of the squares of all third moments E(y_j y_k y_l).

    Parameters
    ----------
    y : ndarray, shape (cell, n, d)
        Whitened samples.
    status : ndarray of uint8, shape (cell,)
        Cells other than ``OK`` are left as they are.
    out : ndarray, shape (cell,)
        Output.
    """
    n, d = y.shape[1:]
    columns = np.empty((d, n))
    product = np.empty(n)
    for cell in range(y.shape[0]):
        if status[cell] != _OK:
            continue
        columns[:] = y[cell].T
        total = 0.0
        for j in range(d):
            for k in range(j + 1):
                for i in range(n):
                    product[i] = columns[j, i] * columns[k, i]
                for m in range(k + 1):
                    moment = 0.0
                    for i in range(n):
                        moment += product[i] * columns[m, i]
                    # How many orders of the three indices give this moment.
                    orders = 6.0 if j > k > m else 1.0 if j == m else 3.0
                    total += orders * (moment / n) ** 2
        out[cell] = total


@njit(nogil=True, cache=True, error_model="numpy")
def kurtosis_cells(y: FloatArray, status: Array, out: FloatArray) -> None:
    """Fill `out` with Mardia's b_{2,d}, the mean of abs(y)^4, of the cells that are ``OK``.

    Parameters
    ----------
    y : ndarray, shape (cell, n, d)
        Whitened samples.
    status : ndarray of uint8, shape (cell,)
        Cells other than ``OK`` are left as they are.
    out : ndarray, shape (cell,)
        Output.
    """
    n = y.shape[1]
    for cell in range(y.shape[0]):
        if status[cell] == _OK:
            total = 0.0
            for i in range(n):
                total += _square(y[cell, i]) ** 2
            out[cell] = total / n


@njit(nogil=True, cache=True, error_model="numpy")
def kernel_cells(y: FloatArray, status: Array, beta: float, out: FloatArray) -> None:
    """Fill `out` with Henze and Zirkler's T of the cells whose status is ``OK``.

    Parameters
    ----------
    y : ndarray, shape (cell, n, d)
        Whitened samples.
    status : ndarray of uint8, shape (cell,)
        Cells other than ``OK`` are left as they are.
    beta : float
        Smoothing parameter.
    out : ndarray, shape (cell,)
        Output.
    """
    n, d = y.shape[1:]
    b = beta * beta
    for cell in range(y.shape[0]):
        if status[cell] == _OK:
            pairs = single = 0.0
            for i in range(n):
                row = 0.0
                for j in range(i):
                    row += math.exp(-0.5 * b * _distance2(y[cell, i], y[cell, j]))
                pairs += row
                single += math.exp(-0.5 * b / (1.0 + b) * _square(y[cell, i]))
            out[cell] = (
                1.0
                + 2.0 * pairs / n
                - 2.0 * (1.0 + b) ** (-0.5 * d) * single
                + n * (1.0 + 2.0 * b) ** (-0.5 * d)
            )


@njit(nogil=True, cache=True, error_model="numpy")
def energy_cells(y: FloatArray, status: Array, out: FloatArray) -> None:
    """Fill `out` with Szekely and Rizzo's energy statistic of the cells whose status is ``OK``.

    Parameters
    ----------
    y : ndarray, shape (cell, n, d)
        Whitened samples.
    status : ndarray of uint8, shape (cell,)
        Cells other than ``OK`` are left as they are.
    out : ndarray, shape (cell,)
        Output.
    """
    n, d = y.shape[1:]
    # From the covariance of divisor n to that of divisor n - 1.
    shrink = math.sqrt((n - 1.0) / n)
    between = 2.0 * gamma_ratio(0.5 * d)
    for cell in range(y.shape[0]):
        if status[cell] == _OK:
            excess = pairs = 0.0
            for i in range(n):
                norm2 = shrink * shrink * _square(y[cell, i])
                excess += 2.0 * mean_distance(norm2, d) - between
                row = 0.0
                for j in range(i):
                    row += math.sqrt(_distance2(y[cell, i], y[cell, j]))
                pairs += row
            out[cell] = excess - 2.0 * shrink * pairs / n


@njit(inline="always")
def _square(a: FloatArray) -> float:
    total = 0.0
    for k in range(a.size):
        total += a[k] * a[k]
    return total


@njit(inline="always")
def _distance2(a: FloatArray, b: FloatArray) -> float:
    total = 0.0
    for k in range(a.size):
        total += (a[k] - b[k]) ** 2
    return total
