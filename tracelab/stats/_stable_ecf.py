r"""Stable laws from the empirical characteristic function, by generalised least squares.

With `t = scale * u`, S0's :math:`\log\phi(u) = -t^\alpha + i\{\delta u - \beta\,
\tan(\pi\alpha/2)\,(t - t^\alpha)\}`. Koutrouvelis, and Kogon and Williams, regress the logarithms
of modulus and phase on u with equal weights. Here the real and imaginary parts on a geometric grid
are fitted with their own covariance, which is known from the law itself: the estimate is then
nearly as good as the likelihood's, and its covariance comes with it.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from tracelab.stats._confidence import normal_quantile
from tracelab.stats._stable_exact import skew_tangent
from tracelab.stats._stable_linear import invert_free
from tracelab.stats._stable_parameters import Parametrization
from tracelab.stats._stable_quantile import from_quantiles
from tracelab.stats._stable_result import StableFit, assemble
from tracelab.stats._stable_rows import prepare
from tracelab.typing import Status

__all__ = ["GRID", "ecf_information", "fit_ecf"]

Float64 = NDArray[np.float64]

GRID = np.geomspace(0.003, 4.0, 20)
"""Where the characteristic function is taken, in units of 1 / scale."""

ALPHA_LOW = 0.3
"""Smallest alpha of a fit."""

_MIN_SAMPLES = 20
_MAX_ITERATIONS = 40
# The covariance follows the estimate this often; then it stays, and the sum of squares is one.
_REWEIGHTINGS = 3
# Neighbouring points are nearly collinear: a part in 1e9 of each variance is taken as noise.
_RIDGE = 1e-9
# Squared step over its standard error.
_TOLERANCE = 1e-8
# At the Gaussian end the covariance is singular, and weights from it would trust a few points
# alone: it is taken a little off.
_ALPHA_WEIGHT, _BETA_WEIGHT = 1.995, 0.9
_NOT_CONVERGED = int(Status.NOT_CONVERGED)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _turn(alpha: float, t: float) -> float:
    """Return ``tan(pi alpha / 2) (t - t^alpha)``, continuous at alpha = 1."""
    if abs(alpha - 1.0) < 1e-9:
        return 2.0 / math.pi * t * math.log(t)
    return -skew_tangent(alpha, 1.0) * t * math.expm1((alpha - 1.0) * math.log(t))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _model(u: float, law: Float64) -> tuple[float, float]:
    """Return ``1 - Re phi`` and ``Im phi`` at u (of either sign), without cancellation."""
    if u == 0.0:
        return 0.0, 0.0
    alpha, beta, scale, loc = law[0], law[1], law[2], law[3]
    t = abs(u) * scale
    power = t**alpha
    phase = loc * abs(u) - beta * _turn(alpha, t)
    modulus = math.exp(-power)
    imaginary = modulus * math.sin(phase)
    half = math.sin(0.5 * phase)
    return 2.0 * modulus * half * half - math.expm1(-power), imaginary if u > 0.0 else -imaginary


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _jacobian(grid: Float64, law: Float64, values: Float64, out: Float64) -> None:
    """Write the model (2 grid) and its derivatives (2 grid, 4) in alpha, beta, log scale, loc."""
    alpha, beta, scale, loc = law[0], law[1], law[2], law[3]
    size = grid.size
    h = 1e-5
    # (1 - alpha) tan(pi alpha / 2) is regular at 1.
    near = abs(alpha - 1.0) < 1e-9
    bounded = 2.0 / math.pi if near else (1.0 - alpha) * skew_tangent(alpha, 1.0)
    for k in range(size):
        u = grid[k]
        t = u * scale
        power = t**alpha
        turn = _turn(alpha, t)
        turn_alpha = (_turn(min(alpha + h, 2.0), t) - _turn(alpha - h, t)) / (
            min(alpha + h, 2.0) - (alpha - h)
        )
        modulus = math.exp(-power)
        phase = loc * u - beta * turn
        values[k], values[size + k] = _model(u, law)
        real, imaginary = modulus * math.cos(phase), modulus * math.sin(phase)
        for j in range(4):
            if j == 0:
                log_modulus, d_phase = -power * math.log(t), -beta * turn_alpha
            elif j == 1:
                log_modulus, d_phase = 0.0, -turn
            elif j == 2:
                log_modulus, d_phase = -alpha * power, -beta * (turn + bounded * power)
            else:
                log_modulus, d_phase = 0.0, u
            out[k, j] = -(real * log_modulus - imaginary * d_phase)
            out[size + k, j] = imaginary * log_modulus + real * d_phase


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _factor(grid: Float64, law: Float64, factor: Float64) -> bool:
    """Write the Cholesky factor of the covariance of one sample's ``1 - cos`` and ``sin``."""
    size = grid.size
    for i in range(size):
        ai, bi = _model(grid[i], law)
        for j in range(i + 1):
            aj, bj = _model(grid[j], law)
            a_sum, b_sum = _model(grid[i] + grid[j], law)
            a_diff, b_diff = _model(grid[i] - grid[j], law)
            factor[i, j] = ai + aj - ai * aj - 0.5 * (a_sum + a_diff)
            factor[size + i, size + j] = 0.5 * (a_sum - a_diff) - bi * bj
            # sin(u_i) with 1 - cos(u_j), and the other way round.
            factor[size + i, j] = bi * (1.0 - aj) - 0.5 * (b_sum + b_diff)
            factor[size + j, i] = bj * (1.0 - ai) - 0.5 * (b_sum - b_diff)
    for i in range(2 * size):
        factor[i, i] *= 1.0 + _RIDGE
    for j in range(2 * size):
        for i in range(j, 2 * size):
            total = factor[i, j]
            for k in range(j):
                total -= factor[i, k] * factor[j, k]
            if i == j:
                if not total > 0.0:
                    return False
                factor[j, j] = math.sqrt(total)
            else:
                factor[i, j] = total / factor[j, j]
    return True


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _whiten(factor: Float64, vector: Float64) -> None:
    """Overwrite `vector` by the solution of ``factor @ y = vector``."""
    for i in range(vector.size):
        total = vector[i]
        for k in range(i):
            total -= factor[i, k] * vector[k]
        vector[i] = total / factor[i, i]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def ecf_information(grid: Float64, law: Float64) -> Float64:
    """Return the information per sample that the characteristic function on `grid` holds.

    `law` is alpha, beta, scale, location in S0; the result (4, 4) is for alpha, beta, log scale
    and location.
    """
    size = 2 * grid.size
    factor, values, slopes = np.zeros((size, size)), np.empty(size), np.empty((size, 4))
    out = np.full((4, 4), np.nan)
    if not _factor(grid, law, factor):
        return out
    _jacobian(grid, law, values, slopes)
    columns = slopes.T.copy()
    for j in range(4):
        _whiten(factor, columns[j])
    for i in range(4):
        for j in range(4):
            out[i, j] = np.sum(columns[i] * columns[j])
    return out


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _empirical(x: Float64, scale: float, loc: float, grid: Float64, out: Float64) -> None:
    """Write the means of ``1 - cos(u z)`` and ``sin(u z)``, ``z = (x - loc) / scale``."""
    size = grid.size
    out[:] = 0.0
    for value in x:
        half_z = 0.5 * (value - loc) / scale
        for k in range(size):
            angle = grid[k] * half_z
            sine = math.sin(angle)
            out[k] += 2.0 * sine * sine
            out[size + k] += 2.0 * sine * math.cos(angle)
    out /= x.size


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _fit_one(grid: Float64, observed: Float64, law: Float64, n: int, covariance: Float64) -> int:
    """Improve `law` (alpha, beta, scale, loc), write its covariance; return iterations or -1."""
    size = 2 * grid.size
    factor, values, slopes = np.zeros((size, size)), np.empty(size), np.empty((size, 4))
    columns, residual = np.empty((4, size)), np.empty(size)
    information, gradient = np.empty((4, 4)), np.empty(4)
    free, step, trial = np.ones(4, dtype=np.bool_), np.empty(4), np.empty(4)
    for iteration in range(1, _MAX_ITERATIONS + 1):
        if iteration <= _REWEIGHTINGS:
            trial[0], trial[1] = min(law[0], _ALPHA_WEIGHT), _BETA_WEIGHT * law[1]
            trial[2], trial[3] = law[2], law[3]
            if not _factor(grid, trial, factor):
                return -iteration
        _jacobian(grid, law, values, slopes)
        residual[:] = observed - values
        _whiten(factor, residual)
        for j in range(4):
            columns[j] = slopes[:, j]
            _whiten(factor, columns[j])
        for i in range(4):
            gradient[i] = np.sum(columns[i] * residual)
            for j in range(4):
                information[i, j] = np.sum(columns[i] * columns[j])
        free[:] = True
        # Beta has no meaning at the Gaussian end.
        free[1] = law[0] < 2.0
        for _ in range(3):
            invert_free(information, free, covariance)
            for i in range(4):
                step[i] = np.sum(covariance[i] * gradient)
            blocked = False
            if free[0] and law[0] >= 2.0 and step[0] > 0.0:
                free[0] = False
                blocked = True
            if free[1] and abs(law[1]) >= 1.0 and step[1] * law[1] > 0.0:
                free[1] = False
                blocked = True
            if not blocked:
                break
        gain = n * np.sum(step * gradient)
        square = np.sum(residual * residual)
        step[0] = min(max(step[0], -0.3), 0.3)
        step[2] = min(max(step[2], -0.7), 0.7)
        step[3] = min(max(step[3], -1.0), 1.0)
        # The sum of squares never grows.
        for _ in range(20):
            trial[0] = min(max(law[0] + step[0], ALPHA_LOW), 2.0)
            trial[1] = min(max(law[1] + step[1], -1.0), 1.0) if trial[0] < 2.0 else 0.0
            trial[2] = law[2] * math.exp(step[2])
            trial[3] = law[3] + step[3]
            for k in range(grid.size):
                residual[k], residual[grid.size + k] = _model(grid[k], trial)
            residual[:] = observed - residual
            _whiten(factor, residual)
            if np.sum(residual * residual) <= square * (1.0 + 1e-12):
                law[:] = trial
                break
            step *= 0.5
        if gain < _TOLERANCE and iteration > _REWEIGHTINGS:
            break
    free[:] = True
    free[1] = law[0] < 2.0
    invert_free(information, free, covariance)
    covariance /= n
    if law[0] == 2.0:
        covariance[1, 1] = np.inf
    converged = gain < 1e-4 and law[0] > ALPHA_LOW
    return iteration if converged else -iteration


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _endpoint(grid: Float64, law: Float64, n: int, z: float, sign: float) -> float:
    """Return the alpha that lies `z` of its own standard errors from the estimate in `law`.

    Near 2 the error falls like the root of the distance from 2: there an interval with the error
    of the estimate is too short below and has no end above.
    """
    distance = 2.0 - law[0]
    if distance == 0.0 and sign > 0.0:
        return 2.0
    at, inverse, free = law.copy(), np.empty((4, 4)), np.ones(4, dtype=np.bool_)
    at[0], at[1], at[2], at[3] = min(law[0], 1.99), 0.9 * law[1], 1.0, 0.0
    for _ in range(6):
        invert_free(ecf_information(grid, at), free, inverse)
        rate = z * math.sqrt(inverse[0, 0] / n / (2.0 - at[0]))
        root = 0.5 * (math.sqrt(rate * rate + 4.0 * distance) - sign * rate)
        end = 2.0 - root * root
        if end > _ALPHA_WEIGHT and sign > 0.0:
            # Even the Gaussian law, whose error is smaller, is this near.
            return 2.0
        at[0] = min(max(end, ALPHA_LOW), _ALPHA_WEIGHT)
    return end


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _fit_rows(
    rows: Float64,
    counts: NDArray[np.int64],
    grid: Float64,
    estimates: Float64,
    covariance: Float64,
    iterations: NDArray[np.int64],
    status: NDArray[np.uint8],
    z: float,
    interval: Float64,
) -> None:
    """Fit every row from the start in `estimates`, which it overwrites."""
    observed, law = np.empty(2 * grid.size), np.empty(4)
    for r in range(rows.shape[0]):
        n = counts[r]
        if n == 0:
            continue
        scale, loc = estimates[r, 2], estimates[r, 3]
        _empirical(rows[r, :n], scale, loc, grid, observed)
        # The start, a little inside.
        law[0], law[1] = min(estimates[r, 0], 1.98), min(max(estimates[r, 1], -0.9), 0.9)
        law[2], law[3] = 1.0, 0.0
        used = _fit_one(grid, observed, law, n, covariance[r])
        iterations[r] = abs(used)
        status[r] = _NOT_CONVERGED if used < 0 else 0
        error = math.sqrt(covariance[r, 0, 0])
        if law[0] + 4.0 * error < 2.0:
            interval[r, 0], interval[r, 1] = law[0] - z * error, law[0] + z * error
        else:
            interval[r, 0] = _endpoint(grid, law, n, z, -1.0)
            interval[r, 1] = _endpoint(grid, law, n, z, 1.0)
        estimates[r, 0], estimates[r, 1] = law[0], law[1]
        estimates[r, 2], estimates[r, 3] = scale * law[2], loc + scale * law[3]
        # The location's error is in units of the first scale.
        covariance[r, 3] /= law[2]
        covariance[r, :, 3] /= law[2]


