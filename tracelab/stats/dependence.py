"""Dependence of samples on those before them: autocorrelation, and what is left of their number."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt
from scipy import fft, special

from tracelab.errors import UsageError
from tracelab.stats._samples import as_rows
from tracelab.typing import Array, FloatArray, Status

__all__ = ["Dependence", "autocorrelation", "dependence", "geyer"]

MIN_SAMPLES = 10
"""Fewer values than this say nothing of their dependence."""


@dataclass(frozen=True, slots=True)
class Dependence:
    """How much samples depend on those before them; arrays have the leading shape of the data.

    Parameters
    ----------
    rho : ndarray of float64
        Correlation of neighbours, corrected for its bias, :math:`(1 + 3 r_1) / n`.
    rho_se : ndarray of float64
        Its standard error in an autoregression of first order.
    ljung_box, pvalue : ndarray of float64
        Statistic of the first `lags` correlations together, and its p-value if there is none.
    lags : int
        How many.
    effective : ndarray of float64
        Number of independent values whose mean is known as well as that of these. More than there
        are where neighbours are anticorrelated.
    effective_se : ndarray of float64
        Its standard error, of large samples.
    n_samples : int
        Values of each sample.
    status : ndarray of uint8
        `tracelab.typing.Status`. Numbers are NaN where it is not ``OK``.
    """

    rho: FloatArray
    rho_se: FloatArray
    ljung_box: FloatArray
    pvalue: FloatArray
    lags: int
    effective: FloatArray
    effective_se: FloatArray
    n_samples: int
    status: npt.NDArray[np.uint8]


def autocorrelation(x: npt.ArrayLike, lags: int, axis: int = -1) -> FloatArray:
    r"""Return the correlations of every sample with itself, some values later.

    .. math:: r_k = \sum_{i} (x_i - \bar x)(x_{i+k} - \bar x) \Big/ \sum_i (x_i - \bar x)^2

    Parameters
    ----------
    x : array_like, real
        Samples along `axis`, in the order in which they were taken.
    lags : int
        The largest lag, below the number of values.
    axis : int
        Axis of the samples; the other axes are kept.

    Returns
    -------
    ndarray of float64, shape (..., lags + 1)
        From lag 0 on, where it is 1. NaN for samples that are constant or not finite.

    Raises
    ------
    UsageError
        If an argument is outside its range.
    """
    rows, lead = as_rows(x, axis)
    _check(lags, rows.shape[1])
    return _correlations(rows.astype(np.float64), lags).reshape(*lead, lags + 1)


def dependence(x: npt.ArrayLike, axis: int = -1, lags: int | None = None) -> Dependence:
    r"""Return how much every sample's values depend on those before them.

    The effective number of values is :math:`n / \tau` with

    .. math:: \tau = -1 + 2 \sum_{k < m} \Gamma_k, \quad \Gamma_k = r_{2k} + r_{2k+1}

    up to the first :math:`\Gamma_m` that is not positive, none counted for more than those before
    it (Geyer's initial monotone sequence); its relative standard error is about
    :math:`\sqrt{2 (4 m + 1) / n}`.

    Parameters
    ----------
    x : array_like, real
        Samples along `axis`, in the order in which they were taken.
    axis : int
        Axis of the samples; the other axes are kept.
    lags : int, optional
        Of Ljung and Box's test. Default: 10, or a fifth of the values if that is less.

    Returns
    -------
    Dependence
        Status ``TOO_FEW_SAMPLES`` below 10 values, ``NON_FINITE_INPUT`` or ``CONSTANT_INPUT``.

    Raises
    ------
    UsageError
        If an argument is outside its range.

    References
    ----------
    Ljung, Box, "On a measure of lack of fit in time series models", Biometrika 65, 297-303 (1978);
    Geyer, "Practical Markov chain Monte Carlo", Statistical Science 7, 473-483 (1992), section
    3.3; Sokal, "Monte Carlo methods in statistical mechanics" (1997), equation 3.19; Kendall,
    "Note on bias in the estimation of autocorrelation", Biometrika 41 (1954).

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((2, 1000))
    >>> dependence(x.cumsum(axis=-1)).effective < 20
    array([ True,  True])
    """
    rows, lead = as_rows(x, axis)
    n = rows.shape[1]
    tested = min(10, n // 5) if lags is None else lags
    if lags is not None:
        _check(lags, n)
    status = np.full(len(rows), Status.OK, dtype=np.uint8)
    if n < MIN_SAMPLES:
        status[:] = Status.TOO_FEW_SAMPLES
    elif n:
        status[(rows == rows[:, :1]).all(axis=-1)] = Status.CONSTANT_INPUT
    status[~np.isfinite(rows).all(axis=-1)] = Status.NON_FINITE_INPUT
    good = np.flatnonzero(status == Status.OK)
    numbers = np.full((6, len(rows)), np.nan)
    if good.size:
        r = _correlations(rows[good].astype(np.float64), n // 2)
        rho = np.clip(r[:, 1] + (1 + 3 * r[:, 1]) / n, -1, 1)
        weights = 1 / (n - np.arange(1, tested + 1))
        box = n * (n + 2) * (r[:, 1 : tested + 1] ** 2 @ weights)
        tau, window = np.empty(len(r)), np.empty(len(r), dtype=np.int64)
        geyer(r, tau, window)
        effective = n / tau
        numbers[:, good] = (
            rho,
            np.sqrt(np.maximum(1 - rho**2, 0) / n),
            box,
            special.chdtrc(tested, box) if tested else np.nan,
            effective,
            effective * np.sqrt(2 * (2 * window + 1) / n),
        )
    rho, rho_se, box, pvalue, effective, effective_se = (each.reshape(lead) for each in numbers)
    return Dependence(
        rho=rho,
        rho_se=rho_se,
        ljung_box=box,
        pvalue=pvalue,
        lags=tested,
        effective=effective,
        effective_se=effective_se,
        n_samples=n,
        status=status.reshape(lead),
    )


def _check(lags: int, n: int) -> None:
    if not 0 < lags < max(n, 2):
        raise UsageError(f"lags must be from 1 to {n - 1}, below the {n} values, got {lags}")


def _correlations(rows: FloatArray, lags: int) -> FloatArray:
    n = rows.shape[1]
    with np.errstate(invalid="ignore", over="ignore"):
        # Of order one: squares of the largest and smallest numbers are no float64.
        size = np.abs(rows).max(axis=-1, keepdims=True, initial=0)
        scaled = rows / np.where(size > 0, size, 1)
        centred = scaled - scaled.mean(axis=-1, keepdims=True)
    length = fft.next_fast_len(n + lags, real=True)
    found = np.full((len(rows), lags + 1), np.nan)
    usable = np.isfinite(centred).all(axis=-1) & (rows != rows[:, :1]).any(axis=-1)
    spectrum = np.abs(fft.rfft(centred[usable], length)) ** 2
    products = fft.irfft(spectrum, length)[:, : lags + 1]
    found[usable] = products / products[:, :1]
    return found


@numba.njit(nogil=True, cache=True, error_model="numpy")
def geyer(r: FloatArray, tau: FloatArray, window: Array) -> None:
    """Write what divides the number of values, and lags counted, from correlations (row, lag)."""
    for row in range(r.shape[0]):
        total, before, last = 0.0, np.inf, 0
        for k in range(r.shape[1] // 2):
            pair = r[row, 2 * k] + r[row, 2 * k + 1]
            if not pair > 0.0:
                break
            before = min(pair, before)
            total += before
            last = 2 * k + 1
        # Neighbours of correlation -1 have a mean without an error, but no sample shows that.
        tau[row] = max(2.0 * total - 1.0, 1.0 / math.log10(2 * r.shape[1]))
        window[row] = last
