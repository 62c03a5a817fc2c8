"""Bounds on the gap of generalization from how many balls cover a set of weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tracelab.errors import UsageError
from tracelab.typing import FloatArray

__all__ = ["TERMS", "CoveringBound", "covering_bound", "finite_bound"]

TERMS = ("cover", "confidence", "radius")
"""What each term alone would make of the bound, in this order."""


@dataclass(frozen=True, slots=True)
class CoveringBound:
    """A bound on the gap, in the unit of the loss.

    Parameters
    ----------
    bound : ndarray
        The bound.
    terms : ndarray, shape (..., 3)
        What each of `TERMS` is alone; the first two add up under the root.
    log_balls : ndarray
        Logarithm of the number of balls.
    """

    bound: FloatArray
    terms: FloatArray
    log_balls: FloatArray


def covering_bound(
    dimension: ArrayLike,
    *,
    n_data: ArrayLike,
    lipschitz: ArrayLike,
    diameter: ArrayLike,
    loss_range: float = 1.0,
    delta: float = 0.05,
) -> CoveringBound:
    r"""Return what a set of that dimension can lose between training and population, at most.

    A set of diameter :math:`D` and (upper box) dimension :math:`d` is covered by
    :math:`N(r) = (D / r)^d` balls of radius :math:`r`, up to a constant that is taken as 1. For
    losses in a range :math:`B` Hoeffding's inequality at the centres, together, and the Lipschitz
    constant :math:`L` between them give, at :math:`r = B / (L \sqrt n)`, with probability
    :math:`1 - \delta` for all weights of the set at once

    .. math:: R(w) - \hat R(w) \le B \sqrt{\frac{\tfrac{d}{2} \log\left(n (L D / B)^2\right)
       + \log(1/\delta)}{2n}} + \frac{2B}{\sqrt n}.

    It is a theorem for a set that was fixed before the data were drawn (and the constant). A
    trajectory depends on them, which the papers pay for by a term of mutual information that
    nobody can compute; it is not here.

    Parameters
    ----------
    dimension : array_like
        Dimension of the set.
    n_data : array_like
        Training examples.
    lipschitz : array_like
        Of the loss, loss/weight.
    diameter : array_like
        Of the set, weight.
    loss_range : float
        Largest loss of an example less the smallest.
    delta : float
        Probability with which the bound may fail.

    Returns
    -------
    CoveringBound
        NaN where an argument is NaN.

    Raises
    ------
    UsageError
        If the range or delta is outside its range.

    References
    ----------
    Simsekli, Sener, Deligiannidis, Erdogdu, "Hausdorff dimension, heavy tails, and generalization
    in neural networks", NeurIPS 2020, section 3 (derived anew, with units).
    """
    _check(loss_range, delta)
    d, n, steepness, size = (
        np.asarray(each, dtype=np.float64) for each in (dimension, n_data, lipschitz, diameter)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.maximum(np.log(n * (steepness * size / loss_range) ** 2), 0.0)
        # One ball covers a small set, of whatever dimension: an infinite one too.
        log_balls = np.where((ratio == 0) & ~np.isnan(d), 0.0, 0.5 * d * ratio)
    cover, confidence = log_balls / (2 * n), np.log(1 / delta) / (2 * n)
    radius = 2 / np.sqrt(n)
    bound = loss_range * (np.sqrt(cover + confidence) + radius)
    # Radius and confidence know nothing of what is missing of the cover.
    terms = loss_range * np.stack(
        np.broadcast_arrays(np.sqrt(cover), np.sqrt(confidence), radius), axis=-1
    )
    return CoveringBound(bound=bound, terms=terms, log_balls=log_balls)


def finite_bound(
    count: ArrayLike, *, n_data: ArrayLike, loss_range: float = 1.0, delta: float = 0.05
) -> FloatArray:
    r"""Return Hoeffding's bound for `count` weights at once: no dimension, no Lipschitz constant.

    .. math:: B \sqrt{(\log N + \log(1/\delta)) / (2n)}

    Parameters
    ----------
    count : array_like
        Weights, fixed before the data were drawn.
    n_data, loss_range, delta
        As for `covering_bound`.

    Returns
    -------
    ndarray

    Raises
    ------
    UsageError
        If the range or delta is outside its range.
    """
    _check(loss_range, delta)
    n = np.asarray(n_data, dtype=np.float64)
    bound: FloatArray = loss_range * np.sqrt((np.log(count) - np.log(delta)) / (2 * n))
    return bound


def _check(loss_range: float, delta: float) -> None:
    if not loss_range > 0:
        raise UsageError(f"loss_range must be above 0, got {loss_range!r}")
    if not 0 < delta < 1:
        raise UsageError(f"delta must be between 0 and 1, got {delta!r}")
