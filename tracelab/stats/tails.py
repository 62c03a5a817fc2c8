r"""Tails: the extreme value index of many samples at once, with the choice of the threshold.

A law whose tail falls like :math:`x^{-\alpha}` has the extreme value index :math:`\xi = 1 /
\alpha > 0`; exponential tails have :math:`\xi = 0`, bounded ones :math:`\xi < 0`. Every estimate
here reads the `k` largest values alone and assumes nothing of the others. That is their strength
and their weakness: an alpha-stable law with alpha near 2 looks like its tail only far beyond any
sample (at ``n = 1e3`` and alpha 1.9 Hill's estimate from 2 % of the values has 54 times the error
of the maximum-likelihood fit), so that an estimate of alpha above 2 does not refute a stable law
and one below 2 does not prove it. `tracelab.stats.stable` fits the whole law.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from scipy import special

from tracelab.errors import UsageError
from tracelab.stats._confidence import normal_quantile
from tracelab.stats._samples import as_rows
from tracelab.stats._tail_rows import (
    distances,
    exceedances,
    hill_rows,
    moment_rows,
    pickands_rows,
)
from tracelab.typing import Array, FloatArray, IntArray, Status

__all__ = [
    "Estimator",
    "Side",
    "Stability",
    "TailFit",
    "hill",
    "moment",
    "pickands",
    "pot",
    "stability",
    "threshold",
]

Side: TypeAlias = Literal["both", "upper", "lower"]
"""Which tail: of the absolute values, of the values, or of their negatives."""

Estimator: TypeAlias = Literal["hill", "pickands", "moment", "pot"]

MIN_TAIL = 8
"""Fewer values than this above the threshold are no tail."""

# How many thresholds are tried, equally far from each other in their logarithm.
CANDIDATES = 100
# Where no threshold is given to an estimate that has no choice of its own.
SHARE = 0.1


@dataclass(frozen=True, slots=True)
class TailFit:
    """The tail of every sample; arrays have the leading shape of the data.

    Parameters
    ----------
    xi, xi_se, xi_low, xi_high : ndarray of float64
        Extreme value index, standard error and interval.
    alpha, alpha_low, alpha_high : ndarray of float64
        Tail index ``1 / xi``; infinite where `xi` (or an end of its interval) is not positive:
        such a tail falls faster than any power.
    scale : ndarray of float64
        Scale of the generalized Pareto law, in the units of the data; NaN of the other estimates.
    threshold : ndarray of float64
        The value above which the tail lies, the ``k + 1``-th largest, in the units of the data.
    k : ndarray of int64
        Values above it.
    n_samples : int
        Values of each sample.
    status : ndarray of uint8
        `tracelab.typing.Status`. Numbers are NaN where it is not ``OK``.
    """

    xi: FloatArray
    xi_se: FloatArray
    xi_low: FloatArray
    xi_high: FloatArray
    alpha: FloatArray
    alpha_low: FloatArray
    alpha_high: FloatArray
    scale: FloatArray
    threshold: FloatArray
    k: IntArray
    n_samples: int
    status: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Stability:
    """One estimate at many thresholds: what a stability (Hill) plot shows.

    Parameters
    ----------
    k : ndarray of int64, shape (k,)
        Values above each threshold, ascending.
    xi, xi_se, xi_low, xi_high : ndarray of float64, shape (..., k)
        Estimate, standard error and interval; NaN where there is none.
    threshold : ndarray of float64, shape (..., k)
        In the units of the data.
    n_samples : int
        Values of each sample.
    status : ndarray of uint8, shape (...)
        Of the samples: `tracelab.typing.Status`.
    """

    k: IntArray
    xi: FloatArray
    xi_se: FloatArray
    xi_low: FloatArray
    xi_high: FloatArray
    threshold: FloatArray
    n_samples: int
    status: npt.NDArray[np.uint8]


def hill(
    x: npt.ArrayLike,
    k: int | IntArray | None = None,
    *,
    side: Side = "both",
    axis: int = -1,
    confidence: float = 0.95,
) -> TailFit:
    r"""Return Hill's estimate of the extreme value index, the maximum likelihood of a Pareto tail.

    .. math:: \hat\xi = \frac1k \sum_{i \le k} \log \frac{x_{(i)}}{x_{(k+1)}}

    with :math:`x_{(1)} \ge x_{(2)} \ge \dots` The interval is exact where the tail is exactly
    Pareto, in which :math:`k \hat\xi / \xi` has the Gamma law of shape `k`.

    Parameters
    ----------
    x : array_like, real
        Samples along `axis`; the other axes are kept. The estimate depends on the origin: centre
        noise first.
    k : int or ndarray of int, optional
        Values above the threshold, below the number of samples; one for all, or one a sample.
        Default: the choice of `threshold`.
    side : {"both", "upper", "lower"}
        Which tail: of absolute values, of values, of their negatives.
    axis : int
        Axis of the samples.
    confidence : float
        Level of the interval, in (0, 1).

    Returns
    -------
    TailFit
        Status ``TOO_FEW_SAMPLES`` with fewer than 8 values above the threshold or 9 positive ones,
        ``NON_FINITE_INPUT``, or ``CONSTANT_INPUT`` where all values above it are equal to it.

    Raises
    ------
    UsageError
        If an argument is outside its range.

    References
    ----------
    Hill, "A simple general approach to inference about the tail of a distribution", Annals of
    Statistics 3, 1163-1174 (1975).

    Examples
    --------
    >>> x = np.random.default_rng(0).pareto(1.5, (3, 5000)) + 1
    >>> hill(x, 500).alpha.round(1)
    array([1.4, 1.5, 1.5])
    """
    tails = _Tails.of(x, axis, side)
    return _fit("hill", tails, _closest(tails, CANDIDATES) if k is None else k, confidence)


def pickands(
    x: npt.ArrayLike,
    k: int | IntArray | None = None,
    *,
    side: Side = "upper",
    axis: int = -1,
    confidence: float = 0.95,
) -> TailFit:
    r"""Return Pickands' estimate of the extreme value index, which may have either sign.

    .. math:: \hat\xi = \frac1{\log 2}
        \log \frac{x_{(m)} - x_{(2m)}}{x_{(2m)} - x_{(4m)}}, \quad m = \lfloor k / 4 \rfloor

    It depends neither on location nor on scale, and is the least precise: its variance is
    :math:`\xi^2 (2^{2\xi+1} + 1) / (2 (2^\xi - 1) \log 2)^2 / m`.

    Parameters
    ----------
    x, side, axis, confidence
        As for `hill`.
    k : int or ndarray of int, optional
        Values used, at least 8. Default: a tenth of the samples.

    Returns
    -------
    TailFit
        As of `hill`; ``CONSTANT_INPUT`` where spacings vanish.

    Raises
    ------
    UsageError
        If an argument is outside its range.

    References
    ----------
    Pickands, "Statistical inference using extreme order statistics", Annals of Statistics 3,
    119-131 (1975); Dekkers, de Haan, "On the estimation of the extreme-value index and large
    quantile estimation", Annals of Statistics 17, 1795-1832 (1989), theorem 2.3 (variance).
    """
    return _fit("pickands", _Tails.of(x, axis, side), k, confidence)


def moment(
    x: npt.ArrayLike,
    k: int | IntArray | None = None,
    *,
    side: Side = "both",
    axis: int = -1,
    confidence: float = 0.95,
) -> TailFit:
    r"""Return the moment estimate of Dekkers, Einmahl and de Haan, which may have either sign.

    .. math:: \hat\xi = M_1 + 1 - \tfrac12 \Big(1 - \frac{M_1^2}{M_2}\Big)^{-1}, \quad
        M_r = \frac1k \sum_{i \le k} \Big(\log \frac{x_{(i)}}{x_{(k+1)}}\Big)^r

    Parameters
    ----------
    x, side, axis, confidence
        As for `hill`; values above the threshold must be positive.
    k : int or ndarray of int, optional
        Values above the threshold. Default: a tenth of the samples.

    Returns
    -------
    TailFit
        As of `hill`.

    Raises
    ------
    UsageError
        If an argument is outside its range.

    References
    ----------
    Dekkers, Einmahl, de Haan, "A moment estimator for the index of an extreme-value
    distribution", Annals of Statistics 17, 1833-1855 (1989), equation 1.7, corollary 3.2.
    """
    return _fit("moment", _Tails.of(x, axis, side), k, confidence)


def pot(
    x: npt.ArrayLike,
    k: int | IntArray | None = None,
    *,
    side: Side = "both",
    axis: int = -1,
    confidence: float = 0.95,
) -> TailFit:
    r"""Return the generalized Pareto law of the peaks over a threshold, by maximum likelihood.

    The excesses :math:`y` over the ``k + 1``-th largest value have the density
    :math:`\sigma^{-1} (1 + \xi y / \sigma)^{-1 - 1/\xi}`. With :math:`\theta = \xi / \sigma` the
    likelihood is largest at :math:`\hat\xi = \frac1k \sum \log(1 + \theta y_i)`, which leaves one
    number to search for. The standard error is :math:`(1 + \xi) / \sqrt k`, for
    :math:`\xi > -1/2`.

    Parameters
    ----------
    x, side, axis, confidence
        As for `hill`.
    k : int or ndarray of int, optional
        Values above the threshold. Default: a tenth of the samples.

    Returns
    -------
    TailFit
        With `scale`. Status ``NOT_CONVERGED`` where the likelihood has no maximum with
        :math:`\xi > -1`; with :math:`\xi \le -1/2` there is no standard error.

    Raises
    ------
    UsageError
        If an argument is outside its range.

    References
    ----------
    Smith, "Estimating tails of probability distributions", Annals of Statistics 15, 1174-1207
    (1987); Grimshaw, "Computing maximum likelihood estimates for the generalized Pareto
    distribution", Technometrics 35, 185-191 (1993).
    """
    return _fit("pot", _Tails.of(x, axis, side), k, confidence)


def threshold(
    x: npt.ArrayLike, *, side: Side = "both", axis: int = -1, candidates: int = CANDIDATES
) -> IntArray:
    """Return how many of each sample's largest values are closest to a Pareto law.

    Of many thresholds the one at which the Kolmogorov-Smirnov distance between the values above
    it and the Pareto law of Hill's index is least.

    Parameters
    ----------
    x, side, axis
        As for `hill`.
    candidates : int
        Thresholds tried: all if there are no more, else so many, equally far apart in log k.

    Returns
    -------
    ndarray of int64
        ``k``; 0 where the sample has no tail that can be looked at.

    Raises
    ------
    UsageError
        If an argument is outside its range.

    References
    ----------
    Clauset, Shalizi, Newman, "Power-law distributions in empirical data", SIAM Review 51,
    661-703 (2009), section 3.3.
    """
    if candidates < 1:
        raise UsageError(f"candidates must be at least 1, got {candidates}")
    tails = _Tails.of(x, axis, side)
    return _closest(tails, candidates).reshape(tails.lead)


def stability(
    x: npt.ArrayLike,
    estimator: Estimator = "hill",
    k: IntArray | None = None,
    *,
    side: Side = "both",
    axis: int = -1,
    confidence: float = 0.95,
) -> Stability:
    """Return an estimate at many thresholds, to be drawn against k.

    Where it does not depend on the threshold over a long stretch there is a tail; where it drifts
    all the way there is none that this many values show.

    Parameters
    ----------
    x, side, axis, confidence
        As for `hill`.
    estimator : {"hill", "pickands", "moment", "pot"}
        Which.
    k : ndarray of int, optional
        Thresholds. Default: 100 of them, from 8 values to half of the samples.

    Returns
    -------
    Stability

    Raises
    ------
    UsageError
        If an argument is outside its range.

    References
    ----------
    Drees, de Haan, Resnick, "How to make a Hill plot", Annals of Statistics 28, 254-274 (2000).
    """
    if estimator not in get_args(Estimator):
        raise UsageError(
            f"there is no estimator {estimator!r} of tails; choose from "
            f"{', '.join(get_args(Estimator))}"
        )
    tails = _Tails.of(x, axis, side)
    if k is None:
        ks = _grid(max(tails.n // 2, MIN_TAIL), CANDIDATES)
        ks = ks[ks < tails.n]
    else:
        ks = np.unique(_whole(k))
        _check(ks, tails.n)
    found = _estimate(estimator, tails, np.tile(ks, (len(tails.status), 1)), confidence)
    shape = (*tails.lead, ks.size)
    return Stability(
        k=ks,
        xi=found.xi.reshape(shape),
        xi_se=found.se.reshape(shape),
        xi_low=found.low.reshape(shape),
        xi_high=found.high.reshape(shape),
        threshold=found.threshold.reshape(shape),
        n_samples=tails.n,
        status=tails.status.reshape(tails.lead),
    )


@dataclass(frozen=True, slots=True)
class _Tails:
    """Samples as rows, descending."""

    lead: tuple[int, ...]
    n: int
    sign: int
    values: FloatArray
    logs: FloatArray
    status: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, x: npt.ArrayLike, axis: int, side: Side) -> _Tails:
        """Return the samples along an axis, checked."""
        if side not in get_args(Side):
            raise UsageError(f"side must be 'both', 'upper' or 'lower', got {side!r}")
        given, lead = as_rows(x, axis)
        rows, n = given.astype(np.float64), given.shape[1]
        seen = {"both": np.abs, "upper": np.positive, "lower": np.negative}[side](rows)
        values = np.ascontiguousarray(np.sort(seen, axis=-1)[:, ::-1])
        if n == 0:
            values = np.full((len(rows), 1), np.nan)
        logs = np.full_like(values, -np.inf)
        np.log(values, out=logs, where=values > 0)
        status = np.full(len(rows), Status.OK, dtype=np.uint8)
        if n <= MIN_TAIL:
            status[:] = Status.TOO_FEW_SAMPLES
        status[~np.isfinite(rows).all(axis=-1)] = Status.NON_FINITE_INPUT
        return cls(lead, n, -1 if side == "lower" else 1, values, logs, status)


@dataclass(frozen=True, slots=True)
class _Estimates:
    """Of every row at each of its thresholds, shape (row, k)."""

    xi: FloatArray
    se: FloatArray
    low: FloatArray
    high: FloatArray
    scale: FloatArray
    threshold: FloatArray


def _estimate(estimator: Estimator, tails: _Tails, ks: IntArray, confidence: float) -> _Estimates:
    z = normal_quantile(confidence)
    xi, scale = np.full(ks.shape, np.nan), np.full(ks.shape, np.nan)
    rows = np.flatnonzero((tails.status == Status.OK) & (ks >= 1).all(axis=-1))
    found, wide = xi[rows], scale[rows]
    values, logs, own = tails.values[rows], tails.logs[rows], ks[rows]
    if estimator == "hill":
        hill_rows(logs, own, found)
    elif estimator == "moment":
        moment_rows(logs, own, found)
    elif estimator == "pickands":
        pickands_rows(values, own, found)
    else:
        exceedances(values, own, found, wide)
    xi[rows], scale[rows] = found, wide
    with np.errstate(invalid="ignore", divide="ignore"):
        se = _ERRORS[estimator](xi, ks)
    reach = z * se
    low, high = xi - reach, xi + reach
    if estimator == "hill":
        low = ks * xi / special.gammaincinv(ks, 0.5 + 0.5 * confidence)
        high = ks * xi / special.gammaincinv(ks, 0.5 - 0.5 * confidence)
    at = np.take_along_axis(tails.values, np.minimum(ks, tails.values.shape[1] - 1), axis=-1)
    threshold = np.where(np.isnan(xi), np.nan, tails.sign * at)
    return _Estimates(xi, se, low, high, scale, threshold)


def _fit(estimator: Estimator, tails: _Tails, k: Array | int | None, confidence: float) -> TailFit:
    ks = _each(tails, k)
    found = _estimate(estimator, tails, ks[:, None], confidence)
    xi, se, low, high, scale, level = (
        getattr(found, name)[:, 0] for name in ("xi", "se", "low", "high", "scale", "threshold")
    )
    ok = tails.status == Status.OK
    last = np.minimum(ks, tails.values.shape[1] - 1)
    least = tails.values[np.arange(len(last)), last]
    few = ok & (ks < MIN_TAIL)
    if estimator in ("hill", "moment"):
        few |= ok & ~(least > 0)
    constant = ok & ~few & (tails.values[:, 0] == least)
    lost = ok & ~few & ~constant & np.isnan(xi)
    status = tails.status.copy()
    status[few] = Status.TOO_FEW_SAMPLES
    status[constant] = Status.CONSTANT_INPUT
    # Spacings that vanish are ties; a likelihood without a maximum is no matter of the data alone.
    status[lost] = Status.NOT_CONVERGED if estimator == "pot" else Status.CONSTANT_INPUT
    missing = status != Status.OK

    def shaped(values: FloatArray) -> FloatArray:
        kept: FloatArray = np.where(missing, np.nan, values).reshape(tails.lead)
        return kept

    def inverse(values: FloatArray) -> FloatArray:
        # What is not positive falls faster than any power; NaN stays.
        positive = values > 0
        return np.where(positive, 1 / np.where(positive, values, 1.0), values * 0 + np.inf)

    with np.errstate(invalid="ignore"):
        return TailFit(
            xi=shaped(xi),
            xi_se=shaped(se),
            xi_low=shaped(low),
            xi_high=shaped(high),
            alpha=shaped(inverse(xi)),
            alpha_low=shaped(inverse(high)),
            alpha_high=shaped(inverse(low)),
            scale=shaped(scale),
            threshold=shaped(level),
            k=ks.reshape(tails.lead),
            n_samples=tails.n,
            status=status.reshape(tails.lead),
        )


def _each(tails: _Tails, k: Array | int | None) -> IntArray:
    """Return one k a row."""
    if k is None:
        k = min(max(round(SHARE * tails.n), MIN_TAIL), max(tails.n - 1, 1))
    given = _whole(k)
    if tails.n > MIN_TAIL:
        _check(given[given != 0], tails.n)
    try:
        return np.broadcast_to(given, tails.lead).reshape(-1)
    except ValueError:
        raise UsageError(
            f"k has the shape {given.shape}, samples {tails.lead}; give one k, or one a sample"
        ) from None


def _whole(k: Array | int) -> IntArray:
    found = np.asarray(k)
    if found.dtype.kind not in "iu":
        raise UsageError(f"k must be whole numbers of values, got dtype {found.dtype}")
    return found.astype(np.int64)


def _check(k: IntArray, n: int) -> None:
    wrong = k[(k < 1) | (k >= n)]
    if wrong.size:
        raise UsageError(
            f"k must be from 1 to {n - 1}, one less than the {n} samples, got {int(wrong.flat[0])}"
        )


def _grid(largest: int, count: int) -> IntArray:
    if largest - MIN_TAIL < count:
        return np.arange(MIN_TAIL, largest + 1)
    return np.unique(np.geomspace(MIN_TAIL, largest, count).round().astype(np.int64))


def _closest(tails: _Tails, candidates: int) -> IntArray:
    """Return the k of each row whose tail is closest to a Pareto law; 0 where none is."""
    best = np.zeros(len(tails.status), dtype=np.int64)
    if tails.n <= MIN_TAIL:
        return best
    ks = _grid(tails.n - 1, candidates)
    xi = np.full((len(best), ks.size), np.nan)
    distance = np.full_like(xi, np.nan)
    rows = np.flatnonzero(tails.status == Status.OK)
    found, away = xi[rows], distance[rows]
    own = np.tile(ks, (len(rows), 1))
    hill_rows(tails.logs[rows], own, found)
    distances(tails.logs[rows], own, found, away)
    some = np.isfinite(away).any(axis=-1)
    best[rows[some]] = ks[np.nanargmin(away[some], axis=-1)]
    return best


def _pickands_se(xi: FloatArray, k: IntArray) -> FloatArray:
    # At xi = 0 the limit of the variance is 3 / (4 log(2)^4).
    small = np.abs(xi) < 1e-6
    safe = np.where(small, 1.0, xi)
    ratio = safe**2 * (2.0 ** (2 * safe + 1) + 1) / (2 * (2.0**safe - 1) * math.log(2)) ** 2
    variance = np.where(small, 0.75 / math.log(2) ** 4, ratio)
    found: FloatArray = np.sqrt(variance / (k // 4))
    return found


def _moment_se(xi: FloatArray, k: IntArray) -> FloatArray:
    g = np.minimum(xi, 0.0)
    bracket = 4 - 8 * (1 - 2 * g) / (1 - 3 * g)
    bracket = bracket + (5 - 11 * g) * (1 - 2 * g) / ((1 - 3 * g) * (1 - 4 * g))
    variance = np.where(xi >= 0, 1 + xi**2, (1 - g) ** 2 * (1 - 2 * g) * bracket)
    found: FloatArray = np.sqrt(variance / k)
    return found


_ERRORS: dict[str, Callable[[FloatArray, IntArray], FloatArray]] = {
    "hill": lambda xi, k: xi / np.sqrt(k),
    "pickands": _pickands_se,
    "moment": _moment_se,
    "pot": lambda xi, k: np.where(xi > -0.5, (1 + xi) / np.sqrt(k), np.nan),
}
