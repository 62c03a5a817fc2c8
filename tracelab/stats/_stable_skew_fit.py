"""Maximum likelihood of stable laws with skewness: start, climb from it, intervals."""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from tracelab.stats._confidence import normal_quantile
from tracelab.stats._samples import as_rows
from tracelab.stats._stable_cells import LARGE, condense
from tracelab.stats._stable_climb import V_MIN, gaussian, total_weight
from tracelab.stats._stable_linear import invert_free
from tracelab.stats._stable_parameters import Parametrization
from tracelab.stats._stable_points import PointRows
from tracelab.stats._stable_quantile import from_quantiles
from tracelab.stats._stable_result import StableFit, assemble
from tracelab.stats._stable_rows import Rows, Standardised, prepare
from tracelab.stats._stable_skew import (
    ALPHA_LOW,
    SkewLaw,
    SkewTable,
    collapse_skew,
    new_skew_law,
    skew_table,
)
from tracelab.stats._stable_skew_climb import (
    TOLERANCE,
    V_MAX,
    State,
    climb_skew,
    last_step,
    new_state,
    skew_information,
)
from tracelab.typing import Status

__all__ = ["MIN_SAMPLES", "fit_skewed", "fit_standardised"]

Float64 = NDArray[np.float64]

MIN_SAMPLES = 20
"""Fewer values than this are not fitted."""

