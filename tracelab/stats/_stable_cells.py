"""A large sample as few weighted points, for the likelihood fits of stable laws.

Standardised roughly, values are counted in cells of ``|z| + x0``, 32 an octave, each with the sum
of its values: one pass, without a sort. A cell of k values becomes two points of weight k / 2, at
its exact mean plus and minus the deviation that k evenly spread values have about their mean. A
cell of one value is that value.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from tracelab.stats._samples import as_rows
from tracelab.stats._stable_density import Float64
from tracelab.stats._stable_fit import ATOM_SHARE, quantile
from tracelab.stats._stable_points import PointRows, core
from tracelab.stats._stable_rows import LEVELS, prepare

__all__ = ["LARGE", "condense"]

LARGE = 10_000
"""Samples of more values than this are fitted as points."""

_SHIFT = 23 - 5
_END = 256 << 5
_OVERFLOW = 255 << 5
# Values of a sample that are sorted for its rough scale, and those whose cells are found at once.
_PILOT, _PIECE = 1024, 2048


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def _locate(
    x: Float64,
    centre: float,
    inverse: float,
    x0: np.float32,
    first: np.int32,
    half: np.int32,
    z: Float64,
    cells: NDArray[np.int32],
) -> None:
    for i in range(x.size):
        z[i] = (x[i] - centre) * inverse
        bits = np.float32(np.float32(abs(z[i])) + x0).view(np.int32)
        # A sum, which compilers make parallel.
        cells[i] = np.int32((bits >> _SHIFT) - first) + (half if z[i] < 0.0 else np.int32(0))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _count(
    x: Float64, centre: float, inverse: float, x0: float, counts: Float64, sums: Float64
) -> None:
    """Add the values to `counts` and `sums`, shape (2 * half,): of z >= 0, then of z < 0."""
    first = np.int32(np.float32(x0).view(np.int32) >> _SHIFT)
    half = np.int32(counts.size // 2)
    z, cells = np.empty(_PIECE), np.empty(_PIECE, dtype=np.int32)
    for start in range(0, x.size, _PIECE):
        piece = x[start : start + _PIECE]
        _locate(piece, centre, inverse, np.float32(x0), first, half, z, cells)
        for i in range(piece.size):
            # Unsigned, or every access would look for a negative index.
            cell = np.uint64(cells[i])
            counts[cell] += 1.0
            sums[cell] += z[i]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _edge(cell: int, x0: float) -> float:
    first = np.int32(np.float32(x0).view(np.int32) >> _SHIFT)
    bits = np.int32((np.int32(cell) + first) << _SHIFT)
    return float(np.int32(bits).view(np.float32)) - x0


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _walk(
    counts: Float64,
    sums: Float64,
    x0: float,
    levels: Float64,
    quantiles: Float64,
    x: Float64,
    weights: Float64,
) -> int:
    """Write quantiles and points, ascending; return the number of points."""
    half = counts.size // 2
    n = counts.sum()
    used, below, level = 0, 0.0, 0
    for step in range(2 * half):
        negative = step < half
        cell = half - 1 - step if negative else step - half
        place = cell + half if negative else cell
        k = counts[place]
        if k == 0.0:
            continue
        low, high = _edge(cell, x0), _edge(cell + 1, x0)
        while level < levels.size and below + k >= levels[level] * n:
            share = (levels[level] * n - below) / k
            inside = low + (1.0 - share if negative else share) * (high - low)
            quantiles[level] = -inside if negative else inside
            level += 1
        below += k
        mean = sums[place] / k
        if k == 1.0:
            x[used], weights[used] = mean, 1.0
            used += 1
        else:
            spread = (high - low) * math.sqrt((k - 1.0) / (12.0 * k))
            x[used], x[used + 1] = mean - spread, mean + spread
            weights[used] = weights[used + 1] = 0.5 * k
            used += 2
    return used


def _cells(values: Float64) -> tuple[Float64, Float64, Float64, float, float] | None:
    """Return points, weights, quantiles, centre and spread of a large sample.

    None where only a sort shows what it is: where values are not finite, many are equal, or the
    few that tell the rough scale are unlike the rest.
    """
    stride = values.size // _PILOT
    pilot = np.sort(values[::stride])
    if not np.isfinite(pilot[[0, -1]]).all():
        return None
    q05, q25, centre, q75, q95 = (quantile(pilot, pilot.size, level) for level in LEVELS)
    wide, spread = q95 - q05, q75 - q25
    if not (0 < spread < wide < np.inf and 1 / spread < np.inf):
        return None
    x0 = 2.0 ** min(-3, math.floor(math.log2(core(wide, spread) / spread / 4)))
    first = int(np.float32(x0).view(np.int32)) >> _SHIFT
    half = _END - first
    counts, sums = np.zeros((2, 2 * half))
    _count(values, centre, 1 / spread, x0, counts, sums)
    beyond = counts.reshape(2, half)[:, _OVERFLOW - first :]
    if beyond.any() or counts.max() > ATOM_SHARE * values.size:
        return None
    x, weights = np.empty((2, 2 * np.count_nonzero(counts)))
    quantiles = np.empty(LEVELS.size)
    used = _walk(counts, sums, x0, LEVELS, quantiles, x, weights)
    # As wide as the cells were made for, or nearly.
    if not (0.5 < quantiles[3] - quantiles[1] < 2 and abs(quantiles[2]) < 0.5):
        return None
    return x[:used], weights[:used], quantiles, centre, spread


def condense(x: ArrayLike, axis: int, least: int) -> PointRows:
    """Return the cells of `x`, of more than `LARGE` values each, as points.

    Rows that cannot be counted are sorted, and have a point for every value.
    """
    given, lead = as_rows(x, axis)
    count, n = given.shape
    sizes, centre, spread, tied = np.zeros(count), np.zeros(count), np.ones(count), np.zeros(count)
    quantiles, status = np.full((count, LEVELS.size), np.nan), np.zeros(count, dtype=np.uint8)
    points = []
    for r, row in enumerate(given):
        values = row.astype(np.float64, copy=False)
        found = _cells(values)
        if found is None:
            whole = prepare(values, -1, least)
            kept = whole.values[0, : whole.counts[0]]
            points.append((kept, np.ones(kept.size)))
            sizes[r], quantiles[r] = whole.sizes[0], whole.quantiles[0]
            centre[r], spread[r] = whole.centre[0], whole.spread[0]
            tied[r], status[r] = whole.tied_fraction[0], whole.status[0]
        else:
            points.append(found[:2])
            sizes[r] = n
            quantiles[r], centre[r], spread[r] = found[2:]
    return PointRows(sizes, quantiles, centre, spread, tied, status, lead, n, tuple(points))
