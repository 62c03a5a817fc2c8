"""What theories and simulations say of the time in which an optimizer leaves a recorded basin.

All in the coordinates of `tracelab_collectors.Basin`, in which descent has the rate 1 and time
counts steps. Intervals carry the uncertainty of the noise that was fitted: parametric bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from scipy import special

from tracelab.stats import escape, levy, stable, survival
from tracelab.stats.descent import GaussianNoise, Noise, RecordedNoise, StableNoise, exit_steps
from tracelab.typing import BoolArray, FloatArray, Status

__all__ = ["THEORIES", "Basin", "Law", "Prediction", "Redrawn", "Settings", "observed", "widths"]

# Random directions of jumps: the measure of an escape set is known to 1 %.
_DIRECTIONS = 16_384
# Simulations under parameters drawn anew, of each a part of the replicas.
_REDRAWN, _PART = 16, 4
# Log of a time that no number holds.
_NEVER = 1e6


@dataclass(frozen=True, slots=True)
class Basin:
    """A quadratic around recorded weights, over d directions.

    Parameters
    ----------
    curvature, gradient : ndarray, shape (d,)
        Positive eigenvalues, and the gradient along their eigenvectors at the weights.
    below, above : ndarray, shape (d,)
        Distances of the sides, at which the loss is over the barrier, from the bottom.
    barrier : float
        Rise of the loss over that at the weights.
    memory : float
        Steps over which gradients are averaged.
    clip : float
        Longest gradient; infinite for none.
    """

    curvature: FloatArray
    gradient: FloatArray
    below: FloatArray
    above: FloatArray
    barrier: float
    memory: float
    clip: float

    @property
    def half_width(self) -> FloatArray:
        """Distance of the sides of the quadratic from its bottom."""
        height = self.gradient**2 + 2 * self.curvature * self.barrier
        found: FloatArray = np.sqrt(height) / self.curvature
        return found

    @property
    def height(self) -> float:
        """Height of the barrier over the bottom."""
        return self.barrier + float(np.sum(self.gradient**2 / (2 * self.curvature)))


@dataclass(frozen=True, slots=True)
class Law:
    """Noise of one step as it was measured, and laws fitted to it.

    Parameters
    ----------
    samples : ndarray, shape (batch, d)
        Of mean 0.
    alpha, scale : ndarray, shape (d,)
        Stable law of each direction.
    common : float
        One tail index for all of them.
    """

    samples: FloatArray
    alpha: FloatArray
    scale: FloatArray
    common: float

    @property
    def covariance(self) -> FloatArray:
        """Covariance, (d, d)."""
        found: FloatArray = np.atleast_2d(np.cov(self.samples, rowvar=False))
        return found


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is computed, by which random numbers.

    Parameters
    ----------
    replicas, max_steps, draws : int
        Simulated replicas, their longest time, and bootstrap samples.
    confidence : float
        Level of the intervals.
    seed : int
        Of everything.
    """

    replicas: int
    max_steps: int
    draws: int
    confidence: float
    seed: int


@dataclass(frozen=True, slots=True)
class Redrawn:
    """Fits to draws of the fitted laws, as many as the bootstrap has samples.

    Parameters
    ----------
    alpha, scale : ndarray, shape (draw, d)
        Stable law of each direction.
    common : ndarray, shape (draw,)
        One tail index for all of them.
    """

    alpha: FloatArray
    scale: FloatArray
    common: FloatArray

    @classmethod
    def of(cls, law: Law, settings: Settings) -> Redrawn:
        """Return what is fitted to noise drawn from the law."""
        rng = np.random.default_rng((settings.seed, 2))
        shape, d = (settings.draws, len(law.samples)), law.samples.shape[1]
        fit = stable.fit(law.scale * levy.draws(law.alpha, d, shape, rng=rng), axis=1,
                         confidence=None)  # fmt: skip
        together = levy.draws(law.common, d, shape, rng=rng)
        common = stable.fit_common(law.scale * together, "each", None)
        return cls(fit.alpha, fit.scale, common.alpha)


@dataclass(frozen=True, slots=True)
class Prediction:
    """A mean exit time in steps with its interval; NaN where the status is not OK."""

    time: float = math.nan
    low: float = math.nan
    high: float = math.nan
    status: Status = Status.FAILED


Theory: TypeAlias = Callable[[Basin, Law, Redrawn, Settings], Prediction]


