"""Resampling and controls: what the same estimator says about data whose law is known."""

from __future__ import annotations

import numba
import numpy as np

from tracelab.typing import FloatArray, IntArray

__all__ = ["gaussian_control", "sparse_sums"]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _mix(weights: FloatArray, x: FloatArray, out: FloatArray) -> None:
    # Plain loops, not BLAS: a threaded product differs in its last bits from machine to machine.
    for i in range(weights.shape[0]):
        for k in range(weights.shape[1]):
            w = weights[i, k]
            for j in range(x.shape[1]):
                out[i, j] += w * x[k, j]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _root(x: FloatArray) -> FloatArray:
    """Return R with R^T R = x^T x, upper triangular; a column that others explain adds no row."""
    count, series = x.shape
    product = np.zeros((series, series))
    whole = count - count % 4
    for k in range(0, whole, 4):
        for a in range(series):
            # Four rows at a time: sums stay in registers.
            w, x_, y, z = x[k, a], x[k + 1, a], x[k + 2, a], x[k + 3, a]
            for b in range(a, series):
                product[a, b] += w * x[k, b] + x_ * x[k + 1, b] + y * x[k + 2, b] + z * x[k + 3, b]
    for k in range(whole, count):
        for a in range(series):
            for b in range(a, series):
                product[a, b] += x[k, a] * x[k, b]
    scale = np.empty(series)
    for a in range(series):
        scale[a] = product[a, a]
    for a in range(series):
        product[a, :a] = 0.0
        # What rounding leaves of a column that is a combination of those before it.
        if not product[a, a] > 1e-12 * scale[a]:
            product[a, a:] = 0.0
            continue
        product[a, a:] /= np.sqrt(product[a, a])
        for c in range(a + 1, series):
            w = product[a, c]
            for b in range(c, series):
                product[c, b] -= w * product[a, b]
    return product


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _add_rows(
    ends: IntArray, places: IntArray, weights: FloatArray, x: FloatArray, out: FloatArray
) -> None:
    begin = 0
    for i in range(ends.size):
        for k in range(begin, ends[i]):
            w, row = weights[k], places[k]
            for j in range(x.shape[1]):
                out[i, j] += w * x[row, j]
        begin = ends[i]


def sparse_sums(ends: IntArray, places: IntArray, weights: FloatArray, x: FloatArray) -> FloatArray:
    """Return weighted sums of rows, in plain loops: the same bits on any machine and thread.

    Parameters
    ----------
    ends : ndarray of int64, shape (sum,)
        Where the terms of each sum end; those of the next begin there.
    places : ndarray of int32, shape (term,)
        Row of each term.
    weights : ndarray of float64, shape (term,)
        Its weight.
    x : ndarray, shape (row, series)
        What is summed.

    Returns
    -------
    ndarray of float64, shape (sum, series)
    """
    values = np.ascontiguousarray(x, dtype=np.float64)
    out: FloatArray = np.zeros((ends.size, values.shape[1]))
    _add_rows(ends, places, weights, values, out)
    return out


def gaussian_control(x: FloatArray, rng: np.random.Generator) -> FloatArray:
    r"""Return exactly Gaussian noise with the sample covariance of `x`.

    With ``K`` rows ``x_k`` (centred here) and independent standard normal ``w_ik``, the rows
    :math:`y_i = (K-1)^{-1/2} \sum_k w_{ik} x_k` are independent draws of ``N(0, S)``, where ``S``
    is the sample covariance: all scales and all correlations of the data, and no other property.
    Where there are fewer series than rows, rows are instead products of standard normal vectors
    with the Cholesky factor of S, which have the same law and take fewer of them.
    An estimator that reads heavy tails in `x` and reads the same in its control has read the
    spread of scales, not the noise.

    Parameters
    ----------
    x : ndarray, shape (batch, series)
        Finite samples; rows are independent.
    rng : numpy.random.Generator
        Source of the weights.

    Returns
    -------
    ndarray of float64, shape (batch, series)
        Centred; the same bits for the same generator state on any machine and thread.

    References
    ----------
    The control of the pooled estimator of Simsekli, Sagun, Gurbuzbalaban, "A Tail-Index Analysis
    of Stochastic Gradient Noise in Deep Neural Networks", ICML 2019, after the criticism of
    Xie, Tang, Sun, "On the Overlooked Structure of Stochastic Gradients", NeurIPS 2023.
    """
    values = np.ascontiguousarray(x, dtype=np.float64)
    count = values.shape[0]
    if count < 2:
        return np.full_like(values, np.nan)
    centred: FloatArray = values - values.mean(axis=0)
    out: FloatArray = np.zeros_like(centred)
    series = centred.shape[1]
    if series < count:
        # Of order one: squares of the largest and smallest numbers are no float64.
        size = np.abs(centred).max(axis=0)
        centred /= np.where(size > 0, size, 1.0)
        root = _root(centred) * (size / np.sqrt(count - 1))
        _mix(rng.standard_normal((count, series)), root, out)
        return out
    weights = rng.standard_normal((count, count)) / np.sqrt(count - 1)
    _mix(weights, centred, out)
    return out
