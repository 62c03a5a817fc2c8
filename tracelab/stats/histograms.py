"""Statistics of float-bit histograms: of counts that add up over steps, workers and ranks.

What `tracelab.Histogram` keeps of a sample is enough for order statistics, and so for quantiles and
for the tests of normality that read the distribution function. The time does not depend on how
many values were counted. Shapiro and Wilk's test, which needs every order statistic to better than
its distance from the next, cannot be had from bins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tracelab.errors import UsageError
from tracelab.histogram import Histogram
from tracelab.stats._anderson import anderson_pvalue
from tracelab.stats._binned import distance_rows, quantile_rows, spread
from tracelab.stats._binned_samples import BinnedSamples
from tracelab.stats._cramer import cramer_pvalue
from tracelab.stats._normality_null import pvalues
from tracelab.stats.normality import NormalityResult
from tracelab.typing import FloatArray, IntArray, Status

__all__ = [
    "Moments",
    "Quantiles",
    "anderson",
    "battery",
    "cramer_von_mises",
    "lilliefors",
    "moments",
    "quantile",
    "values",
]

MIN_SAMPLES = 8
MOST_VALUES = 100_000_000


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and standard deviation of what was counted; arrays have the leading shape of the counts.

    Parameters
    ----------
    mean, mean_se, std, std_se : ndarray of float64
        With the standard errors of a Gaussian sample.
    resolution : ndarray of float64
        Width of the bins about the mean and one standard deviation from it, in standard
        deviations. Binning moves the mean by about a hundredth of it at most.
    zeros : ndarray of int64
        How many values were exactly zero; they are among those counted.
    n_samples : ndarray of int64
        Finite values.
    status : ndarray of uint8
        `tracelab.typing.Status`: ``NON_FINITE_INPUT`` where there were values that are not finite,
        ``TOO_FEW_SAMPLES`` below 2, ``CONSTANT_INPUT`` where all lie in one bin,
        ``NOT_CONVERGED`` where a bin is wider than an eighth of the standard deviation, as where
        the mean is many deviations from zero: subtract it before counting.
    """

    mean: FloatArray
    mean_se: FloatArray
    std: FloatArray
    std_se: FloatArray
    resolution: FloatArray
    zeros: IntArray
    n_samples: IntArray
    status: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Quantiles of what was counted.

    Parameters
    ----------
    value : ndarray of float64, shape (..., q)
        Linear within its bin.
    width : ndarray of float64, shape (..., q)
        Width of that bin: the quantile of the values themselves lies in the same one.
    n_samples : ndarray of int64, shape (...)
        Finite values.
    status : ndarray of uint8, shape (...)
        `tracelab.typing.Status`.
    """

    value: FloatArray
    width: FloatArray
    n_samples: IntArray
    status: npt.NDArray[np.uint8]


def moments(counts: npt.ArrayLike, histogram: Histogram) -> Moments:
    """Return mean and standard deviation of the values that were counted.

    Parameters
    ----------
    counts : array_like of int, shape (..., bins)
        Of one sample, or added up.
    histogram : Histogram
        What they were counted by.

    Returns
    -------
    Moments

    Raises
    ------
    UsageError
        If the counts are not of this histogram's bins.
    """
    rows = BinnedSamples.of(counts, histogram)
    found, status = rows.moments()
    n, mean, variance = found.T
    with np.errstate(invalid="ignore", divide="ignore"):
        std = np.sqrt(variance)
        mean_se, std_se = std / np.sqrt(n), std / np.sqrt(2 * (n - 1))
    missing = ~np.isin(status, (Status.OK, Status.NOT_CONVERGED))

    def shaped(values: FloatArray) -> FloatArray:
        kept: FloatArray = np.where(missing, np.nan, values).reshape(rows.lead)
        return kept

    return Moments(
        mean=shaped(mean),
        mean_se=shaped(mean_se),
        std=shaped(std),
        std_se=shaped(std_se),
        resolution=shaped(rows.resolution(found)),
        zeros=rows.zeros.reshape(rows.lead),
        n_samples=rows.n.reshape(rows.lead),
        status=status.reshape(rows.lead),
    )


def quantile(counts: npt.ArrayLike, histogram: Histogram, q: npt.ArrayLike) -> Quantiles:
    """Return quantiles of the values that were counted, each in the bin that it lies in.

    Parameters
    ----------
    counts : array_like of int, shape (..., bins)
        Of one sample, or added up.
    histogram : Histogram
        What they were counted by.
    q : array_like, shape () or (q,)
        Levels, in [0, 1].

    Returns
    -------
    Quantiles
        Status ``NON_FINITE_INPUT`` where values were not finite, ``TOO_FEW_SAMPLES`` without any.

    Raises
    ------
    UsageError
        If a level is not in [0, 1], or the counts are not of this histogram's bins.
    """
    rows = BinnedSamples.of(counts, histogram)
    levels = np.asarray(q, dtype=np.float64)
    if levels.ndim > 1 or not ((levels >= 0) & (levels <= 1)).all():
        raise UsageError(f"q must be one level in [0, 1], or a list of them, got {q!r}")
    value, width = np.empty((2, len(rows.counts), levels.size))
    quantile_rows(rows.counts, rows.edges, np.atleast_1d(levels), value, width)
    status = rows.status(1)
    value[status != Status.OK] = width[status != Status.OK] = np.nan
    return Quantiles(
        value=value.reshape((*rows.lead, *levels.shape)),
        width=width.reshape((*rows.lead, *levels.shape)),
        n_samples=rows.n.reshape(rows.lead),
        status=status.reshape(rows.lead),
    )


def values(counts: npt.ArrayLike, histogram: Histogram, most: int = MOST_VALUES) -> FloatArray:
    """Return a sample as it may have been, each value where the density of its bin puts it.

    For statistics that take values alone (`tracelab.stats.tails`, `tracelab.stats.models`): each is
    wrong by less than its bin is wide, and neighbours are apart evenly, not at random. With 7
    mantissa bits tail indices and parameters of laws move by some hundredths of a standard error.
    Tests that read the distances between neighbours, such as Shapiro and Wilk's, have no meaning
    here.

    Parameters
    ----------
    counts : array_like of int, shape (bins,)
        Of one sample, or added up.
    histogram : Histogram
        What they were counted by.
    most : int
        So many values may be made at most.

    Returns
    -------
    ndarray of float64, shape (n,)
        As many as were counted, ascending.

    Raises
    ------
    UsageError
        If the counts are of several samples, of other bins, of values that are not finite, or of
        more values than `most`.
    """
    rows = BinnedSamples.of(counts, histogram)
    if rows.lead:
        raise UsageError(
            f"counts must be of one sample, got the leading shape {rows.lead}: samples of "
            "different sizes are no array"
        )
    if rows.excluded[0]:
        raise UsageError(
            f"{int(rows.excluded[0])} of the values counted were not finite, and have no place"
        )
    if rows.n[0] > most:
        raise UsageError(
            f"counts are of {int(rows.n[0])} values, more than most={most}; raise it if there is "
            "memory for them, or use what reads counts themselves"
        )
    out = np.empty(int(rows.n[0]))
    spread(rows.counts[0], rows.edges, out)
    return out


def anderson(counts: npt.ArrayLike, histogram: Histogram) -> NormalityResult:
    r"""Return Anderson and Darling's test of normality of the values that were counted.

    Within a bin the distribution function of the sample is a random bridge between its values at
    the edges. The integral is taken for its mean, plus the expected part of its scatter,
    :math:`\sum_b p_b \Delta F_b / (6 F_b (1 - F_b))`. With 7 mantissa bits the statistic is within
    about .005 of that of the values themselves, for 1e3 to 1e6 of them.

    Parameters
    ----------
    counts : array_like of int, shape (..., bins)
        Of one sample, or added up.
    histogram : Histogram
        What they were counted by.

    Returns
    -------
    NormalityResult
        Status ``NON_FINITE_INPUT`` where values were not finite, ``TOO_FEW_SAMPLES`` below 8,
        ``CONSTANT_INPUT`` where all lie in one bin, ``NOT_CONVERGED`` where a bin is wider than an
        eighth of the standard deviation; numbers are NaN unless it is ``OK``.

    Raises
    ------
    UsageError
        If the counts are not of this histogram's bins.

    See Also
    --------
    tracelab.stats.normality.anderson : Of the values, with the references.
    """
    return battery(counts, histogram, ("anderson",))["anderson"]


def cramer_von_mises(counts: npt.ArrayLike, histogram: Histogram) -> NormalityResult:
    """Return Cramer and von Mises' test of normality; arguments as of `anderson`."""
    return battery(counts, histogram, ("cramer_von_mises",))["cramer_von_mises"]


