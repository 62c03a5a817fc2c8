"""Likelihood-ratio test of a Gaussian law against a symmetric stable one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tracelab.errors import UsageError
from tracelab.stats._stable_result import StableFit
from tracelab.typing import Status

__all__ = ["LikelihoodRatio", "likelihood_ratio", "likelihood_ratio_pvalue"]

Float64 = NDArray[np.float64]

# Smaller samples are not in the table.
_LEAST = 20


@dataclass(frozen=True, slots=True)
class LikelihoodRatio:
    """A likelihood-ratio test; arrays have the leading shape of the data.

    Parameters
    ----------
    statistic : ndarray
        Twice the gain in log-likelihood of the stable law over the Gaussian one: 0 where the fitted
        law is Gaussian.
    pvalue : ndarray
        Probability of so much or more if the data are Gaussian; 1 where the statistic is 0. The
        least is about 1e-4, where it is an upper bound.
    status : ndarray of uint8
        `tracelab.typing.Status`.
    n_samples : ndarray of int64
        Values behind each cell, without atoms.
    """

    statistic: Float64
    pvalue: Float64
    status: NDArray[np.uint8]
    n_samples: NDArray[np.int64]


@cache
def _null() -> tuple[Float64, Float64, Float64, Float64]:
    """Return levels of the positive, log n, the share that is positive, and log points.

    Levels fall; log n rises, and so do the points, (size, level), with levels.
    """
    with (
        (files("tracelab.stats") / "tables" / "stable_ratio.npz").open("rb") as file,
        np.load(file) as stored,
    ):
        points = stored["log_statistic"].astype(np.float64)
        return stored["level"], stored["log_n"], stored["positive"], points


def likelihood_ratio_pvalue(statistic: ArrayLike, n: ArrayLike) -> Float64:
    """Return the p-value of twice the log-likelihood gain of `fit` over the Gaussian law.

    Parameters
    ----------
    statistic : array_like
        Of samples of `n` independent values, location and scale estimated by both laws.
    n : array_like of int
        At least 20, else NaN. Above 1e6 the points of 1e6 are used: the true ones are smaller, so
        the p-value is an upper bound.

    Returns
    -------
    ndarray
        1 where `statistic` is 0.
    """
    levels, log_n, positive, points = _null()
    ratio, size = np.broadcast_arrays(
        np.asarray(statistic, dtype=np.float64), np.asarray(n, dtype=np.float64)
    )
    pvalue = np.full(ratio.shape, np.nan)
    usable = (ratio >= 0) & (size >= _LEAST)
    for count in np.unique(size[usable]):
        at = float(np.interp(np.log(count), log_n, np.arange(log_n.size)))
        j = min(int(at), log_n.size - 2)
        row = points[j] + (at - j) * (points[j + 1] - points[j])
        share = positive[j] + (at - j) * (positive[j + 1] - positive[j])
        here = usable & (size == count)
        value = ratio[here]
        with np.errstate(divide="ignore"):
            above = np.exp(np.interp(np.log(value), row, np.log(levels)))
        # Below the first level linear in the statistic, from all that are positive on.
        below = value < np.exp(row[0])
        above[below] = 1 - value[below] / np.exp(row[0]) * (1 - levels[0])
        found = np.where(value > 0, share * above, 1.0)
        pvalue[here] = found
    return pvalue


def likelihood_ratio(fitted: StableFit) -> LikelihoodRatio:
    r"""Test whether data are Gaussian, against symmetric stable laws with heavier tails.

    .. math:: 2 \left[\max_{\alpha, \gamma, \delta} \log L - \max_{\alpha = 2} \log L\right]

    It has the most power of all tests of normality against stable laws. Its null was simulated
    (``data/make_stable_ratio_table.py``): alpha = 2 is the end of the range and the information
    about alpha is infinite there, so that it is not chi-square, nor half of it.

    Parameters
    ----------
    fitted : StableFit
        From `fit`, by maximum likelihood. Values are taken as independent.

    Returns
    -------
    LikelihoodRatio
        Status of the fit; TOO_FEW_SAMPLES below 20 values. Numbers are NaN unless it is OK or
        NOT_CONVERGED.

    Raises
    ------
    UsageError
        If the fit has no likelihoods, or is of a skewed law.

    References
    ----------
    DuMouchel, "On the asymptotic normality of the maximum-likelihood estimate when sampling from a
    stable distribution", Annals of Statistics 1, 1973 (the information at alpha = 2); Self, Liang,
    "Asymptotic properties of maximum likelihood estimators and likelihood ratio tests under
    nonstandard conditions", JASA 82, 1987 (tests at the end of a range).

    Examples
    --------
    >>> from tracelab.stats import stable
    >>> x = stable.rvs(1.9, size=2000, rng=np.random.default_rng(0))
    >>> bool(stable.likelihood_ratio(stable.fit(x)).pvalue < 0.01)
    True
    """
    status = np.array(fitted.status, dtype=np.uint8)
    good = (status == int(Status.OK)) | (status == int(Status.NOT_CONVERGED))
    if np.isnan(np.asarray(fitted.loglik)[good]).any():
        raise UsageError(
            "the fit has no likelihoods to compare; fit by maximum likelihood: stable.fit(x)"
        )
    if np.any(np.asarray(fitted.beta)[good] != 0):
        raise UsageError(
            "the fit is of a skewed law, and the null was simulated for symmetric ones; "
            "use stable.fit(x)"
        )
    left = np.where(good, 1 - np.asarray(fitted.tied_fraction), 0.0)
    count = np.rint(left * fitted.n_samples).astype(np.int64)
    few = good & (count < _LEAST)
    status[few] = int(Status.TOO_FEW_SAMPLES)
    gain = np.maximum(2 * (np.asarray(fitted.loglik) - fitted.loglik_gaussian), 0.0)
    statistic = np.where(good & ~few, gain, np.nan)
    return LikelihoodRatio(statistic, likelihood_ratio_pvalue(statistic, count), status, count)
