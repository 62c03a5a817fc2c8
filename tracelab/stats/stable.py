"""Stable laws: density, distribution, draws, and maximum-likelihood fits with uncertainty.

Samples are arrays, or counts of a `tracelab.histogram.Histogram` (`fit_histogram`).

Convention: ``E exp(iuX) = exp(iu loc - |scale u|^alpha)`` for symmetric laws, so ``alpha = 2`` is
N(loc, 2 scale^2); skewed laws as in `pdf`. `fit` and `fit_common` are symmetric.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tracelab.errors import UsageError
from tracelab.stats._confidence import normal_quantile
from tracelab.stats._samples import as_rows
from tracelab.stats._stable_cells import LARGE, condense
from tracelab.stats._stable_common import CommonFit, fit_common
from tracelab.stats._stable_density import ALPHA_MIN, table
from tracelab.stats._stable_draws import rvs
from tracelab.stats._stable_ecf import fit_ecf
from tracelab.stats._stable_fit import MIN_SAMPLES, fit_sorted
from tracelab.stats._stable_gof import GoodnessOfFit, goodness_of_fit
from tracelab.stats._stable_histogram import BinnedMethod, fit_histogram
from tracelab.stats._stable_law import Accuracy, cdf, logpdf, pdf, ppf, sf
from tracelab.stats._stable_log_moments import fit_log_moments
from tracelab.stats._stable_parameters import Parametrization
from tracelab.stats._stable_points import fit_points
from tracelab.stats._stable_quantile import fit_quantile
from tracelab.stats._stable_ratio import (
    LikelihoodRatio,
    likelihood_ratio,
    likelihood_ratio_pvalue,
)
from tracelab.stats._stable_result import StableFit, symmetric
from tracelab.stats._stable_score import information, score
from tracelab.stats._stable_skew_fit import fit_skewed
from tracelab.stats.mohammadi import mohammadi
from tracelab.typing import Status

__all__ = [
    "ALPHA_MIN",
    "Accuracy",
    "BinnedMethod",
    "CommonFit",
    "GoodnessOfFit",
    "LikelihoodRatio",
    "Parametrization",
    "StableFit",
    "cdf",
    "fit",
    "fit_common",
    "fit_ecf",
    "fit_histogram",
    "fit_log_moments",
    "fit_quantile",
    "fit_skewed",
    "goodness_of_fit",
    "information",
    "likelihood_ratio",
    "likelihood_ratio_pvalue",
    "logpdf",
    "pdf",
    "ppf",
    "rvs",
    "score",
    "sf",
]

Float64 = NDArray[np.float64]
Method = Literal["mle", "mohammadi"]


def fit(
    x: ArrayLike, axis: int = -1, method: Method = "mle", confidence: float | None = 0.95
) -> StableFit:
    r"""Return the symmetric stable law of each cell, by maximum likelihood.

    Quasi-Newton on :math:`(\log(2 - \alpha), \log\gamma, \delta / \gamma)` from McCulloch's
    quantiles, monotone; ``alpha = 2`` exactly where the Gaussian likelihood wins. Standard
    errors are from the expected information, as if values were independent (for minibatches of
    dependent coordinates see `fit_common`). Within five standard errors of 2 or of the lower
    edge the interval of alpha is from the profile likelihood ratio, so it covers up to the
    boundary, where it is conservative.

    Parameters
    ----------
    x : array_like
        Samples along `axis`; leading dims are cells. Computed in float64.
    axis : int
        Axis of the samples.
    method : {"mle", "mohammadi"}
        ``"mohammadi"``: only alpha, by `tracelab.stats.mohammadi.mohammadi` of the values less
        their mean, in the given order; scale, location and likelihoods are NaN.
    confidence : float or None
        Level of the intervals, in (0, 1). None: no intervals and no standard error of alpha, which
        near 2 take most of the time, and estimates to .003 standard errors; only of ``"mle"``.

    Returns
    -------
    StableFit
        Status NOT_CONVERGED if alpha ran to the lower edge 0.3; TOO_FEW_SAMPLES below 8 values;
        NON_FINITE_INPUT; CONSTANT_INPUT if all values, or their middle half, are equal. Numbers
        are NaN unless the status is OK or NOT_CONVERGED.

    Raises
    ------
    UsageError
        If an argument is outside its range.

    References
    ----------
    DuMouchel, "On the asymptotic normality of the maximum-likelihood estimate when sampling from
    a stable distribution", Annals of Statistics 1, 1973; Nolan, "Maximum likelihood estimation
    and diagnostics for stable distributions", 2001; McCulloch, "Simple consistent estimators of
    stable distribution parameters", 1986.

    Examples
    --------
    >>> x = rvs(1.5, size=2000, rng=np.random.default_rng(0))
    >>> found = fit(x)
    >>> bool(found.alpha_low < 1.5 < found.alpha_high)
    True
    """
    if method not in get_args(Method):
        raise UsageError(f"method must be 'mle' or 'mohammadi', got {method!r}")
    if confidence is None and method == "mohammadi":
        raise UsageError("method 'mohammadi' needs a confidence level, got None")
    given, lead = as_rows(x, axis)
    n = given.shape[1]
    if method == "mohammadi" and confidence is not None:
        return _fit_mohammadi(given.astype(np.float64).reshape(*lead, n), confidence)
    z = None if confidence is None else normal_quantile(confidence)
    if n > LARGE:
        return fit_points(condense(x, axis, MIN_SAMPLES), z)
    out = np.zeros((given.shape[0], 13))
    fit_sorted(np.sort(given.astype(np.float64), axis=-1), table(), z or 0.0, out)
    return symmetric(out, lead, z, n)


def _fit_mohammadi(values: Float64, confidence: float) -> StableFit:
    with np.errstate(invalid="ignore"):
        centred = values - values.mean(axis=-1, keepdims=True)
    found = mohammadi(centred, confidence=confidence)
    missing = np.full(found.alpha.shape, np.nan)
    beta = 0 * found.alpha
    # The block estimator knows no bounds; the law does.
    alpha, low, high = (np.clip(a, 0, 2) for a in (found.alpha, found.alpha_low, found.alpha_high))
    status = found.status.copy()
    status[found.alpha <= 0] = int(Status.NOT_CONVERGED)
    return StableFit(
        alpha=alpha,
        alpha_se=found.alpha_se,
        alpha_low=low,
        alpha_high=high,
        beta=beta,
        beta_se=beta,
        beta_low=beta,
        beta_high=beta,
        scale=missing,
        scale_se=missing,
        scale_low=missing,
        scale_high=missing,
        loc=missing,
        loc_se=missing,
        loc_low=missing,
        loc_high=missing,
        loglik=missing,
        loglik_gaussian=missing,
        tied_fraction=missing,
        status=status,
        iterations=np.zeros(found.alpha.shape, dtype=np.int64),
        n_samples=found.n_samples,
    )
