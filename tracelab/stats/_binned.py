"""What bins say of the values in them: moments, quantiles, places, distances from a Gaussian."""

from __future__ import annotations

import math

import numba
import numpy as np

from tracelab.stats._gaussian import log_cdf
from tracelab.typing import FloatArray, IntArray

__all__ = [
    "WIDE",
    "distance_rows",
    "moment_rows",
    "quantile_rows",
    "slope_at",
    "slope_between",
    "spread",
    "value_in",
]

WIDE = 0.8
"""Bins whose ends are further apart than this in proportion are those beyond the window."""

_SQRT_HALF = math.sqrt(0.5)
_BISECTIONS = 60


@numba.njit(nogil=True, cache=True, error_model="numpy")
def moment_rows(counts: IntArray, edges: FloatArray, out: FloatArray) -> None:
    """Write number, mean, and sample variance of every row to `out` (row, 3).

    Values lie in the middle of their bins; within them they scatter as if spread evenly.

    Parameters
    ----------
    counts : ndarray of int64, shape (row, bin)
        Of bins of finite width.
    edges : ndarray of float64, shape (bin + 1,)
        Ascending.
    out : ndarray, shape (row, 3)
        Output.
    """
    for r in range(counts.shape[0]):
        total, largest = 0.0, 0.0
        for b in range(counts.shape[1]):
            if counts[r, b]:
                total += counts[r, b]
                largest = max(largest, abs(edges[b]), abs(edges[b + 1]))
        out[r, 0] = total
        out[r, 1:] = np.nan
        if total < 2.0 or largest == 0.0:
            out[r, 1:] = 0.0 if total >= 2.0 else np.nan
            continue
        mean = square = seen = 0.0
        for b in range(counts.shape[1]):
            if counts[r, b]:
                # West (1979); relative to the largest value, whose square may be no float64.
                middle = 0.5 * (edges[b] / largest + edges[b + 1] / largest)
                width = (edges[b + 1] - edges[b]) / largest
                weight = counts[r, b]
                seen += weight
                delta = middle - mean
                mean += delta * weight / seen
                square += weight * (delta * (middle - mean) + width * width / 12.0)
        out[r, 1], out[r, 2] = mean * largest, square / (total - 1.0) * largest * largest


@numba.njit(nogil=True, cache=True, error_model="numpy")
def quantile_rows(
    counts: IntArray, edges: FloatArray, q: FloatArray, out: FloatArray, width: FloatArray
) -> None:
    """Write quantiles of every row, and the widths of the bins they lie in, to (row, q).

    Values are spread evenly within bins: the sample quantile at ``(n - 1) q`` of values that lie
    at ``(i + 1/2) / k`` of a bin of k.
    """
    for r in range(counts.shape[0]):
        total = np.int64(0)
        for b in range(counts.shape[1]):
            total += counts[r, b]
        for j in range(q.size):
            out[r, j] = width[r, j] = np.nan
            if total == 0:
                continue
            target = q[j] * (total - 1) + 0.5
            below = np.int64(0)
            for b in range(counts.shape[1]):
                if counts[r, b] and below + counts[r, b] >= target:
                    share = (target - below) / counts[r, b]
                    out[r, j] = edges[b] + share * (edges[b + 1] - edges[b])
                    width[r, j] = edges[b + 1] - edges[b]
                    break
                below += counts[r, b]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _tails(z: float) -> tuple[float, float]:
    return 0.5 * math.erfc(-z * _SQRT_HALF), 0.5 * math.erfc(z * _SQRT_HALF)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _smooth(start: float, end: float, one: float, two: float, both: bool) -> float:
    """Return the integral of d^2 / v, or of d^2 / (v (1 - v)), by Gauss and Legendre, over v.

    The distance d goes from `start` to `end`, v from `one` to `two`.
    """
    total = 0.0
    for k in range(3):
        t = (0.1127016653792583, 0.5, 0.8872983346207417)[k]
        weight = (5.0 / 18.0, 8.0 / 18.0, 5.0 / 18.0)[k]
        v = one + t * (two - one)
        d = start + t * (end - start)
        total += weight * d * d / (v * (1.0 - v) if both else v)
    return total * abs(two - one)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _singular(start: float, end: float, low: float, high: float, ratio: float) -> float:
    """Return the integral of d^2 / v from `low` to `high`, whose logarithms differ by `ratio`.

    `low` may have underflowed.
    """
    # Slopes of d over an interval far out in a tail are no float64; these products are.
    moved, width = end - start, high - low
    origin = start - moved * (low / width)
    return (
        2.0 * origin * moved
        + 0.5 * moved * moved * ((high + low) / width)
        + (origin * origin * ratio)
    )


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _weighted(
    start: float,
    end: float,
    low: float,
    high: float,
    low_up: float,
    high_up: float,
    ratio: float,
    ratio_up: float,
) -> float:
    """Return the integral of d^2 / (F (1 - F)) over F from `low` to `high`, d going linearly.

    `low_up` and `high_up` are one less `low` and `high`, without cancellation; `ratio` is the
    difference of the logarithms of `high` and `low`, `ratio_up` of `low_up` and `high_up`.
    """
    width = high - low if low < 0.5 else low_up - high_up
    if width < 0.25 * low and width < 0.25 * high_up:
        if low < 0.5:
            return _smooth(start, end, low, high, True)
        return _smooth(start, end, low_up, high_up, True)
    # 1 / F + 1 / (1 - F), each near its pole in closed form, far from it by nodes.
    if width < 0.25 * low:
        lower = _smooth(start, end, low, high, False)
    else:
        lower = _singular(start, end, low, high, ratio)
    if width < 0.25 * high_up:
        upper = _smooth(start, end, low_up, high_up, False)
    else:
        upper = _singular(end, start, high_up, low_up, ratio_up)
    return lower + upper