# At a skewness of 1, where light tails jump, a climb along the profile may not end.
_MAX_ITERATIONS, _PROFILE_ITERATIONS = 200, 15
# Twice the log-likelihood still to gain when a climb along the profile stops.
_PROFILE_TOLERANCE = 1e-2
# Orders of the table that a climb from afar leaves out, and how near it goes: a thirtieth of a
# standard error.
_COARSE, _NEAR = 1e-4, 1e-3
_NOT_CONVERGED = int(Status.NOT_CONVERGED)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _alpha_end(
    tabulated: SkewTable,
    law: SkewLaw,
    alpha: float,
    beta: float,
    n: float,
    z: float,
    sign: float,
    error: float,
) -> float:
    """Return the alpha that lies `z` of its own standard errors from the estimate.

    Near 2 the error falls like the root of the distance from 2: there an interval with the error
    of the estimate is too short below and has no end above. `error` is that of the estimate, 0 for
    a Gaussian one.
    """
    free, information, inverse = np.ones(4, dtype=np.bool_), np.empty((4, 4)), np.empty((4, 4))
    distance, at = 2.0 - alpha, 2.0 - 2.0 / n
    rate = z * error / math.sqrt(distance) if error > 0.0 else 0.0
    for _ in range(8):
        if rate > 0.0:
            root = 0.5 * (math.sqrt(rate * rate + 4.0 * distance) - sign * rate)
            end = 2.0 - root * root
            if abs(end - at) < 1e-2 * (2.0 - at):
                return end
            at = end
        at = min(max(at, ALPHA_LOW), 2.0 - 1e-8)
        x0 = collapse_skew(tabulated, at, beta, law)
        skew_information(law.rows, x0, at, information, True)
        invert_free(information * n, free, inverse)
        rate = z * math.sqrt(inverse[0, 0] * (2.0 - at))
    return at


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _beta_end(
    x: Float64,
    weights: Float64 | None,
    tabulated: SkewTable,
    law: SkewLaw,
    best: State,
    loglik: float,
    g_loglik: float,
    z: float,
    error: float,
    side: float,
) -> float:
    """Return the beta where twice the profile log-likelihood has fallen by ``z^2``, or `side`.

    `best` is the state at the maximum and `error` the standard error of its beta. Newton steps on
    the root of the fall, which is nearly linear in beta.
    """
    if 2.0 * (loglik - g_loglik) <= z * z:
        # The Gaussian law, which has every beta, is not ruled out.
        return side
    inner, outer, untried = best.at[1], side, True
    state = new_state()
    at, along = state.at, np.zeros(4)
    at[:] = best.at
    curvature = best.inverse[1, 1]
    if curvature > 0.0 and not best.held[0]:
        # How the others go with beta, and their curvature where it is held.
        along[:] = best.inverse[1] / curvature
        for i in range(4):
            for j in range(4):
                state.inverse[i, j] = best.inverse[i, j] - along[i] * best.inverse[1, j]
        state.held[1] = True
    trial = best.at[1] + side * min(max(z * error, 0.05), 0.5)
    for _ in range(12):
        trial = trial if abs(trial) < 1.0 else side
        moved = trial - at[1]
        at[0] = min(max(at[0] + along[0] * moved, V_MIN), V_MAX)
        at[3] += at[2] * along[3] * moved
        at[2] *= math.exp(along[2] * moved)
        at[1] = trial
        value, _, _ = climb_skew(
            x,
            weights,
            tabulated,
            law,
            state,
            -np.inf,
            True,
            _PROFILE_TOLERANCE,
            0.0,
            _PROFILE_ITERATIONS,
        )
        root = math.sqrt(max(2.0 * (loglik - value), 0.0))
        slope = -state.gradient[1] * side / max(root, 0.2)
        new = trial + side * (z - root) / slope if slope > 0.0 else outer
        if abs(root - z) < 0.1 * z and abs(new) < 1.0:
            return float(new)
        if root < z:
            if trial == side:
                return side
            inner = trial
        else:
            outer, untried = trial, False
        if abs(outer - inner) < 1e-4:
            return float(trial)
        if not min(inner, outer) < new < max(inner, outer):
            new = side if untried else 0.5 * (inner + outer)
        trial = new
    return float(trial)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _fit_row(
    x: Float64,
    weights: Float64 | None,
    tabulated: SkewTable,
    law: SkewLaw,
    z: float,
    estimates: Float64,
    cov: Float64,
    interval: Float64,
    loglik: Float64,
) -> tuple[int, bool]:
    """Fit one sample from the start in `estimates`, overwrite it; return iterations, converged.

    `cov` (4, 4) takes the covariance, `interval` (4,) the ends of alpha and beta, `loglik` (2,) the
    log-likelihood of the law and of the Gaussian fit.
    """
    free, information, state = np.ones(4, dtype=np.bool_), np.empty((4, 4)), new_state()
    at = state.at
    n = total_weight(x, weights)
    # A little inside the domain.
    start = min(max(estimates[0], ALPHA_LOW + 0.05), 1.95)
    at[0], at[1] = math.log(2.0 - start), min(max(estimates[1], -0.8), 0.8)
    at[2], at[3] = estimates[2], estimates[3]
    g_scale, g_loc, g_loglik = gaussian(x, weights)
    _, before, _ = climb_skew(
        x, weights, tabulated, law, state, g_loglik, False, _NEAR, _COARSE, _MAX_ITERATIONS
    )
    best, after, converged = climb_skew(
        x, weights, tabulated, law, state, g_loglik, False, TOLERANCE, 0.0, _MAX_ITERATIONS
    )
    iterations = before + after
    # The law stays where it is: the last step is a thousandth of a standard error.
    fitted = 2.0 - math.exp(at[0])
    x0 = collapse_skew(tabulated, fitted, at[1], law)
    best += last_step(state)
    alpha, beta = 2.0 - math.exp(at[0]), at[1]
    cov[:] = 0.0
    if best <= g_loglik + 1e-9:
        best, converged = g_loglik, True
        estimates[0], estimates[1], estimates[2], estimates[3] = 2.0, 0.0, g_scale, g_loc
        interval[0] = _alpha_end(tabulated, law, 2.0, 0.0, n, z, -1.0, 0.0)
        interval[1], interval[2], interval[3] = 2.0, -1.0, 1.0
        cov[0, 0] = ((2.0 - interval[0]) / z) ** 2
        cov[1, 1], cov[2, 2], cov[3, 3] = np.inf, 0.5 / n, 2.0 / n
    else:
        skew_information(law.rows, x0, fitted, information)
        invert_free(information * n, free, cov)
        # From v to alpha.
        cov[0] *= -(2.0 - alpha)
        cov[:, 0] *= -(2.0 - alpha)
        estimates[0], estimates[1], estimates[2], estimates[3] = alpha, beta, at[2], at[3]
        error = math.sqrt(cov[0, 0])
        interval[0], interval[1] = alpha - z * error, alpha + z * error
        if alpha + 4.0 * error > 2.0:
            interval[0] = _alpha_end(tabulated, law, alpha, beta, n, z, -1.0, error)
            interval[1] = 2.0
            if 2.0 * (best - g_loglik) > z * z:
                interval[1] = _alpha_end(tabulated, law, alpha, beta, n, z, 1.0, error)
        error = math.sqrt(cov[1, 1])
        interval[2], interval[3] = beta - z * error, beta + z * error
        if abs(beta) + 3.0 * error > 1.0:
            for end in range(2):
                side = 2.0 * end - 1.0
                interval[2 + end] = _beta_end(
                    x, weights, tabulated, law, state, best, g_loglik, z, error, side
                )
    loglik[0], loglik[1] = best, g_loglik
    return iterations, converged


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _fit_rows(
    rows: Float64,
    counts: NDArray[np.int64],
    tabulated: SkewTable,
    z: float,
    estimates: Float64,
    covariance: Float64,
    interval: Float64,
    loglik: Float64,
    iterations: NDArray[np.int64],
    status: NDArray[np.uint8],
) -> None:
    """Fit every row that has values; arguments as of `_fit_row`, with one more dimension."""
    law = new_skew_law()
    for r in range(rows.shape[0]):
        if counts[r] == 0:
            continue
        iterations[r], converged = _fit_row(
            rows[r, : counts[r]],
            None,
            tabulated,
            law,
            z,
            estimates[r],
            covariance[r],
            interval[r],
            loglik[r],
        )
        status[r] = 0 if converged else _NOT_CONVERGED


