"""Spectra of large symmetric matrices, such as Hessians, from products with random vectors.

Nothing here needs the matrix: quadratic forms ``v'Hv`` give its trace, and the coefficients of
Lanczos' recurrence its density and its ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy import special

from tracelab.errors import UsageError
from tracelab.stats._confidence import check_confidence
from tracelab.stats._samples import as_rows
from tracelab.typing import Array, FloatArray, Status

__all__ = [
    "Density",
    "Extremes",
    "Quadrature",
    "Trace",
    "density",
    "extremes",
    "quadrature",
    "trace",
]

End = Literal["largest", "smallest"]

# A width of the kernel, as a share of the spectrum's, that shows bulk and outliers alike.
_WIDTH = 0.01
_GRID = 1024
# So many widths beyond the outermost node the kernel is gone.
_MARGIN = 5.0


@dataclass(frozen=True, slots=True)
class Trace:
    """A stochastic estimate of a trace; arrays have the leading shape of the data.

    Parameters
    ----------
    estimate, se : ndarray of float64
        Trace and its standard error.
    low, high : ndarray of float64
        Interval, Student's over the random vectors.
    n_samples : int
        Random vectors behind the standard error.
    status : ndarray of uint8
        `tracelab.typing.Status`. Numbers are NaN where it is not ``OK``.
    """

    estimate: FloatArray
    se: FloatArray
    low: FloatArray
    high: FloatArray
    n_samples: int
    status: npt.NDArray[np.uint8]


def trace(
    forms: npt.ArrayLike,
    captured: npt.ArrayLike = 0.0,
    axis: int = -1,
    confidence: float = 0.95,
) -> Trace:
    r"""Return the trace of a matrix from quadratic forms of random vectors.

    .. math:: \operatorname{tr} H \approx \operatorname{tr} Q' H Q + \frac1m \sum_i v_i' H v_i

    Without `captured` this is Hutchinson's estimate, with ``v`` of independent entries of mean 0
    and variance 1 (for signs its variance is that of the off-diagonal entries alone). With it, it
    is Hutch++: ``Q`` spans what ``H`` made of other random vectors, and every ``v`` is first freed
    of its part in it, ``(I - QQ')v``.

    Parameters
    ----------
    forms : array_like, real
        Quadratic forms, one for each random vector along `axis`.
    captured : array_like, real
        ``tr Q'HQ``, exactly, of the leading shape of `forms`.
    axis : int
        Axis of the vectors; the other axes are kept.
    confidence : float
        Level of the interval, in (0, 1).

    Returns
    -------
    Trace
        TOO_FEW_SAMPLES below two vectors, NON_FINITE_INPUT where a form or the captured part is not
        finite. One value alone has no error: forms that are all equal have the error 0.

    Raises
    ------
    UsageError
        If an argument is outside its range.

    References
    ----------
    Hutchinson, "A stochastic estimator of the trace of the influence matrix for Laplacian smoothing
    splines", Communications in Statistics 18, 1989; Meyer, Musco, Musco, Woodruff, "Hutch++:
    optimal stochastic trace estimation", SOSA 2021, algorithm 1.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> v = rng.choice([-1.0, 1.0], size=(400, 3))
    >>> found = trace(np.sum(v @ np.array([[2.0, 1, 0], [1, 3, 0], [0, 0, 5]]) * v, axis=-1))
    >>> bool(found.low < 10 < found.high)
    True
    """
    check_confidence(confidence)
    rows, lead = as_rows(forms, axis)
    n = rows.shape[1]
    base = np.asarray(captured, dtype=np.float64)
    try:
        base = np.broadcast_to(base, lead).reshape(rows.shape[0])
    except ValueError:
        raise UsageError(
            f"captured must be of shape {lead}, the leading shape of the forms, got {base.shape}"
        ) from None
    status = np.full(rows.shape[0], int(Status.OK), dtype=np.uint8)
    if n < 2:
        status[:] = int(Status.TOO_FEW_SAMPLES)
    status[~(np.isfinite(rows).all(axis=1) & np.isfinite(base))] = int(Status.NON_FINITE_INPUT)
    good = status == int(Status.OK)
    estimate, se = np.full((2, rows.shape[0]), np.nan)
    if good.any():
        values = rows[good].astype(np.float64)
        estimate[good] = base[good] + values.mean(axis=1)
        se[good] = values.std(axis=1, ddof=1) / math.sqrt(n)
    reach = special.stdtrit(max(n - 1, 1), 0.5 + 0.5 * confidence) * se
    return Trace(
        estimate.reshape(lead),
        se.reshape(lead),
        (estimate - reach).reshape(lead),
        (estimate + reach).reshape(lead),
        n,
        status.reshape(lead),
    )


@dataclass(frozen=True, slots=True)
class Quadrature:
    """Gauss quadrature of spectral measures; arrays have the leading shape of the coefficients.

    Parameters
    ----------
    node : ndarray of float64, shape (..., m)
        Eigenvalues of the tridiagonal matrices (Ritz values), rising; NaN behind the last where the
        recurrence ended early.
    weight : ndarray of float64, shape (..., m)
        What part of the measure each holds, of sum 1.
    residual : ndarray of float64, shape (..., m)
        ``|H u - node u|`` of the Ritz vector u: an eigenvalue is not farther away from the node.
    status : ndarray of uint8
        `tracelab.typing.Status`. Numbers are NaN where it is not ``OK``.
    """

    node: FloatArray
    weight: FloatArray
    residual: FloatArray
    status: npt.NDArray[np.uint8]


def quadrature(diagonal: npt.ArrayLike, beside: npt.ArrayLike) -> Quadrature:
    r"""Return the Gauss quadrature that coefficients of Lanczos' recurrence hold.

    After m steps from a unit vector v the tridiagonal matrix T with entries
    :math:`\alpha_1, \dots, \alpha_m` and :math:`\beta_1, \dots, \beta_{m-1}` has
    :math:`v' f(H) v = \sum_k \tau_k f(\theta_k)` for every polynomial f of degree 2m - 1, with its
    eigenvalues as nodes and the squared first entries of its eigenvectors as weights.

    Parameters
    ----------
    diagonal : array_like, real, shape (..., m)
        :math:`\alpha`. NaN behind the last step of a recurrence that ended early: then `beside` is
        0 (or NaN) at that last step.
    beside : array_like, real, shape (..., m)
        :math:`\beta`; the last is the norm of what remains after the last step.

    Returns
    -------
    Quadrature
        TOO_FEW_SAMPLES where there is no step, NON_FINITE_INPUT where a coefficient before the last
        step is missing or one is infinite.

    Raises
    ------
    UsageError
        If shapes differ.

    References
    ----------
    Golub, Welsch, "Calculation of Gauss quadrature rules", Mathematics of Computation 23, 1969;
    Paige, "The computation of eigenvalues and eigenvectors of very large sparse matrices", 1971
    (residuals).

    Examples
    --------
    >>> found = quadrature([2.0, 2.0], [1.0, 0.0])
    >>> found.node.tolist(), found.weight.round(3).tolist()
    ([1.0, 3.0], [0.5, 0.5])
    """
    alphas, lead = as_rows(diagonal, -1)
    betas, _ = as_rows(beside, -1)
    if np.shape(diagonal) != np.shape(beside):
        raise UsageError(
            f"diagonal and beside must have the same shape, got {np.shape(diagonal)} and "
            f"{np.shape(beside)}; beside ends with the norm that remains after the last step"
        )
    steps = alphas.shape[1]
    # The first that is missing ends a recurrence.
    missing = np.isnan(alphas)
    depth = np.where(missing.any(axis=1), missing.argmax(axis=1), steps)
    place = np.arange(steps)
    used = place < depth[:, None]
    linked = place < depth[:, None] - 1
    status = np.full(len(alphas), int(Status.OK), dtype=np.uint8)
    status[depth == 0] = int(Status.TOO_FEW_SAMPLES)
    sound = (np.isfinite(alphas) | ~used).all(axis=1) & (np.isfinite(betas) | ~linked).all(axis=1)
    sound &= ~np.isinf(betas).any(axis=1) & (missing | used).all(axis=1)
    status[~sound] = int(Status.NON_FINITE_INPUT)
    node, weight, residual = np.full((3, *alphas.shape), np.nan)
    for m in np.unique(depth[status == int(Status.OK)]):
        chosen = (depth == m) & (status == int(Status.OK))
        tridiagonal = np.zeros((np.count_nonzero(chosen), m, m))
        where = np.arange(m)
        tridiagonal[:, where, where] = alphas[chosen, :m]
        # Only the lower triangle is read.
        tridiagonal[:, where[1:], where[:-1]] = betas[chosen, : m - 1]
        values, vectors = np.linalg.eigh(tridiagonal, "L")
        node[chosen, :m] = values
        weight[chosen, :m] = vectors[:, 0] ** 2
        last = np.nan_to_num(betas[chosen, m - 1])
        residual[chosen, :m] = np.abs(last[:, None] * vectors[:, -1])
    shape = (*lead, steps)
    return Quadrature(
        node.reshape(shape), weight.reshape(shape), residual.reshape(shape), status.reshape(lead)
    )


@dataclass(frozen=True, slots=True)
class Density:
    """Density of eigenvalues; arrays have the leading shape of the coefficients.

    Parameters
    ----------
    eigenvalue : ndarray of float64, shape (..., point)
        Where.
    density : ndarray of float64, shape (..., point)
        Density there, of integral 1, smoothed by a Gaussian kernel.
    se : ndarray of float64, shape (..., point)
        Its standard error over the random vectors; NaN if there is one.
    width : ndarray of float64
        Standard deviation of the kernel.
    n_samples : int
        Random vectors.
    status : ndarray of uint8
        `tracelab.typing.Status`. Numbers are NaN where it is not ``OK``.
    """

    eigenvalue: FloatArray
    density: FloatArray
    se: FloatArray
    width: FloatArray
    n_samples: int
    status: npt.NDArray[np.uint8]


def density(
    diagonal: npt.ArrayLike,
    beside: npt.ArrayLike,
    width: float | None = None,
    points: int = _GRID,
) -> Density:
    """Return the density of a matrix's eigenvalues by stochastic Lanczos quadrature.

    Every random unit vector is a sample of the spectrum: the mean of their spectral measures has
    the density of eigenvalues as its expectation.

    Parameters
    ----------
    diagonal, beside : array_like, real, shape (..., vector, m)
        Coefficients, as `quadrature` takes them.
    width : float, optional
        Standard deviation of the Gaussian kernel, in the units of eigenvalues; by default a
        hundredth of the range of the nodes, or of the largest magnitude where they are equal.
    points : int
        Points of the grid, at least 2, evenly from below the least node to above the largest.

    Returns
    -------
    Density
        Status of the first vector whose quadrature is not OK.

    Raises
    ------
    UsageError
        If an argument is outside its range.

    References
    ----------
    Lin, Saad, Yang, "Approximating spectral densities of large matrices", SIAM Review 58, 2016;
    Ghorbani, Krishnan, Xiao, "An investigation into neural net optimization via Hessian eigenvalue
    density", ICML 2019 (their kernel has the variance 1e-5 times the larger of 1 and the range,
    which depends on units).
    """
    if width is not None and not 0 < width < math.inf:
        raise UsageError(f"width must be positive, got {width!r}")
    if isinstance(points, bool) or not isinstance(points, int | np.integer) or points < 2:
        raise UsageError(f"points must be an integer of at least 2, got {points!r}")
    shape = np.shape(diagonal)
    if len(shape) < 2:
        raise UsageError(f"coefficients must be of shape (..., vector, m), got {shape}")
    rule = quadrature(diagonal, beside)
    lead, vectors = shape[:-2], shape[-2]
    count = math.prod(lead)
    node, weight = (each.reshape(count, vectors, shape[-1]) for each in (rule.node, rule.weight))
    status = _worst(rule.status.reshape(count, vectors))
    grid, found, se = np.full((3, count, points), np.nan)
    widths = np.full(count, np.nan)
    for i in np.flatnonzero(status == int(Status.OK)):
        low, high = np.nanmin(node[i]), np.nanmax(node[i])
        widths[i] = width if width is not None else _kernel_width(low, high)
        margin = _MARGIN * widths[i]
        grid[i] = np.linspace(low - margin, high + margin, points)
        by_vector = np.empty((vectors, points))
        for v in range(vectors):
            held = ~np.isnan(node[i, v])
            z = (grid[i] - node[i, v, held, None]) / widths[i]
            by_vector[v] = weight[i, v, held] @ np.exp(-0.5 * z * z)
        by_vector /= widths[i] * math.sqrt(2 * math.pi)
        found[i] = by_vector.mean(axis=0)
        if vectors > 1:
            se[i] = by_vector.std(axis=0, ddof=1) / math.sqrt(vectors)
    at = (*lead, points)
    return Density(
        grid.reshape(at),
        found.reshape(at),
        se.reshape(at),
        widths.reshape(lead),
        vectors,
        status.reshape(lead),
    )


def _kernel_width(low: float, high: float) -> float:
    return _WIDTH * ((high - low) or abs(high) or 1.0)


def _worst(status: Array) -> npt.NDArray[np.uint8]:
    """Return by row the first status that is not OK."""
    if not status.shape[1]:
        return np.full(len(status), int(Status.TOO_FEW_SAMPLES), dtype=np.uint8)
    bad = status != int(Status.OK)
    first: npt.NDArray[np.uint8] = status[np.arange(len(status)), bad.argmax(axis=1)]
    return first


@dataclass(frozen=True, slots=True)
class Extremes:
    """Eigenvalues at an end of a spectrum; arrays have the leading shape of the coefficients.

    Parameters
    ----------
    value : ndarray of float64, shape (..., count)
        Ritz values from the end inwards. That of the largest eigenvalue is never above it, that of
        the smallest never below.
    residual : ndarray of float64, shape (..., count)
        An eigenvalue lies within this distance.
    bound : ndarray of float64
        The outermost eigenvalue is not beyond this with the probability asked for; infinite where
        the steps are too few to say.
    status : ndarray of uint8
        `tracelab.typing.Status`. Numbers are NaN where it is not ``OK``; NOT_CONVERGED where a
        residual exceeds a hundredth of the range of the Ritz values: numbers stand, but may be far
        from eigenvalues.
    """

    value: FloatArray
    residual: FloatArray
    bound: FloatArray
    status: npt.NDArray[np.uint8]


def extremes(
    diagonal: npt.ArrayLike,
    beside: npt.ArrayLike,
    size: int,
    count: int = 1,
    end: End = "largest",
    confidence: float = 0.95,
) -> Extremes:
    r"""Return eigenvalues at an end of a spectrum, with how far they may be from the matrix's own.

    The residual of a Ritz value bounds its distance from *an* eigenvalue; that no eigenvalue lies
    farther out is known with a probability over the random start alone. For a start of uniformly
    random direction in d dimensions, after m steps,

    .. math:: P\bigl(\lambda_1 - \theta_1 > \epsilon (\lambda_1 - \lambda_d)\bigr)
       \le 1.648 \sqrt d\, e^{-\sqrt\epsilon (2 m - 1)} .

    Used at both ends, it also bounds the range on its right-hand side.

    Parameters
    ----------
    diagonal, beside : array_like, real, shape (..., m)
        Coefficients of one recurrence, as `quadrature` takes them.
    size : int
        Rows of the matrix, d: at least 1.
    count : int
        How many, at least 1 and at most m.
    end : {"largest", "smallest"}
        Which end.
    confidence : float
        Probability of the bound, in (0, 1).

    Returns
    -------
    Extremes

    Raises
    ------
    UsageError
        If an argument is outside its range.

    References
    ----------
    Parlett, The Symmetric Eigenvalue Problem, SIAM 1998, theorem 4.5.1 (residuals); Kuczynski,
    Wozniakowski, "Estimating the largest eigenvalue by the power and Lanczos algorithms with a
    random start", SIAM J. Matrix Analysis 13, 1992, theorem 4.2.
    """
    check_confidence(confidence)
    if end not in get_args(End):
        raise UsageError(f"end must be 'largest' or 'smallest', got {end!r}")
    for name, given in (("size", size), ("count", count)):
        if isinstance(given, bool) or not isinstance(given, int | np.integer) or given < 1:
            raise UsageError(f"{name} must be an integer of at least 1, got {given!r}")
    rule = quadrature(diagonal, beside)
    lead, steps = rule.node.shape[:-1], rule.node.shape[-1]
    if count > steps:
        raise UsageError(f"count must be at most the {steps} steps of the recurrence, got {count}")
    node, residual = (each.reshape(-1, steps) for each in (rule.node, rule.residual))
    if end == "smallest":
        node = -node
    # NaN, of a recurrence that ended early, goes last.
    order = np.argsort(-node, axis=1)
    node, residual = (np.take_along_axis(each, order, axis=1) for each in (node, residual))
    status = rule.status.reshape(-1).copy()
    depth = np.count_nonzero(~np.isnan(node), axis=1)
    known = status == int(Status.OK)
    spread = np.full(len(node), np.nan)
    spread[known] = node[known, 0] - np.nanmin(node[known], axis=1)
    left = 0.5 * (1 - confidence)
    with np.errstate(divide="ignore", invalid="ignore"):
        epsilon = (math.log(1.648 * math.sqrt(size) / left) / (2 * depth - 1)) ** 2
        beyond = np.where(epsilon < 0.5, epsilon * spread / (1 - 2 * epsilon), np.inf)
    # A recurrence that ended by itself holds an invariant space: of a random start, all of it.
    finished = residual[:, 0] == 0
    bound = node[:, 0] + np.where(known & (finished | (depth >= size)), 0.0, beyond)
    bound[~known] = np.nan
    value, residual = node[:, :count], residual[:, :count]
    with np.errstate(invalid="ignore"):
        vague = known & (residual > 0.01 * spread[:, None]).any(axis=1)
    status[vague] = int(Status.NOT_CONVERGED)
    if end == "smallest":
        value, bound = -value, -bound
    shape = (*lead, count)
    return Extremes(
        value.reshape(shape), residual.reshape(shape), bound.reshape(lead), status.reshape(lead)
    )