def fit_ecf(
    x: ArrayLike,
    axis: int = -1,
    confidence: float = 0.95,
    parametrization: Parametrization = "S1",
) -> StableFit:
    r"""Return the stable law of each cell from its empirical characteristic function.

    Generalised least squares of :math:`1 - \cos` and :math:`\sin` at 20 points, from McCulloch's
    quantiles. The scatter is within a few percent of the Cramer-Rao bound from alpha 1.1 on, and
    the errors are those of the characteristic function; near 2 the interval of alpha takes them
    at its own ends. Data enter bounded, so that the fit is robust against outliers of any size.

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
        Without likelihoods. Alpha is 2 where the fit would go beyond; beta is then 0 and its
        error infinite. Status TOO_FEW_SAMPLES below 20 values; NON_FINITE_INPUT; CONSTANT_INPUT if
        all values, or their middle half, are equal; NOT_CONVERGED at alpha 0.3 or after 40 steps.

    Raises
    ------
    UsageError
        If an argument is outside its range.

    References
    ----------
    Koutrouvelis, "Regression-type estimation of the parameters of stable laws", JASA 75, 1980;
    Kogon, Williams, "Characteristic function based estimation of stable distribution
    parameters", in "A practical guide to heavy tails", 1998; Feuerverger, McDunnough, "On the
    efficiency of empirical characteristic function procedures", JRSS B 43, 1981, eq. 2.7.

    Examples
    --------
    >>> from tracelab.stats import stable
    >>> x = stable.rvs(1.5, 0.5, size=2000, rng=np.random.default_rng(0))
    >>> found = fit_ecf(x)
    >>> bool(found.alpha_low < 1.5 < found.alpha_high)
    True
    """
    z = normal_quantile(confidence)
    rows = prepare(x, axis, _MIN_SAMPLES)
    start = from_quantiles(rows)
    interval = np.full((rows.counts.size, 2), np.nan)
    _fit_rows(
        rows.values,
        rows.counts,
        GRID,
        start.estimates,
        start.covariance,
        start.iterations,
        start.status,
        z,
        interval,
    )
    return assemble(
        rows,
        start.estimates,
        start.covariance,
        parametrization,
        z,
        start.status,
        start.iterations,
        alpha_interval=interval,
    )
