"""Mohammadi's block estimator of the tail index, the one the heavy-tail papers use."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from tracelab.errors import UsageError
from tracelab.stats._confidence import check_confidence
from tracelab.typing import Status

__all__ = ["Mohammadi", "default_blocks", "mohammadi"]

Float64 = NDArray[np.float64]

# Added inside every logarithm, as in the papers' code, after the data were scaled to order 1.
_EPS = float(np.spacing(1.0))
_MIN_BLOCKS = 10
_MIN_SAMPLES = 2 * _MIN_BLOCKS


@dataclass(frozen=True, slots=True)
class Mohammadi:
    """Tail index by block sums; arrays have the leading shape of the data.

    Parameters
    ----------
    alpha : ndarray
        Median of the profile. It can exceed 2, and be negative where block sums cancel.
    alpha_se, alpha_low, alpha_high : ndarray
        Standard error and interval at the block length whose estimate is the median.
    profile : ndarray, shape (..., m)
        Estimate for each block length: flat for a stable law, rising for finite-variance
        non-Gaussian data and scale mixtures, falling for a non-zero mean.
    m : ndarray of int64, shape (m,)
        Block lengths.
    zero_fraction : ndarray
        Share of exact zeros; their logarithms dominate the estimate.
    n_samples : int
        Samples per estimate.
    status : ndarray of uint8
        `tracelab.typing.Status`.
    """

    alpha: Float64
    alpha_se: Float64
    alpha_low: Float64
    alpha_high: Float64
    profile: Float64
    m: NDArray[np.int64]
    zero_fraction: Float64
    n_samples: int
    status: NDArray[np.uint8]


def default_blocks(n: int) -> tuple[int, ...]:
    """Return 2, 5, 10, 20, 50, ... as long as there are at least ten blocks, divisors of n first.

    Lengths that do not divide `n` are used only if none divides it.
    """
    lengths = [d * 10**e for e in range(19) for d in (1, 2, 5) if d * 10**e > 1]
    fitting = [m for m in lengths if m * _MIN_BLOCKS <= n]
    dividing = tuple(m for m in fitting if n % m == 0)
    return dividing or tuple(fitting)


def mohammadi(
    x: ArrayLike,
    axis: int = -1,
    m: int | tuple[int, ...] | None = None,
    *,
    vector_axis: int | None = None,
    shuffles: int = 0,
    rng: np.random.Generator | None = None,
    confidence: float = 0.95,
) -> Mohammadi:
    r"""Return the tail index from the growth of block sums, in the order of the data.

    With block sums :math:`Y_i = \sum_{j=1}^m X_{(i-1)m+j}`,

    .. math:: 1/\hat\alpha(m) = \frac{\overline{\log \|Y\|} - \overline{\log \|X\|}}{\log m},

    as :math:`Y \overset{d}{=} m^{1/\alpha} X` for a symmetric stable law. The estimate is the
    median of :math:`\hat\alpha(m)` over `m`. It reads below 2 for **any** finite-variance
    non-Gaussian data (Laplace at ``m = 10``: 1.62), and depends on the order of dependent or
    heterogeneous values: read `profile`, and prefer `tracelab.stats.stable.fit`.

    Parameters
    ----------
    x : array_like
        Finite samples, centred by the caller.
    axis : int
        Axis of the samples.
    m : int or tuple of int, optional
        Block lengths (at least 2, at most half the samples); by default ``2, 5, 10, 20, ...``
        that divide the number of samples. A remainder that fills no block is left out.
    vector_axis : int, optional
        Axis of the components, if the samples are vectors.
    shuffles : int
        Number of random orders; profiles are medians over them. 0 keeps the given order.
    rng : numpy.random.Generator, optional
        Source of the orders; needed if ``shuffles > 0``. All cells share an order.
    confidence : float
        Level of the interval, which is symmetric in 1 / alpha (blocks are independent samples,
        Student t).

    Returns
    -------
    Mohammadi
        Status TOO_FEW_SAMPLES below 20 samples, NON_FINITE_INPUT, CONSTANT_INPUT (all values
        equal); the numbers are then NaN.

    Raises
    ------
    UsageError
        If an argument is outside its range.

    References
    ----------
    Mohammadi, Mohammadpour, Ogata, "On estimating the tail index and the spectral measure of
    multivariate alpha-stable distributions", Metrika 78, 2015, corollary 2.4; used by Simsekli,
    Sagun, Gurbuzbalaban, ICML 2019.
    """
    check_confidence(confidence)
    if shuffles < 0:
        raise UsageError(f"shuffles must not be negative, got {shuffles!r}")
    if shuffles > 0 and rng is None:
        raise UsageError(
            "shuffles need a random generator: give rng=numpy.random.default_rng(seed)"
        )
    values = np.asarray(x, dtype=np.float64)
    if vector_axis is None:
        values = np.moveaxis(values, axis, -1)[..., np.newaxis]
    else:
        values = np.moveaxis(values, (axis, vector_axis), (-2, -1))
    n = values.shape[-2]
    lengths = default_blocks(n) if m is None else tuple(np.atleast_1d(m).tolist())
    for length in lengths:
        if not 2 <= length <= max(2, n // 2):
            raise UsageError(
                f"block lengths must be between 2 and half of the {n} samples, got {length}"
            )
    lead = values.shape[:-2]
    finite = np.isfinite(values).all(axis=(-2, -1))
    status = np.full(lead, int(Status.OK), dtype=np.uint8)
    if n < _MIN_SAMPLES:
        status[...] = int(Status.TOO_FEW_SAMPLES)
    else:
        constant = (values == values[..., :1, :]).all(axis=(-2, -1))
        status[constant] = int(Status.CONSTANT_INPUT)
    status[~finite] = int(Status.NON_FINITE_INPUT)
    good = status == int(Status.OK)
    out = np.full((4, *lead), np.nan)
    profile = np.full((*lead, len(lengths)), np.nan)
    zero = np.where(finite, np.mean(np.all(values == 0, axis=-1), axis=-1), np.nan)
    if np.any(good):
        orders = [rng.permutation(n) for _ in range(shuffles)] if rng is not None else []
        used = _scaled(values[good])
        parts = [_profile(used[:, order], lengths) for order in orders or [np.arange(n)]]
        inverse, deviation = np.median(np.array(parts), axis=0)
        profile[good] = 1 / inverse
        out[:, good] = _middle(inverse, deviation, n // np.array(lengths), confidence)
    return Mohammadi(
        alpha=out[0],
        alpha_se=out[1],
        alpha_low=out[2],
        alpha_high=out[3],
        profile=profile,
        m=np.array(lengths, dtype=np.int64),
        zero_fraction=zero,
        n_samples=n,
        status=status,
    )


def _scaled(values: Float64) -> Float64:
    """Divide each cell by its geometric mean magnitude: the estimate must not see units."""
    size = np.abs(values)
    used = np.count_nonzero(size, axis=(-2, -1), keepdims=True)
    # A logarithm of 0 for what is 0.
    size[size == 0] = 1.0
    unit: Float64 = np.exp(np.log(size).sum(axis=(-2, -1), keepdims=True) / used)
    return values / unit


def _profile(values: Float64, lengths: tuple[int, ...]) -> Float64:
    """Return 1 / alpha and its standard error by cell and block length: (2, cell, m)."""
    out = np.empty((2, values.shape[0], len(lengths)))
    size = np.abs(values[..., 0])
    if values.shape[-1] > 1:
        size = np.sqrt(np.sum(np.square(values), axis=-1))
    # All logarithms of samples at once, in vector registers.
    logs = np.log(size + _EPS)
    _growths(np.ascontiguousarray(values), logs, np.array(lengths), out)
    return out


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _growth(x: Float64, logs: Float64, lengths: NDArray[np.int64], out: Float64) -> None:
    """Write 1 / alpha and its standard error (2, m) of the samples `x` (sample, component)."""
    n, components = x.shape
    block = np.empty(components)
    for i in range(lengths.size):
        m = lengths[i]
        blocks = n // m
        growth = np.empty(blocks)
        for b in range(blocks):
            block[:] = 0.0
            inside = 0.0
            for k in range(b * m, (b + 1) * m):
                inside += logs[k]
                for c in range(components):
                    block[c] += x[k, c]
            square = 0.0
            for c in range(components):
                square += block[c] * block[c]
            # Corollary 2.4, as a mean over blocks so that blocks are independent replicates.
            growth[b] = math.log(math.sqrt(square) + _EPS) - inside / m
        mean = growth.mean()
        deviation = math.sqrt(np.sum((growth - mean) ** 2) / (blocks - 1))
        out[0, i] = mean / math.log(m)
        out[1, i] = deviation / math.sqrt(blocks) / math.log(m)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _growths(values: Float64, logs: Float64, lengths: NDArray[np.int64], out: Float64) -> None:
    """`_growth` of every cell (cell, sample, component), without the interpreter in between."""
    for i in range(values.shape[0]):
        _growth(values[i], logs[i], lengths, out[:, i])


def _middle(
    inverse: Float64, deviation: Float64, blocks: NDArray[np.int64], confidence: float
) -> Float64:
    """Return alpha, se, low, high: the median of the profile with the error found there."""
    alphas = 1 / inverse
    order = np.argsort(alphas, axis=-1)
    count = alphas.shape[-1]
    middle = order[:, [(count - 1) // 2, count // 2]]
    alpha = np.median(alphas, axis=-1)
    # Between two middle block lengths the less certain one speaks.
    spread = np.take_along_axis(deviation, middle, axis=-1)
    worst = np.take_along_axis(middle, spread.argmax(axis=-1)[:, np.newaxis], axis=-1)[:, 0]
    quantile = special.stdtrit(blocks[worst] - 1.0, 0.5 + 0.5 * confidence)
    half = quantile * spread.max(axis=-1)
    low, high = 1 / (1 / alpha + half), 1 / (1 / alpha - half)
    # 1 / alpha may be anything up to 0 and beyond: no upper end.
    high = np.where((alpha > 0) & (1 / alpha <= half), np.inf, high)
    return np.array([alpha, alpha**2 * spread.max(axis=-1), low, high])
