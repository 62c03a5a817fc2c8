"""Maximum likelihood of stable laws with skewness: climb, information, intervals.

Coordinates: ``v = log(2 - alpha)``, beta, ``log scale`` and ``location / scale``, the location in
S0; steps as in `_stable_climb`, quasi-Newton from the expected information, with a line search that
never lets the likelihood fall.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from tracelab.stats._confidence import normal_quantile
from tracelab.stats._samples import as_rows
from tracelab.stats._stable_cells import LARGE, condense
from tracelab.stats._stable_climb import V_MIN, gaussian, total_weight
from tracelab.stats._stable_density import EDGE
from tracelab.stats._stable_linear import invert_free
from tracelab.stats._stable_parameters import Parametrization
from tracelab.stats._stable_points import PointRows
from tracelab.stats._stable_quantile import from_quantiles
from tracelab.stats._stable_result import StableFit, assemble
from tracelab.stats._stable_rows import Rows, Standardised, prepare
from tracelab.stats._stable_skew import (
    ALPHA_LOW,
    TAIL_ROWS,
    SkewLaw,
    SkewTable,
    collapse_skew,
    envelope,
    new_skew_law,
    skew_density,
    skew_table,
)
from tracelab.typing import Status

__all__ = ["fit_skewed", "skew_information"]

Float64 = NDArray[np.float64]

MIN_SAMPLES = 20
"""Fewer values than this are not fitted."""

# At a skewness of 1, where light tails jump, a climb along the profile may not end.
_MAX_ITERATIONS, _PROFILE_ITERATIONS = 200, 15
_V_MAX = math.log(2.0 - ALPHA_LOW)
# Twice the log-likelihood still to gain when a climb stops and takes its last step without looking;
# looser along the profile, where it takes none.
_TOLERANCE, _PROFILE_TOLERANCE = 1e-5, 1e-2
# Products of densities are kept in this range between two logarithms.
_TINY, _HUGE = 1e-200, 1e200
# Orders of the table that a climb from afar leaves out, and how near it goes: a thirtieth of a
# standard error. Light tails, of skewness beyond the limit, need all of them.
_COARSE, _NEAR, _COARSE_BETA = 1e-4, 1e-3, 0.9
# The table's densities are not trusted below this part of a heavy tail: the likelihood counts a
# light tail as if it were as heavy as that of a skewness 2e-7 short of 1.
_FLOOR = 1e-7
_BODY_NODES, _BODY_WEIGHTS = np.polynomial.legendre.leggauss(4)
_TAIL_NODES, _TAIL_WEIGHTS = np.polynomial.legendre.leggauss(3)
_ROUGH_NODES, _ROUGH_WEIGHTS = np.polynomial.legendre.leggauss(1)
_NOT_CONVERGED = int(Status.NOT_CONVERGED)


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def _sums(
    x: Float64,
    weights: Float64 | None,
    law: Float64,
    x0: float,
    alpha: float,
    scale: float,
    loc: float,
    gradient: Float64,
) -> float:
    """Return the log-likelihood of `x`, write its derivatives in the four coordinates."""
    s = 2.0 - alpha
    inverse = 1.0 / scale
    total, product = 0.0, 1.0
    g_alpha = g_beta = g_scale = g_loc = 0.0
    for i in range(x.size):
        z = (x[i] - loc) * inverse
        f, fz, fa, fb = skew_density(law, x0, alpha, z)
        if f < 1e-6 * s or f <= 0.0:
            least = _FLOOR * envelope(alpha, z) + 1e-300
            if f < least:
                f, fz, fa, fb = least, 0.0, 0.0, 0.0
        r = 1.0 / f
        if weights is not None:
            r *= weights[i]
        fz *= r
        g_alpha += fa * r
        g_beta += fb * r
        g_scale += z * fz
        g_loc += fz
        if weights is not None:
            total += weights[i] * math.log(f)
        elif f < _TINY:
            total += math.log(f)
        else:
            product *= f
            if product < _TINY or product > _HUGE:
                total += math.log(product)
                product = 1.0
    gradient[0], gradient[1] = -s * g_alpha, g_beta
    n = total_weight(x, weights)
    gradient[2], gradient[3] = -(n + g_scale), -g_loc
    return total + math.log(product) - n * math.log(scale)


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"}, inline="always")
def _add(
    values: tuple[float, float, float, float], alpha: float, z: float, weight: float, sums: Float64
) -> None:
    """Add a node's products of derivatives of the density, over it, to `sums` (10,)."""
    f, fz, fa, fb = values
    s = 2.0 - alpha
    if f > 1e-6 * s or f > _FLOOR * envelope(alpha, z):
        w = weight / f
        a, c = -s * fa, -(f + z * fz)
        sums[0] += w * a * a
        sums[1] += w * a * fb
        sums[2] += w * fb * fb
        sums[3] += w * a * c
        sums[4] += w * fb * c
        sums[5] += w * c * c
        sums[6] -= w * a * fz
        sums[7] -= w * fb * fz
        sums[8] -= w * c * fz
        sums[9] += w * fz * fz


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def skew_information(
    law: Float64, x0: float, alpha: float, information: Float64, rough: bool = False
) -> None:
    """Write the Fisher information of one sample (4, 4) in the four coordinates.

    Gauss-Legendre in the table's own cells; what lies beyond holds a part in 1e6 or less. To a part
    in 1e3 if `rough`.
    """
    sums = np.zeros(10)
    cells = int(math.log2(EDGE / x0)) * 8
    left = x0
    for row in range(cells + TAIL_ROWS):
        body = row < cells
        width = (
            1.0 / law[0, row, 7]
            if body
            else 0.5 * 2.0 ** math.floor(math.log2(left * (1.0 + 1e-12)))
        )
        nodes, weights = _TAIL_NODES, _TAIL_WEIGHTS
        if body:
            nodes, weights = _BODY_NODES, _BODY_WEIGHTS
            if rough:
                nodes, weights = _ROUGH_NODES, _ROUGH_WEIGHTS
        for k in range(nodes.size):
            a = left + 0.5 * width * (1.0 + nodes[k]) - x0
            weight = 0.5 * width * weights[k]
            _add(skew_density(law, x0, alpha, a), alpha, a, weight, sums)
            _add(skew_density(law, x0, alpha, -a), alpha, -a, weight, sums)
        left += width
    k = 0
    for i in range(4):
        for j in range(i + 1):
            information[i, j] = information[j, i] = sums[k]
            k += 1


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _bfgs(inverse: Float64, step: Float64, change: Float64) -> bool:
    """Update the inverse curvature for a step and the fall of the gradient along it."""
    product = np.sum(step * change)
    if product <= 1e-12 * math.sqrt(np.sum(step * step) * np.sum(change * change)):
        return False
    moved = np.empty(4)
    for i in range(4):
        moved[i] = np.sum(inverse[i] * change)
    factor = (1.0 + np.sum(change * moved) / product) / product
    for i in range(4):
        for j in range(4):
            mixed = moved[i] * step[j] + step[i] * moved[j]
            inverse[i, j] += factor * step[i] * step[j] - mixed / product
    return True


