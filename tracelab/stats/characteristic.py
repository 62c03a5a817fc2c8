r"""Stable laws from 64 numbers a sample: sums of cosines and sines that add up.

The empirical characteristic function on 32 frequencies keeps nearly all that a sample says of its
stable law: at most half a percent of the standard error is lost to maximum likelihood. Sums of
parts, of steps, workers or ranks, add up to those of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from scipy import special

from tracelab.errors import UsageError
from tracelab.stats._confidence import normal_quantile
from tracelab.stats._samples import as_rows
from tracelab.typing import FloatArray, Status

__all__ = ["FREQUENCIES", "CharacteristicFit", "fit", "sums"]

FREQUENCIES = np.geomspace(0.003, 4.0, 32)
"""Where the characteristic function is kept, times the scale that was given."""

MIN_SAMPLES = 100
"""Fewer values than this are not fitted: errors are those of large samples."""

_LEAST_ALPHA = 0.3
_MAX_ITERATIONS = 100
# Parts of the covariance below this, of the largest, are lost to rounding.
_RANK = 1e-11
# Values of so many times 1 / (2 - alpha) would not tell alpha from 2: closer is 2.
_NEAREST = 0.05
# Square of a step, in standard errors, at which a search ends.
_TOLERANCE = 1e-10
# Directions of the covariance in which the fit is tested.
_COARSE = 12
# Values at a time.
_VALUES = 1 << 18


@dataclass(frozen=True, slots=True)
class CharacteristicFit:
    """A stable law for each sample; arrays have the leading shape of the sums.

    Parameters
    ----------
    alpha, alpha_se, alpha_low, alpha_high : ndarray of float64
        Tail index, standard error and interval, within (0, 2].
    beta, beta_se : ndarray of float64
        Skewness and its standard error; 0 and 0 where the fit is symmetric, NaN where alpha is 2
        and there is none.
    scale, scale_se, loc, loc_se : ndarray of float64
        In the units of the data; `loc` is that of Nolan's parametrization S0.
    chi2, pvalue : ndarray of float64
        Distance of the sums from those of the law, and its p-value: small where no stable law
        describes them.
    dof : ndarray of int64
        Degrees of freedom of `chi2`.
    iterations : ndarray of int64
        Of the search.
    n_samples : ndarray of int64
        Values of each sample.
    status : ndarray of uint8
        `tracelab.typing.Status`.
    """

    alpha: FloatArray
    alpha_se: FloatArray
    alpha_low: FloatArray
    alpha_high: FloatArray
    beta: FloatArray
    beta_se: FloatArray
    scale: FloatArray
    scale_se: FloatArray
    loc: FloatArray
    loc_se: FloatArray
    chi2: FloatArray
    pvalue: FloatArray
    dof: npt.NDArray[np.int64]
    iterations: npt.NDArray[np.int64]
    n_samples: npt.NDArray[np.int64]
    status: npt.NDArray[np.uint8]


def sums(
    x: npt.ArrayLike, scale: npt.ArrayLike, loc: npt.ArrayLike = 0.0, axis: int = -1
) -> FloatArray:
    r"""Return what a sample is reduced to.

    Parameters
    ----------
    x : array_like, real
        Samples along `axis`; the other axes are kept.
    scale, loc : array_like
        About what the samples' scale and location are, within a factor of three and a few scales;
        one for all, or one a sample. Sums add up only if these are the same.
    axis : int
        Axis of the samples.

    Returns
    -------
    ndarray of float64, shape (..., 64)
        :math:`\sum_i 2 \sin^2(t_k z_i / 2)` and, behind these, :math:`\sum_i \sin(t_k z_i)` at the
        `FREQUENCIES`, with :math:`z = (x - loc) / scale`. One less the cosine keeps its digits
        where both are small. NaN if a value is not finite.

    Raises
    ------
    UsageError
        If a scale is not positive, or shapes do not fit.
    """
    rows, lead = as_rows(x, axis)
    scales, locs = (_each(each, lead, name) for each, name in ((scale, "scale"), (loc, "loc")))
    if not (scales > 0).all():
        raise UsageError(f"scale must be positive, got {scales[~(scales > 0)][0]}")
    found = np.zeros((len(rows), 2 * len(FREQUENCIES)))
    for row, out in enumerate(found):
        for begin in range(0, rows.shape[1], _VALUES):
            with np.errstate(invalid="ignore"):
                z = (rows[row, begin : begin + _VALUES] - locs[row]) / scales[row]
                half = np.sin(0.5 * FREQUENCIES[:, None] * z)
                out[:32] += 2 * (half * half).sum(axis=-1)
                out[32:] += np.sin(FREQUENCIES[:, None] * z).sum(axis=-1)
    return found.reshape(*lead, 2 * len(FREQUENCIES))


def fit(
    sums: npt.ArrayLike,
    n: npt.ArrayLike,
    scale: npt.ArrayLike,
    loc: npt.ArrayLike = 0.0,
    *,
    symmetric: bool = True,
    confidence: float = 0.95,
) -> CharacteristicFit:
    r"""Return the stable law whose characteristic function is closest to the empirical one.

    Closest by the inverse of the covariance that the empirical one has under the law itself, found
    by Gauss-Newton steps:

    .. math:: \min_\theta\; n\, r^\top C_\theta^{-1} r, \quad
        r = \hat\varphi - \varphi_\theta

    whose minimum has the law of :math:`\chi^2` if the sample is stable. The variances are those of
    the generalized method of moments, :math:`(J^\top C^{-1} J)^{-1} / n`. They hold at alpha = 2,
    too, where an estimate beyond 2 is given as 2.

    Parameters
    ----------
    sums : array_like, shape (..., 64)
        From `sums`, of one sample or added up.
    n : array_like of int
        Number of values in them.
    scale, loc : array_like
        What `sums` was given.
    symmetric : bool
        Whether the law has no skewness.
    confidence : float
        Level of the interval, in (0, 1).

    Returns
    -------
    CharacteristicFit
        Status ``TOO_FEW_SAMPLES`` below 100 values, ``NON_FINITE_INPUT``, ``CONSTANT_INPUT`` where
        the sums have no decay, ``NOT_CONVERGED`` where the search did not end, or ended at alpha =
        0.3, or the scale is more than ten times what was given, or less than a tenth.

    Raises
    ------
    UsageError
        If shapes do not fit.

    References
    ----------
    Feuerverger, McDunnough, "On the efficiency of empirical characteristic function procedures",
    JRSS B 43, 20-27 (1981); Press, "Estimation in univariate and multivariate stable
    distributions", JASA 67 (1972); Hansen, "Large sample properties of generalized method of
    moments estimators", Econometrica 50 (1982), for the test.

    Examples
    --------
    >>> from tracelab.stats import stable
    >>> x = stable.rvs(1.6, scale=3.0, size=(2, 20_000), rng=np.random.default_rng(0))
    >>> parts = sums(x[:, :9000], 2.0) + sums(x[:, 9000:], 2.0)
    >>> fit(parts, 20_000, 2.0).alpha.round(1)
    array([1.6, 1.6])
    """
    given = np.asarray(sums, dtype=np.float64)
    if given.ndim == 0 or given.shape[-1] != 2 * len(FREQUENCIES):
        raise UsageError(
            f"sums must have {2 * len(FREQUENCIES)} numbers along their last axis, got shape "
            f"{given.shape}; give what tracelab.stats.characteristic.sums returned"
        )
    z = normal_quantile(confidence)
    lead = given.shape[:-1]
    rows = given.reshape(-1, given.shape[-1])
    counts = _each(n, lead, "n").astype(np.int64)
    scales, locs = (_each(each, lead, name) for each, name in ((scale, "scale"), (loc, "loc")))
    status = np.full(len(rows), Status.OK, dtype=np.uint8)
    found = np.full((len(rows), 14), np.nan)
    found[:, 12:] = 0
    for row in range(len(rows)):
        if not np.isfinite(rows[row]).all():
            status[row] = Status.NON_FINITE_INPUT
        elif counts[row] < MIN_SAMPLES:
            status[row] = Status.TOO_FEW_SAMPLES
        elif not rows[row, :32].any():
            status[row] = Status.CONSTANT_INPUT
        else:
            found[row], converged = _search(rows[row] / counts[row], int(counts[row]), symmetric, z)
            status[row] = Status.OK if converged else Status.NOT_CONVERGED
    alpha, beta, size, place, alpha_se, beta_se, size_se, place_se = found.T[:8]
    low, high, chi2, pvalue = found.T[8:12]

    def shaped(values: FloatArray) -> FloatArray:
        return values.reshape(lead)

    return CharacteristicFit(
        alpha=shaped(alpha),
        alpha_se=shaped(alpha_se),
        alpha_low=shaped(np.clip(low, 0.0, 2.0)),
        alpha_high=shaped(np.clip(high, 0.0, 2.0)),
        beta=shaped(beta),
        beta_se=shaped(beta_se),
        scale=shaped(size * scales),
        scale_se=shaped(size_se * scales),
        loc=shaped(place * scales + locs),
        loc_se=shaped(place_se * scales),
        chi2=shaped(chi2),
        pvalue=shaped(pvalue),
        dof=found[:, 12].astype(np.int64).reshape(lead),
        iterations=np.abs(found[:, 13]).astype(np.int64).reshape(lead),
        n_samples=counts.reshape(lead),
        status=status.reshape(lead),
    )


def _each(given: npt.ArrayLike, lead: tuple[int, ...], name: str) -> FloatArray:
    values = np.asarray(given, dtype=np.float64)
    try:
        found: FloatArray = np.broadcast_to(values, lead).reshape(-1)
        return found
    except ValueError:
        raise UsageError(
            f"{name} has the shape {values.shape}, samples {lead}; give one, or one a sample"
        ) from None


def _twist(alpha: float, log: FloatArray) -> FloatArray:
    """Return tan(pi alpha / 2) (exp((1 - alpha) log) - 1), continuous at alpha = 1."""
    if abs(alpha - 1) < 1e-7:
        return 2 / math.pi * log
    found: FloatArray = _tangent(alpha) * np.expm1((1 - alpha) * log)
    return found


def _tangent(alpha: float) -> float:
    """Return tan(pi alpha / 2), relatively accurate near its pole at 1."""
    return -1.0 / math.tan(0.5 * math.pi * (alpha - 1.0))


def _law(theta: FloatArray, t: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return one less the real part, and the imaginary part, of the characteristic function.

    `theta` is alpha, beta, log scale and location, in S0; frequencies may be negative or 0.
    """
    alpha, beta, log_scale, loc = theta
    size = np.abs(t)
    log = np.where(size > 0, np.log(np.where(size > 0, size, 1.0)) + log_scale, 0.0)
    decay = np.where(size > 0, np.exp(alpha * log), 0.0)
    angle = loc * t - np.sign(t) * decay * beta * _twist(alpha, log)
    left = np.exp(-decay)
    return -np.expm1(-decay) + left * 2 * np.sin(0.5 * angle) ** 2, left * np.sin(angle)


