"""The climb to the maximum likelihood of a stable law with skewness, and its expected information.

Coordinates: ``v = log(2 - alpha)``, beta, ``log scale`` and ``location / scale``, the location in
S0; steps as in `_stable_climb`, quasi-Newton from the expected information, with a line search that
never lets the likelihood fall.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from tracelab.stats._stable_climb import V_MIN, total_weight
from tracelab.stats._stable_density import EDGE
from tracelab.stats._stable_linear import bfgs, invert_free
from tracelab.stats._stable_skew import (
    ALPHA_LOW,
    TAIL_ROWS,
    SkewLaw,
    SkewTable,
    collapse_skew,
    envelope,
    skew_density,
)

__all__ = [
    "TOLERANCE",
    "V_MAX",
    "State",
    "climb_skew",
    "last_step",
    "new_state",
    "skew_information",
]

Float64 = NDArray[np.float64]

V_MAX = math.log(2.0 - ALPHA_LOW)
"""Of the least alpha that the table has."""

TOLERANCE = 1e-5
"""Twice the log-likelihood still to gain when a climb stops, and takes its last step blindly."""

# Products of densities are kept in this range between two logarithms.
_TINY, _HUGE = 1e-200, 1e200
# A climb that leaves out small orders of the table ends here: light tails need all of them.
_COARSE_BETA = 0.9
# The table's densities are not trusted below this part of a heavy tail: the likelihood counts a
# light tail as if it were as heavy as that of a skewness 2e-7 short of 1.
_FLOOR = 1e-7
_BODY_NODES, _BODY_WEIGHTS = np.polynomial.legendre.leggauss(4)
_TAIL_NODES, _TAIL_WEIGHTS = np.polynomial.legendre.leggauss(3)
_ROUGH_NODES, _ROUGH_WEIGHTS = np.polynomial.legendre.leggauss(1)


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


class State(NamedTuple):
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
def new_state() -> State:
    return State(np.empty(4), np.empty(4), np.zeros((4, 4)), np.zeros(4, dtype=np.bool_))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _reach(ends: tuple[float, float], at: Float64) -> float:
    """Return the largest standardised magnitude of a sample with these ends."""
    return float(max(abs(ends[0] - at[3]), abs(ends[1] - at[3])) / at[2])


@numba.njit(nogil=True, cache=True, error_model="numpy")
def climb_skew(
    x: Float64,
    weights: Float64 | None,
    tabulated: SkewTable,
    law: SkewLaw,
    state: State,
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
        pinned = at[0] >= V_MAX and gradient[0] >= 0.0
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
            new[0] = min(max(at[0] + step[0], V_MIN), V_MAX)
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
        stale = big or cut or not bfgs(inverse, step, change)
        fresh = False
    return loglik, most, False


@numba.njit(nogil=True, cache=True, error_model="numpy")
def last_step(state: State) -> float:
    """Take the last step of a climb, if it stays inside; return the log-likelihood to gain."""
    at, gradient, inverse, _ = state
    step = np.empty(4)
    for i in range(4):
        step[i] = np.sum(inverse[i] * gradient)
    gain = np.sum(step * gradient)
    inside = V_MIN <= at[0] + step[0] <= V_MAX and abs(at[1] + step[1]) <= 1.0
    if not inside or not gain < TOLERANCE:
        return 0.0
    at[0] += step[0]
    at[1] += step[1]
    at[3] += at[2] * step[3]
    at[2] *= math.exp(step[2])
    gradient[:] = 0.0
    return float(0.5 * gain)
