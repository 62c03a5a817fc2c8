"""Mohammadi's estimate by block length, with the uncertainty of its shape."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from tracelab.errors import UsageError
from tracelab.stats._confidence import check_confidence
from tracelab.typing import BoolArray, FloatArray, IntArray, Status

__all__ = ["BLOCKS", "GROUPS", "SHAPES", "MohammadiProfile", "mohammadi_profile"]

BLOCKS = (2, 5, 10, 20, 50, 100)
"""Block lengths of the heavy-tail papers."""

GROUPS = 10
"""Independent parts of a sample, from whose scatter errors are."""

SHAPES = ("none", "flat", "rising", "falling")
"""What the codes of a shape stand for."""

# Two-sided level at which a profile is called anything but flat.
SHAPE_LEVEL = 0.01


@dataclass(frozen=True, slots=True)
class MohammadiProfile:
    r"""Mohammadi's estimate by block length; arrays have the leading shape of the data.

    Parameters
    ----------
    m : ndarray of int64, shape (m,)
        Block lengths.
    alpha, alpha_se : ndarray of float64, shape (..., m)
        Estimate and standard error; NaN for lengths of which no block fits into a group.
    slope, slope_low, slope_high : ndarray of float64
        By how much :math:`1 / \alpha` falls per tenfold block length, on the regression line:
        0 for a stable law, positive where alpha rises. With its interval.
    shape : ndarray of uint8
        Position in `SHAPES`: ``flat`` means not told from flat at the level of 1 %.
    status : ndarray of uint8
        `tracelab.typing.Status`. Numbers are NaN where it is not ``OK``.
    """

    m: NDArray[np.int64]
    alpha: FloatArray
    alpha_se: FloatArray
    slope: FloatArray
    slope_low: FloatArray
    slope_high: FloatArray
    shape: NDArray[np.uint8]
    status: NDArray[np.uint8]


def mohammadi_profile(
    x: ArrayLike,
    m: tuple[int, ...] = BLOCKS,
    *,
    together: bool = False,
    rng: np.random.Generator | None = None,
    confidence: float = 0.95,
) -> MohammadiProfile:
    r"""Return Mohammadi's estimate for each block length, and whether it changes with it.

    Batches are cut into `GROUPS` groups of equal size, and blocks lie inside a group. With `g` the
    mean of :math:`\log |Y| - \overline{\log |X|}` over blocks and series,
    :math:`1 / \hat\alpha(m) = g(m) / \log m`. It is linear in the blocks, and so is the slope of
    its regression on :math:`-\log_{10} m`: both are means over groups, which are independent if
    batches are, and have Student's t with nine degrees of freedom, however much series depend on
    each other.

    For a stable law :math:`\alpha(m)` is flat. It rises for any other law of finite variance
    (in the limit to 2) and for mixtures of scales, and falls where the mean is not 0. Neighbours
    whose sum has :math:`\tau(m)` times the variance of independent ones shift :math:`1/\alpha(m)`
    by :math:`\log \tau(m) / (2 \log m)`: in the order of the data positive dependence reads as
    heavy tails that fade with `m`, and random order takes it away.

    Series that were centred by their own mean have block sums with :math:`1 - m/K` of the
    variance, which makes a flat profile rise a little; a profile is called rising only where it
    rises more than that.

    Parameters
    ----------
    x : array_like, shape (..., batch, series)
        Centred samples; leading dims are cells.
    m : tuple of int
        Block lengths, each at least 2.
    together : bool
        Whether blocks run through all values of a group, minibatch by minibatch (pooled), and not
        through the batches of one series.
    rng : numpy.random.Generator, optional
        Source of a random order: of batches, and of the values of a group where they are
        together. Without it, the order of the data.
    confidence : float
        Level of the interval of the slope.

    Returns
    -------
    MohammadiProfile
        Series with more than one exact zero are left out: their estimate is that of the
        logarithm's floor. Status TOO_FEW_SAMPLES below 20 batches, NON_FINITE_INPUT,
        CONSTANT_INPUT where no series is left.

    Raises
    ------
    UsageError
        If an argument is outside its range.

    References
    ----------
    Mohammadi, Mohammadpour, Ogata, "On estimating the tail index and the spectral measure of
    multivariate alpha-stable distributions", Metrika 78, 2015, corollary 2.4.
    """
    check_confidence(confidence)
    for length in m:
        if isinstance(length, bool) or not isinstance(length, int | np.integer) or length < 2:
            raise UsageError(f"block lengths must be integers of at least 2, got {length!r}")
    values = np.asarray(x)
    if values.ndim < 2:
        raise UsageError(f"x must have shape (..., batch, series), got shape {values.shape}")
    lead, batches = values.shape[:-2], values.shape[-2]
    lengths = np.array(m, dtype=np.int64)
    out = np.full((2, *lead, len(m)), np.nan)
    slopes = np.full((3, *lead), np.nan)
    shape, status = np.zeros(lead, dtype=np.uint8), np.zeros(lead, dtype=np.uint8)
    for cell in np.ndindex(*lead):
        part = np.ascontiguousarray(values[cell], dtype=np.float64)
        finite = bool(np.isfinite(part).all())
        kept = _usable(part) if finite else np.zeros(part.shape[1], dtype=np.bool_)
        if not finite:
            status[cell] = Status.NON_FINITE_INPUT
        elif batches < 2 * GROUPS:
            status[cell] = Status.TOO_FEW_SAMPLES
        elif not kept.any():
            status[cell] = Status.CONSTANT_INPUT
        else:
            used = part if kept.all() else np.ascontiguousarray(part[:, kept])
            by_group = _by_group(used, lengths, together, rng)
            out[(slice(None), *cell)] = _levels(by_group)
            allowed = np.zeros(lengths.size) if together else _centring(lengths, batches)
            slopes[(slice(None), *cell)], shape[cell] = _slope(
                by_group, lengths, allowed, confidence
            )
    return MohammadiProfile(
        m=lengths,
        alpha=out[0],
        alpha_se=out[1],
        slope=slopes[0],
        slope_low=slopes[1],
        slope_high=slopes[2],
        shape=shape,
        status=status,
    )


def _usable(values: FloatArray) -> BoolArray:
    # Centring by the median of an odd number of values leaves one zero.
    usable: BoolArray = (np.count_nonzero(values == 0, axis=0) <= 1) & (np.ptp(values, axis=0) > 0)
    return usable


def _by_group(
    values: FloatArray, lengths: IntArray, together: bool, rng: np.random.Generator | None
) -> FloatArray:
    """Return 1 / alpha (group, m), NaN where no block fits."""
    batches, series = values.shape
    size = batches // GROUPS
    order = np.arange(batches) if rng is None else rng.permutation(batches)
    order = order[: GROUPS * size]
    logs = _logs(values)
    # The papers' constant inside the logarithm, relative to the series.
    floor = 2.0**-52 * np.abs(values).mean(axis=0)
    if together:
        size *= series
        order = (order[:, None] * series + np.arange(series)).reshape(GROUPS, size)
        if rng is not None:
            # Inside groups: that groups are independent is what errors rest on.
            order = rng.permuted(order, axis=1)
        order = order.ravel()
        values, logs, floor = values.reshape(-1, 1), logs.reshape(-1, 1), floor.mean(keepdims=True)
    grouped = (GROUPS, size, values.shape[1])
    values, logs = values[order].reshape(grouped), logs[order].mean(axis=1).reshape(grouped[:2])
    out = np.full((GROUPS, lengths.size), np.nan)
    for i, m in enumerate(lengths.tolist()):
        blocks = size // m
        if blocks:
            used = values[:, : blocks * m].reshape(GROUPS, blocks, m, -1).sum(axis=2)
            # Corollary 2.4, by group.
            growth = np.log(np.maximum(np.abs(used), floor)).mean(axis=(1, 2))
            out[:, i] = (growth - logs[:, : blocks * m].mean(axis=1)) / math.log(m)
    return out


def _logs(values: FloatArray) -> FloatArray:
    """Return log magnitudes; that of a zero is the mean of its series."""
    with np.errstate(divide="ignore"):
        logs: FloatArray = np.log(np.abs(values))
    rows, columns = np.nonzero(values == 0)
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        logs[row, column] = np.mean(np.delete(logs[:, column], row))
    return logs


def _levels(by_group: FloatArray) -> FloatArray:
    """Return alpha and its standard error by block length: (2, m)."""
    inverse = by_group.mean(axis=0)
    error = by_group.std(axis=0, ddof=1) / math.sqrt(GROUPS)
    return np.array([1 / inverse, error / inverse**2])


def _centring(lengths: IntArray, batches: int) -> FloatArray:
    """Return by how much 1 / alpha falls if each series was centred by its own mean."""
    left = np.log1p(-np.minimum(lengths / batches, 0.5)) - np.log1p(-1 / batches)
    lost: FloatArray = -0.5 * left / np.log(lengths)
    return lost


def _slope(
    by_group: FloatArray, lengths: IntArray, centring: FloatArray, confidence: float
) -> tuple[FloatArray, int]:
    """Return slope with its interval, and the code of the shape."""
    fits = np.isfinite(by_group).all(axis=0)
    if fits.sum() < 2:
        return np.full(3, np.nan), SHAPES.index("none")
    place = np.log10(lengths[fits])
    weights = -(place - place.mean()) / np.sum((place - place.mean()) ** 2)
    each = by_group[:, fits] @ weights
    slope, error = float(each.mean()), float(each.std(ddof=1)) / math.sqrt(GROUPS)
    half = float(special.stdtrit(GROUPS - 1.0, 0.5 + 0.5 * confidence)) * error
    clear = float(special.stdtrit(GROUPS - 1.0, 1 - 0.5 * SHAPE_LEVEL)) * error
    allowed = float(-(centring[fits] @ weights))
    shape = "flat"
    if slope - max(allowed, 0.0) > clear:
        shape = "rising"
    elif slope < -clear:
        shape = "falling"
    return np.array([slope, slope - half, slope + half]), SHAPES.index(shape)