def _slopes(theta: FloatArray, t: FloatArray) -> FloatArray:
    """Return the derivatives of `_law` at positive frequencies, shape (64, 4)."""
    alpha, beta, log_scale, loc = theta
    log = np.log(t) + log_scale
    decay = np.exp(alpha * log)
    twist = _twist(alpha, log)
    step = 1e-5
    by_alpha = (_twist(alpha + step, log) - _twist(alpha - step, log)) / (2 * step)
    near = abs(alpha - 1) < 1e-7
    tangent = 0.0 if near else _tangent(alpha)
    by_scale = 2 / math.pi + 0 * log if near else tangent * (1 - alpha) * np.exp((1 - alpha) * log)
    angle = loc * t - decay * beta * twist
    wave = np.exp(-decay) * np.exp(1j * angle)
    log_slopes = np.stack(
        [
            -decay * log * (1 + 1j * beta * twist) - 1j * decay * beta * by_alpha,
            -1j * decay * twist,
            -alpha * decay * (1 + 1j * beta * twist) - 1j * decay * beta * by_scale,
            1j * t,
        ],
        axis=-1,
    )
    moved = wave[:, None] * log_slopes
    return np.concatenate([-moved.real, moved.imag])


def _covariance(theta: FloatArray) -> FloatArray:
    """Return the covariance of one value's 64 numbers under a law."""
    t = FREQUENCIES
    plus, minus = t[:, None] + t, t[:, None] - t
    a, b = _law(theta, t)
    a_plus, b_plus = _law(theta, plus)
    a_minus, b_minus = _law(theta, minus)
    cosines = a[:, None] + a - 0.5 * (a_plus + a_minus) - a[:, None] * a
    sines = 0.5 * (a_plus - a_minus) - b[:, None] * b
    # Of 1 - cos(s x) and sin(t x).
    mixed = -(0.5 * (b_plus - b_minus) - (1 - a)[:, None] * b)
    return np.block([[cosines, mixed], [mixed.T, sines]])


