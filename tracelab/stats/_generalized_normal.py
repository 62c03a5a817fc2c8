"""Maximum likelihood of the generalized normal law, for many rows.

Given the location, the scale has a formula and the shape is one number to search for; given these,
the location minimises a convex function where the shape is above 1. By symmetry the information
has no term between location and the others, and turns of the two come to rest quickly.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from tracelab.stats._digamma import digamma, trigamma
from tracelab.typing import FloatArray

__all__ = ["fit_rows"]

_LEAST, _MOST = 0.05, 100.0
_TURNS = 50
# Twice the log-likelihood still to gain when the turns end.
_TOLERANCE = 1e-9


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _sums(x: FloatArray, loc: float, beta: float) -> tuple[float, float, float]:
    """Return means of |x - loc|^beta, of it times log, and of it times log squared."""
    power = first = second = 0.0
    for i in range(x.size):
        distance = abs(x[i] - loc)
        if distance > 0.0:
            log = math.log(distance)
            value = math.exp(beta * log)
            power += value
            first += value * log
            second += value * log * log
    return power / x.size, first / x.size, second / x.size


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _slope(x: FloatArray, loc: float, beta: float) -> tuple[float, float, float]:
    """Return the profile log-likelihood of the shape, a value, and two derivatives in log shape."""
    power, first, second = _sums(x, loc, beta)
    inverse = 1.0 / beta
    psi, psi1 = digamma(inverse), trigamma(inverse)
    log_scale = inverse * math.log(beta * power)
    value = math.log(0.5 * beta) - math.lgamma(inverse) - log_scale - inverse
    ratio = first / power
    # d log_scale / d log beta = 1 / beta + ratio - log_scale.
    moved = inverse + ratio - log_scale
    slope = 1.0 + psi * inverse - moved + inverse
    curvature = -psi * inverse - psi1 * inverse * inverse - inverse
    curvature -= -inverse + beta * (second / power - ratio * ratio) - moved
    return value, slope, curvature


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _shape(x: FloatArray, loc: float, beta: float) -> tuple[float, float, bool]:
    """Return the shape of the largest likelihood at a location, that, and whether it is inside."""
    low, high = math.log(_LEAST), math.log(_MOST)
    place = math.log(beta)
    value = -np.inf
    for _ in range(100):
        value, slope, curvature = _slope(x, loc, math.exp(place))
        if slope > 0.0:
            low = place
        else:
            high = place
        step = -slope / curvature if curvature < 0.0 else math.copysign(1.0, slope)
        if slope * step * x.size < 0.1 * _TOLERANCE:
            return math.exp(place), value, True
        step = min(max(step, -1.0), 1.0)
        trial = place + step
        if not low < trial < high:
            trial = 0.5 * (low + high)
        if high - low < 1e-12:
            break
        place = trial
    inside = math.log(_LEAST) + 1e-6 < place < math.log(_MOST) - 1e-6
    return math.exp(place), value, inside


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _location(x: FloatArray, beta: float, loc: float) -> float:
    """Return the location that minimises sum |x - m|^beta over sorted x; the median for beta <= 1.

    Below 1 the sum has a minimum at every value; the one in the middle is taken.
    """
    n = x.size
    if beta <= 1.0:
        return float(0.5 * (x[(n - 1) // 2] + x[n // 2]))
    low, high = x[0], x[n - 1]
    for _ in range(100):
        slope = curvature = 0.0
        for i in range(n):
            d = x[i] - loc
            if d != 0.0:
                weight = math.exp((beta - 2.0) * math.log(abs(d)))
                slope += weight * d
                curvature += weight
        curvature *= beta - 1.0
        if slope > 0.0:
            low = loc
        else:
            high = loc
        step = slope / curvature if curvature > 0.0 else 0.0
        # Below 2 the curvature is spiked at values, and a step too short; bisect where it stalls.
        trial = loc + step
        if not low < trial < high:
            trial = 0.5 * (low + high)
        if abs(trial - loc) < 1e-11 * (1.0 + abs(loc)) or high - low < 1e-13:
            return float(trial)
        loc = trial
    return float(loc)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def fit_rows(rows: FloatArray, out: FloatArray) -> None:
    """Fit every row.

    Parameters
    ----------
    rows : ndarray of float64, shape (row, n)
        Sorted, each with median 0 and interquartile range 1.
    out : ndarray, shape (row, 6)
        Output: shape, location, scale, log-likelihood, turns, and 1 where converged.
    """
    for r in range(rows.shape[0]):
        x = rows[r]
        beta, before, loc = 1.5, -np.inf, _location(x, 1.0, 0.0)
        beta, value, inside = _shape(x, loc, beta)
        turns = 1
        while turns < _TURNS and (value - before) * x.size > 0.5 * _TOLERANCE:
            moved = _location(x, beta, loc)
            if moved == loc:
                break
            before, loc = value, moved
            beta, value, inside = _shape(x, loc, beta)
            turns += 1
        power, _, _ = _sums(x, loc, beta)
        out[r, 0], out[r, 1] = beta, loc
        out[r, 2] = math.exp(math.log(beta * power) / beta)
        out[r, 3], out[r, 4] = value * x.size, turns
        out[r, 5] = 1.0 if inside and turns < _TURNS else 0.0
