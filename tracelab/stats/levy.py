r"""Levy-driven stochastic differential equations: draws, paths, and first exits from a region.

Convention: in a unit of time the noise has ``E exp(iuL) = exp(-|u|^alpha)`` in every coordinate, so
that ``alpha = 2`` is a Brownian motion of variance 2 per unit of time. ``scale`` multiplies it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy import special

from tracelab.errors import UsageError
from tracelab.stats import _levy_events, _levy_grid
from tracelab.stats._confidence import check_confidence
from tracelab.stats._levy_models import (
    Adam,
    Ball,
    Box,
    DoubleWell,
    Dynamics,
    Overdamped,
    Potential,
    Quadratic,
    Region,
    Sublevel,
    Underdamped,
    positive,
)
from tracelab.stats._stable_draws import rvs
from tracelab.stats._stable_parameters import check_laws
from tracelab.stats.survival import mean_time
from tracelab.typing import BoolArray, FloatArray

__all__ = [
    "Adam",
    "Ball",
    "Box",
    "DoubleWell",
    "ExitTimes",
    "Overdamped",
    "Potential",
    "Quadratic",
    "Sublevel",
    "Underdamped",
    "draws",
    "exit_times",
    "mean_exit_time",
    "paths",
]

Method = Literal["auto", "events", "grid"]
Noise = Literal["independent", "isotropic"]

# Replicas that share a stream of random numbers: results do not depend on how many workers run.
_BLOCK = 256
_GRID_STEP = 1e-3
_RESOLUTION = 0.5


def draws(
    alpha: npt.ArrayLike,
    dim: int,
    size: int | tuple[int, ...] = (),
    noise: Noise = "independent",
    rng: np.random.Generator | None = None,
) -> FloatArray:
    """Return draws of a multivariate symmetric stable law of scale 1.

    Parameters
    ----------
    alpha : array_like
        Tail index in (0, 2]; of each coordinate if they are independent.
    dim : int
        Coordinates.
    size : int or tuple of int
        Shape of the points.
    noise : {"independent", "isotropic"}
        Coordinates that are independent, or a law that no rotation changes: it has the
        characteristic function ``exp(-|u|^alpha)``, and each coordinate has scale 1.
    rng : numpy.random.Generator, optional
        Source of randomness; a fresh one by default.

    Returns
    -------
    ndarray of float64, shape (\\*size, dim)

    Raises
    ------
    UsageError
        If an argument is outside its range.

    References
    ----------
    Samorodnitsky, Taqqu, Stable Non-Gaussian Random Processes, 1994, proposition 2.5.2.
    """
    _check_count("dim", dim)
    alphas = _alphas(alpha, dim, noise)
    rng = np.random.default_rng() if rng is None else rng
    shape = (*((size,) if isinstance(size, int | np.integer) else tuple(size)), dim)
    if noise == "isotropic":
        return _levy_grid.isotropic(float(alphas[0]), shape, rng)
    if np.ptp(alphas) == 0:
        return rvs(float(alphas[0]), size=shape, rng=rng)
    return np.stack([rvs(float(each), size=shape[:-1], rng=rng) for each in alphas], axis=-1)


def mean_exit_time(
    alpha: npt.ArrayLike,
    radius: npt.ArrayLike = 1.0,
    start: npt.ArrayLike = 0.0,
    dim: int = 1,
) -> FloatArray:
    r"""Return the exact mean time in which free isotropic stable noise leaves a ball.

    .. math:: E_x \tau = \frac{\Gamma(d/2)}{2^\alpha\, \Gamma(1 + \alpha/2)\,
       \Gamma((d + \alpha)/2)} \, (a^2 - |x|^2)^{\alpha/2}

    In one dimension the factor is :math:`1 / \Gamma(1 + \alpha)`.

    Parameters
    ----------
    alpha : array_like
        Tail index in (0, 2].
    radius : array_like
        Of the ball.
    start : array_like
        Distance of the start from its centre, at most the radius.
    dim : int
        Dimensions.

    Returns
    -------
    ndarray of float64

    Raises
    ------
    UsageError
        If an argument is outside its range.

    References
    ----------
    Getoor, "First passage times for symmetric stable processes in space", Transactions of the AMS
    101, 1961, theorem 5.2.

    Examples
    --------
    >>> round(float(mean_exit_time(2.0)), 6)
    0.5
    """
    _check_count("dim", dim)
    a = check_laws(alpha, 0, 1)[0]
    width = positive("radius", radius)
    away = np.asarray(start, dtype=np.float64)
    if not (np.abs(away) <= width).all():
        raise UsageError(f"start must be within the radius {radius!r}, got {start!r}")
    factor = special.gamma(dim / 2) / (
        2**a * special.gamma(1 + a / 2) * special.gamma((dim + a) / 2)
    )
    return np.asarray(factor * (width**2 - away**2) ** (a / 2))


@dataclass(frozen=True, slots=True)
class ExitTimes:
    """First exits of replicas.

    Parameters
    ----------
    mean, mean_se : float
        Mean time and its standard error. With censored replicas, the time of all over the number of
        exits: the mean if exits come at a constant rate (see `tracelab.stats.survival`).
    mean_low, mean_high : float
        Interval: Student's; with censored replicas that of a constant rate.
    times : ndarray of float64, shape (replica,)
        Times of exit, or of censoring.
    places : ndarray of float64, shape (replica, d)
        Where they were then.
    censored : ndarray of bool, shape (replica,)
        Which had not left.
    refinement, refinement_se : float
        Mean at this resolution less the mean at half of it, from other replicas, with its standard
        error: what discretization changes, of which the error left is a part. NaN if not asked for.
    n_samples : int
        Replicas.
    status : int
        `tracelab.typing.Status`: TOO_FEW_SAMPLES below two exits; the mean is then NaN, and
        `mean_low` what no exit in the time spent says of it.
    """

    mean: float
    mean_se: float
    mean_low: float
    mean_high: float
    times: FloatArray
    places: FloatArray
    censored: BoolArray
    refinement: float
    refinement_se: float
    n_samples: int
    status: int


def exit_times(
    alpha: npt.ArrayLike = 2.0,
    half_width: float = 1.0,
    replicas: int = 1000,
    seed: int = 0,
    potential: Potential | Quadratic | DoubleWell | None = None,
    *,
    region: Region | None = None,
    start: npt.ArrayLike = 0.0,
    scale: npt.ArrayLike = 1.0,
    dim: int = 1,
    noise: Noise = "independent",
    dynamics: Dynamics | None = None,
    clip: float = math.inf,
    max_time: float = math.inf,
    max_steps: int = 1_000_000,
    method: Method = "auto",
    resolution: float | None = None,
    refine: bool = True,
    confidence: float = 0.95,
) -> ExitTimes:
    r"""Return simulated first exits of a Levy-driven equation from a region.

    .. math:: dx = -\nabla U(x)\, dt + \sigma\, dL^\alpha

    By default the free standard symmetric process, from the middle of an interval.

    Parameters
    ----------
    alpha : array_like
        Tail index in (0, 2]; of each coordinate if they are independent.
    half_width : float
        Half the width of the interval (of the box, in more dimensions) around 0, unless `region` is
        given.
    replicas : int
        How many, at least 1.
    seed : int
        Of the random numbers.
    potential : Potential, Quadratic or DoubleWell, optional
        U; none for a free process.
    region : Box, Ball, Sublevel or anything with ``contains(points)``, optional
        What is left.
    start : array_like, shape (d,)
        Where replicas begin, within the region.
    scale : array_like
        :math:`\sigma`, of each coordinate or of all.
    dim : int
        Coordinates, d.
    noise : {"independent", "isotropic"}
        Whether coordinates jump by themselves, or the vector as a whole in any direction.
    dynamics : Overdamped, Underdamped or Adam, optional
        The equation; overdamped by default.
    clip : float
        Truncation: largest norm of what a step of the grid adds to the variable that the noise
        drives (gradient clipping; Wang, Oh and Rhee 2021).
    max_time : float
        Replicas still within are censored then.
    max_steps : int
        So are those that took so many strides between jumps, or steps of the grid: a Brownian
        particle would leave a deep basin in no time that anyone has.
    method : {"auto", "events", "grid"}
        ``events`` goes from one large jump to the next, and takes boxes, balls and levels of
        quadratic potentials, potentials that are quadratic of curvature 0 and more or none, and
        overdamped dynamics; ``grid`` is Euler's scheme, and takes anything. By default events where
        they can.
    resolution : float, optional
        Of events: least jump drawn by itself, in units of the room that is left to the boundary
        (.5, with which means are off by less than .75 %). Of the grid: its step in time (.001).
    refine : bool
        Whether replicas at half the resolution tell how much it matters.
    confidence : float
        Level of the interval, in (0, 1).

    Returns
    -------
    ExitTimes

    Raises
    ------
    UsageError
        If an argument is outside its range, or the method cannot take what it was given.

    References
    ----------
    Asmussen, Rosinski, "Approximations of small jumps of Levy processes with a view towards
    simulation", J. Applied Probability 38, 2001; Imkeller, Pavlyukevich, "First exit times of SDEs
    driven by stable Levy processes", Stochastic Processes and their Applications 116, 2006.

    Examples
    --------
    >>> found = exit_times(alpha=1.5, half_width=1.0, replicas=4000, seed=1)
    >>> bool(abs(found.mean - mean_exit_time(1.5)) < 4 * found.mean_se)
    True
    """
    check_confidence(confidence)
    for name, count in (("replicas", replicas), ("dim", dim), ("max_steps", max_steps)):
        _check_count(name, count)
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise UsageError(f"seed must be an integer of at least 0, got {seed!r}")
    if method not in get_args(Method):
        raise UsageError(f"method must be 'auto', 'events' or 'grid', got {method!r}")
    for name, limit in (("clip", clip), ("max_time", max_time)):
        if not limit > 0:
            raise UsageError(f"{name} must be positive, got {limit!r}")
    alphas, scales = (
        _alphas(alpha, dim, noise),
        _by_coordinate("scale", positive("scale", scale), dim),
    )
    begin = _by_coordinate("start", np.asarray(start, dtype=np.float64), dim)
    dynamics = Overdamped() if dynamics is None else dynamics
    if region is None:
        width = float(positive("half_width", half_width))
        region = Box(-width, width)
    if not region.contains(begin[None])[0]:
        raise UsageError(f"start must be within the region, got {begin.tolist()}")
    reason = _unsuited(potential, _levy_events.as_ball(region), begin, dynamics, clip)
    if method == "events" and reason:
        raise UsageError(f"method 'events' does not take {reason}; use method='grid'")
    by_grid = method == "grid" or bool(reason)
    fineness = resolution if resolution is not None else _GRID_STEP if by_grid else _RESOLUTION
    if not 0 < fineness < math.inf:
        raise UsageError(f"resolution must be positive, got {resolution!r}")

    def run(fineness: float, branch: int) -> tuple[FloatArray, FloatArray, BoolArray]:
        times, places = np.full(replicas, np.nan), np.full((replicas, dim), np.nan)
        censored = np.ones(replicas, dtype=np.bool_)
        if not by_grid:
            _levy_events.simulate(
                alphas, scales, noise, potential, region, begin, dynamics, fineness, max_time,
                max_steps, np.random.default_rng((seed, branch)), _BLOCK, times, places, censored,
            )  # fmt: skip
            return times, places, censored
        for block, first in enumerate(range(0, replicas, _BLOCK)):
            part = slice(first, first + _BLOCK)
            walk = _levy_grid.states(
                np.tile(begin, (times[part].size, 1)),
                None if potential is None else potential.gradient, dynamics, alphas, scales,
                noise == "isotropic", fineness, clip, np.random.default_rng((seed, branch, block)),
            )  # fmt: skip
            _levy_grid.exits(
                walk, region, fineness, max_time, max_steps, times[part], places[part],
                censored[part],
            )  # fmt: skip
        return times, places, censored

    times, places, censored = run(fineness, 0)
    found = mean_time(times, censored, confidence=confidence)
    refinement = refinement_se = math.nan
    if refine:
        coarse_times, _, coarse_censored = run(2 * fineness, 1)
        coarse = mean_time(coarse_times, coarse_censored, confidence=confidence)
        refinement = found.mean - coarse.mean
        refinement_se = math.hypot(found.se, coarse.se)
    return ExitTimes(
        found.mean, found.se, found.low, found.high, times, places, censored, refinement,
        refinement_se, replicas, int(found.status),
    )  # fmt: skip


def paths(
    alpha: npt.ArrayLike,
    steps: int,
    step: float,
    start: npt.ArrayLike,
    seed: int = 0,
    potential: Potential | Quadratic | DoubleWell | None = None,
    *,
    scale: npt.ArrayLike = 1.0,
    noise: Noise = "independent",
    dynamics: Dynamics | None = None,
    clip: float = math.inf,
) -> FloatArray:
    """Return simulated paths of a Levy-driven equation, by Euler's scheme.

    Parameters
    ----------
    alpha, seed, potential, scale, noise, dynamics, clip
        As in `exit_times`.
    steps : int
        How many.
    step : float
        Of time.
    start : array_like, shape (replica, d)
        Where each replica begins.

    Returns
    -------
    ndarray of float64, shape (steps + 1, replica, d)
        From the start on.

    Raises
    ------
    UsageError
        If an argument is outside its range.
    """
    begin = np.asarray(start, dtype=np.float64)
    if begin.ndim != 2:
        raise UsageError(f"start must have the shape (replica, d), got {begin.shape}")
    _check_count("steps", steps)
    dim = begin.shape[1]
    scales = _by_coordinate("scale", positive("scale", scale), dim)
    walk = _levy_grid.states(
        begin, None if potential is None else potential.gradient,
        Overdamped() if dynamics is None else dynamics, _alphas(alpha, dim, noise), scales,
        noise == "isotropic", float(positive("step", step)), clip, np.random.default_rng(seed),
    )  # fmt: skip
    return np.stack([begin, *(next(walk)[0] for _ in range(steps))])


def _unsuited(
    potential: Potential | Quadratic | DoubleWell | None,
    region: Region,
    start: FloatArray,
    dynamics: Dynamics,
    clip: float,
) -> str:
    """Return what events cannot take, or an empty string."""
    if not isinstance(dynamics, Overdamped):
        return f"the dynamics {type(dynamics).__name__}"
    if not isinstance(region, Box | Ball):
        return f"the region {type(region).__name__}"
    if math.isfinite(clip):
        return "clipping"
    if potential is None:
        return ""
    if not isinstance(potential, Quadratic):
        return f"the potential {type(potential).__name__}"
    curvature = np.asarray(potential.curvature, dtype=np.float64)
    if not (curvature >= 0).all():
        return "a negative curvature"
    if isinstance(region, Box) and not region.contains(np.zeros((1, start.size)))[0]:
        return "a quadratic potential whose minimum is outside of the region"
    return ""


def _alphas(alpha: npt.ArrayLike, dim: int, noise: str) -> FloatArray:
    if noise not in get_args(Noise):
        raise UsageError(f"noise must be 'independent' or 'isotropic', got {noise!r}")
    by_coordinate = _by_coordinate("alpha", check_laws(alpha, 0, 1)[0], dim)
    if noise == "isotropic" and np.ptp(by_coordinate) > 0:
        raise UsageError(f"isotropic noise has one alpha, got {alpha!r}")
    return by_coordinate


def _by_coordinate(name: str, value: FloatArray, dim: int) -> FloatArray:
    try:
        return np.array(np.broadcast_to(value, dim), dtype=np.float64)
    except ValueError:
        raise UsageError(
            f"{name} must be one number or one for each of the {dim} coordinates, got shape "
            f"{value.shape}"
        ) from None


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise UsageError(f"{name} must be an integer of at least 1, got {value!r}")