def _whitener(theta: FloatArray) -> FloatArray:
    """Return W with W C W^T = 1 on what of the covariance is more than rounding."""
    covariance = _covariance(theta)
    deviation = np.sqrt(np.diag(covariance))
    values, vectors = np.linalg.eigh(covariance / deviation / deviation[:, None])
    kept = values > _RANK * values[-1]
    found: FloatArray = (vectors[:, kept] / np.sqrt(values[kept])).T / deviation
    return found


def _start(means: FloatArray) -> FloatArray:
    """Return a law from the line of log(-log|phi|) against log t."""
    real, imaginary = 1 - means[:32], means[32:]
    size = np.hypot(real, imaginary)
    middle = (size > 0.2) & (size < 0.97)
    if middle.sum() < 2:
        middle = (size > 1e-3) & (size < 1 - 1e-9)
    theta = np.array([1.8, 0.0, 0.0, 0.0])
    if middle.sum() >= 2:
        slope, level = np.polyfit(np.log(FREQUENCIES[middle]), np.log(-np.log(size[middle])), 1)
        theta[0] = min(max(slope, 0.5), 1.95)
        theta[2] = level / theta[0]
    slow = FREQUENCIES * np.exp(theta[2]) < 0.5
    if slow.any():
        theta[3] = np.median(np.arctan2(imaginary[slow], real[slow]) / FREQUENCIES[slow])
    return theta