def widths(
    distance: FloatArray, rise: FloatArray, barrier: float, otherwise: FloatArray
) -> FloatArray:
    """Return where the loss first reaches a barrier, between the places where it was measured.

    Parameters
    ----------
    distance, rise : ndarray, shape (d, height, side)
        Places, rising, and the rise of the loss there.
    barrier : float
        Its height.
    otherwise : ndarray, shape (d, side)
        What is returned where the loss was measured too near for it.

    Returns
    -------
    ndarray, shape (d, side)
    """
    found = np.array(otherwise)
    for d, side in np.ndindex(*found.shape):
        squares = np.concatenate([[0.0], distance[d, :, side] ** 2])
        heights = np.concatenate([[0.0], rise[d, :, side]])
        beyond = np.flatnonzero(heights >= barrier)
        if beyond.size:
            # Linear in the square: exact for a quadratic.
            j = int(beyond[0])
            part = (barrier - heights[j - 1]) / (heights[j] - heights[j - 1])
            there = squares[j - 1] + part * (squares[j] - squares[j - 1])
            if math.isfinite(there):
                found[d, side] = math.sqrt(there)
    return found


def observed(times: FloatArray, censored: BoolArray, confidence: float) -> Prediction:
    """Return the mean time of replicas."""
    found = survival.mean_time(times, censored, confidence)
    return Prediction(found.mean, found.low, found.high, found.status)


def _together(log_times: FloatArray) -> FloatArray:
    """Return the log time in which the first of independent exits comes, over the last axis."""
    return -np.asarray(special.logsumexp(-log_times, axis=-1))


def _of_logs(log_time: float, logs: FloatArray, confidence: float) -> Prediction:
    """Return a prediction from the log time and those of the bootstrap."""
    if math.isnan(log_time):
        return Prediction()
    left = 0.5 * (1 - confidence)
    low, high = np.quantile(logs, [left, 1 - left], method="median_unbiased")
    with np.errstate(over="ignore"):
        time, low, high = np.exp([log_time, min(low, log_time), max(high, log_time)]).tolist()
    return Prediction(time, low, high, Status.OK)


def _variances(law: Law, settings: Settings) -> FloatArray:
    """Return variances that Gaussian noise of the measured ones would have had, (draw, d)."""
    n = len(law.samples)
    rng = np.random.default_rng((settings.seed, 1))
    factor = rng.chisquare(n - 1, (settings.draws, law.samples.shape[1])) / (n - 1)
    return factor * np.diag(law.covariance)


def _log_diffusion(basin: Basin, variance: FloatArray) -> FloatArray:
    stable_ones = basin.curvature < 2
    if not stable_ones.all():
        # What is unstable leaves by itself, at once on this scale.
        return np.full(variance.shape[:-1], math.nan)
    log_times = escape.log_descent_exit_time(basin.curvature, variance, basin.half_width)
    return _together(log_times)


def _log_kramers(basin: Basin, variance: FloatArray) -> FloatArray:
    height = 0.5 * basin.curvature * basin.half_width**2
    # Two saddles, each as curved as the bottom.
    return _together(np.log(np.pi / basin.curvature) + height / (0.5 * variance))


def _by_variance(
    log_time: Callable[[Basin, FloatArray], FloatArray],
) -> Theory:
    def predict(basin: Basin, law: Law, again: Redrawn, settings: Settings) -> Prediction:
        drawn = log_time(basin, _variances(law, settings))
        value = float(log_time(basin, np.diag(law.covariance)))
        return _of_logs(value, drawn, settings.confidence)

    return predict


def _log_jumps(basin: Basin, alpha: FloatArray, scale: FloatArray) -> float:
    jumping = alpha < 2
    if not jumping.any():
        return math.nan
    return float(
        np.log(
            escape.jump_exit_time(
                alpha[jumping], scale[jumping], basin.below[jumping], basin.above[jumping]
            )
        )
    )


def _jumps(basin: Basin, law: Law, again: Redrawn, settings: Settings) -> Prediction:
    drawn = [_log_jumps(basin, a, s) for a, s in zip(again.alpha, again.scale, strict=True)]
    # Noise without a jump never leaves.
    logs = np.nan_to_num(np.array(drawn), nan=_NEVER)
    return _of_logs(_log_jumps(basin, law.alpha, law.scale), logs, settings.confidence)


