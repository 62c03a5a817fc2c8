"""Whether and when a bridge of an Ornstein-Uhlenbeck process crossed a boundary."""

from __future__ import annotations

import math

import numba

from tracelab.stats._levy_words import Key, normal, uniform

__all__ = ["bend", "crossing"]

# Crossings less likely than exp(-this) are not drawn.
_RARE = 30.0


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _passage(near: float, far: float, variance: float, key: Key) -> float:
    """Draw when a Brownian bridge that crossed a boundary first did, as a part of its time.

    Of the part p, ``p / (1 - p)`` is inverse Gaussian, of mean ``near / |far|`` and shape
    ``near^2 / variance``; drawn as by Michael, Schucany and Haas (1976).
    """
    mean = near / max(abs(far), 1e-12 * near)
    half = 0.5 * mean * variance * normal(key) ** 2 / (near * near)
    root = mean / (1.0 + half + math.sqrt(half * (2.0 + half)))
    ratio = root if uniform(key) * (mean + root) < mean else mean * (mean / root)
    return ratio / (1.0 + ratio)


@numba.njit(nogil=True, cache=True, error_model="numpy", inline="always")
def bend(before: float, after: float, edge: float, part: float) -> float:
    """Return three times what a way over the boundary adds to the mean square distance from 0.

    From one point to another over a point of the boundary, which the straight way to it reaches
    after that part of the time, and not straight. (Mean of a line from a to b: ``(a^2 + a b +
    b^2) / 3``.)
    """
    over = part * before * (before + edge) + (1.0 - part) * after * (after + edge) + edge * edge
    return over - before * before - after * (before + after)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def crossing(near: float, far: float, variance: float, pull: float, key: Key) -> float:
    r"""Draw when a path between two points first crossed a boundary: a part of its time, or 2.

    A Brownian bridge does with probability :math:`e^{-2 a b / v}`. Of a process in a well, paths
    have the density :math:`\exp(-\theta^2 \int x^2 dt / 2D)` with respect to it (Girsanov), which
    weighs less what has been further out. It is taken along the likeliest paths, straight to the
    boundary and straight on; that is to first order in :math:`\theta^2`.

    Parameters
    ----------
    near, far : float
        Distances from the boundary: a, positive, and b, negative beyond it.
    variance : float
        v, of a Brownian motion across the boundary in the time.
    pull : float
        What the well adds to the exponent: :math:`\theta^2 t / 6 D` times `bend`.
    key : ndarray of uint64, shape (2,)
        Of random numbers.
    """
    if far > 0.0:
        exponent = 2.0 * near * far / variance + pull
        if not exponent < _RARE or uniform(key) >= math.exp(-exponent):
            return 2.0
    return float(_passage(near, far, variance, key))