@dataclass(frozen=True, slots=True)
class _Point:
    """A law and what is left of the sums there, in units of their standard errors."""

    theta: FloatArray
    slopes: FloatArray
    residual: FloatArray
    whitener: FloatArray

    @classmethod
    def at(cls, theta: FloatArray, means: FloatArray, whitener: FloatArray | None = None) -> _Point:
        """Return the point; its own law says what the errors are unless that is given."""
        whitener = _whitener(theta) if whitener is None else whitener
        residual = means - np.concatenate(_law(theta, FREQUENCIES))
        slopes = _slopes(theta, FREQUENCIES)
        # By log(2 - alpha), in which the search has no edge.
        slopes[:, 0] *= theta[0] - 2.0
        return cls(theta, whitener @ slopes, whitener @ residual, whitener)


def _moved(theta: FloatArray, free: list[int], step: FloatArray, n: int) -> FloatArray:
    trial = theta.copy()
    for place, change in zip(free, step, strict=True):
        if place == 0:
            trial[0] = 2.0 - (2.0 - theta[0]) * math.exp(min(max(change, -3.0), 1.5))
            trial[0] = min(max(trial[0], _LEAST_ALPHA), 2.0 - _NEAREST / n)
        else:
            trial[place] += change
    trial[1] = min(max(trial[1], -1.0), 1.0)
    return trial


def _descend(
    theta: FloatArray, means: FloatArray, n: int, free: list[int], anew: int = 20
) -> tuple[_Point, int]:
    """Return the closest law by some of its parameters, and the steps taken; -1 if it was not.

    Errors are computed anew at the first steps only: close to alpha = 2 they change as fast as the
    law does, and steps could go in circles.
    """
    here = _Point.at(theta, means)
    for iteration in range(1, _MAX_ITERATIONS + 1):
        step, *_ = np.linalg.lstsq(here.slopes[:, free], here.residual, rcond=None)
        length, trial = 1.0, here.theta
        for _ in range(20):
            trial = _moved(here.theta, free, length * step, n)
            left = here.whitener @ (means - np.concatenate(_law(trial, FREQUENCIES)))
            # By the metric of here: the law there has another.
            if left @ left <= here.residual @ here.residual * (1 + 1e-9) + 1e-20:
                break
            length *= 0.5
        moved = trial - here.theta
        moved[0] /= 2.0 - here.theta[0]
        # In standard errors of all parameters together, from here.
        distance = here.slopes @ moved
        there = _Point.at(trial, means, here.whitener if iteration > anew else None)
        edge = 0 in free and trial[0] >= 2.0 - _NEAREST / n
        if edge or n * float(distance @ distance) < _TOLERANCE:
            return there, iteration
        here = there
    return here, -1


