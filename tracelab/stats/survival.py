"""Times until an event, some censored: rates, Weibull laws, survival curves, comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from tracelab.errors import UsageError
from tracelab.stats._confidence import check_confidence, normal_quantile
from tracelab.stats._samples import as_rows
from tracelab.typing import Array, BoolArray, FloatArray, Status

__all__ = [
    "Exponential",
    "LogRank",
    "MeanTime",
    "SurvivalCurve",
    "Weibull",
    "exponential",
    "kaplan_meier",
    "log_rank",
    "mean_time",
    "weibull",
]

_ITERATIONS = 60


@dataclass(frozen=True, slots=True)
class Exponential:
    """A constant rate of events; arrays have the leading shape of the data.

    Parameters
    ----------
    mean, mean_se : ndarray of float64
        Mean time, all the time spent over the number of events, and its standard error.
    mean_low, mean_high : ndarray of float64
        Interval by the chi-square law: exact where observation ends at an event, conservative where
        it ends at a given time. Without events its lower end stands alone.
    events : ndarray of int64
        Times that are not censored.
    n_samples : int
        Times.
    status : ndarray of uint8
        `tracelab.typing.Status`: TOO_FEW_SAMPLES without an event.
    """

    mean: FloatArray
    mean_se: FloatArray
    mean_low: FloatArray
    mean_high: FloatArray
    events: npt.NDArray[np.int64]
    n_samples: int
    status: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class MeanTime:
    """Mean time of one sample.

    Parameters
    ----------
    mean, se : float
        Mean and standard error.
    low, high : float
        Interval.
    status : Status
        TOO_FEW_SAMPLES below two events; the mean is then NaN, and `low` what so few events in the
        time spent say of it.
    """

    mean: float
    se: float
    low: float
    high: float
    status: Status


@dataclass(frozen=True, slots=True)
class Weibull:
    """A Weibull law, ``P(T > t) = exp(-(t / scale)^shape)``; arrays have the data's leading shape.

    Parameters
    ----------
    shape, shape_se, shape_low, shape_high : ndarray of float64
        Shape, its standard error and interval: 1 is a constant rate, below 1 the rate falls.
    scale, scale_se, scale_low, scale_high : ndarray of float64
        Scale, in the unit of the times.
    mean : ndarray of float64
        ``scale * Gamma(1 + 1 / shape)``.
    pvalue : ndarray of float64
        Of the constant rate, by the likelihood ratio.
    events : ndarray of int64
        Times that are not censored.
    n_samples : int
        Times.
    status : ndarray of uint8
        `tracelab.typing.Status`: TOO_FEW_SAMPLES below two different times of events.
    """

    shape: FloatArray
    shape_se: FloatArray
    shape_low: FloatArray
    shape_high: FloatArray
    scale: FloatArray
    scale_se: FloatArray
    scale_low: FloatArray
    scale_high: FloatArray
    mean: FloatArray
    pvalue: FloatArray
    events: npt.NDArray[np.int64]
    n_samples: int
    status: npt.NDArray[np.uint8]


def _given(
    times: npt.ArrayLike, censored: npt.ArrayLike, axis: int
) -> tuple[FloatArray, BoolArray, tuple[int, ...], npt.NDArray[np.uint8]]:
    """Return rows of times, whether each ended in an event, their leading shape and status."""
    rows, lead = as_rows(times, axis)
    flags = np.asarray(censored)
    if flags.dtype != np.bool_:
        raise UsageError(f"censored must be true or false, got dtype {flags.dtype}")
    try:
        flags = np.broadcast_to(flags, np.shape(times))
    except ValueError:
        raise UsageError(
            f"censored must be of the shape of the times {np.shape(times)}, got {flags.shape}"
        ) from None
    events = ~np.moveaxis(flags, axis, -1).reshape(rows.shape)
    status = np.full(len(rows), int(Status.OK), dtype=np.uint8)
    finite = np.isfinite(rows).all(axis=1)
    if (rows[finite] < 0).any():
        raise UsageError(f"times must not be negative, got {rows[finite].min()}")
    status[~finite] = int(Status.NON_FINITE_INPUT)
    return rows.astype(np.float64), events, lead, status


def exponential(
    times: npt.ArrayLike,
    censored: npt.ArrayLike = False,
    axis: int = -1,
    confidence: float = 0.95,
) -> Exponential:
    """Return the mean of an exponential law, by maximum likelihood.

    Parameters
    ----------
    times : array_like, real
        Until the event, or until observation ended, along `axis`.
    censored : array_like of bool
        Of which times the event did not come.
    axis : int
        Axis of the samples; the other axes are kept.
    confidence : float
        Level of the interval, in (0, 1).

    Returns
    -------
    Exponential

    Raises
    ------
    UsageError
        If an argument is outside its range.

    References
    ----------
    Epstein, Sobel, "Life testing", JASA 48, 1953.

    Examples
    --------
    >>> found = exponential([1.0, 2.0, 3.0, 3.0], [False, False, False, True])
    >>> float(found.mean)
    3.0
    """
    check_confidence(confidence)
    rows, happened, lead, status = _given(times, censored, axis)
    events, spent = np.count_nonzero(happened, axis=1), rows.sum(axis=1)
    status[(status == int(Status.OK)) & ((events == 0) | (spent == 0))] = int(
        Status.TOO_FEW_SAMPLES
    )
    left, ended = 0.5 * (1 - confidence), happened.all(axis=1)
    known = status == int(Status.OK)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(known, spent / events, np.nan)
        low = spent / special.gammaincinv(np.where(ended, events, events + 1), 1 - left)
        high = np.where(known, spent / special.gammaincinv(np.maximum(events, 1), left), np.nan)
    # One-sided where there is no event.
    silent = (events == 0) & (spent > 0)
    low[silent] = spent[silent] / special.gammaincinv(1, confidence)
    high[silent] = np.inf
    low[~known & ~silent] = np.nan
    with np.errstate(divide="ignore"):
        se = mean / np.sqrt(events)
    return Exponential(
        mean.reshape(lead),
        se.reshape(lead),
        low.reshape(lead),
        high.reshape(lead),
        events.reshape(lead),
        rows.shape[1],
        status.reshape(lead),
    )


def mean_time(times: FloatArray, censored: BoolArray, confidence: float = 0.95) -> MeanTime:
    """Return the mean of times: of any law if all are known, of a constant rate if some are not.

    Parameters
    ----------
    times : ndarray, shape (n,)
        Until the event, or until observation ended.
    censored : ndarray of bool, shape (n,)
        Of which times the event did not come.
    confidence : float
        Level of the interval: Student's, cut at 0; with censored times that of `exponential`.

    Returns
    -------
    MeanTime

    Raises
    ------
    UsageError
        If an argument is outside its range.

    Examples
    --------
    >>> found = mean_time(np.array([1.0, 2.0, 3.0]), np.array([False, False, True]))
    >>> found.mean
    3.0
    """
    check_confidence(confidence)
    n, events, spent = times.size, int(np.count_nonzero(~censored)), float(times.sum())
    if events < 2:
        # So few in so much time would be a rarer event than the level allows.
        least = spent / float(special.gammaincinv(events + 1, confidence))
        return MeanTime(math.nan, math.nan, least, math.inf, Status.TOO_FEW_SAMPLES)
    mean = spent / events
    if events == n:
        se = float(times.std(ddof=1)) / math.sqrt(n)
        reach = float(special.stdtrit(n - 1, 0.5 + 0.5 * confidence)) * se
        return MeanTime(mean, se, max(mean - reach, 0.0), mean + reach, Status.OK)
    found = exponential(times, censored, confidence=confidence)
    return MeanTime(
        mean, mean / math.sqrt(events), float(found.mean_low), float(found.mean_high), Status.OK
    )


def weibull(
    times: npt.ArrayLike,
    censored: npt.ArrayLike = False,
    axis: int = -1,
    confidence: float = 0.95,
) -> Weibull:
    r"""Return a Weibull law, by maximum likelihood.

    The shape k is the root of the profile score, by Newton's method in log k, which is concave:

    .. math:: \frac{\sum_i t_i^k \log t_i}{\sum_i t_i^k} - \frac1k
       - \frac1r \sum_{i\ \mathrm{event}} \log t_i = 0

    with r events. Intervals are normal in the logarithms, from the observed information.

    Parameters
    ----------
    times, censored, axis, confidence
        As in `exponential`; times of 0 are left out, since the law has no density there.

    Returns
    -------
    Weibull

    Raises
    ------
    UsageError
        If an argument is outside its range.

    References
    ----------
    Cohen, "Maximum likelihood estimation in the Weibull distribution based on complete and on
    censored samples", Technometrics 7, 1965.
    """
    z = normal_quantile(confidence)
    rows, happened, lead, status = _given(times, censored, axis)
    columns = np.full((6, len(rows)), np.nan)
    used = rows > 0
    events = np.count_nonzero(happened & used, axis=1)
    for i in np.flatnonzero(status == int(Status.OK)):
        t, event = rows[i, used[i]], happened[i, used[i]]
        if events[i] < 2 or np.ptp(t[event]) == 0:
            status[i] = int(Status.TOO_FEW_SAMPLES)
            continue
        found = _fit_weibull(t, event)
        status[i] = int(Status.OK if found[-1] else Status.NOT_CONVERGED)
        columns[:, i] = found[:-1]
    shape, log_shape_se, scale, log_scale_se, mean, pvalue = columns
    return Weibull(
        shape=shape.reshape(lead),
        shape_se=(shape * log_shape_se).reshape(lead),
        shape_low=(shape * np.exp(-z * log_shape_se)).reshape(lead),
        shape_high=(shape * np.exp(z * log_shape_se)).reshape(lead),
        scale=scale.reshape(lead),
        scale_se=(scale * log_scale_se).reshape(lead),
        scale_low=(scale * np.exp(-z * log_scale_se)).reshape(lead),
        scale_high=(scale * np.exp(z * log_scale_se)).reshape(lead),
        mean=mean.reshape(lead),
        pvalue=pvalue.reshape(lead),
        events=events.reshape(lead),
        n_samples=rows.shape[1],
        status=status.reshape(lead),
    )


def _fit_weibull(
    t: FloatArray, event: BoolArray
) -> tuple[float, float, float, float, float, float, bool]:
    """Return shape, error of its log, scale, error of its log, mean, p-value, whether converged."""
    log = np.log(t)
    # Powers of times over the largest do not overflow.
    top = log.max()
    log = log - top
    r, over = np.count_nonzero(event), log[event].mean()
    u, converged = 0.0, False
    for _ in range(_ITERATIONS):
        k = math.exp(u)
        weight = np.exp(k * log)
        total, first, second = weight.sum(), weight @ log, weight @ log**2
        value = first / total - 1 / k - over
        slope = k * (second / total - (first / total) ** 2) + 1 / k
        move = -value / slope
        u += min(max(move, -1.0), 1.0)
        if abs(move) < 1e-10:
            converged = True
            break
    k = math.exp(u)
    weight = np.exp(k * log)
    scale_power = weight.sum() / r
    log_scale = math.log(scale_power) / k
    # Observed information in (log k, log scale), where sum((t / scale)^k) = r.
    y = k * (log - log_scale)
    held = np.exp(y)
    a = float(np.sum(held * y * y) + np.sum(held * y) - np.sum(y[event]))
    b = float(-k * (np.sum(held * y) + np.sum(held) - r))
    c = float(k * k * r)
    determinant = a * c - b * b
    se_k, se_scale = math.sqrt(c / determinant), math.sqrt(a / determinant)
    loglik = r * math.log(k) - r * k * log_scale + (k - 1) * log[event].sum() - r
    mean = np.exp(log).sum() / r
    ratio = max(2 * (loglik - (-r * math.log(mean) - r)), 0.0)
    scale = math.exp(log_scale + top)
    average = scale * math.gamma(1 + 1 / k) if k > 0.01 else math.inf
    return k, se_k, scale, se_scale, average, float(special.chdtrc(1, ratio)), converged


@dataclass(frozen=True, slots=True)
class SurvivalCurve:
    """Kaplan and Meier's estimate.

    Parameters
    ----------
    time : ndarray of float64, shape (event,)
        Different times of events, rising.
    survival, se : ndarray of float64, shape (event,)
        Probability of no event up to and including then, with Greenwood's standard error.
    low, high : ndarray of float64, shape (event,)
        Interval, normal in the log of minus the log.
    at_risk : ndarray of int64, shape (event,)
        Times not shorter.
    """

    time: FloatArray
    survival: FloatArray
    se: FloatArray
    low: FloatArray
    high: FloatArray
    at_risk: npt.NDArray[np.int64]


def kaplan_meier(
    times: npt.ArrayLike, censored: npt.ArrayLike = False, confidence: float = 0.95
) -> SurvivalCurve:
    """Return the survival curve of one sample, by statsmodels.

    Parameters
    ----------
    times : array_like, real, shape (n,)
        Until the event, or until observation ended.
    censored : array_like of bool
        Of which times the event did not come.
    confidence : float
        Level of the interval at every time, in (0, 1).

    Returns
    -------
    SurvivalCurve
        Empty if there is no event.

    Raises
    ------
    UsageError
        If an argument is outside its range, or a time is not finite.

    References
    ----------
    Kaplan, Meier, "Nonparametric estimation from incomplete observations", JASA 53, 1958.
    """
    from statsmodels.duration.survfunc import SurvfuncRight

    z = normal_quantile(confidence)
    rows, happened, lead, status = _given(times, censored, -1)
    _one_sample(lead, status)
    if not happened.any():
        empty = np.empty(0)
        return SurvivalCurve(empty, empty, empty, empty, empty, np.empty(0, dtype=np.int64))
    curve = SurvfuncRight(rows[0], happened[0].astype(np.int64))
    survival, se = np.asarray(curve.surv_prob), np.asarray(curve.surv_prob_se)
    with np.errstate(divide="ignore", invalid="ignore"):
        log = np.log(survival)
        reach = np.exp(z * se / np.abs(survival * log))
        low, high = survival**reach, survival ** (1 / reach)
    # Nobody is left behind the last event: the curve ends at 0, with no error of its own.
    gone = survival <= 0
    low[gone], high[gone] = 0.0, np.nan
    return SurvivalCurve(
        np.asarray(curve.surv_times, dtype=np.float64),
        survival,
        se,
        low,
        high,
        np.asarray(curve.n_risk, dtype=np.int64),
    )


@dataclass(frozen=True, slots=True)
class LogRank:
    """A log-rank test of equal survival.

    Parameters
    ----------
    statistic, pvalue : float
        Chi-square statistic and its p-value.
    degrees : int
        Degrees of freedom: one less than there are samples.
    status : int
        `tracelab.typing.Status`: TOO_FEW_SAMPLES without an event.
    """

    statistic: float
    pvalue: float
    degrees: int
    status: int


def log_rank(
    times: Sequence[npt.ArrayLike], censored: Sequence[npt.ArrayLike] | None = None
) -> LogRank:
    """Test whether samples have the same survival, by statsmodels.

    Parameters
    ----------
    times : sequence of array_like, each of shape (n,)
        Two samples or more.
    censored : sequence of array_like of bool, optional
        As many; by default no time is censored.

    Returns
    -------
    LogRank

    Raises
    ------
    UsageError
        If an argument is outside its range, or a time is not finite.

    References
    ----------
    Mantel, "Evaluation of survival data and two new rank order statistics arising in its
    consideration", Cancer Chemotherapy Reports 50, 1966.
    """
    from statsmodels.duration.survfunc import survdiff

    flags = [False] * len(times) if censored is None else censored
    if len(times) < 2 or len(flags) != len(times):
        raise UsageError(
            f"log_rank compares two samples or more, each with its censoring; got {len(times)} "
            f"and {len(flags)}"
        )
    values: list[Array] = []
    events: list[Array] = []
    for one, flag in zip(times, flags, strict=True):
        rows, happened, lead, status = _given(one, flag, -1)
        _one_sample(lead, status)
        values.append(rows[0])
        events.append(happened[0])
    degrees = len(values) - 1
    if not any(each.any() for each in events):
        return LogRank(math.nan, math.nan, degrees, int(Status.TOO_FEW_SAMPLES))
    group = np.repeat(np.arange(len(values)), [each.size for each in values])
    statistic, pvalue = survdiff(
        np.concatenate(values), np.concatenate(events).astype(np.int64), group
    )
    return LogRank(float(statistic), float(pvalue), degrees, int(Status.OK))


def _one_sample(lead: tuple[int, ...], status: Array) -> None:
    if lead:
        raise UsageError(f"times of one sample have one axis, got {len(lead) + 1}")
    if status[0] != int(Status.OK):
        raise UsageError("times must be finite; leave the others out")
