"""Exits from an interval, from one large jump to the next: the kernel in one dimension.

What `tracelab.stats._levy_events.exits` does, draw by draw, without loops over coordinates.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

from tracelab.stats._levy_bridge import bend, crossing
from tracelab.stats._levy_jumps import Ladder
from tracelab.stats._levy_words import MANY, exponentials, normals, uniform
from tracelab.typing import Array, FloatArray

__all__ = ["exits"]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def exits(
    start: float,
    curvature: float,
    scale: float,
    low: float,
    high: float,
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
    start, curvature, scale, low, high : float
        Where replicas begin, the drift ``-curvature * x``, what jumps are multiplied by, and the
        interval.
    ladder, longest, max_time, max_steps, keys, block, times, places, censored
        As of `tracelab.stats._levy_events.exits`.
    """
    edge, rate, share, cutoff = ladder.edge[0], ladder.rate[0], ladder.share[0], ladder.cutoff[0]
    diffusion, safe, calm = ladder.diffusion[0], ladder.safe[0], ladder.calm[0]
    stride, short, relaxed = ladder.stride[0], ladder.short[0] ** 2, ladder.relaxed[0]
    atom, power = ladder.atom[0], ladder.power[0]
    gap = 1.0 / rate
    waits, steps = np.empty(MANY), np.empty(MANY)
    half_relaxed = 0.5 / curvature if curvature > 0.0 else math.inf
    bottom = min(-low, high) if curvature > 0.0 else math.inf
    one = np.uint64(1)
    rung = np.uint64(0)
    strides = 0
    for r in range(times.size):
        if r % block == 0:
            key = keys[r // block]
            waiting, step = waits.size, steps.size
        x, now, out, taken = start, 0.0, False, 0
        while now < max_time and taken < max_steps:
            taken += 1
            # At most two of the one and one of the other are used below.
            if waiting > MANY - 2:
                exponentials(key, waits)
                waiting = 0
            if step >= MANY:
                normals(key, steps)
                step = 0
            room = min(x - low, high - x)
            while room < edge[rung + one]:
                rung += one
            while rung > 0 and room >= edge[rung]:
                rung -= one
            clear, limit = math.inf, longest
            # On its way down the well a path may come nearer.
            nearest = min(room, bottom)
            square = nearest * nearest
            if nearest < calm[rung]:
                clear = square * safe[rung]
                limit = max(clear, min(max(square, short) * stride[rung], relaxed))
            if rung > 0 and curvature > 0.0:
                # Where there is more room, fewer jumps need be drawn.
                drift = curvature * abs(x)
                if limit * drift > room:
                    limit = room / drift
            time = waits[waiting] * gap[rung]
            waiting += 1
            jumps = time <= limit
            if not jumps:
                time = limit
            if now + time >= max_time:
                time, jumps = max_time - now, False
            before = x
            z = curvature * time
            gathered = diffusion[rung] * time
            if z > 0.0:
                factor = math.exp(-z)
                x *= factor
                if z > 1e-5:
                    gathered = diffusion[rung] * half_relaxed * (1.0 - factor) * (1.0 + factor)
            x += math.sqrt(gathered) * steps[step]
            step += 1
            if time > clear or not low < x < high:
                variance = diffusion[rung] * time
                pull = curvature * z / (6.0 * diffusion[rung])
                near, far = before - low, x - low
                over = bend(before, x, low, near / (near + abs(far)))
                part = crossing(near, far, variance, pull * over, key)
                near, far = high - before, high - x
                over = bend(before, x, high, near / (near + abs(far)))
                part = min(part, crossing(near, far, variance, pull * over, key))
                if part <= 1.0:
                    now += part * time
                    x = low if x - low < high - x else high
                    out = True
                    break
            now += time
            if not jumps:
                continue
            u = 2.0 * uniform(key)
            size = scale * cutoff[rung]
            if u >= 1.0:
                size, u = -size, u - 1.0
            if u < share[rung]:
                size *= math.exp(power * waits[waiting])
                waiting += 1
            else:
                size *= atom
            x += size
            if not low < x < high:
                out = True
                break
        strides += taken
        times[r], places[r], censored[r] = min(now, max_time), x, not out
    return strides