def _score(alpha: float, theta: FloatArray, means: FloatArray, n: int, others: list[int]) -> float:
    """Return the standardised score of alpha at a value, the other parameters fitted there."""
    start = theta.copy()
    start[0] = alpha
    here, _ = _descend(start, means, n, others, anew=1)
    towards = -here.slopes[:, 0]
    fitted, *_ = np.linalg.lstsq(here.slopes[:, others], towards, rcond=None)
    towards = towards - here.slopes[:, others] @ fitted
    return math.sqrt(n) * float(towards @ here.residual) / math.sqrt(float(towards @ towards))


def _end(inner: float, outer: float, z: float, score: Callable[[float], float]) -> float:
    """Return where the score of alpha, which falls, has the size `z`; an end where it has not."""
    sign = 1.0 if outer < inner else -1.0
    if sign * score(outer) < z:
        return 2.0 if outer > inner else outer
    # The distance from 2 is what the precision of alpha goes with.
    low, high = math.log(2.0 - inner), math.log(2.0 - outer)
    for _ in range(10):
        middle = 0.5 * (low + high)
        if sign * score(2.0 - math.exp(middle)) < z:
            low = middle
        else:
            high = middle
    return 2.0 - math.exp(0.5 * (low + high))


def _search(means: FloatArray, n: int, symmetric: bool, z: float) -> tuple[FloatArray, bool]:
    """Return the numbers of a fit, in the order in which `fit` reads them, and its success."""
    others = [2, 3] if symmetric else [1, 2, 3]
    free = [0, *others]
    found, iterations = _descend(_start(means), means, n, free)
    theta = found.theta
    gaussian = theta[0] >= 2.0 - _NEAREST / n
    fitted = others if gaussian else free
    own = found.slopes[:, fitted]
    errors = np.zeros(4)
    errors[fitted] = np.sqrt(np.diag(np.linalg.pinv(own.T @ own)) / n)
    errors[0] *= 2.0 - theta[0]
    alpha = 2.0 if gaussian else theta[0]
    low, high = alpha - z * errors[0], alpha + z * errors[0]
    if gaussian or alpha + 3 * z * errors[0] > 2.0:
        score = partial(_score, theta=theta, means=means, n=n, others=others)
        low = _end(theta[0], max(min(low, 1.9) - 6 * errors[0] - 0.3, _LEAST_ALPHA), z, score)
        high = 2.0 if gaussian else _end(alpha, 2.0 - _NEAREST / n, z, score)
        errors[0] = (2.0 - low) / z if gaussian else errors[0]
    beta, beta_se = (math.nan, math.nan) if gaussian and not symmetric else (theta[1], errors[1])
    scale = math.exp(theta[2])
    inside = alpha > _LEAST_ALPHA and 0.1 < scale < 10.0
    numbers = [alpha, beta, scale, theta[3], errors[0], beta_se, scale * errors[2], errors[3]]
    return np.array([*numbers, low, high, *_misfit(found, fitted, n), iterations]), (
        iterations > 0 and inside
    )


def _misfit(found: _Point, fitted: list[int], n: int) -> tuple[float, float, int]:
    """Return chi2, p-value and degrees of freedom of the coarsest directions of the residual.

    The finest are moments of high order: their means are far from normal in any sample.
    """
    coarse = found.slopes[-_COARSE:, fitted]
    whole = found.slopes[:, fitted]
    spread = np.eye(len(coarse)) - coarse @ np.linalg.pinv(whole.T @ whole) @ coarse.T
    left = found.residual[-_COARSE:]
    chi2 = n * float(left @ np.linalg.solve(spread, left))
    return chi2, float(special.chdtrc(_COARSE, chi2)), _COARSE
