"""Maximum likelihood of Student's law and of mixtures of two Gaussians, for many rows.

Steps are those of Levenberg and Marquardt on the outer product of scores, which stands in for the
information (Berndt, Hall, Hall, Hausman 1974): no step lowers the likelihood.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from tracelab.stats._digamma import digamma
from tracelab.typing import FloatArray

__all__ = ["SCALE_MIXTURE", "STUDENT", "fit_rows"]

STUDENT, SCALE_MIXTURE = 0, 1

_MAX_ITERATIONS = 200
# Twice the log-likelihood still to gain when a climb stops.
_TOLERANCE = 1e-9
# What so many steps must gain in log-likelihood.
_PATIENCE, _CREEP = 20, 0.05
# Degrees of freedom beyond which Student's law is the Gaussian one; the gain is below 1e-4 n / nu.
_MOST_FREEDOM = 1e5
_LEAST_SHAPE = 0.05
# Of the wider component over the narrower, and of either component's values.
_MOST_RATIO = 1e4
_LEAST_VALUES = 2.0


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _student(x: FloatArray, theta: FloatArray, score: FloatArray, outer: FloatArray) -> float:
    """Return the log-likelihood; fill sums of scores and of their products.

    `theta` is log nu, log sigma and mu.
    """
    nu, inverse = math.exp(theta[0]), math.exp(-theta[1])
    half = 0.5 * (nu + 1.0)
    constant = math.lgamma(half) - math.lgamma(0.5 * nu) - 0.5 * math.log(nu * math.pi)
    slope = 0.5 * (digamma(half) - digamma(0.5 * nu) - 1.0 / nu)
    total = 0.0
    score[:] = 0.0
    outer[:] = 0.0
    s = np.empty(3)
    for i in range(x.size):
        z = (x[i] - theta[2]) * inverse
        square = z * z
        log = math.log1p(square / nu)
        weight = (nu + 1.0) / (nu + square)
        total -= half * log
        s[0] = nu * (slope - 0.5 * log) + 0.5 * weight * square
        s[1] = weight * square - 1.0
        s[2] = weight * z * inverse
        _add(s, 3, score, outer)
    return float(total + x.size * (constant - theta[1]))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _mixture(x: FloatArray, theta: FloatArray, score: FloatArray, outer: FloatArray) -> float:
    """As `_student`, of logit of the wider share, log sigmas (narrow, wide) and mu."""
    wide = 1.0 / (1.0 + math.exp(-theta[0]))
    narrow = 1.0 / (1.0 + math.exp(theta[0]))
    a, b = math.exp(-theta[1]), math.exp(-theta[2])
    total = 0.0
    score[:] = 0.0
    outer[:] = 0.0
    s = np.empty(4)
    log_narrow, log_wide = math.log(narrow * a), math.log(wide * b)
    for i in range(x.size):
        d = x[i] - theta[3]
        first, second = (d * a) ** 2, (d * b) ** 2
        one, two = log_narrow - 0.5 * first, log_wide - 0.5 * second
        top = max(one, two)
        log = top + math.log(math.exp(one - top) + math.exp(two - top))
        share = math.exp(two - log)
        total += log
        s[0] = share - wide
        s[1] = (1.0 - share) * (first - 1.0)
        s[2] = share * (second - 1.0)
        s[3] = d * ((1.0 - share) * a * a + share * b * b)
        _add(s, 4, score, outer)
    return total - 0.5 * math.log(2.0 * math.pi) * x.size


@numba.njit(inline="always")
def _add(s: FloatArray, count: int, score: FloatArray, outer: FloatArray) -> None:
    for j in range(count):
        score[j] += s[j]
        for k in range(j + 1):
            outer[j, k] += s[j] * s[k]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _evaluate(
    family: int, x: FloatArray, theta: FloatArray, score: FloatArray, outer: FloatArray
) -> float:
    if family == STUDENT:
        return float(_student(x, theta, score, outer))
    return float(_mixture(x, theta, score, outer))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _solve(matrix: FloatArray, count: int, damping: float, right: FloatArray) -> FloatArray:
    """Return the solution of a positive definite system with a damped diagonal, by Cholesky.

    `matrix` holds the lower triangle. NaN where it is not positive definite.
    """
    lower = np.zeros((count, count))
    found = np.full(count, np.nan)
    for j in range(count):
        for i in range(j, count):
            value = matrix[i, j] * (1.0 + damping if i == j else 1.0)
            for k in range(j):
                value -= lower[i, k] * lower[j, k]
            if i == j:
                if not value > 1e-14 * matrix[j, j]:
                    return found
                lower[j, j] = math.sqrt(value)
            else:
                lower[i, j] = value / lower[j, j]
    for i in range(count):
        value = right[i]
        for k in range(i):
            value -= lower[i, k] * found[k]
        found[i] = value / lower[i, i]
    for i in range(count - 1, -1, -1):
        value = found[i]
        for k in range(i + 1, count):
            value -= lower[k, i] * found[k]
        found[i] = value / lower[i, i]
    return found


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _expectation_maximisation(x: FloatArray, theta: FloatArray, rounds: int) -> None:
    """Move a mixture's parameters by EM, which finds the way from far."""
    wide = 1.0 / (1.0 + math.exp(-theta[0]))
    a, b, mu = math.exp(theta[1]), math.exp(theta[2]), theta[3]
    n = x.size
    for _ in range(rounds):
        total = weight = moved = square_a = square_b = 0.0
        for i in range(n):
            d = x[i] - mu
            one = math.log((1.0 - wide) / a) - 0.5 * (d / a) ** 2
            two = math.log(wide / b) - 0.5 * (d / b) ** 2
            share = 1.0 / (1.0 + math.exp(min(one - two, 700.0)))
            total += share
            square_a += (1.0 - share) * d * d
            square_b += share * d * d
            precision = (1.0 - share) / (a * a) + share / (b * b)
            weight += precision
            moved += precision * d
        wide = min(max(total / n, 1.0 / n), 1.0 - 1.0 / n)
        a = math.sqrt(square_a / (n - total))
        b = math.sqrt(square_b / total)
        mu += moved / weight
    theta[0], theta[1], theta[2], theta[3] = (
        math.log(wide / (1 - wide)),
        math.log(a),
        math.log(b),
        mu,
    )


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _start(family: int, x: FloatArray, theta: FloatArray) -> None:
    """Write starting values for a sorted row of median 0 and interquartile range 1."""
    n = x.size
    theta[:] = 0.0
    if family == STUDENT:
        theta[0], theta[1] = math.log(5.0), math.log(0.69)
    else:
        square = 0.0
        for i in range(n):
            square += x[i] * x[i]
        deviation = math.sqrt(square / n)
        # A core as wide as the quartiles say, and a tenth that makes up the variance.
        theta[0] = math.log(0.1 / 0.9)
        theta[1] = math.log(0.6)
        theta[2] = math.log(max(3.0 * deviation, 1.2))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _inside(family: int, theta: FloatArray, n: int) -> bool:
    if family == STUDENT:
        return bool(math.log(_LEAST_SHAPE) < theta[0] < math.log(_MOST_FREEDOM))
    wide = 1.0 / (1.0 + math.exp(-theta[0]))
    few = min(wide, 1.0 - wide) * n < _LEAST_VALUES
    return not few and abs(theta[2] - theta[1]) < math.log(_MOST_RATIO)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _climb(
    family: int, x: FloatArray, theta: FloatArray, outer: FloatArray
) -> tuple[float, int, bool]:
    """Move `theta` to the maximum; return log-likelihood, iterations and whether it was reached."""
    count = 4 if family == SCALE_MIXTURE else 3
    if family == SCALE_MIXTURE:
        _expectation_maximisation(x, theta, 20)
    score, other, trial = np.zeros(4), np.zeros(4), theta.copy()
    outer_there = np.zeros((4, 4))
    loglik = _evaluate(family, x, theta, score, outer)
    damping, earlier = 1e-3, -np.inf
    for iteration in range(1, _MAX_ITERATIONS + 1):
        step = _solve(outer, count, 0.0, score)
        gain = 0.0
        for j in range(count):
            gain += step[j] * score[j]
        if gain < _TOLERANCE:
            return loglik, iteration, True
        moved = False
        for _ in range(30):
            step = _solve(outer, count, damping, score)
            longest = np.abs(step).max()
            if longest < np.inf:
                trial[:] = theta
                for j in range(count):
                    trial[j] += step[j] / max(longest / 2.0, 1.0)
                if _inside(family, trial, x.size):
                    there = _evaluate(family, x, trial, other, outer_there)
                    if there >= loglik:
                        moved = True
                        break
            damping = max(4.0 * damping, 1e-6)
        if not moved:
            # Nowhere up, to rounding, or against an edge.
            return loglik, iteration, gain < 1e-4
        theta[:], score[:], outer[:], loglik = trial, other, outer_there, there
        damping *= 0.1
        if family == SCALE_MIXTURE and iteration % _PATIENCE == 0:
            # A mixture of what is one Gaussian is not identified, and creeps along a ridge.
            if loglik - earlier < _CREEP:
                return loglik, iteration, False
            earlier = loglik
    return loglik, _MAX_ITERATIONS, False


