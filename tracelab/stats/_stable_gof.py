"""Anderson-Darling goodness of fit of a fitted symmetric stable law."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from tracelab.errors import UsageError
from tracelab.stats._stable_density import (
    ALPHA_MIN,
    Float64,
    Table,
    collapse,
    cumulate,
    new_law,
    survival,
    table,
)
from tracelab.stats._stable_fit import MIN_SAMPLES
from tracelab.typing import Status

__all__ = ["GoodnessOfFit", "anderson_rows", "goodness_of_fit"]


@dataclass(frozen=True, slots=True)
class GoodnessOfFit:
    """Anderson-Darling statistic and p-value; arrays have the leading shape of the data.

    Parameters
    ----------
    statistic : ndarray
        A^2.
    pvalue : ndarray
        Probability of a larger value if the data are stable and were fitted by `fit`.
    status : ndarray of uint8
        `tracelab.typing.Status`.
    """

    statistic: Float64
    pvalue: Float64
    status: NDArray[np.uint8]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def anderson_rows(z: Float64, alpha: Float64, tabulated: Table, out: Float64) -> None:
    """Write A^2 of each row of sorted standardised values under the law of its alpha."""
    law = new_law()
    n = z.shape[1]
    lower, upper = np.empty(n), np.empty(n)
    before, x0 = -1.0, 0.0
    for r in range(z.shape[0]):
        if alpha[r] != before:
            x0 = collapse(tabulated, alpha[r], 0, law)
            cumulate(law, x0, alpha[r])
            before = alpha[r]
        for i in range(n):
            # Far enough out that hardly a sample is beyond, and products of two are numbers.
            tail = max(survival(law, x0, alpha[r], abs(z[r, i])), 1e-150)
            lower[i], upper[i] = (tail, 1.0 - tail) if z[r, i] < 0.0 else (1.0 - tail, tail)
        total = 0.0
        for i in range(n):
            total += (2.0 * i + 1.0) * math.log(lower[i] * upper[n - 1 - i])
        out[r] = -n - total / n


@cache
def _null() -> tuple[Float64, Float64, Float64, Float64]:
    """Return alphas, 1 / n (rising), upper-tail levels and log A^2 (alpha, n, level)."""
    with (
        (files("tracelab.stats") / "tables" / "stable_gof.npz").open("rb") as file,
        np.load(file) as stored,
    ):
        return stored["alpha"], stored["inverse_n"], stored["level"], stored["log_statistic"]


def _pvalue(statistic: Float64, alpha: Float64, n: int) -> Float64:
    """Interpolate the null: linear in alpha and 1 / n, log p against A^2 beyond the levels."""
    alphas, inverse_n, levels, log_statistic = _null()
    w_n = np.interp(1 / n, inverse_n, np.arange(inverse_n.size))
    j = min(int(w_n), inverse_n.size - 2)
    by_alpha = log_statistic[:, j] + (w_n - j) * (log_statistic[:, j + 1] - log_statistic[:, j])
    at = np.interp(alpha, alphas, np.arange(alphas.size))
    k = np.minimum(at.astype(np.int64), alphas.size - 2)
    between = (at - k)[:, None] * (by_alpha[k + 1] - by_alpha[k])
    out = np.empty(statistic.size)
    _pvalues(statistic, np.exp(by_alpha[k] + between), levels, np.log(levels), out)
    return out


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _pvalues(
    statistic: Float64, null: Float64, levels: Float64, log_levels: Float64, out: Float64
) -> None:
    """Write the p-value of each statistic, given the quantiles of its null at `levels`."""
    for i in range(statistic.size):
        value, points = statistic[i], null[i]
        if value >= points[-1]:
            # The null falls exponentially in A^2: keep the rate of the last two levels.
            rate = (log_levels[-1] - log_levels[-3]) / (points[-1] - points[-3])
            out[i] = math.exp(max(log_levels[-1] + rate * (value - points[-1]), -700.0))
        elif value <= points[0]:
            out[i] = 1 - (1 - levels[0]) * value / points[0]
        else:
            m = np.searchsorted(points, value, "right") - 1
            slope = (log_levels[m + 1] - log_levels[m]) / (points[m + 1] - points[m])
            out[i] = math.exp(log_levels[m] + slope * (value - points[m]))


def goodness_of_fit(
    x: ArrayLike, alpha: ArrayLike, loc: ArrayLike, scale: ArrayLike, axis: int = -1
) -> GoodnessOfFit:
    r"""Return whether data follow the symmetric stable law fitted to them.

    .. math:: A^2 = -n - \frac{1}{n} \sum_{i=1}^n (2i - 1)
       \left[\log F(x_{(i)}) + \log(1 - F(x_{(n+1-i)}))\right]

    The p-value is for parameters estimated from the same values by `fit`: its null, which
    depends on alpha and little on n, was simulated (``data/make_stable_gof_table.py``). It
    takes values as independent. An alpha of `fit_common`, known better than from these values
    alone, makes the p-value somewhat too small.

    Parameters
    ----------
    x : array_like
        Samples along `axis`; leading dims are cells. Leave out atoms before.
    alpha, loc, scale : array_like
        The fit, of the leading shape (or broadcasting to it).
    axis : int
        Axis of the samples.

    Returns
    -------
    GoodnessOfFit
        Status TOO_FEW_SAMPLES below 8 values; NON_FINITE_INPUT if a value or a parameter is not
        finite. The numbers are then NaN.

    Raises
    ------
    UsageError
        If an alpha is outside [0.3, 2] or a scale is not positive.

    References
    ----------
    Anderson, Darling, "A test of goodness of fit", JASA 49, 1954; Stephens, "EDF statistics for
    goodness of fit and some comparisons", JASA 69, 1974 (estimated parameters).
    """
    values = np.moveaxis(np.asarray(x), axis, -1).astype(np.float64)
    lead, n = values.shape[:-1], values.shape[-1]
    a, d, g = (
        np.broadcast_to(np.asarray(p, dtype=np.float64), lead).reshape(math.prod(lead))
        for p in (alpha, loc, scale)
    )
    known = np.isfinite(a) & np.isfinite(d) & np.isfinite(g)
    if not np.all((a[known] >= ALPHA_MIN) & (a[known] <= 2)):
        raise UsageError(f"alpha must be in [{ALPHA_MIN}, 2], got {alpha!r}")
    if not np.all(g[known] > 0):
        raise UsageError(f"scale must be positive, got {scale!r}")
    rows = values.reshape(math.prod(lead), n)
    status = np.zeros(rows.shape[0], dtype=np.uint8)
    if n < MIN_SAMPLES:
        status[:] = int(Status.TOO_FEW_SAMPLES)
    status[~(known & np.isfinite(rows).all(axis=-1))] = int(Status.NON_FINITE_INPUT)
    good = status == int(Status.OK)
    statistic, pvalue = np.full((2, rows.shape[0]), np.nan)
    if good.any():
        tabulated = table()
        z = (np.sort(rows[good], axis=-1) - d[good, None]) / g[good, None]
        found = np.empty(z.shape[0])
        anderson_rows(z, a[good], tabulated, found)
        statistic[good] = found
        pvalue[good] = _pvalue(found, a[good], n)
    return GoodnessOfFit(statistic.reshape(lead), pvalue.reshape(lead), status.reshape(lead))
