"""The bootstrap, for many samples at once: of single values, or of blocks of dependent ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from scipy import special

from tracelab.errors import UsageError
from tracelab.stats._confidence import check_confidence
from tracelab.stats._samples import as_rows
from tracelab.typing import FloatArray, IntArray, Status

__all__ = ["Bootstrap", "Method", "block_length", "bootstrap"]

Method: TypeAlias = Literal["bca", "percentile", "basic", "normal"]
Statistic: TypeAlias = Callable[[FloatArray], FloatArray]

# Values of resamples in memory at a time.
_VALUES = 1 << 22


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """What resampling says of a statistic; arrays have the leading shape of the data.

    Parameters
    ----------
    estimate : ndarray of float64
        The statistic of the samples themselves.
    se : ndarray of float64
        Standard deviation over resamples.
    bias : ndarray of float64
        Mean over resamples, less the estimate.
    low, high : ndarray of float64
        Interval.
    n_boot : int
        Resamples.
    n_samples : int
        Values of each sample.
    status : ndarray of uint8
        `tracelab.typing.Status`: ``FAILED`` where the statistic of the sample or of a resample is
        not finite, ``CONSTANT_INPUT`` where it is the same for all, so that there is no interval.
    """

    estimate: FloatArray
    se: FloatArray
    bias: FloatArray
    low: FloatArray
    high: FloatArray
    n_boot: int
    n_samples: int
    status: npt.NDArray[np.uint8]


def bootstrap(
    x: npt.ArrayLike,
    statistic: Statistic,
    axis: int = -1,
    *,
    n_boot: int = 999,
    method: Method = "bca",
    block: int | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> Bootstrap:
    r"""Return standard error and interval of a statistic by resampling.

    Every sample is resampled by the same draws, which follow from `seed`, `n_boot` and the number
    of values alone: what is found of a sample does not depend on those beside it, nor on how many
    are handed in together, and samples that were measured together stay together.

    Parameters
    ----------
    x : array_like, real
        Samples along `axis`; the other axes are kept.
    statistic : callable
        Arrays of shape (..., n) to arrays of shape (...), of any n.
    axis : int
        Axis of the samples.
    n_boot : int
        Resamples, at least 99.
    method : {"bca", "percentile", "basic", "normal"}
        How the interval is made. ``"bca"``, corrected for bias and acceleration, takes one
        evaluation for each value left out beside those of the resamples; it is for independent
        values only.
    block : int, optional
        Length of the blocks that are drawn, of a sample bent to a circle, where values depend on
        those before them; see `block_length`. Default: values by themselves.
    confidence : float
        Level of the interval, in (0, 1).
    seed : int
        Of the draws.

    Returns
    -------
    Bootstrap
        Status ``TOO_FEW_SAMPLES`` below 3 values, or 3 blocks, and ``NON_FINITE_INPUT``.

    Raises
    ------
    UsageError
        If an argument is outside its range, or the statistic returns another shape.

    References
    ----------
    Efron, "Better bootstrap confidence intervals", JASA 82, 171-185 (1987); Davison, Hinkley,
    "Bootstrap Methods and their Application" (1997), sections 5.2 and 5.3; Politis, Romano, "A
    circular block-resampling procedure for stationary data" (1992).

    Examples
    --------
    >>> x = np.random.default_rng(0).exponential(size=(2, 200))
    >>> found = bootstrap(x, lambda values: np.median(values, axis=-1))
    >>> (found.low < np.log(2)) & (np.log(2) < found.high)
    array([ True,  True])
    """
    if n_boot < 99:
        raise UsageError(f"n_boot must be at least 99, for an interval of 95 %, got {n_boot}")
    if method not in get_args(Method):
        raise UsageError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    check_confidence(confidence)
    rows, lead = as_rows(x, axis)
    rows = rows.astype(np.float64)
    n = rows.shape[1]
    if block is not None:
        if not 1 <= block <= max(n, 1):
            raise UsageError(f"block must be from 1 to the {n} values of a sample, got {block}")
        if method == "bca":
            raise UsageError(
                "method='bca' is for independent values; give method='percentile' or 'basic' with "
                f"block={block}"
            )
    status = np.full(len(rows), Status.OK, dtype=np.uint8)
    if n // (block or 1) < 3:
        status[:] = Status.TOO_FEW_SAMPLES
    status[~np.isfinite(rows).all(axis=-1)] = Status.NON_FINITE_INPUT
    good = np.flatnonzero(status == Status.OK)
    numbers = np.full((5, len(rows)), np.nan)
    if good.size:
        values = rows[good]
        estimate = _evaluate(statistic, values)
        drawn = np.empty((len(good), n_boot))
        begin = 0
        for indices in _draws(n, n_boot, block, len(good), seed):
            end = begin + len(indices)
            drawn[:, begin:end] = _evaluate(statistic, values[:, indices])
            begin = end
        finite = np.isfinite(estimate) & np.isfinite(drawn).all(axis=-1)
        same = finite & (drawn == drawn[:, :1]).all(axis=-1)
        status[good[~finite]] = Status.FAILED
        status[good[same]] = Status.CONSTANT_INPUT
        used = finite & ~same
        mine, own = drawn[used], estimate[used]
        deviation, shift = mine.std(axis=-1, ddof=1), mine.mean(axis=-1) - own
        left = _left_out(statistic, values[used]) if method == "bca" and used.any() else None
        low, high = _interval(method, mine, own, deviation, left, confidence)
        numbers[:, good[used]] = own, deviation, shift, low, high
    own, deviation, shift, low, high = (each.reshape(lead) for each in numbers)
    return Bootstrap(
        estimate=own,
        se=deviation,
        bias=shift,
        low=low,
        high=high,
        n_boot=n_boot,
        n_samples=n,
        status=status.reshape(lead),
    )


def block_length(x: npt.ArrayLike, axis: int = -1) -> FloatArray:
    r"""Return the length of blocks of the circular bootstrap that suits each sample's mean best.

    .. math:: b = \Big(\frac{2 G^2}{D}\Big)^{1/3} n^{1/3}, \quad
        G = \sum_k \lambda(k / M) |k| R(k), \quad
        D = \tfrac43 \Big(\sum_k \lambda(k / M) R(k)\Big)^2

    with autocovariances :math:`R`, the flat-top window :math:`\lambda` and a window :math:`M`
    twice the lag beyond which correlations are no larger than those of white noise.

    Parameters
    ----------
    x : array_like, real
        Samples along `axis`, in the order in which they depend on each other.
    axis : int
        Axis of the samples.

    Returns
    -------
    ndarray of float64
        At least 1, at most ``min(3 sqrt(n), n / 3)``; NaN for samples that are not finite,
        constant, or of fewer than 10 values. Round up for `bootstrap`.

    References
    ----------
    Politis, White, "Automatic block-length selection for the dependent bootstrap", Econometric
    Reviews 23, 53-70 (2004); Patton, Politis, White, "Correction to ...", ibid. 28, 372-375
    (2009).
    """
    rows, lead = as_rows(x, axis)
    rows = rows.astype(np.float64)
    n = rows.shape[1]
    found = np.full(len(rows), np.nan)
    if n < 10:
        return found.reshape(lead)
    with np.errstate(invalid="ignore"):
        centred = rows - rows.mean(axis=-1, keepdims=True)
    usable = np.isfinite(rows).all(axis=-1) & (centred != 0).any(axis=-1)
    quiet = max(5, math.ceil(math.sqrt(math.log10(n))))
    longest = min(math.ceil(math.sqrt(n)) + quiet, n - 1)
    bound = 2 * math.sqrt(math.log10(n) / n)
    for row in np.flatnonzero(usable):
        values = centred[row]
        covariance = np.array([values[: n - k] @ values[k:] for k in range(longest + 1)]) / n
        small = np.abs(covariance[1:] / covariance[0]) < bound
        # The first lag behind which `quiet` correlations in a row are small.
        runs = np.convolve(small, np.ones(quiet), "valid") == quiet
        last = int(np.argmax(runs)) if runs.any() else int(np.flatnonzero(~small)[-1]) + 1
        window = min(2 * max(last, 1), longest)
        lags = np.arange(1, window + 1)
        weights = np.clip(2 * (1 - lags / window), 0, 1) * covariance[1 : window + 1]
        g, level = 2 * (weights * lags).sum(), covariance[0] + 2 * weights.sum()
        if level != 0:
            best = (2 * g**2 / (4 / 3 * level**2)) ** (1 / 3) * n ** (1 / 3)
            found[row] = min(max(best, 1.0), 3 * math.sqrt(n), n / 3)
    return found.reshape(lead)


def _evaluate(statistic: Statistic, values: FloatArray) -> FloatArray:
    found = np.asarray(statistic(values), dtype=np.float64)
    if found.shape != values.shape[:-1]:
        raise UsageError(
            f"statistic must reduce the last axis of an array of shape {values.shape}, got "
            f"{found.shape}; give a function such as lambda values: np.median(values, axis=-1)"
        )
    return found


def _draws(n: int, n_boot: int, block: int | None, rows: int, seed: int) -> Iterator[IntArray]:
    """Yield places of the values of some resamples at a time, (resample, n).

    How many at a time depends on the memory; the draws do not.
    """
    rng = np.random.default_rng(seed)
    at_once = max(1, _VALUES // (rows * n))
    for begin in range(0, n_boot, at_once):
        count = min(at_once, n_boot - begin)
        if block is None:
            yield rng.integers(n, size=(count, n))
            continue
        starts = rng.integers(n, size=(count, math.ceil(n / block), 1))
        places = (starts + np.arange(block)) % n
        yield places.reshape(count, -1)[:, :n]


def _left_out(statistic: Statistic, values: FloatArray) -> FloatArray:
    """Return the statistic without each value, shape (row, n)."""
    rows, n = values.shape
    found = np.empty((rows, n))
    every = np.arange(n - 1)
    at_once = max(1, _VALUES // (rows * n))
    for begin in range(0, n, at_once):
        without = np.arange(begin, min(begin + at_once, n))
        places = every + (every >= without[:, None])
        found[:, without] = _evaluate(statistic, values[:, places])
    return found


def _interval(
    method: Method,
    drawn: FloatArray,
    estimate: FloatArray,
    deviation: FloatArray,
    left: FloatArray | None,
    confidence: float,
) -> tuple[FloatArray, FloatArray]:
    tails = np.array([0.5 - 0.5 * confidence, 0.5 + 0.5 * confidence])
    z = special.ndtri(tails)
    if method == "normal":
        bias = drawn.mean(axis=-1) - estimate
        return estimate - bias + z[0] * deviation, estimate - bias + z[1] * deviation
    levels = np.tile(tails, (len(drawn), 1))
    if left is not None:
        below = (drawn < estimate[:, None]).mean(axis=-1)
        equal = (drawn == estimate[:, None]).mean(axis=-1)
        # A share of 0 or 1 is less than one resample.
        edge = 0.5 / drawn.shape[1]
        shift = special.ndtri(np.clip(below + 0.5 * equal, edge, 1 - edge))[:, None]
        pull = left.mean(axis=-1, keepdims=True) - left
        square = (pull**2).sum(axis=-1)
        third = (pull**3).sum(axis=-1)
        flat = square == 0
        acceleration = np.where(flat, 0.0, third / (6 * np.where(flat, 1.0, square) ** 1.5))
        moved = shift + z
        levels = special.ndtr(shift + moved / (1 - acceleration[:, None] * moved))
    ordered = np.sort(drawn, axis=-1)
    # Of R resamples the r-th has the level r / (R + 1).
    place = np.clip(levels * (drawn.shape[1] + 1) - 1, 0, drawn.shape[1] - 1)
    index = np.minimum(place.astype(np.int64), drawn.shape[1] - 2)
    lower = np.take_along_axis(ordered, index, axis=-1)
    upper = np.take_along_axis(ordered, index + 1, axis=-1)
    ends = lower + (place - index) * (upper - lower)
    if method == "basic":
        return 2 * estimate - ends[:, 1], 2 * estimate - ends[:, 0]
    return ends[:, 0], ends[:, 1]
