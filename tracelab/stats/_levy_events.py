"""Exits of Ornstein-Uhlenbeck and free Levy processes, from one large jump to the next.

Jumps above a cutoff come as a Poisson process and are drawn one by one; the many below it are a
Brownian motion of the same variance (Asmussen & Rosinski 2001). Between large jumps the process is
then Gaussian and advanced exactly: in one stride where it cannot reach the boundary, in short ones
with the probability of a crossing in between where it can.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from scipy import special

from tracelab.stats._levy_models import (
    Ball,
    Box,
    DoubleWell,
    Dynamics,
    Overdamped,
    Potential,
    Quadratic,
    Region,
)
from tracelab.stats.escape import tail_constant
from tracelab.typing import Array, BoolArray, FloatArray

__all__ = ["BALL", "BOX", "exits", "simulate"]

BOX, BALL = 0, 1
"""Kinds of region: sides of their own in every coordinate; a ball in weighted coordinates."""

# So many standard deviations from the boundary a stride is taken at once, of up to so many
# relaxation times: in one of these a particle at rest gets there with a probability of 4e-14.
_CLEAR = 8.0
_LONG = 1e4
# Nearer, one that covers a third of the distance, so that the time of a crossing is known well.
_NEAR = 3.0
# Over more of a relaxation time than this the probability of a crossing is not a Brownian one.
_RELAXED = 0.1
# Crossings less likely than exp(-this) are not drawn.
_RARE = 30.0


@numba.njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _growth(curvature: float, time: float) -> tuple[float, float]:
    """Return the factor of a mean over a time, and the variance gathered of a unit diffusion."""
    z = curvature * time
    if abs(z) < 1e-8:
        return 1.0 - z, time * (1.0 - z)
    return math.exp(-z), -math.expm1(-2.0 * z) / (2.0 * curvature)


@numba.njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _room(x: FloatArray, kind: int, low: FloatArray, high: FloatArray) -> float:
    """Return how far the boundary is from x: in a ball of weights `high`, in weighted units."""
    if kind == BOX:
        room = math.inf
        for i in range(x.size):
            room = min(room, x[i] - low[i], high[i] - x[i])
        return room
    square = 0.0
    for i in range(x.size):
        square += high[i] * x[i] * x[i]
    return 1.0 - math.sqrt(square)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _crosses(
    before: FloatArray,
    after: FloatArray,
    variance: FloatArray,
    kind: int,
    low: FloatArray,
    high: FloatArray,
    rng: Any,
) -> bool:
    """Draw whether a path between two points within crossed the boundary: a Brownian bridge."""
    if kind == BOX:
        for i in range(before.size):
            if variance[i] <= 0.0:
                continue
            for side in range(2):
                if side == 0:
                    near, far = before[i] - low[i], after[i] - low[i]
                else:
                    near, far = high[i] - before[i], high[i] - after[i]
                exponent = 2.0 * near * far / variance[i]
                if exponent < _RARE and rng.random() < math.exp(-exponent):
                    return True
        return False
    # Across a sphere a short stride sees a plane.
    first = _room(before, kind, low, high)
    second = _room(after, kind, low, high)
    total, weight = 0.0, 0.0
    for i in range(before.size):
        at = high[i] * before[i]
        total += at * at * variance[i]
        weight += at * before[i]
    if total <= 0.0:
        return False
    exponent = 2.0 * first * second * weight / total
    return exponent < _RARE and rng.random() < math.exp(-exponent)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _to_boundary(x: FloatArray, kind: int, low: FloatArray, high: FloatArray) -> None:
    """Move a point near the boundary onto it, where a continuous path has crossed."""
    if kind == BALL:
        norm = 1.0 - _room(x, kind, low, high)
        if norm > 0.0:
            x /= norm
        return
    least, which, side = math.inf, 0, 0.0
    for i in range(x.size):
        for edge in (low[i], high[i]):
            room = edge - x[i] if edge == high[i] else x[i] - edge
            if room < least:
                least, which, side = room, i, edge
    x[which] = side


@numba.njit(nogil=True, cache=True, error_model="numpy")
def exits(
    start: FloatArray,
    curvature: FloatArray,
    diffusion: FloatArray,
    rate: FloatArray,
    cutoff: FloatArray,
    alpha: FloatArray,
    scale: FloatArray,
    isotropic: bool,
    kind: int,
    low: FloatArray,
    high: FloatArray,
    stride: float,
    max_time: float,
    max_steps: int,
    rng: Any,
    times: FloatArray,
    places: FloatArray,
    censored: Array,
) -> None:
    """Write the time and place of each replica's first exit.

    Parameters
    ----------
    start : ndarray, shape (d,)
        Where every replica begins, within the region.
    curvature : ndarray, shape (d,)
        Of the potential: the drift is ``-curvature * x``.
    diffusion : ndarray, shape (d,)
        Variance of the Gaussian part per unit of time.
    rate : ndarray, shape (d,) or (1,)
        Jumps above the cutoff per unit of time: of each coordinate, or of all together if
        isotropic.
    cutoff, alpha : ndarray, as `rate`
        Least size of these jumps before they are scaled, and their tail index.
    scale : ndarray, shape (d,)
        What jumps are multiplied by.
    isotropic : bool
        Whether a jump has a uniform direction, and not that of a coordinate.
    kind : int
        `BOX`, from `low` to `high`; or `BALL`, where ``sum(high * x^2) < 1``.
    low, high : ndarray, shape (d,)
        The region.
    stride : float
        Shortest time that is crossed at once.
    max_time, max_steps : float, int
        Replicas still within are censored then, or after so many strides.
    rng : numpy.random.Generator
        Source of randomness.
    times, places, censored : ndarray, shape (replica,), (replica, d), (replica,)
        Written.
    """
    d = start.size
    x, before, variance = np.empty(d), np.empty(d), np.empty(d)
    direction = np.empty(d)
    total = 0.0
    for i in range(rate.size):
        total += rate[i]
    # Variance per unit of time, and all that ever gathers, as far as the boundary sees them.
    speed, settled, steepest = 0.0, 0.0, 0.0
    for i in range(d):
        steepest = max(steepest, curvature[i])
        weight = 1.0 if kind == BOX else high[i]
        here = weight * diffusion[i]
        at_rest = 0.0
        if here > 0.0:
            at_rest = 0.5 * here / curvature[i] if curvature[i] > 0.0 else math.inf
        if kind == BOX:
            speed, settled = max(speed, here), max(settled, at_rest)
        else:
            speed, settled = speed + here, settled + at_rest
    if steepest > 0.0:
        stride = min(stride, _RELAXED / steepest)
    for r in range(times.size):
        x[:] = start
        now, out, taken = 0.0, False, 0
        while not out and now < max_time and taken < max_steps:
            gap = rng.standard_exponential() / total if total > 0.0 else math.inf
            jumps = now + gap < max_time
            end = now + gap if jumps else max_time
            while now < end and not out and taken < max_steps:
                taken += 1
                room = _room(x, kind, low, high)
                time = end - now
                checked = room * room < _CLEAR**2 * min(speed * time, settled)
                if steepest > 0.0:
                    time = min(time, _LONG / steepest)
                if checked:
                    time = min(time, max((room / _NEAR) ** 2 / speed, stride))
                    if steepest > 0.0:
                        time = min(time, _RELAXED / steepest)
                for i in range(d):
                    before[i] = x[i]
                    factor, gathered = _growth(curvature[i], time)
                    variance[i] = diffusion[i] * gathered
                    x[i] *= factor
                    if variance[i] > 0.0:
                        x[i] += math.sqrt(variance[i]) * rng.standard_normal()
                out = _room(x, kind, low, high) <= 0.0
                if not out and checked:
                    out = _crosses(before, x, variance, kind, low, high, rng)
                now = now + 0.5 * time if out else now + time
            if out:
                _to_boundary(x, kind, low, high)
            if out or not jumps or now < end:
                continue
            now = end
            which, point = 0, rng.random() * total
            while which < rate.size - 1 and point >= rate[which]:
                point -= rate[which]
                which += 1
            size = cutoff[which] * (1.0 - rng.random()) ** (-1.0 / alpha[which])
            if isotropic:
                norm = 0.0
                for i in range(d):
                    direction[i] = rng.standard_normal()
                    norm += direction[i] * direction[i]
                norm = math.sqrt(norm)
                for i in range(d):
                    x[i] += scale[i] * size * direction[i] / norm
            else:
                x[which] += scale[which] * (size if rng.random() < 0.5 else -size)
            out = _room(x, kind, low, high) <= 0.0
        times[r] = min(now, max_time)
        places[r] = x
        censored[r] = not out


def simulate(
    alpha: FloatArray,
    scale: FloatArray,
    noise: str,
    potential: Potential | Quadratic | DoubleWell | None,
    region: Region,
    start: FloatArray,
    dynamics: Dynamics,
    resolution: float,
    max_time: float,
    max_steps: int,
    rng: np.random.Generator,
    times: FloatArray,
    places: FloatArray,
    censored: BoolArray,
) -> None:
    """Write the exits of replicas, as `exits` does, of what `tracelab.stats.levy` was given.

    `resolution` is the least jump that is drawn by itself, in units of the region's half width.
    """
    dim = start.size
    assert isinstance(dynamics, Overdamped)
    factor = np.broadcast_to(np.asarray(dynamics.preconditioner, dtype=np.float64), dim)
    scales = scale * factor
    curvature = np.zeros(dim)
    if isinstance(potential, Quadratic):
        curvature = np.asarray(potential.curvature, dtype=np.float64) * factor
    if isinstance(region, Box):
        kind = BOX
        low, high = (
            np.broadcast_to(side, dim).astype(np.float64) for side in (region.low, region.high)
        )
        room, half = np.minimum(start - low, high - start), 0.5 * (high - low)
    else:
        assert isinstance(region, Ball)
        kind, low = BALL, np.zeros(dim)
        high = np.broadcast_to(region.weight, dim).astype(np.float64)
        half = 1 / np.sqrt(high)
        room = (1 - math.sqrt(np.sum(high * start**2))) * half
    # Between the size of the region and what is left of it at the start.
    room = np.where(np.isfinite(half), np.sqrt(room * half), room)
    # A side that is nowhere near sets no scale.
    nearest = np.where(np.isfinite(room), room, np.min(room))
    if noise == "isotropic":
        cutoff = np.array([resolution * np.min(nearest / scales)])
        alpha = alpha[:1]
        tail = tail_constant(alpha, dim)
        variance = np.repeat(_small_jumps(alpha, cutoff, dim), dim)
    else:
        cutoff = resolution * nearest / scales
        tail = tail_constant(alpha)
        variance = _small_jumps(alpha, cutoff, 1)
    diffusion = variance * scales**2
    rate = tail * cutoff**-alpha
    weight = np.max(diffusion / nearest**2)
    stride = math.inf if weight == 0 else float((2 * resolution) ** 2 / weight)
    exits(
        start, curvature, diffusion, rate, cutoff, alpha, scales, noise == "isotropic", kind, low,
        high, stride, max_time, max_steps, rng, times, places, censored,
    )  # fmt: skip


def _small_jumps(alpha: FloatArray, cutoff: FloatArray, dim: int) -> FloatArray:
    """Return the variance per unit of time of a coordinate's jumps below the cutoff."""
    # alpha C / (2 - alpha), regular at alpha = 2.
    factor = (
        0.5
        * alpha
        * 2**alpha
        * special.gamma((dim + alpha) / 2)
        / special.gamma(dim / 2)
        * special.rgamma(2 - alpha / 2)
    )
    found: FloatArray = factor * cutoff ** (2 - alpha) / dim
    return found
