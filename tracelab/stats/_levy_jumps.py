"""What a stable process is made of at each distance from the boundary: jumps and a Brownian motion.

Jumps longer than a part of the room that is left are drawn one by one. The many below are a
Brownian motion (Asmussen & Rosinski 2001) and jumps of one length: with the weights of Gauss and
Radau's quadrature they have the same second, fourth and sixth cumulants. Where all that Brownian
motion ever gathers in a well stays far from the boundary, it has the second cumulant to itself.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import special

from tracelab.stats.escape import tail_constant
from tracelab.typing import FloatArray

__all__ = ["Ladder", "ladder"]

# Rungs are a factor apart, from a little less than all the room there is to a part of that at the
# start; sides that are infinitely far away leave room for as much more.
_APART = math.sqrt(2)
_TOP = 0.85
_LEAST = 0.04
_FAR = 1024.0
# A stride may spread by so much of the room, and always by so much of it at the start; of a
# relaxation time it takes one such part at most, as its bridge is Brownian (all in resolutions).
_SPREAD = 1.4
_SHORT = 0.2
_RELAXED = 0.6
# So many standard deviations from the boundary it is out of reach: at rest a particle gets there
# once in 4e14 relaxation times. Where jumps take particles out anyway, a part of them is enough.
_CLEAR = 8.0
_CLEAR_OF_JUMPS = 4.5
_RARER = 1e-4


class Ladder(NamedTuple):
    """What the process is made of, on rungs from much room to little.

    In boxes with independent noise every coordinate has a rung by its own room, and jumps by it
    (`group`); else all share one. Boxes have a boundary for every coordinate (`side`), balls one.

    Parameters
    ----------
    edge : ndarray, shape (group, rung + 1)
        Least room on a rung, after that of the one before it; first infinity, last -1.
    rate : ndarray, shape (group, rung)
        Jumps per unit of time.
    share : ndarray, shape (group, rung)
        Of them with Pareto's law; the others have one length.
    cutoff : ndarray, shape (group, rung)
        Least of Pareto's law, before it is scaled.
    atom, power : ndarray, shape (group,)
        The one length, in cutoffs; 1 / alpha.
    diffusion : ndarray, shape (d, rung)
        Variance of a coordinate's Brownian motion per unit of time.
    safe : ndarray, shape (side, rung)
        Over the square of the room: time in which no path reaches the boundary without jumps.
    calm : ndarray, shape (side, rung)
        Room with which none ever does.
    stride : ndarray, shape (side, rung)
        Time of a stride otherwise, over the square of the room.
    widening : ndarray, shape (rung,)
        Of a ball: longest time of a stride over the room, by which all coordinates together take a
        point outwards.
    short : ndarray, shape (side,)
        Strides are not shorter than with this much room.
    relaxed : ndarray, shape (side,)
        Longest time of a stride with a boundary in reach.
    """

    edge: FloatArray
    rate: FloatArray
    share: FloatArray
    cutoff: FloatArray
    atom: FloatArray
    power: FloatArray
    diffusion: FloatArray
    safe: FloatArray
    calm: FloatArray
    stride: FloatArray
    widening: FloatArray
    short: FloatArray
    relaxed: FloatArray


def ladder(
    alpha: FloatArray,
    scale: FloatArray,
    curvature: FloatArray,
    half: FloatArray,
    room: FloatArray,
    weight: FloatArray | None,
    together: bool,
    resolution: float,
) -> Ladder:
    """Return the ladder of a process in a region.

    Parameters
    ----------
    alpha, scale, curvature : ndarray, shape (d,)
        Of the process.
    half, room : ndarray, shape (d,) or (1,)
        All the room that there is, half a width or infinity, and that at the start: of each
        coordinate of a box, of a ball in weighted units.
    weight : ndarray, shape (d,), optional
        Of a ball; none for a box.
    together : bool
        Whether the noise is isotropic.
    resolution : float
        Least jump drawn by itself, in units of the room.
    """
    dim = scale.size
    groups, noise_dim = (1, dim) if together else (dim, 1)
    # Room on a group's rungs, and what a jump of unit length takes of it.
    most, begin, taken = half, room, scale
    if weight is not None:
        taken = scale * np.sqrt(weight)
    if together:
        if weight is None:
            most, begin, taken = (
                np.min(x, keepdims=True) for x in (half / scale, room / scale, scale / scale)
            )
        else:
            taken = np.max(taken, keepdims=True)
    # Sides at infinity set no scale.
    begin = np.where(np.isfinite(begin), begin, min(float(np.min(begin)), 1.0))
    most = np.where(np.isfinite(most), _TOP * most, _FAR * begin)
    rungs = 1 + math.ceil(np.max(np.log(most / (_LEAST * resolution * begin))) / math.log(_APART))
    edge = most[:, None] / _APART ** np.arange(rungs) * np.ones((groups, 1))
    cutoff = resolution * edge / taken[:, None]

    a = alpha[:groups, None]
    above = tail_constant(a, noise_dim) * cutoff**-a
    below = _second_moment(a, cutoff, noise_dim)
    slowest, steepest = float(np.sum(above[:, 0])), float(np.max(curvature))
    clear = _CLEAR_OF_JUMPS
    if steepest > 0:
        rarer = 2 * math.log(max(steepest / (_RARER * slowest), 1.0)) if slowest > 0 else math.inf
        clear = min(_CLEAR, max(clear, math.sqrt(rarer)))
    by_side = edge * scale[:, None] if together and weight is None else edge[: half.size]

    def diffusion(moment: FloatArray) -> FloatArray:
        return scale[:, None] ** 2 * moment / noise_dim

    safe, calm = _reach(diffusion(below), curvature, weight, clear)
    if together or weight is not None:
        still = np.all(by_side >= calm, axis=0, keepdims=True)
    else:
        still = by_side >= calm
    # Gauss and Radau's nodes 0 and z on (0, 1) for s^(-alpha / 2), and the weight of z.
    h = 0.5 * a
    z = (2 - h) / (3 - h)
    part = np.where(still, 0.0, (3 - h) / (2 - h) ** 2 * (1 - h))
    rate = above + part * below / (z * cutoff**2)
    spread = diffusion((1 - part) * below)
    safe, calm = _reach(spread, curvature, weight, clear)
    weighted = spread if weight is None else spread * weight[:, None]
    fastest = weighted if weight is None else np.max(weighted, axis=0, keepdims=True)
    reach = resolution * _SPREAD
    with np.errstate(divide="ignore"):
        relaxed = resolution * _RELAXED / (curvature if weight is None else np.array([steepest]))
    return Ladder(
        edge=np.hstack([np.full((groups, 1), np.inf), edge[:, :-1], np.full((groups, 1), -1.0)]),
        rate=rate,
        share=np.divide(above, rate, out=np.ones_like(rate), where=rate > 0),
        cutoff=cutoff,
        atom=np.sqrt(z[:, 0]),
        power=1 / alpha[:groups],
        diffusion=spread,
        safe=safe,
        calm=calm,
        stride=reach**2 / fastest,
        widening=reach / np.sum(weighted, axis=0),
        short=resolution * _SHORT * np.minimum(room, half),
        relaxed=relaxed,
    )


def _second_moment(alpha: FloatArray, cutoff: FloatArray, dim: int) -> FloatArray:
    """Return the mean square per unit of time of isotropic jumps below a cutoff."""
    # alpha C / (2 - alpha), regular at alpha = 2.
    factor = (
        0.5
        * alpha
        * 2**alpha
        * special.gamma((dim + alpha) / 2)
        / special.gamma(dim / 2)
        * special.rgamma(2 - alpha / 2)
    )
    found: FloatArray = factor * cutoff ** (2 - alpha)
    return found


def _reach(
    diffusion: FloatArray, curvature: FloatArray, weight: FloatArray | None, clear: float
) -> tuple[FloatArray, FloatArray]:
    """Return `safe` and `calm` of a ladder."""
    with np.errstate(divide="ignore"):
        settled = 0.5 * diffusion / curvature[:, None]
    if weight is None:
        return 1 / (clear**2 * diffusion), clear * np.sqrt(settled)

    def distance(variance: FloatArray) -> FloatArray:
        # In one direction so many standard deviations, in the others the root of the mean square.
        weighted = weight[:, None] * variance
        largest = np.max(weighted, axis=0, keepdims=True)
        if not np.isfinite(largest).all():
            return np.full_like(largest, np.inf)
        rest = np.maximum(np.sum(weighted, axis=0, keepdims=True) - largest, 0)
        found: FloatArray = clear * np.sqrt(largest) + np.sqrt(rest)
        return found

    return 1 / distance(diffusion) ** 2, distance(settled)
