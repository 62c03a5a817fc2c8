"""Fits of stable laws from float-bit histograms.

A bin says how many values it holds, not where in it they lie: about its middle by a twelfth of the
square of its width, and to the side on which the density, as its neighbours have it, is larger.
Bins that are narrow beside the law are taken together. So a group of bins has a mean and a
variance, and becomes two points of half its weight each.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numba
import numpy as np
from numpy.typing import ArrayLike

from tracelab.errors import UsageError
from tracelab.histogram import Histogram
from tracelab.stats._binned import WIDE, slope_at, slope_between, value_in
from tracelab.stats._binned_samples import BinnedSamples
from tracelab.stats._confidence import normal_quantile
from tracelab.stats._stable_density import Float64
from tracelab.stats._stable_fit import ATOM_SHARE
from tracelab.stats._stable_fit import MIN_SAMPLES as MIN_SYMMETRIC
from tracelab.stats._stable_parameters import Parametrization, check_parametrization
from tracelab.stats._stable_points import PointRows, core, fit_points
from tracelab.stats._stable_quantile import quantile_fit
from tracelab.stats._stable_result import StableFit
from tracelab.stats._stable_rows import LEVELS
from tracelab.stats._stable_skew_fit import MIN_SAMPLES, fit_standardised
from tracelab.typing import FloatArray, IntArray, Status

__all__ = ["BinnedMethod", "fit_histogram"]

BinnedMethod = Literal["symmetric", "skewed", "quantile"]

# Bins are taken together up to this part of the distance from the median and of the law's core.
_REACH = 1 / 32
# The bins of the middle half must be narrower than this part of the law's core.
_RESOLUTION = 0.25


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _quantiles(
    counts: IntArray, edges: FloatArray, levels: Float64, out: Float64, width: Float64
) -> None:
    """Write quantiles at `levels`, and the widths of the bins they lie in, of 2 values or more.

    The i-th of n values is at ``(i - 1/2) / n``, as in `_stable_rows`.
    """
    n = counts.sum()
    below, level, halfway, first = 0, 0, False, 0.0
    for b in range(counts.size):
        k = counts[b]
        if k == 0:
            continue
        while level < levels.size:
            position = min(max(levels[level] * n - 0.5, 0.0), n - 1.0)
            i = min(int(position), n - 2)
            if not halfway:
                if i >= below + k:
                    break
                first, halfway = value_in(counts, edges, b, i - below), True
                width[level] = edges[b + 1] - edges[b]
            if i + 1 >= below + k:
                break
            second = value_in(counts, edges, b, i + 1 - below)
            out[level] = first + (position - i) * (second - first)
            level, halfway = level + 1, False
        below += k


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _group(
    counts: IntArray,
    edges: FloatArray,
    centre: float,
    spread: float,
    middle: float,
    x: Float64,
    weights: Float64,
) -> int:
    """Write points, in units of `spread` from `centre`, and their weights; return their number.

    `middle` is the core of the law, in these units.
    """
    used, n, mean, square, start = 0, 0.0, 0.0, 0.0, 0.0
    for b in range(counts.size):
        k = counts[b]
        if k == 0:
            continue
        far = max(abs(edges[b]), abs(edges[b + 1]))
        near = min(abs(edges[b]), abs(edges[b + 1]))
        if 0.0 < near < WIDE * far and 0 < b < counts.size - 1:
            if n > 0.0:
                used = _write(n, mean, square, x, weights, used)
                n = 0.0
            used = _write_wide(counts, edges, b, centre, spread, x, weights, used)
            continue
        left, right = (edges[b] - centre) / spread, (edges[b + 1] - centre) / spread
        inside = 0.5 * (left + right)
        if n > 0.0 and right - start > _REACH * (abs(inside) + middle):
            used = _write(n, mean, square, x, weights, used)
            n = 0.0
        if n == 0.0:
            mean = square = 0.0
            start = left
        width = right - left
        if width > 0.0:
            inside += slope_at(counts, edges, b) * spread * width * width / 12.0
        n += k
        delta = inside - mean
        mean += delta * k / n
        square += k * (delta * (inside - mean) + width * width / 12.0)
    return _write(n, mean, square, x, weights, used) if n > 0.0 else used


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _write_wide(
    counts: IntArray,
    edges: FloatArray,
    b: int,
    centre: float,
    spread: float,
    x: Float64,
    weights: Float64,
    used: int,
) -> int:
    """Write the points of a bin as wide as its distance from 0: by the logarithm of that."""
    side = 1 if edges[b] >= 0.0 else -1
    near = b if side == 1 else b + 1
    inner, outer = counts[b - side], counts[b + side]
    low, high = math.log(abs(edges[near])), math.log(abs(edges[near + side]))
    width = high - low
    middle = 0.5 * (low + high)
    # The bin nearer to 0 may be a narrow one, which says little.
    if edges[near - side] != 0.0 and low - math.log(abs(edges[near - side])) > 0.5 * width:
        slope = slope_between(inner, counts[b], outer, (width, width, width))
    else:
        slope = 2.0 * (outer - counts[b]) / ((outer + counts[b]) * width)
    middle += slope * width * width / 12.0
    for sign in (-1, 1):
        place = side * math.exp(middle + sign * width / math.sqrt(12.0))
        x[used], weights[used] = (place - centre) / spread, 0.5 * counts[b]
        used += 1
    return used


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _write(n: float, mean: float, square: float, x: Float64, weights: Float64, used: int) -> int:
    deviation = math.sqrt(square / n)
    if deviation == 0.0:
        x[used], weights[used] = mean, n
        return used + 1
    x[used], x[used + 1] = mean - deviation, mean + deviation
    weights[used] = weights[used + 1] = 0.5 * n
    return used + 2


def _spans(counts: IntArray, edges: FloatArray) -> tuple[Float64, float, bool]:
    """Return quantiles, core of the law, and whether the bins resolve it."""
    quantiles, widths = np.empty((2, LEVELS.size))
    _quantiles(counts, edges, LEVELS, quantiles, widths)
    wide, narrow = quantiles[4] - quantiles[0], quantiles[3] - quantiles[1]
    middle = core(wide, narrow) if 0 < narrow < np.inf and wide < np.inf else 0.0
    return quantiles, middle, bool(middle > 0 and widths[1:4].max() <= _RESOLUTION * middle)


def _without_atoms(counts: IntArray, edges: FloatArray) -> IntArray:
    """Return the counts without those bins that hold more than a tenth of all values each.

    If the others tell that a law as wide as theirs would not fill a bin so: else they are no atoms,
    but for that of zeros.
    """
    crowded = counts > ATOM_SHARE * counts.sum()
    if not crowded.any():
        return counts
    widths = np.diff(edges)
    rest = np.where(crowded, 0, counts)
    if rest.sum() > 1:
        _, middle, resolved = _spans(rest, edges)
        if resolved and widths[crowded].max() <= _RESOLUTION * middle:
            return rest
    return np.where(crowded & (widths == 0), 0, counts)


def binned_points(counts: ArrayLike, histogram: Histogram, least: int) -> PointRows:
    """Return binned samples as points; those of fewer than `least` values are not fitted."""
    given = BinnedSamples.of(counts, histogram)
    count, edges = len(given.n), given.edges
    sizes, centre, spread, tied = np.zeros(count), np.zeros(count), np.ones(count), np.zeros(count)
    quantiles, status = np.full((count, LEVELS.size), np.nan), given.status(least)
    points = [(np.empty(0), np.empty(0))] * count
    tied[status == Status.NON_FINITE_INPUT] = np.nan
    for r in np.flatnonzero(status == Status.OK):
        kept = _without_atoms(given.counts[r], edges)
        n = int(kept.sum())
        tied[r] = 1 - n / given.n[r]
        occupied = np.count_nonzero(kept)
        if np.count_nonzero(given.counts[r]) < 2 or occupied == 1:
            status[r] = Status.CONSTANT_INPUT
        elif n < least:
            status[r] = Status.TOO_FEW_SAMPLES
        if status[r] != Status.OK:
            continue
        q, middle, resolved = _spans(kept, edges)
        if not middle > 0:
            status[r] = Status.CONSTANT_INPUT
            continue
        status[r] = Status.OK if resolved else Status.NOT_CONVERGED
        sizes[r], centre[r], spread[r] = n, q[2], q[3] - q[1]
        quantiles[r] = (q - centre[r]) / spread[r]
        x, weights = np.empty((2, 2 * occupied))
        used = _group(kept, edges, centre[r], spread[r], middle / spread[r], x, weights)
        points[r] = x[:used], weights[:used]
    return PointRows(
        sizes=sizes,
        quantiles=quantiles,
        centre=centre,
        spread=spread,
        tied_fraction=tied,
        status=status,
        lead=given.lead,
        n_samples=given.n.reshape(given.lead),
        points=tuple(points),
    )


def fit_histogram(
    counts: ArrayLike,
    histogram: Histogram,
    method: BinnedMethod = "symmetric",
    confidence: float = 0.95,
    parametrization: Parametrization = "S1",
) -> StableFit:
    """Return the stable law of values that were counted by their leading bits.

    In a millisecond, whatever their number. With 7 mantissa bits, from 1e3 to 1e6 values and with
    locations up to five scales from zero, estimates by likelihood differ from those of the values
    by a hundredth of a standard error, at random; those by quantiles by a tenth. More than that is
    lost where more than a few percent of the values lie beyond the histogram's window.

    Parameters
    ----------
    counts : array_like of int, shape (..., bins)
        Of one sample, or added up.
    histogram : Histogram
        What they were counted by.
    method : {"symmetric", "skewed", "quantile"}
        As `fit`, `fit_skewed` and `fit_quantile`.
    confidence : float
        Level of the intervals, in (0, 1).
    parametrization : {"S1", "S0"}
        Nolan's, where the law is not symmetric.

    Returns
    -------
    StableFit
        `n_samples` are the finite values of each cell. Log-likelihoods are those of points that
        stand for the values. Status NOT_CONVERGED also where a bin of the middle half is wider than
        a quarter of the length over which the density changes there, as where the location is
        many scales from zero: subtract a rough one before counting; NON_FINITE_INPUT where values
        were not finite; TOO_FEW_SAMPLES below 8 (symmetric) or 20; CONSTANT_INPUT where all lie in
        one bin. A bin that is narrow enough and holds more than a tenth of the values is an atom,
        and left out.

    Raises
    ------
    UsageError
        If an argument is outside its range, or the counts are not of this histogram's bins.

    Examples
    --------
    >>> from tracelab.stats import stable
    >>> histogram = Histogram(mantissa_bits=7)
    >>> rng = np.random.default_rng(0)
    >>> days = [histogram.count(stable.rvs(1.5, size=1000, rng=rng)) for _ in range(3)]
    >>> found = fit_histogram(histogram.merge(*days), histogram)
    >>> bool(found.alpha_low < 1.5 < found.alpha_high), int(found.n_samples)
    (True, 3000)
    """
    if method not in get_args(BinnedMethod):
        raise UsageError(f"method must be 'symmetric', 'skewed' or 'quantile', got {method!r}")
    check_parametrization(parametrization)
    z = normal_quantile(confidence)
    least = MIN_SYMMETRIC if method == "symmetric" else MIN_SAMPLES
    rows = binned_points(counts, histogram, least)
    if method == "symmetric":
        return fit_points(rows, z)
    if method == "skewed":
        return fit_standardised(rows, parametrization, z)
    return quantile_fit(rows, parametrization, z)
