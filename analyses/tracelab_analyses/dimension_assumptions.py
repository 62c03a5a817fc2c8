"""What bounds by the dimension of a trajectory take for granted, and checks on recorded weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from tracelab.typing import Assumption, FloatArray

__all__ = ["ASSUMPTIONS", "LEVEL", "NEEDS", "Drift", "drift", "judged"]

LEVEL = 0.05
# Less of a change of scale, and less of a correlation, moves no dimension by much.
SCALE, CORRELATION = 1.1, 0.1

ASSUMPTIONS = {
    "stationary": "increments keep their scale (within a tenth) and have no common direction",
    "independent": "neighbouring increments correlate by less than .1, or no more than by chance",
    "stable": "a stable law of the increments is not rejected",
    "scaling": "lengths of trees grow like a power of the number of points",
    "lipschitz": "the Lipschitz constant is one, and not the largest gradient on the path",
    "bounded": "losses of single examples lie within loss_range",
    "constants": "the constant of the number of balls is 1",
    "fixed": "the set of weights does not depend on the training data",
}
_EVERY = ("lipschitz", "bounded", "constants", "fixed")
NEEDS = {
    "hausdorff": ("stationary", "independent", "stable", *_EVERY),
    "persistent_homology": ("scaling", *_EVERY),
}


@dataclass(frozen=True, slots=True)
class Drift:
    """Whether increments come from one law without a direction.

    Parameters
    ----------
    ratio : float
        Squared distance travelled over the sum of squared increments: 1 of a random walk.
    pvalue : float
        Probability of a ratio so large of independent increments of mean 0.
    scale_ratio : float
        Geometric mean of increments' lengths in the second half over that in the first.
    scale_pvalue : float
        Of a ratio so far from 1 of independent increments of one law, two-sided.
    """

    ratio: float
    pvalue: float
    scale_ratio: float
    scale_pvalue: float


def drift(increments: FloatArray) -> Drift:
    r"""Return whether a walk has a direction and keeps its scale.

    Without a direction :math:`\|\sum_t \Delta_t\|^2 / \sum_t \|\Delta_t\|^2` has mean 1 and, with
    :math:`S` the covariance of increments, about the law of :math:`\chi^2_\nu / \nu` at
    :math:`\nu = (\mathrm{tr}\,S)^2 / \mathrm{tr}\,S^2` (Satterthwaite). Scales of the two halves
    are compared by Welch's test of the logarithms of lengths.

    Parameters
    ----------
    increments : ndarray, shape (step, direction)
        Finite, at least 20, not all zero.

    Returns
    -------
    Drift
        Both p-values take increments as independent; positive correlation makes the first small.
    """
    n = len(increments)
    squares = np.square(increments).sum(axis=-1)
    trace = squares.sum() / n
    ratio = np.square(increments.sum(axis=0)).sum() / squares.sum()
    # tr S^2 from whichever of both products is smaller; its bias is (tr S)^2 / n.
    few = increments if increments.shape[1] <= n else increments.T
    # No BLAS: a threaded product differs in its last bits from machine to machine.
    product = np.einsum("ti,tj->ij", few, few) / n
    square = max(np.square(product).sum() - trace**2 / n, trace**2 / increments.shape[1])
    freedom = trace**2 / square
    pvalue = special.chdtrc(freedom, ratio * freedom)
    halves = [squares[: n // 2], squares[n // 2 :]]
    first, second = (0.5 * np.log(half[half > 0]) for half in halves)
    if min(first.size, second.size) < 2 or first.std() + second.std() == 0:
        return Drift(float(ratio), float(pvalue), np.nan, np.nan)
    test = stats.ttest_ind(first, second, equal_var=False)
    scale = float(np.exp(second.mean() - first.mean()))
    return Drift(float(ratio), float(pvalue), scale, float(test.pvalue))


def judged(
    moved: Drift,
    *,
    rho: float,
    rho_pvalue: float,
    gof_pvalue: float,
    curvature: float,
    curvature_se: float,
    freedom: int,
    lipschitz_given: bool,
) -> list[Assumption]:
    """Return which assumptions hold, in the order of `ASSUMPTIONS`.

    What could not be computed is unchecked. No constant of a cover is known, and a trained
    network's weights depend on its data: these two always fail.
    """
    kept = not moved.scale_pvalue < LEVEL / 2 or 1 / SCALE < moved.scale_ratio < SCALE
    bend = special.stdtrit(freedom, 1 - LEVEL / 2) * curvature_se
    return [
        _verdict(moved.pvalue, moved.pvalue >= LEVEL / 2 and kept),
        _verdict(rho_pvalue, rho_pvalue >= LEVEL or abs(rho) < CORRELATION),
        _verdict(gof_pvalue, gof_pvalue >= LEVEL),
        _verdict(curvature, bool(abs(curvature) <= bend)),
        Assumption.UNCHECKED if lipschitz_given else Assumption.FAILS,
        Assumption.UNCHECKED,
        Assumption.FAILS,
        Assumption.FAILS,
    ]


def _verdict(evidence: float, holds: bool) -> Assumption:
    if not np.isfinite(evidence):
        return Assumption.UNCHECKED
    return Assumption.HOLDS if holds else Assumption.FAILS