@numba.njit(nogil=True, cache=True, error_model="numpy")
def distance_rows(
    counts: IntArray, edges: FloatArray, moments: FloatArray, out: FloatArray
) -> None:
    """Write A^2, W^2 and D of every row against its own Gaussian to `out` (row, 3).

    Within a bin the distribution function of the sample is a random bridge between its ends: with
    u the part of the bin in F and p its share of n values, it has mean linear in u and variance
    ``p u (1 - u) / n``. A^2 and W^2 are the integrals for its mean, plus the expected part of its
    scatter; D is the median of the largest distance.

    Parameters
    ----------
    counts : ndarray of int64, shape (row, bin)
        Of bins of finite width, in order.
    edges : ndarray of float64, shape (bin + 1,)
        Ascending.
    moments : ndarray of float64, shape (row, 3)
        Of `moment_rows`, with a positive variance.
    out : ndarray, shape (row, 3)
        Output.
    """
    bins = counts.shape[1]
    left, right, share = np.empty(bins), np.empty(bins), np.empty(bins)
    for r in range(counts.shape[0]):
        n, mean, deviation = moments[r, 0], moments[r, 1], math.sqrt(moments[r, 2])
        first, last = 0, bins - 1
        while not counts[r, first]:
            first += 1
        while not counts[r, last]:
            last -= 1
        anderson = cramer = 0.0
        z = (edges[first] - mean) / deviation
        low, low_up = _tails(z)
        log_low, log_low_up = log_cdf(z), log_cdf(-z)
        # Below the first bin and above the last the sample's function is 0 and 1.
        anderson += -log_low_up - low
        cramer += low**3 / 3.0
        largest, used, below = low, 0, 0.0
        for b in range(first, last + 1):
            z = (edges[b + 1] - mean) / deviation
            high, high_up = _tails(z)
            log_high, log_high_up = log_cdf(z), log_cdf(-z)
            width = high - low if low < 0.5 else low_up - high_up
            p = counts[r, b] / n
            above = below + counts[r, b]
            start, end = below / n - low, above / n - high
            if high > 0.5:
                start, end = low_up - (n - below) / n, high_up - (n - above) / n
            if width > 0.0:
                ratio, ratio_up = log_high - log_low, log_low_up - log_high_up
                anderson += _weighted(start, end, low, high, low_up, high_up, ratio, ratio_up)
                cramer += width * (start * start + start * end + end * end) / 3.0
                middle, middle_up = 0.5 * (low + high), 0.5 * (low_up + high_up)
                anderson += p * width / (6.0 * n * middle * middle_up)
                cramer += p * width / (6.0 * n)
            else:
                # So far out that F is no float64; its logarithm is.
                steep = max(log_high - log_low, log_low_up - log_high_up)
                anderson += steep * (start * start + start * end + end * end) / 3.0
            largest = max(largest, abs(start), abs(end))
            if counts[r, b]:
                left[used], right[used], share[used] = start, end, p
                used += 1
            low, low_up, below = high, high_up, above
            log_low, log_low_up = log_high, log_high_up
        anderson += -log_low - low_up
        cramer += low_up**3 / 3.0
        largest = max(largest, low_up)
        out[r, 0], out[r, 1] = n * anderson, n * cramer
        out[r, 2] = _median_supremum(left[:used], right[:used], share[:used], n, largest)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _median_supremum(
    left: FloatArray, right: FloatArray, share: FloatArray, n: float, least: float
) -> float:
    """Return the median of the largest distance of bridges with given ends.

    A bridge of variance v between s and e passes above m > s, e with the probability
    exp(-2 (m - s) (m - e) / v).
    """
    low, high = least, least + 4.0 * math.sqrt(share.max() / n)
    for _ in range(_BISECTIONS):
        m = 0.5 * (low + high)
        log = 0.0
        for b in range(left.size):
            rate = 2.0 * n / share[b]
            up = rate * (m - left[b]) * (m - right[b])
            down = rate * (m + left[b]) * (m + right[b])
            if up < 40.0:
                log += math.log(-math.expm1(-up)) if up > 0.0 else -np.inf
            if down < 40.0:
                log += math.log(-math.expm1(-down)) if down > 0.0 else -np.inf
        if log < -_LOG2:
            low = m
        else:
            high = m
        if high - low < 1e-9 * high:
            break
    return 0.5 * (low + high)


