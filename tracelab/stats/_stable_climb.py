"""Maximum likelihood of one sample under the symmetric stable law: the climb.

Coordinates: ``v = log(2 - alpha)``, ``log scale`` and ``location / scale``; in the first the
likelihood stays regular up to the Gaussian end ``v = -inf``. Steps are quasi-Newton, started
from the expected information at each far move, with a line search that never lets the
likelihood fall.

Samples are values, or with `weights` points that stand for so many values each. Without weights
those branches are not compiled.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from tracelab.stats._stable_density import ALPHA_MIN, Float64, Table, collapse, density
from tracelab.stats._stable_linear import bfgs, dot

__all__ = ["V_MAX", "V_MIN", "climb", "fisher", "gaussian", "score_sums", "total_weight"]

V_MIN = math.log(1e-9)
V_MAX = math.log(2.0 - ALPHA_MIN)
_MAX_ITERATIONS = 100
# Products of densities are kept in this range between two logarithms.
_TINY, _HUGE = 1e-200, 1e200


@numba.njit(nogil=True, cache=True, error_model="numpy")
def fisher(information: Float64, v: float) -> tuple[float, float, float, float]:
    """Return the information per sample: vv, vu, uu and location (in units of the scale)."""
    first, last = information[0, 0], information[-1, 0]
    count = information.shape[0]
    position = (min(max(v, first), last) - first) / (last - first) * (count - 1)
    i = min(int(position), count - 2)
    w = position - i
    row = information[i] + w * (information[i + 1] - information[i])
    s = math.exp(v)
    return row[1] * s, row[2] * s, row[3], row[4]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def total_weight(x: Float64, weights: Float64 | None) -> float:
    """Return how many values `x` stands for."""
    if weights is None:
        return float(x.size)
    total = 0.0
    for weight in weights:
        total += weight
    return total


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def score_sums(
    x: Float64,
    weights: Float64 | None,
    law: Float64,
    x0: float,
    alpha: float,
    scale: float,
    loc: float,
) -> tuple[float, float, float, float]:
    """Return the log-likelihood of `x` and its derivatives in (v, log scale, loc / scale)."""
    s = 2.0 - alpha
    inverse = 1.0 / scale
    total, product = 0.0, 1.0
    g_alpha = g_scale = g_loc = 0.0
    for i in range(x.size):
        z = (x[i] - loc) * inverse
        f, fz, fa = density(law, x0, alpha, z)
        r = 1.0 / f
        if weights is not None:
            r *= weights[i]
        fz *= r
        g_alpha += fa * r
        g_scale += abs(z) * fz
        g_loc += fz if z > 0.0 else -fz
        if weights is not None:
            total += weights[i] * math.log(f)
        elif f < _TINY:
            total += math.log(f)
        else:
            product *= f
            if product < _TINY or product > _HUGE:
                total += math.log(product)
                product = 1.0
    n = total_weight(x, weights)
    total += math.log(product) - n * math.log(scale)
    return total, -s * g_alpha, -(n + g_scale), -g_loc


@numba.njit(nogil=True, cache=True, error_model="numpy")
def gaussian(x: Float64, weights: Float64 | None) -> tuple[float, float, float]:
    """Return scale (of N(0, 2 scale^2)), location and log-likelihood of the Gaussian fit."""
    n = total_weight(x, weights)
    loc = 0.0
    for i in range(x.size):
        loc += x[i] if weights is None else weights[i] * x[i]
    loc /= n
    square = 0.0
    for i in range(x.size):
        deviation = (x[i] - loc) ** 2
        square += deviation if weights is None else weights[i] * deviation
    variance = square / n
    loglik = -0.5 * n * (math.log(2.0 * math.pi * variance) + 1.0)
    return math.sqrt(0.5 * variance), loc, loglik


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _inverse_information(information: Float64, v: float, n: float, free: bool) -> Float64:
    """Return the inverse of the information of `n` samples, without alpha if not `free`."""
    vv, vu, uu, ll = fisher(information, v)
    inverse = np.zeros((3, 3))
    if free:
        determinant = vv * uu - vu * vu
        inverse[0, 0] = uu / determinant / n
        inverse[0, 1] = inverse[1, 0] = -vu / determinant / n
        inverse[1, 1] = vv / determinant / n
    else:
        inverse[1, 1] = 1.0 / uu / n
    inverse[2, 2] = 1.0 / ll / n
    return inverse


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _end_slope(x: Float64, weights: Float64 | None, tabulated: Table, law: Float64) -> float:
    """Return the derivative in v of the log-likelihood at the Gaussian fit, nearly at its end."""
    scale, loc, _ = gaussian(x, weights)
    v = math.log(0.04 / total_weight(x, weights))
    alpha = 2.0 - math.exp(v)
    x0 = collapse(tabulated, alpha, 1, law)
    _, slope, by_scale, _ = score_sums(x, weights, law, x0, alpha, scale, loc)
    _, vu, uu, _ = fisher(tabulated.information, v)
    return slope - vu / uu * by_scale


@numba.njit(nogil=True, cache=True, error_model="numpy")
def climb(
    x: Float64,
    weights: Float64 | None,
    tabulated: Table,
    law: Float64,
    start: tuple[float, float, float],
    free: bool,
    floor: float,
    tolerance: float,
) -> tuple[float, float, float, float, float, int, bool]:
    """Return v, scale, location, log-likelihood, its derivative in v, iterations, converged.

    Alpha is held if not `free`. A climb that runs to the Gaussian end below the log-likelihood
    `floor` of the Gaussian fit is left early: that fit is better. It has converged when twice the
    log-likelihood still to gain is below `tolerance` (a standard error away it is 1).
    """
    n = total_weight(x, weights)
    v, scale, loc = start
    alpha = 2.0 - math.exp(v)
    x0 = collapse(tabulated, alpha, 1, law)
    loglik, g0, g1, g2 = score_sums(x, weights, law, x0, alpha, scale, loc)
    gradient = np.array([g0, g1, g2])
    inverse = _inverse_information(tabulated.information, v, n, free)
    fresh, tried = True, False
    step = np.zeros(3)
    for iteration in range(1, _MAX_ITERATIONS + 1):
        pinned = free and v >= V_MAX and gradient[0] >= 0.0
        if pinned:
            inverse = _inverse_information(tabulated.information, v, n, False)
            fresh = True
        for i in range(3):
            step[i] = dot(inverse[i], gradient)
        gain = dot(step, gradient)
        if gain < tolerance:
            return v, scale, loc, loglik, gradient[0], iteration, not pinned
        if free and loglik <= floor and gradient[0] < 0.0 and math.exp(v) * n < 0.05:
            return v, scale, loc, loglik, gradient[0], iteration, True
        if free and not tried and loglik <= floor and gradient[0] < 0.0 and step[0] < -1.0:
            # On the way to the Gaussian end: it is the maximum if the likelihood still rises there.
            tried = True
            if _end_slope(x, weights, tabulated, law) < 0.0:
                return v, scale, loc, loglik, gradient[0], iteration, True
        # Towards the Gaussian end the likelihood is flat in v: longer steps there.
        far = max(step[0] / 1.5, -step[0] / 4.0, abs(step[1]), abs(step[2]) / 1.5)
        step *= 1.0 / max(far, 1.0)
        slack = 1e-13 * abs(loglik)
        rise = -np.inf
        for _ in range(12):
            new_v = min(max(v + step[0], V_MIN), V_MAX)
            step[0] = new_v - v
            new_scale, new_loc = scale * math.exp(step[1]), loc + scale * step[2]
            if free:
                alpha = 2.0 - math.exp(new_v)
                x0 = collapse(tabulated, alpha, 1, law)
            new_loglik, g0, g1, g2 = score_sums(x, weights, law, x0, alpha, new_scale, new_loc)
            rise = new_loglik - loglik
            if rise >= 1e-4 * dot(step, gradient) - slack:
                break
            step *= 0.3
        else:
            if not fresh:
                inverse = _inverse_information(tabulated.information, v, n, free)
                fresh = True
                continue
            return v, scale, loc, loglik, gradient[0], iteration, gain < 1e-5
        change = gradient - np.array([g0, g1, g2])
        v, scale, loc, loglik = new_v, new_scale, new_loc, new_loglik
        gradient[:] = g0, g1, g2
        if (free and abs(step[0]) > 0.3) or abs(step[1]) > 0.3 or not bfgs(inverse, step, change):
            inverse = _inverse_information(tabulated.information, v, n, free)
            fresh = True
        else:
            fresh = False
    return v, scale, loc, loglik, gradient[0], _MAX_ITERATIONS, False