def fit_standardised(rows: Standardised, parametrization: Parametrization, z: float) -> StableFit:
    """Return the fit with skewness of rows, or of rows of weighted points."""
    start, count = from_quantiles(rows), rows.sizes.size
    interval, loglik = np.full((count, 4), np.nan), np.full((count, 2), np.nan)
    out = start.estimates, start.covariance, interval, loglik
    if isinstance(rows, Rows):
        _fit_rows(rows.values, rows.counts, skew_table(), z, *out, start.iterations, start.status)
    elif isinstance(rows, PointRows):
        law = new_skew_law()
        for r in np.flatnonzero(rows.sizes):
            x, weights = rows.points[r]
            start.iterations[r], converged = _fit_row(
                x, weights, skew_table(), law, z, *(each[r] for each in out)
            )
            start.status[r] = rows.status[r] if converged else _NOT_CONVERGED
    loglik -= (rows.sizes * np.log(rows.spread))[:, None]
    return assemble(
        rows,
        start.estimates,
        start.covariance,
        parametrization,
        z,
        start.status,
        start.iterations,
        alpha_interval=interval[:, :2],
        beta_interval=interval[:, 2:],
        loglik=loglik,
    )


def fit_skewed(
    x: ArrayLike,
    axis: int = -1,
    confidence: float = 0.95,
    parametrization: Parametrization = "S1",
) -> StableFit:
    r"""Return the stable law of each cell, skewness included, by maximum likelihood.

    Quasi-Newton on :math:`(\log(2 - \alpha), \beta, \log\gamma, \delta / \gamma)` with the location
    in S0, from McCulloch's quantiles, monotone; ``alpha = 2`` exactly, and ``beta = 0``, where the
    Gaussian likelihood wins. Standard errors are from the expected information; within four of
    them of 2 the ends of the interval of alpha are where they lie that many of their own errors
    from the estimate, and its upper end is 2 unless the likelihood ratio rejects the Gaussian.
    Within three of -1 or 1 the interval of beta is from the profile likelihood ratio. Cells of more
    than 10,000 values are counted, as by `fit`.

    Parameters
    ----------
    x : array_like
        Samples along `axis`; leading dims are cells. Computed in float64.
    axis : int
        Axis of the samples.
    confidence : float
        Level of the intervals, in (0, 1).
    parametrization : {"S1", "S0"}
        Nolan's; in S1 the error of the location is without bound near ``alpha = 1``.

    Returns
    -------
    StableFit
        Status NOT_CONVERGED if alpha ran to the table's lower edge 0.8 (`fit_ecf` goes on to 0.3);
        TOO_FEW_SAMPLES below 20 values; NON_FINITE_INPUT; CONSTANT_INPUT if all values, or their
        middle half, are equal. Numbers are NaN unless the status is OK or NOT_CONVERGED.

    Raises
    ------
    UsageError
        If an argument is outside its range.

    References
    ----------
    DuMouchel, "On the asymptotic normality of the maximum-likelihood estimate when sampling from
    a stable distribution", Annals of Statistics 1, 1973; Nolan, "Maximum likelihood estimation
    and diagnostics for stable distributions", 2001.

    Examples
    --------
    >>> from tracelab.stats import stable
    >>> x = stable.rvs(1.5, 0.5, size=2000, rng=np.random.default_rng(0))
    >>> found = fit_skewed(x)
    >>> bool(found.alpha_low < 1.5 < found.alpha_high) and bool(found.beta_low < 0.5)
    True
    """
    z = normal_quantile(confidence)
    given, _ = as_rows(x, axis)
    large = given.shape[1] > LARGE
    rows = (condense if large else prepare)(x, axis, MIN_SAMPLES)
    return fit_standardised(rows, parametrization, z)