_LOG2 = math.log(2.0)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def slope_between(
    before: float, here: float, after: float, widths: tuple[float, float, float]
) -> float:
    """Return the derivative of the logarithm of the density in a bin, from three bins' counts."""
    left, middle, right = widths
    if left == 0.0 or right == 0.0:
        return 0.0
    before, here, after = before / left, here / middle, after / right
    # Bounded, however few values there are.
    mean = 0.25 * (before + 2.0 * here + after)
    return float((after - before) / (mean * (0.5 * (left + right) + middle)))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def slope_at(counts: IntArray, edges: FloatArray, b: int) -> float:
    if b == 0 or b + 1 == counts.size:
        return 0.0
    widths = edges[b] - edges[b - 1], edges[b + 1] - edges[b], edges[b + 2] - edges[b + 1]
    return slope_between(counts[b - 1], counts[b], counts[b + 1], widths)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def value_in(counts: IntArray, edges: FloatArray, b: int, i: float) -> float:
    """Return where the i-th value of bin `b` lies, from 0 on."""
    width = edges[b + 1] - edges[b]
    t = (i + 0.5) / counts[b]
    # Where the integral of a density that goes linearly is t.
    bend = 0.0 if width == 0.0 else min(max(slope_at(counts, edges, b) * width, -1.0), 1.0)
    return float(edges[b] + (t + 0.5 * bend * t * (1.0 - t)) * width)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def spread(counts: IntArray, edges: FloatArray, out: FloatArray) -> None:
    """Write a place for every value, ascending: evenly by the density of its bin."""
    used = 0
    for b in range(counts.size):
        k = counts[b]
        near = min(abs(edges[b]), abs(edges[b + 1]))
        far = max(abs(edges[b]), abs(edges[b + 1]))
        wide = 0.0 < near < WIDE * far
        for i in range(k):
            if wide:
                # Evenly in the logarithm, where a bin is as wide as its distance from 0.
                t = (i + 0.5) / k
                if edges[b] > 0.0:
                    out[used] = near * (far / near) ** t
                else:
                    out[used] = -far * (near / far) ** t
            else:
                out[used] = value_in(counts, edges, b, float(i))
            used += 1
