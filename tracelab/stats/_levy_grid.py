"""Levy-driven equations on a grid of time, by Euler's scheme, for any potential and region."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from tracelab.stats._levy_models import Adam, Dynamics, Region, Underdamped
from tracelab.stats._stable_draws import rvs
from tracelab.typing import BoolArray, FloatArray

__all__ = ["exits", "isotropic", "states"]


def isotropic(alpha: float, shape: tuple[int, ...], rng: np.random.Generator) -> FloatArray:
    """Return draws of ``E exp(iu'X) = exp(-|u|^alpha)``, points along the last axis.

    A Gaussian vector times the root of one positive stable variable (Samorodnitsky & Taqqu 1994,
    proposition 2.5.2).
    """
    gaussian = rng.standard_normal(shape) * math.sqrt(2)
    if alpha == 2:
        return gaussian
    scale = math.cos(0.25 * math.pi * alpha) ** (2 / alpha)
    factor = rvs(0.5 * alpha, 1, scale=scale, size=shape[:-1], rng=rng)
    return gaussian * np.sqrt(factor)[..., None]


def _noise(alpha: FloatArray, together: bool) -> Callable[..., FloatArray]:
    if together:
        return lambda shape, rng: isotropic(float(alpha[0]), shape, rng)
    alphas = np.unique(alpha)

    def independent(shape: tuple[int, ...], rng: np.random.Generator) -> FloatArray:
        if alphas.size == 1:
            return rvs(float(alphas[0]), size=shape, rng=rng)
        out = np.empty(shape)
        for i, each in enumerate(alpha):
            out[..., i] = rvs(float(each), size=shape[:-1], rng=rng)
        return out

    return independent


def states(
    start: FloatArray,
    gradient: Callable[[FloatArray], FloatArray] | None,
    dynamics: Dynamics,
    alpha: FloatArray,
    scale: FloatArray,
    together: bool,
    step: float,
    clip: float,
    rng: np.random.Generator,
) -> Iterator[tuple[FloatArray, Callable[[BoolArray], None]]]:
    """Yield the points of all replicas after each step, and a function that keeps some of them.

    Parameters
    ----------
    start : ndarray, shape (replica, d)
        Where they begin.
    gradient : callable, optional
        Of the potential, at points; none without one.
    dynamics : Dynamics
        The equation.
    alpha, scale : ndarray, shape (d,)
        Of the noise.
    together : bool
        Whether it is isotropic before it is scaled, and not independent in each coordinate.
    step : float
        Of time.
    clip : float
        Largest norm of what a step adds to the variable that the noise drives; infinite for none.
    rng : numpy.random.Generator
        Source of randomness.
    """
    x = start.copy()
    second = np.zeros_like(x)
    draw = _noise(alpha, together)
    kick = scale * step ** (1 / alpha)
    shared = 1.0 if isinstance(dynamics, Underdamped) else np.asarray(dynamics.preconditioner)

    def keep(kept: BoolArray) -> None:
        nonlocal x, second
        x, second = x[kept], second[kept]

    while True:
        slope = np.zeros_like(x) if gradient is None else gradient(x)
        noise = kick * draw(x.shape, rng)
        if isinstance(dynamics, Underdamped):
            change = -step * (slope + dynamics.friction * second) + noise
            second = second + _clipped(change, clip)
            x = x + step * second
        else:
            if isinstance(dynamics, Adam):
                second = second + dynamics.rate * step * (slope - second)
                slope = second
            x = x + _clipped(shared * (noise - step * slope), clip)
        yield x, keep


def _clipped(change: FloatArray, clip: float) -> FloatArray:
    if math.isinf(clip):
        return change
    norm = np.linalg.norm(change, axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(norm > clip, change * (clip / norm), change)


def exits(
    walk: Iterator[tuple[FloatArray, Callable[[BoolArray], None]]],
    region: Region,
    step: float,
    max_time: float,
    max_steps: int,
    times: FloatArray,
    places: FloatArray,
    censored: BoolArray,
) -> None:
    """Write the first exit of each replica of `states`: the end of the step that leaves."""
    left = np.arange(times.size)
    most = max_steps if max_time / step > max_steps else math.ceil(max_time / step)
    done = 0
    while left.size and done != most:
        x, keep = next(walk)
        done += 1
        # A point that is no number has left too.
        out = ~region.contains(x)
        if out.any():
            gone = left[out]
            times[gone], places[gone], censored[gone] = done * step, x[out], False
            keep(~out)
            left = left[~out]
        if done == most:
            times[left], places[left] = min(max_time, done * step), x[~out]
