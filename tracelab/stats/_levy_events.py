"""Exits of Ornstein-Uhlenbeck and free Levy processes, from one large jump to the next.

Jumps that are large beside the room that is left come as a Poisson process and are drawn one by
one; the others are mostly a Brownian motion (`tracelab.stats._levy_jumps`). Between jumps the
process is then Gaussian and advanced exactly: in one stride where it cannot reach the boundary, in
short ones with the probability of a crossing in between where it can.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

from tracelab.stats import _levy_interval
from tracelab.stats._levy_bridge import bend, crossing
from tracelab.stats._levy_jumps import Ladder, ladder
from tracelab.stats._levy_models import (
    Ball,
    Box,
    DoubleWell,
    Dynamics,
    Overdamped,
    Potential,
    Quadratic,
    Region,
    Sublevel,
)
from tracelab.stats._levy_words import MANY, Key, exponentials, normals, uniform
from tracelab.stats._stable_inverse import new_keys
from tracelab.typing import Array, BoolArray, FloatArray

__all__ = ["BALL", "BOX", "as_ball", "exits", "simulate"]

BOX, BALL = 0, 1
"""Kinds of region: sides of their own in every coordinate; a ball in weighted coordinates."""

# Longest stride, in relaxation times.
_LONG = 1e4
# With more room than this part of a radius, strides in a ball are as with this: over longer ones
# the sphere is no plane.
_FLAT = 0.36


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _norm(x: FloatArray, weight: FloatArray) -> float:
    square = 0.0
    for i in range(x.size):
        square += weight[i] * x[i] * x[i]
    return math.sqrt(square)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _within(x: FloatArray, kind: int, low: FloatArray, high: FloatArray) -> bool:
    if kind == BOX:
        within = True
        for i in range(x.size):
            within = within and low[i] < x[i] < high[i]
        return within
    return _norm(x, high) < 1.0


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _leave_box(
    before: FloatArray,
    x: FloatArray,
    curvature: FloatArray,
    diffusion: FloatArray,
    time: float,
    low: FloatArray,
    high: FloatArray,
    key: Key,
) -> float:
    """Draw when a path between two points first left a box, as `crossing`; x is then there."""
    first, which, side = 2.0, 0, 0.0
    for i in range(x.size):
        variance = diffusion[i] * time
        pull = curvature[i] * (curvature[i] * time) / (6.0 * diffusion[i])
        part = 2.0
        if low[i] > -math.inf:
            near, far = before[i] - low[i], x[i] - low[i]
            over = bend(before[i], x[i], low[i], near / (near + abs(far)))
            part = crossing(near, far, variance, pull * over, key)
        if high[i] < math.inf:
            near, far = high[i] - before[i], high[i] - x[i]
            over = bend(before[i], x[i], high[i], near / (near + abs(far)))
            part = min(part, crossing(near, far, variance, pull * over, key))
        if part < first:
            first, which = part, i
            side = low[i] if x[i] - low[i] < high[i] - x[i] else high[i]
    if first <= 1.0:
        x[which] = side
    return first


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _leave_ball(
    before: FloatArray,
    x: FloatArray,
    curvature: FloatArray,
    diffusion: FloatArray,
    time: float,
    weight: FloatArray,
    at: FloatArray,
    key: Key,
) -> float:
    """Draw when a path between two points first left a ball, as `crossing`; x is then there.

    Across a sphere a short stride sees a plane.
    """
    near, far = 1.0 - _norm(before, weight), 1.0 - _norm(x, weight)
    part = near / (near + abs(far))
    for i in range(x.size):
        at[i] = before[i] + part * (x[i] - before[i])
    norm = _norm(at, weight)
    variance, pull = 0.0, 0.0
    for i in range(x.size):
        at[i] /= norm
        variance += (weight[i] * at[i]) ** 2 * diffusion[i]
        if curvature[i] > 0.0:
            over = bend(before[i], x[i], at[i], part)
            pull += curvature[i] * (curvature[i] * time) / (6.0 * diffusion[i]) * over
    first = crossing(near, far, variance * time, pull, key)
    if first <= 1.0:
        x /= _norm(x, weight)
    return first


@numba.njit(nogil=True, cache=True, error_model="numpy")
def exits(
    start: FloatArray,
    curvature: FloatArray,
    scale: FloatArray,
    together: bool,
    kind: int,
    low: FloatArray,
    high: FloatArray,
    ladder: Ladder,
    longest: float,
    max_time: float,
    max_steps: int,
    keys: NDArray[np.uint64],
    block: int,
    times: FloatArray,
    places: FloatArray,
    censored: Array,
) -> int:
    """Write the time and place of each replica's first exit; return how many strides they took.

    Parameters
    ----------
    start, curvature, scale : ndarray, shape (d,)
        Where every replica begins, within the region; the drift is ``-curvature * x``; and what
        jumps are multiplied by.
    together : bool
        Whether a jump has a uniform direction, and not that of a coordinate.
    kind : int
        `BOX`, from `low` to `high`; or `BALL`, where ``sum(high * x^2) < 1``.
    low, high : ndarray, shape (d,)
        The region.
    ladder : Ladder
        Jumps and Brownian motion.
    longest : float
        Longest time of a stride.
    max_time, max_steps : float, int
        Replicas still within are censored then, or after so many strides.
    keys, block : ndarray of uint64, shape (ceil(replica / block), 2), and int
        Of random numbers of so many replicas each; moved on.
    times, places, censored : ndarray, shape (replica,), (replica, d), (replica,)
        Written.
    """
    edge, rate, share, cutoff = ladder.edge, ladder.rate, ladder.share, ladder.cutoff
    speeds, safe, calm, stride = ladder.diffusion, ladder.safe, ladder.calm, ladder.stride
    widening, short, relaxed = ladder.widening, ladder.short, ladder.relaxed
    atom, power = ladder.atom, ladder.power
    d, groups = start.size, rate.shape[0]
    apart = groups if kind == BOX else 1
    x, before, direction = np.empty(d), np.empty(d), np.empty(d)
    diffusion = np.empty(d)
    steepest = np.max(curvature)
    rung = np.zeros(groups, dtype=np.int64)
    waits, steps = np.empty(MANY), np.empty(max(MANY, d))
    strides = 0
    for r in range(times.size):
        if r % block == 0:
            key = keys[r // block]
            waiting, step = waits.size, steps.size
        x[:] = start
        now, out, taken = 0.0, False, 0
        while now < max_time and taken < max_steps:
            taken += 1
            # At most two of the one and one for each coordinate of the other are used below.
            if waiting > waits.size - 2:
                exponentials(key, waits)
                waiting = 0
            if step > steps.size - d:
                normals(key, steps)
                step = 0
            norm, common = 0.0, math.inf
            if kind == BALL:
                norm = _norm(x, high)
                common = 1.0 - norm
            elif together:
                for i in range(d):
                    common = min(common, min(x[i] - low[i], high[i] - x[i]) / scale[i])
            total = 0.0
            for g in range(groups):
                if g < apart:
                    room = common
                    if apart > 1 or not (together or kind == BALL):
                        room = min(x[g] - low[g], high[g] - x[g])
                    k = rung[g]
                    while room < edge[g, k + 1]:
                        k += 1
                    while k > 0 and room >= edge[g, k]:
                        k -= 1
                rung[g] = k
                total += rate[g, k]
            clear, limit = math.inf, longest
            if kind == BALL:
                k = rung[0]
                if common < calm[0, k]:
                    square = common * common
                    clear = square * safe[0, k]
                    wide = max(common, short[0])
                    flat = min(wide, _FLAT)
                    time = min(flat * flat * stride[0, k], wide * widening[k])
                    limit = max(clear, min(time, relaxed[0]))
                if k > 0 and steepest > 0.0:
                    drift = 0.0
                    for i in range(d):
                        drift += high[i] * curvature[i] * x[i] * x[i]
                    # Where there is more room, fewer jumps need be drawn.
                    if limit * drift > common * norm:
                        limit = common * norm / drift
            else:
                for i in range(d):
                    k = rung[0] if together else rung[i]
                    room = min(x[i] - low[i], high[i] - x[i])
                    # On its way down the well a path may come nearer.
                    nearest = min(room, min(-low[i], high[i])) if curvature[i] > 0.0 else room
                    if nearest < calm[i, k]:
                        square = nearest * nearest
                        here = square * safe[i, k]
                        clear = min(clear, here)
                        square = max(square, short[i] ** 2)
                        time = min(square * stride[i, k], relaxed[i])
                        limit = min(limit, max(here, time))
                    if k > 0 and curvature[i] > 0.0:
                        drift = curvature[i] * abs(x[i])
                        if limit * drift > room:
                            limit = room / drift
            time = waits[waiting] * (1.0 / total)
            waiting += 1
            jumps = time <= limit
            if not jumps:
                time = limit
            if now + time >= max_time:
                time, jumps = max_time - now, False
            for i in range(d):
                k = rung[0] if together else rung[i]
                diffusion[i] = speeds[i, k]
                before[i] = x[i]
                gathered = diffusion[i] * time
                z = curvature[i] * time
                if z > 0.0:
                    factor = math.exp(-z)
                    x[i] *= factor
                    if z > 1e-5:
                        gathered = (
                            diffusion[i] * (0.5 / curvature[i]) * (1.0 - factor) * (1.0 + factor)
                        )
                x[i] += math.sqrt(gathered) * steps[step + i]
            step += d
            if time > clear or not _within(x, kind, low, high):
                if kind == BOX:
                    part = _leave_box(before, x, curvature, diffusion, time, low, high, key)
                else:
                    part = _leave_ball(before, x, curvature, diffusion, time, high, direction, key)
                if part <= 1.0:
                    now += part * time
                    out = True
                    break
            now += time
            if not jumps:
                continue
            g = 0
            if groups > 1:
                point = uniform(key) * total
                while g < groups - 1 and point >= rate[g, rung[g]]:
                    point -= rate[g, rung[g]]
                    g += 1
            k = rung[g]
            u = 2.0 * uniform(key)
            sign = 1.0
            if u >= 1.0:
                sign, u = -1.0, u - 1.0
            size = cutoff[g, k]
            if u < share[g, k]:
                size *= math.exp(power[g] * waits[waiting])
                waiting += 1
            else:
                size *= atom[g]
            if together and d > 1:
                if step > steps.size - d:
                    normals(key, steps)
                    step = 0
                square = 0.0
                for i in range(d):
                    direction[i] = steps[step + i]
                    square += direction[i] * direction[i]
                step += d
                size /= math.sqrt(square)
                for i in range(d):
                    x[i] += scale[i] * size * direction[i]
            else:
                x[g] += sign * (scale[g] * size)
            if not _within(x, kind, low, high):
                out = True
                break
        strides += taken
        times[r] = min(now, max_time)
        places[r] = x
        censored[r] = not out
    return strides


def as_ball(region: Region) -> Region:
    """Return the ellipsoid that a level of a quadratic potential is, and other regions as is."""
    if not (isinstance(region, Sublevel) and isinstance(region.potential, Quadratic)):
        return region
    curvature = np.asarray(region.potential.curvature, dtype=np.float64)
    if not (region.level > 0 and (curvature > 0).all()):
        return region
    return Ball(math.sqrt(2 * region.level), 1 / np.sqrt(curvature))


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
    block: int,
    times: FloatArray,
    places: FloatArray,
    censored: BoolArray,
) -> int:
    """Write the exits of replicas, as `exits` does, of what `tracelab.stats.levy` was given.

    `resolution` is the least jump that is drawn by itself, in units of the room to the boundary.
    """
    dim = start.size
    region = as_ball(region)
    assert isinstance(dynamics, Overdamped)
    factor = np.broadcast_to(np.asarray(dynamics.preconditioner, dtype=np.float64), dim)
    scales = scale * factor
    curvature = np.zeros(dim)
    if isinstance(potential, Quadratic):
        curvature = np.asarray(potential.curvature, dtype=np.float64) * factor
    steepest = float(np.max(curvature))
    longest = _LONG / steepest if steepest > 0 else math.inf
    together = noise == "isotropic" and dim > 1
    if isinstance(region, Ball) and dim > 1:
        kind, low = BALL, np.zeros(dim)
        high = np.full(dim, region.weight)
        half = np.ones(1)
        room = half - math.sqrt(np.sum(high * start**2))
        rungs = ladder(alpha, scales, curvature, half, room, high, together, resolution)
    else:
        if isinstance(region, Ball):
            edge = 1 / np.sqrt(np.broadcast_to(region.weight, dim))
            region = Box(-edge, edge)
        assert isinstance(region, Box)
        kind = BOX
        low, high = (np.full(dim, side, dtype=np.float64) for side in (region.low, region.high))
        half, room = 0.5 * (high - low), np.minimum(start - low, high - start)
        rungs = ladder(alpha, scales, curvature, half, room, None, together, resolution)
    keys = new_keys(-(-times.size // block), rng)
    if dim == 1:
        return int(_levy_interval.exits(
            start[0], curvature[0], scales[0], low[0], high[0], rungs, longest, max_time,
            max_steps, keys, block, times, places[:, 0], censored,
        ))  # fmt: skip
    return int(exits(
        start, curvature, scales, together, kind, low, high, rungs, longest, max_time, max_steps,
        keys, block, times, places, censored,
    ))  # fmt: skip