def lilliefors(counts: npt.ArrayLike, histogram: Histogram) -> NormalityResult:
    """Return Lilliefors' test of normality; arguments as of `anderson`.

    The largest distance lies within a bin; the median of where it may lie is taken.
    """
    return battery(counts, histogram, ("lilliefors",))["lilliefors"]


def battery(
    counts: npt.ArrayLike,
    histogram: Histogram,
    names: tuple[str, ...] = ("anderson", "cramer_von_mises", "lilliefors"),
) -> dict[str, NormalityResult]:
    """Return several tests of normality by name, from one pass over the bins.

    Parameters
    ----------
    counts : array_like of int, shape (..., bins)
        Of one sample, or added up.
    histogram : Histogram
        What they were counted by.
    names : tuple of str
        Of ``anderson``, ``cramer_von_mises``, ``lilliefors``.

    Returns
    -------
    dict of str to NormalityResult
        In the order of `names`.

    Raises
    ------
    UsageError
        If there is no such test, or the counts are not of this histogram's bins.
    """
    for name in names:
        if name not in _TESTS:
            raise UsageError(
                f"there is no test {name!r} of binned samples; choose from {', '.join(_TESTS)}"
            )
    rows = BinnedSamples.of(counts, histogram)
    found, status = rows.moments(MIN_SAMPLES)
    good = np.flatnonzero(status == Status.OK)
    statistics = np.full((len(status), 3), np.nan)
    some = np.empty((len(good), 3))
    distance_rows(rows.counts[good], rows.edges, found[good], some)
    statistics[good] = some
    results = {}
    for name in names:
        column, probability = _TESTS[name]
        pvalue = np.full(len(status), np.nan)
        for n in np.unique(rows.n[good]):
            alike = good[rows.n[good] == n]
            pvalue[alike] = probability(int(n), statistics[alike, column])
        results[name] = NormalityResult(
            statistic=statistics[:, column].reshape(rows.lead),
            pvalue=pvalue.reshape(rows.lead),
            status=status.reshape(rows.lead).copy(),
            n_samples=rows.n.reshape(rows.lead),
        )
    return results


_TESTS: dict[str, tuple[int, Callable[[int, FloatArray], FloatArray]]] = {
    "anderson": (0, lambda n, each: np.array([anderson_pvalue(a2, n) for a2 in each])),
    "cramer_von_mises": (1, lambda n, each: np.array([cramer_pvalue(w2, n) for w2 in each])),
    "lilliefors": (2, lambda n, each: pvalues("lilliefors", n, each)),
}