class _State(NamedTuple):
    """Where a climb is; it goes on from there.

    Parameters
    ----------
    at, gradient : ndarray, shape (4,)
        (v, beta, scale, loc), and the derivatives of the log-likelihood.
    inverse : ndarray, shape (4, 4)
        Inverse curvature, of parameters that are not held; 0 if there is none yet.
    held : ndarray of bool, shape (4,)
        Parameters at the edge of their range.
    """

    at: Float64
    gradient: Float64
    inverse: Float64
    held: NDArray[np.bool_]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _new_state() -> _State:
    return _State(np.empty(4), np.empty(4), np.zeros((4, 4)), np.zeros(4, dtype=np.bool_))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _reach(ends: tuple[float, float], at: Float64) -> float:
    """Return the largest standardised magnitude of a sample with these ends."""
    return float(max(abs(ends[0] - at[3]), abs(ends[1] - at[3])) / at[2])


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _climb(
    x: Float64,
    weights: Float64 | None,
    tabulated: SkewTable,
    law: SkewLaw,
    state: _State,
    floor: float,
    hold: bool,
    tolerance: float,
    least: float,
    most: int,
) -> tuple[float, int, bool]:
    """Improve a state, in `most` iterations; return log-likelihood, their number, converged.

    Beta is held at its value if `hold`. It has converged when twice the log-likelihood still to
    gain is below `tolerance`. A climb that runs to the Gaussian end below the log-likelihood
    `floor` is left early: there the Gaussian fit is better. Orders that matter less than `least`
    are left out of the law.
    """
    n, ends = total_weight(x, weights), (x.min(), x.max())
    at, gradient, inverse, held = state
    new_gradient, information = np.empty(4), np.empty((4, 4))
    step, change, new = np.empty(4), np.empty(4), np.empty(4)
    free = np.ones(4, dtype=np.bool_)
    alpha = 2.0 - math.exp(at[0])
    x0 = collapse_skew(tabulated, alpha, at[1], law, least, _reach(ends, at))
    loglik = _sums(x, weights, law.rows, x0, alpha, at[2], at[3], gradient)
    stale, fresh = inverse[3, 3] == 0.0, False
    free_beta, jumps = not hold, 0
    for iteration in range(1, most + 1):
        if least > 0.0 and free_beta and abs(at[1]) > _COARSE_BETA:
            return loglik, iteration, True
        if free_beta and 0.8 < abs(at[1]) < 1.0 and gradient[1] * at[1] > 0.0 and jumps < 4:
            # The information grows without bound towards a skewness of 1: steps never get there.
            jumps += 1
            side = math.copysign(1.0, at[1])
            alpha = 2.0 - math.exp(at[0])
            x0 = collapse_skew(tabulated, alpha, side, law, least, _reach(ends, at))
            new_loglik = _sums(x, weights, law.rows, x0, alpha, at[2], at[3], new_gradient)
            if new_loglik > loglik:
                at[1], loglik = side, new_loglik
                gradient[:] = new_gradient
                stale = True
            else:
                x0 = collapse_skew(tabulated, alpha, at[1], law, least, _reach(ends, at))
        pinned = at[0] >= _V_MAX and gradient[0] >= 0.0
        edge = hold or (abs(at[1]) >= 1.0 and gradient[1] * at[1] > 0.0)
        if stale or held[0] != pinned or held[1] != edge:
            held[0], held[1] = pinned, edge
            free[0], free[1] = not pinned, not edge
            x0 = collapse_skew(tabulated, 2.0 - math.exp(at[0]), at[1], law, least)
            skew_information(law.rows, x0, 2.0 - math.exp(at[0]), information, True)
            invert_free(information * n, free, inverse)
            fresh, stale = True, False
        for i in range(4):
            step[i] = np.sum(inverse[i] * gradient)
        gain = np.sum(step * gradient)
        if gain < tolerance:
            return loglik, iteration, not pinned
        if loglik <= floor and gradient[0] < 0.0 and math.exp(at[0]) * n < 0.05:
            return loglik, iteration, True
        far = max(step[0] / 1.5, -step[0] / 4.0, abs(step[2]), abs(step[3]) / 1.5)
        step *= 1.0 / max(far, 1.0, abs(step[1]) / 0.7)
        slack = 1e-13 * abs(loglik)
        risen = False
        for _ in range(14):
            new[0] = min(max(at[0] + step[0], V_MIN), _V_MAX)
            new[1] = min(max(at[1] + step[1], -1.0), 1.0)
            new[2], new[3] = at[2] * math.exp(step[2]), at[3] + at[2] * step[3]
            cut = new[1] != at[1] + step[1]
            step[0], step[1] = new[0] - at[0], new[1] - at[1]
            alpha = 2.0 - math.exp(new[0])
            x0 = collapse_skew(tabulated, alpha, new[1], law, least, _reach(ends, new))
            new_loglik = _sums(x, weights, law.rows, x0, alpha, new[2], new[3], new_gradient)
            if new_loglik - loglik >= 1e-4 * np.sum(step * gradient) - slack:
                risen = True
                break
            step *= 0.3
        if not risen:
            x0 = collapse_skew(
                tabulated, 2.0 - math.exp(at[0]), at[1], law, least, _reach(ends, at)
            )
            if fresh:
                return loglik, iteration, bool(gain < 1e-4)
            stale = True
            continue
        for i in range(4):
            change[i] = 0.0 if held[i] else gradient[i] - new_gradient[i]
        at[:], gradient[:] = new, new_gradient
        loglik = new_loglik
        big = abs(step[0]) > 0.3 or abs(step[1]) > 0.3 or abs(step[2]) > 0.3
        stale = big or cut or not _bfgs(inverse, step, change)
        fresh = False
    return loglik, most, False


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _last_step(state: _State) -> float:
    """Take the last step of a climb, if it stays inside; return the log-likelihood to gain."""
    at, gradient, inverse, _ = state
    step = np.empty(4)
    for i in range(4):
        step[i] = np.sum(inverse[i] * gradient)
    gain = np.sum(step * gradient)
    inside = V_MIN <= at[0] + step[0] <= _V_MAX and abs(at[1] + step[1]) <= 1.0
    if not inside or not gain < _TOLERANCE:
        return 0.0
    at[0] += step[0]
    at[1] += step[1]
    at[3] += at[2] * step[3]
    at[2] *= math.exp(step[2])
    gradient[:] = 0.0
    return float(0.5 * gain)


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
    best: _State,
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
    state = _new_state()
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
        at[0] = min(max(at[0] + along[0] * moved, V_MIN), _V_MAX)
        at[3] += at[2] * along[3] * moved
        at[2] *= math.exp(along[2] * moved)
        at[1] = trial
        value, _, _ = _climb(
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
    free, information, state = np.ones(4, dtype=np.bool_), np.empty((4, 4)), _new_state()
    at = state.at
    n = total_weight(x, weights)
    # A little inside the domain.
    start = min(max(estimates[0], ALPHA_LOW + 0.05), 1.95)
    at[0], at[1] = math.log(2.0 - start), min(max(estimates[1], -0.8), 0.8)
    at[2], at[3] = estimates[2], estimates[3]
    g_scale, g_loc, g_loglik = gaussian(x, weights)
    _, before, _ = _climb(
        x, weights, tabulated, law, state, g_loglik, False, _NEAR, _COARSE, _MAX_ITERATIONS
    )
    best, after, converged = _climb(
        x, weights, tabulated, law, state, g_loglik, False, _TOLERANCE, 0.0, _MAX_ITERATIONS
    )
    iterations = before + after
    # The law stays where it is: the last step is a thousandth of a standard error.
    fitted = 2.0 - math.exp(at[0])
    x0 = collapse_skew(tabulated, fitted, at[1], law)
    best += _last_step(state)
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