@numba.njit(nogil=True, cache=True, error_model="numpy")
def fit_rows(family: int, rows: FloatArray, out: FloatArray) -> None:
    """Fit a family to every row.

    Parameters
    ----------
    family : int
        `STUDENT` or `SCALE_MIXTURE`.
    rows : ndarray of float64, shape (row, n)
        Sorted, each with median 0 and interquartile range 1.
    out : ndarray, shape (row, 11)
        Output: four parameters (log shape or logit share, log scale, location; of the mixture
        logit share, two log scales, location), four standard errors of these, log-likelihood,
        iterations and 1 where converged. Standard errors are of the outer product of scores.
    """
    theta, outer, unit = np.zeros(4), np.zeros((4, 4)), np.zeros(4)
    for r in range(rows.shape[0]):
        _start(family, rows[r], theta)
        loglik, iterations, converged = _climb(family, rows[r], theta, outer)
        count = 4 if family == SCALE_MIXTURE else 3
        out[r, :4] = theta
        out[r, 4:8] = np.nan
        for j in range(count):
            unit[:] = 0.0
            unit[j] = 1.0
            out[r, 4 + j] = math.sqrt(_solve(outer, count, 0.0, unit)[j])
        out[r, 8], out[r, 9], out[r, 10] = loglik, iterations, 1.0 if converged else 0.0
