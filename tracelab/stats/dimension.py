"""Dimension of a set of points, from the growth of its minimum spanning tree."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from tracelab.errors import UsageError
from tracelab.stats._confidence import check_confidence
from tracelab.typing import FloatArray, IntArray, Status

__all__ = [
    "MIN_POINTS",
    "PersistentHomologyDimension",
    "default_sizes",
    "persistent_homology_dimension",
    "tree_length",
]

MIN_POINTS = 100
"""Fewer points than this have no range of sizes."""

GROUPS = 10
# Share of the points that is left when one group is taken out, and so the largest subset.
_LARGEST = 1 - 1 / GROUPS


@dataclass(frozen=True, slots=True)
class PersistentHomologyDimension:
    """Dimension by the lengths of trees; arrays have the leading shape of the points.

    Parameters
    ----------
    dimension : ndarray of float64
        ``power / (1 - slope)``.
    dimension_se, dimension_low, dimension_high : ndarray of float64
        Standard error and interval of what sampling leaves open: nothing of the bias. The upper end
        is infinite where the slope may be 1.
    slope, slope_se : ndarray of float64
        Of the logarithm of the length over that of the number of points.
    curvature, curvature_se : ndarray of float64
        Coefficient of the squared logarithm, centred, beside the slope: 0 where lengths grow like a
        power.
    r2 : ndarray of float64
        R squared of the line.
    log_length : ndarray of float64, shape (..., size)
        Mean logarithm of the length, by size.
    sizes : ndarray of int64, shape (size,)
        Numbers of points in the subsets.
    n_points : int
        Points.
    status : ndarray of uint8
        `tracelab.typing.Status`. Numbers are NaN where it is not ``OK``.
    """

    dimension: FloatArray
    dimension_se: FloatArray
    dimension_low: FloatArray
    dimension_high: FloatArray
    slope: FloatArray
    slope_se: FloatArray
    curvature: FloatArray
    curvature_se: FloatArray
    r2: FloatArray
    log_length: FloatArray
    sizes: IntArray
    n_points: int
    status: NDArray[np.uint8]


def default_sizes(n: int) -> tuple[int, ...]:
    """Return eight sizes from a twelfth of `n` points to two fifths, evenly spaced in logarithm.

    Larger subsets of a path hold neighbours in time that nothing is between, and smaller ones see
    the ends of the set: both bend the line.
    """
    return tuple(int(size) for size in np.geomspace(n / 12, 0.4 * n, 8).round())


def tree_length(points: ArrayLike, power: float = 1.0) -> FloatArray:
    r"""Return the sum of powers of the edges of the Euclidean minimum spanning tree.

    It is the sum of the lifetimes of connected components as balls around the points grow
    (persistent homology of dimension 0), each lifetime an edge of the tree.

    Parameters
    ----------
    points : array_like, shape (..., n, d)
        Points; leading dims are cells.
    power : float
        Exponent of the edges, above 0.

    Returns
    -------
    ndarray of float64, shape (...)
        In the unit of the points to the power; 0 of one point, NaN if any coordinate is not finite.

    Raises
    ------
    UsageError
        If `points` has fewer than two dimensions or the power is not positive.

    References
    ----------
    Prim, "Shortest connection networks and some generalizations", Bell System Technical Journal 36
    (1957).

    Examples
    --------
    >>> tree_length([[0.0], [3.0], [1.0]], power=2.0)
    array(5.)
    """
    cells, lead = _cells(points, power)
    out = np.full(len(cells), np.nan)
    for i, cell in enumerate(cells):
        if np.isfinite(cell).all():
            away = _distances(np.ascontiguousarray(cell.T))
            out[i] = _tree(away, np.arange(len(cell)), power)
    return out.reshape(lead)


def persistent_homology_dimension(
    points: ArrayLike,
    *,
    sizes: tuple[int, ...] | None = None,
    power: float = 1.0,
    repeats: int = 10,
    confidence: float | None = 0.95,
    seed: int,
) -> PersistentHomologyDimension:
    r"""Return the dimension that the growth of minimum spanning trees shows.

    The length of the tree on :math:`n` independent points of a set of dimension :math:`d` grows as

    .. math:: E_a(n) = \sum_{\text{edges}} |e|^a \sim C\, n^{1 - a/d}, \qquad 0 < a < d,

    because there are :math:`n` edges of the order of :math:`n^{-1/d}`. The slope :math:`m` of
    :math:`\log E_a` over :math:`\log n`, by least squares on the means over random subsets, gives
    :math:`d = a / (1 - m)`. Subsets of one order are nested: of each of `repeats` random orders
    the first points.

    Random subsets share points, so their scatter says too little. Standard errors are those of the
    jackknife that leaves out each of ten blocks of neighbouring points in turn (blocks of a path
    keep what depends on its past together), with the same orders on the points that are left; the
    interval takes Student's t with nine degrees of freedom for the slope.

    What no interval carries is the bias of few points: the edge of a set, its discrete steps if it
    is a path, and dimensions beyond about ``log(n)``, which need more points than there are. With
    power :math:`a` no dimension below :math:`a` is seen: a chain in time alone reads :math:`a`.

    Parameters
    ----------
    points : array_like, shape (..., n, d)
        Points, those of a path in its order; leading dims are cells.
    sizes : tuple of int, optional
        Numbers of points in subsets, at least three different ones from 2 to nine tenths of `n`.
        Default: `default_sizes`.
    power : float
        Exponent :math:`a` of the edges, above 0 and below the dimension.
    repeats : int
        Random orders.
    confidence : float or None
        Level of the interval. None: no interval and no standard errors, which take ten times the
        rest.
    seed : int
        Of the orders, which are the same for all cells.

    Returns
    -------
    PersistentHomologyDimension
        Status ``TOO_FEW_SAMPLES`` below 100 points, ``NON_FINITE_INPUT``, ``CONSTANT_INPUT`` where
        some subset has no length, ``NOT_CONVERGED`` where the slope is 1 or more.

    Raises
    ------
    UsageError
        If an argument is outside its range.

    References
    ----------
    Steele, "Growth rates of Euclidean minimal spanning trees with power weighted edges", Annals of
    Probability 16 (1988), theorem 1; Schweinhart, "Fractal dimension and the persistent homology of
    random geometric complexes", Advances in Mathematics 372 (2020); Birdal, Lou, Guibas, Simsekli,
    "Intrinsic dimension, persistent homology and generalization in neural networks", NeurIPS 2021.

    Examples
    --------
    >>> square = np.random.default_rng(0).random((600, 2))
    >>> found = persistent_homology_dimension(square, seed=0)
    >>> bool(1.7 < found.dimension < 2.1)
    True
    """
    if confidence is not None:
        check_confidence(confidence)
    if repeats < 1:
        raise UsageError(f"repeats must be at least 1, got {repeats}")
    cells, lead = _cells(points, power)
    n = cells.shape[1]
    chosen = np.array(default_sizes(n) if sizes is None else sizes, dtype=np.int64)
    if n >= MIN_POINTS and (
        np.unique(chosen).size < 3 or chosen.min() < 2 or chosen.max() > _LARGEST * n
    ):
        raise UsageError(
            f"sizes must be at least three different numbers from 2 to {int(_LARGEST * n)}, "
            f"nine tenths of the {n} points, got {tuple(chosen.tolist())}"
        )
    status = np.full(len(cells), Status.OK, dtype=np.uint8)
    if n < MIN_POINTS:
        status[:] = Status.TOO_FEW_SAMPLES
    status[~np.isfinite(cells).all(axis=(1, 2))] = Status.NON_FINITE_INPUT
    numbers = np.full((9, len(cells)), np.nan)
    log_length = np.full((len(cells), chosen.size), np.nan)
    rng = np.random.default_rng(seed)
    orders = np.array([rng.permutation(n) for _ in range(repeats)])
    group = np.arange(n) * GROUPS // max(n, 1)
    groups = 0 if confidence is None else GROUPS
    quantile = float(special.stdtrit(GROUPS - 1, 0.5 + (confidence or np.nan) / 2))
    for i in np.flatnonzero(status == Status.OK):
        # Of order one, exactly: squares of the largest and smallest numbers are no float64.
        exponent = int(np.frexp(np.abs(cells[i]).max(initial=0.0))[1])
        away = _distances(np.ascontiguousarray(np.ldexp(cells[i], -exponent).T))
        lengths = _lengths(away, orders, group, groups, chosen, power)
        if not (lengths > 0).all():
            status[i] = Status.CONSTANT_INPUT
            continue
        # Whole first, then without each of the groups.
        logs = np.log(lengths).mean(axis=1)
        found = _line(np.log(chosen), logs)
        if found[0, 0] >= 1:
            status[i] = Status.NOT_CONVERGED
            continue
        numbers[:, i] = _estimates(found, power, quantile)
        log_length[i] = logs[0] + power * exponent * np.log(2)
    by_cell = numbers.reshape(len(numbers), *lead)
    return PersistentHomologyDimension(
        dimension=by_cell[0],
        dimension_se=by_cell[1],
        dimension_low=by_cell[2],
        dimension_high=by_cell[3],
        slope=by_cell[4],
        slope_se=by_cell[5],
        curvature=by_cell[6],
        curvature_se=by_cell[7],
        r2=by_cell[8],
        log_length=log_length.reshape(*lead, chosen.size),
        sizes=chosen,
        n_points=n,
        status=status.reshape(lead),
    )


def _cells(points: ArrayLike, power: float) -> tuple[FloatArray, tuple[int, ...]]:
    values = np.asarray(points, dtype=np.float64)
    if values.ndim < 2:
        raise UsageError(
            f"points must have shape (..., n, d), got shape {values.shape}; give points on a line "
            "as one column"
        )
    if not power > 0:
        raise UsageError(f"power must be above 0, got {power!r}")
    lead = values.shape[:-2]
    return values.reshape(math.prod(lead), *values.shape[-2:]), lead


def _line(log_size: FloatArray, logs: FloatArray) -> FloatArray:
    """Return slope, curvature and R squared (3, ...) of logarithms of length (..., size)."""
    x = log_size - log_size.mean()
    square = np.square(x) - np.square(x).mean()
    square = square - x * np.dot(x, square) / np.dot(x, x)
    centred = logs - logs.mean(axis=-1, keepdims=True)
    slope = centred @ x / np.dot(x, x)
    rest = centred - slope[..., None] * x
    # Lengths that do not grow at all lie on a line.
    total = np.maximum(np.square(centred).sum(axis=-1), np.finfo(np.float64).tiny)
    return np.array(
        [slope, centred @ square / np.dot(square, square), 1 - np.square(rest).sum(axis=-1) / total]
    )


def _estimates(found: FloatArray, power: float, quantile: float) -> tuple[float, ...]:
    """Return the nine numbers from lines of all points and, for errors, of parts (3, 1 + part)."""
    slope, curvature, r2 = found[:, 0].tolist()
    error = bend = np.nan
    if found.shape[1] > 1:
        parts = found[:2, 1:] - found[:2, 1:].mean(axis=1, keepdims=True)
        error, bend = np.sqrt((GROUPS - 1) / GROUPS * np.square(parts).sum(axis=1)).tolist()
    dimension = power / (1 - slope)
    low = power / (1 - slope + quantile * error)
    left = 1 - slope - quantile * error
    high = np.inf if left <= 0 else power / left
    # The derivative of the dimension by the slope.
    spread = dimension**2 / power * error
    return dimension, spread, low, high, slope, error, curvature, bend, r2


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _distances(x: FloatArray) -> FloatArray:
    """Return distances between all points of `x` (d, n), (n, n)."""
    dims, n = x.shape
    away = np.zeros((n, n))
    for i in range(n):
        row = away[i]
        for c in range(dims):
            here = x[c, i]
            for j in range(i + 1, n):
                row[j] += (x[c, j] - here) ** 2
        for j in range(i + 1, n):
            row[j] = np.sqrt(row[j])
            away[j, i] = row[j]
    return away


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _tree(away: FloatArray, points: IntArray, power: float) -> float:
    """Return the length of the tree on some points, by Prim's algorithm."""
    rest = points[1:].copy()
    nearest = np.full(rest.size, np.inf)
    current, total = points[0], 0.0
    for left in range(rest.size, 0, -1):
        row = away[current]
        best, place = np.inf, 0
        for j in range(left):
            nearest[j] = min(nearest[j], row[rest[j]])
            if nearest[j] < best:
                best, place = nearest[j], j
        total += best if power == 1.0 else best**power
        current = rest[place]
        rest[place], nearest[place] = rest[left - 1], nearest[left - 1]
    return total


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _lengths(
    away: FloatArray,
    orders: IntArray,
    group: IntArray,
    groups: int,
    sizes: IntArray,
    power: float,
) -> FloatArray:
    """Return lengths (1 + group, order, size): of all points, and without each group."""
    out = np.empty((groups + 1, orders.shape[0], sizes.size))
    for taken in range(groups + 1):
        for k in range(orders.shape[0]):
            order = orders[k]
            kept = order[group[order] != taken - 1]
            for s in range(sizes.size):
                out[taken, k, s] = _tree(away, kept[: sizes[s]], power)
    return out
