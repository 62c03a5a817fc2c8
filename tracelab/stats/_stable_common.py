"""One tail index for many series of a cell, with minibatches as the independent samples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from tracelab.errors import UsageError
from tracelab.stats._confidence import check_confidence
from tracelab.stats._stable_cell import interval, maximise, prepare
from tracelab.stats._stable_climb import fisher
from tracelab.stats._stable_density import ALPHA_MIN, table
from tracelab.stats._stable_fit import MIN_SAMPLES
from tracelab.stats._stable_result import StableFit
from tracelab.typing import Status

__all__ = ["CommonFit", "Scales", "fit_common", "uncorrected"]

Float64 = NDArray[np.float64]
Scales = Literal["each", "shared"]


@dataclass(frozen=True, slots=True)
class CommonFit:
    """One alpha for each cell; arrays have the leading shape of the data unless said.

    Parameters
    ----------
    alpha, alpha_se, alpha_low, alpha_high : ndarray
        Tail index, cluster-robust standard error, interval within (0, 2].
    scale, loc : ndarray
        With ``scales="each"`` of shape (..., series), NaN for dropped series; else one per cell.
        In the units of the data.
    loglik, loglik_gaussian : ndarray
        Composite log-likelihood (values as if independent) of this and of the Gaussian fit.
    tied_fraction : ndarray
        Share of values left out because more than a tenth of their series (of the cell, if
        shared) repeats each of them exactly.
    n_batches : int
        Rows, the independent samples.
    n_series, n_dropped : ndarray of int64
        Series that were used, and series dropped because constant.
    status : ndarray of uint8
        `tracelab.typing.Status`.
    iterations : ndarray of int64
        Iterations of the climb.
    """

    alpha: Float64
    alpha_se: Float64
    alpha_low: Float64
    alpha_high: Float64
    scale: Float64
    loc: Float64
    loglik: Float64
    loglik_gaussian: Float64
    tied_fraction: Float64
    n_batches: int
    n_series: NDArray[np.int64]
    n_dropped: NDArray[np.int64]
    status: NDArray[np.uint8]
    iterations: NDArray[np.int64]


def fit_common(
    x: ArrayLike,
    scales: Scales = "each",
    confidence: float | None = 0.95,
    *,
    start: StableFit | None = None,
) -> CommonFit:
    r"""Return one symmetric stable index for all series of a cell.

    Maximum of the composite likelihood :math:`\sum_{kj} \log f((x_{kj} - \delta_j) / \gamma_j;
    \alpha) - \log \gamma_j`, which takes values as independent; the uncertainty does not. Rows
    (minibatches) are the independent clusters: with efficient scores :math:`U_k` (the score of
    alpha less its projection on scales and locations, summed over the row) and the observed
    information :math:`A`, the standard error is :math:`(\sum_k U_k^2)^{1/2} / A`, or that of the
    expected information times the design effect of the rows if larger; the interval takes
    Student's t with ``batch - 1`` degrees of freedom. Near 2, where the estimate is not normal,
    the interval holds every alpha whose studentised efficient score is not rejected.

    With own scales the estimate has a bias of about ``0.5 / batch``, however many the series;
    the tabulated bias (``data/make_stable_common_table.py``) is taken out of it and of its
    interval. One thing no cluster-robust interval can know: if a few rare batches are extreme in
    *all* series at once, a sample without any of them looks more Gaussian than it is. With one
    common factor for 64 series the 95 % interval covered .96 (alpha 1.5, 100 batches), .93
    (1.8, 100) and .80 (1.95, 100); independent and correlated series are covered at .93 or more.

    Parameters
    ----------
    x : array_like, shape (..., batch, series)
        Samples; leading dims are cells.
    scales : {"each", "shared"}
        Own location and scale for each series, or one of each for all values (pooled).
    confidence : float or None
        Level of the interval, in (0, 1). None: no standard error and no interval.
    start : StableFit, optional
        `fit` of the same series (along the axis of batches), where it is known: with own scales
        the climb from there has about half as many steps, to the same maximum.

    Returns
    -------
    CommonFit
        Status TOO_FEW_SAMPLES below 8 batches, NON_FINITE_INPUT if any value of the cell is not
        finite, CONSTANT_INPUT if no series varies, NOT_CONVERGED if alpha ran to the lower edge
        0.3. Numbers are NaN unless the status is OK or NOT_CONVERGED.

    Raises
    ------
    UsageError
        If `x` has fewer than two dimensions or an argument is outside its range.

    References
    ----------
    Varin, Reid, Firth, "An overview of composite likelihood methods", Statistica Sinica 21,
    2011, section 2.3; Neyman, Scott, "Consistent estimates based on partially consistent
    observations", Econometrica 16, 1948 (the bias of many scales, corrected here).
    """
    if scales not in get_args(Scales):
        raise UsageError(f"scales must be 'each' or 'shared', got {scales!r}")
    if confidence is not None:
        check_confidence(confidence)
    values = np.asarray(x)
    if values.ndim < 2:
        raise UsageError(f"x must have shape (..., batch, series), got shape {values.shape}")
    lead, (batches, series) = values.shape[:-2], values.shape[-2:]
    each = scales == "each"
    if start is not None and (not each or start.alpha.shape != (*lead, series)):
        raise UsageError(
            f"start must be the fit of each of the {series} series with scales='each', got "
            f"scales={scales!r} and alpha of shape {start.alpha.shape}"
        )
    numbers = np.full((7, *lead), np.nan)
    group_shape = (*lead, series) if each else lead
    scale, loc = np.full(group_shape, np.nan), np.full(group_shape, np.nan)
    counts = np.zeros((3, *lead), dtype=np.int64)
    status = np.zeros(lead, dtype=np.uint8)
    for cell in np.ndindex(*lead):
        # Series first: the kernels run along batches.
        rows = np.ascontiguousarray(values[cell].T, dtype=np.float64)
        known = None
        if start is not None:
            known = np.array([start.alpha[cell], start.scale[cell], start.loc[cell]])
        found = _fit_one(rows, each, confidence, known)
        status[cell] = int(found[0])
        numbers[(slice(None), *cell)], counts[(slice(None), *cell)] = found[1], found[2]
        if found[3].size:
            scale[cell], loc[cell] = found[3] if each else found[3][:, 0]
    return CommonFit(
        alpha=numbers[0],
        alpha_se=numbers[1],
        alpha_low=numbers[2],
        alpha_high=numbers[3],
        scale=scale,
        loc=loc,
        loglik=numbers[4],
        loglik_gaussian=numbers[5],
        tied_fraction=numbers[6],
        n_batches=batches,
        n_series=counts[0],
        n_dropped=counts[1],
        status=status,
        iterations=counts[2],
    )


@dataclass(frozen=True, slots=True)
class _Cell:
    """A cell made ready: standardised groups (series, or all values), sorted and in order."""

    status: Status
    varies: NDArray[np.bool_]
    ordered: Float64
    by_series: Float64
    size: Float64
    centre: Float64
    spread: Float64
    tied_fraction: float


def _prepared(rows: Float64, each: bool) -> _Cell:
    """Make a cell ready; `rows` is (series, batch) and is overwritten."""
    varies = (rows != rows[:, :1]).any(axis=1)
    nothing = np.empty(0)
    if not np.isfinite(rows).all():
        return _Cell(Status.NON_FINITE_INPUT, varies, rows, rows, nothing, nothing, nothing, np.nan)
    if rows.shape[1] < MIN_SAMPLES:
        return _Cell(Status.TOO_FEW_SAMPLES, varies, rows, rows, nothing, nothing, nothing, np.nan)
    used = rows[varies]
    groups = used if each else used.reshape(1, -1)
    ordered = np.sort(groups, axis=-1)
    size, centre, spread = (np.zeros(len(groups)) for _ in range(3))
    if used.size:
        prepare(ordered, groups, size, centre, spread)
    fitted = size > 0
    tied = float(np.isnan(groups).mean()) if used.size else 0.0
    if each:
        varies[varies] = fitted
        used = groups[fitted]
    status = Status.OK if fitted.any() else Status.CONSTANT_INPUT
    if status is not Status.OK:
        varies[:] = False
    return _Cell(
        status, varies, ordered[fitted], used, size[fitted], centre[fitted], spread[fitted], tied
    )


def uncorrected(x: Float64, scales: Scales) -> float:
    """Return the maximum-likelihood alpha of one cell (batch, series), bias and all."""
    cell = _prepared(np.ascontiguousarray(x.T, dtype=np.float64), scales == "each")
    scale, loc = np.empty(cell.size.size), np.empty(cell.size.size)
    return float(maximise(cell.ordered, cell.size, table(), np.nan, scale, loc)[1])


@cache
def _bias() -> tuple[Float64, Float64, Float64]:
    """Return alphas, 1 / size (rising), and size times the bias (size, alpha)."""
    with (
        (files("tracelab.stats") / "tables" / "stable_common.npz").open("rb") as file,
        np.load(file) as stored,
    ):
        return stored["alpha"], stored["inverse_size"], stored["bias"]


def _corrected(alpha: Float64, size: float) -> Float64:
    """Return the true alphas whose limit, with own scales for `size` samples each, is `alpha`."""
    alphas, inverse_size, bias = _bias()
    at = np.interp(1 / size, inverse_size, np.arange(inverse_size.size))
    i = min(int(at), inverse_size.size - 2)
    limit = alphas + (bias[i] + (at - i) * (bias[i + 1] - bias[i])) / size
    # The limit reaches 2 before alpha does if samples are few: 2 then means that alpha at least.
    limit = np.maximum.accumulate(np.minimum(limit, 2.0))
    return np.where(alpha >= 2.0, 2.0, np.interp(alpha, limit, alphas))


def _start(cell: _Cell, known: Float64 | None) -> tuple[float, Float64, Float64]:
    """Return where the climb starts in v (NaN: from quantiles), scales and locations.

    `known` holds alpha, scale and location of every series, (3, series).
    """
    scale, loc = np.empty(cell.size.size), np.empty(cell.size.size)
    if known is None or not np.isfinite(known[:, cell.varies]).all():
        return np.nan, scale, loc
    alpha, scale, loc = known[:, cell.varies]
    gap = 2 - alpha
    mean = float(np.clip(gap.mean(), 1e-4, 2 - ALPHA_MIN))
    _, coupling, information, _ = fisher(table().information, np.log(mean))
    # The scale follows alpha: d log scale = -coupling / information dv, and both go with 2 - alpha.
    scale = scale / cell.spread * np.exp(-coupling / information * (mean - gap) / mean)
    return float(np.log(mean)), scale, (loc - cell.centre) / cell.spread


def _fit_one(
    rows: Float64, each: bool, confidence: float | None, known: Float64 | None
) -> tuple[Status, Float64, NDArray[np.int64], Float64]:
    """Return status, numbers, counts, and scale and location by group of one cell."""
    numbers, counts = np.full(7, np.nan), np.zeros(3, dtype=np.int64)
    series, batches = rows.shape
    cell = _prepared(rows, each)
    if cell.status is Status.CONSTANT_INPUT:
        counts[1] = series
    if cell.status is not Status.OK:
        return cell.status, numbers, counts, np.empty((2, 0))
    begin, scale, loc = _start(cell, known)
    v, alpha, loglik, gaussian, iterations, converged = maximise(
        cell.ordered, cell.size, table(), begin, scale, loc
    )
    se = low = high = np.nan
    if confidence is not None:
        target = float(special.stdtrit(batches - 1.0, 0.5 + 0.5 * confidence))
        # Each series spent two of its samples on location and scale.
        shrink = batches / (batches - 2) if each else 1.0
        se, low, high = interval(
            cell.by_series, cell.size, table(), (v, alpha), scale, loc, target, shrink
        )
    if each:
        width = high - low
        alpha, low, high = _corrected(np.array([alpha, low, high]), float(cell.size.mean()))
        se *= (high - low) / width
    unit = np.sum(cell.size * np.log(cell.spread))
    numbers[:] = alpha, se, low, high, loglik - unit, gaussian - unit, cell.tied_fraction
    counts[:] = cell.varies.sum(), series - cell.varies.sum(), iterations
    located = np.full((2, series if each else 1), np.nan)
    where = np.flatnonzero(cell.varies) if each else np.array([0])
    located[0, where] = scale * cell.spread
    located[1, where] = cell.centre + loc * cell.spread
    return (Status.OK if converged else Status.NOT_CONVERGED), numbers, counts, located