def _measure(basin: Basin, law: Law, again: Redrawn, settings: Settings) -> Prediction:
    rng = np.random.default_rng((settings.seed, 3))
    units = rng.standard_normal((_DIRECTIONS, basin.curvature.size))
    units /= np.linalg.norm(units, axis=1, keepdims=True)

    def log_time(alpha: float, scale: FloatArray) -> float:
        if not alpha < 2:
            return math.nan
        directions = units * scale
        found = escape.ellipsoid_exit_time(alpha, directions, basin.curvature, basin.height)
        return float(np.log(found))

    drawn = [log_time(float(a), s) for a, s in zip(again.common, again.scale, strict=True)]
    logs = np.nan_to_num(np.array(drawn), nan=_NEVER)
    return _of_logs(log_time(law.common, law.scale), logs, settings.confidence)


def _simulated(
    basin: Basin, noise: Noise, redrawn: list[Noise], settings: Settings, branch: int
) -> Prediction:
    """Return the mean of simulated exits; the interval knows how it varies with the noise."""

    def run(noise: Noise, replicas: int, number: int) -> Prediction:
        found = exit_steps(
            basin.curvature, basin.barrier, noise, gradient=basin.gradient, memory=basin.memory,
            clip=basin.clip, replicas=replicas, max_steps=settings.max_steps,
            seed=int(np.random.SeedSequence((settings.seed, branch, number)).generate_state(1)[0]),
        )  # fmt: skip
        return observed(found.times, found.censored, settings.confidence)

    found = run(noise, settings.replicas, 0)
    if found.status is not Status.OK:
        return found
    part = max(settings.replicas // _PART, 2)
    others = [run(each, part, 1 + number) for number, each in enumerate(redrawn)]
    logs = np.log([each.time for each in others if each.status is Status.OK])
    quantile = float(special.stdtrit(len(redrawn) - 1, 0.5 + 0.5 * settings.confidence))
    # What replicas alone make differ is in it twice: the interval errs to the wide side.
    reach = quantile * float(np.std(logs, ddof=1)) if logs.size > 1 else math.inf
    low = math.hypot(math.log(found.time / found.low) if found.low > 0 else math.inf, reach)
    high = math.hypot(math.log(found.high / found.time), reach)
    return replace(found, low=found.time * math.exp(-low), high=found.time * math.exp(high))


def _simulated_gaussian(basin: Basin, law: Law, again: Redrawn, settings: Settings) -> Prediction:
    n, d = law.samples.shape
    rng = np.random.default_rng((settings.seed, 4))
    root = np.linalg.cholesky(law.covariance + 1e-12 * np.trace(law.covariance) * np.eye(d))
    redrawn: list[Noise] = []
    for _ in range(_REDRAWN):
        x = rng.standard_normal((n, d)) @ root.T
        redrawn.append(GaussianNoise(np.atleast_2d(np.cov(x, rowvar=False))))
    return _simulated(basin, GaussianNoise(law.covariance), redrawn, settings, 5)


def _simulated_stable(basin: Basin, law: Law, again: Redrawn, settings: Settings) -> Prediction:
    laws = zip(again.alpha[:_REDRAWN], again.scale[:_REDRAWN], strict=True)
    redrawn: list[Noise] = [StableNoise(a, s) for a, s in laws]
    return _simulated(basin, StableNoise(law.alpha, law.scale), redrawn, settings, 6)


def _simulated_recorded(basin: Basin, law: Law, again: Redrawn, settings: Settings) -> Prediction:
    n = len(law.samples)
    rng = np.random.default_rng((settings.seed, 7))
    redrawn: list[Noise] = [
        RecordedNoise(law.samples[rng.integers(n, size=n)]) for _ in range(_REDRAWN)
    ]
    return _simulated(basin, RecordedNoise(law.samples), redrawn, settings, 8)


THEORIES: Mapping[str, Theory] = MappingProxyType(
    {
        "kramers": _by_variance(_log_kramers),
        "diffusion": _by_variance(_log_diffusion),
        "levy": _jumps,
        "jump_measure": _measure,
        "simulated_gaussian": _simulated_gaussian,
        "simulated_stable": _simulated_stable,
        "simulated_recorded": _simulated_recorded,
    }
)
"""By name: a function of basin, law, its fits to redrawn noise, and settings.

``kramers``: Xie, Sato, Sugiyama (ICLR 2021), over saddles as curved as the bottom and with the
measured covariance; the prefactor is that of the equation in Ito's sense. ``diffusion``: the mean
first passage of the Ornstein-Uhlenbeck process that is the recursion at whole steps. ``levy``:
Imkeller, Pavlyukevich (2006). ``jump_measure``: Zhou et al. (NeurIPS 2020), theorem 1. The others
simulate the optimizer's recursion on the quadratic with Gaussian, with independent stable, and with
recorded noise.
"""
