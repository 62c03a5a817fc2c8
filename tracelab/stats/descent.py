r"""First exits of noisy descent on a quadratic, step by step as an optimizer takes them.

.. math:: m_{t+1} = \beta m_t + (1 - \beta)(\gamma + \Lambda z_t + \zeta_t), \qquad
   z_{t+1} = z_t - m_{t+1}

from z = 0, until the loss has risen by a barrier: no limit of small steps is taken, so that what
`tracelab.stats.escape` leaves out by theory is in here. The rate is 1: coordinates are those in
which the optimizer's steps are, ``w / sqrt(step)``. Gradients may be clipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numba
import numpy as np
import numpy.typing as npt

from tracelab.errors import UsageError
from tracelab.stats._stable_parameters import check_laws
from tracelab.typing import BoolArray, FloatArray

__all__ = ["ExitSteps", "GaussianNoise", "RecordedNoise", "StableNoise", "exit_steps"]

_GAUSSIAN, _STABLE, _RECORDED = range(3)


@dataclass(frozen=True, slots=True)
class GaussianNoise:
    """Gaussian vectors of mean 0.

    Parameters
    ----------
    covariance : array_like, shape (d, d)
        Symmetric, without negative eigenvalues but for rounding.
    """

    covariance: npt.ArrayLike


@dataclass(frozen=True, slots=True)
class StableNoise:
    """Independent symmetric stable coordinates.

    Parameters
    ----------
    alpha, scale : array_like, shape (d,)
        Tail index in (0, 2] and scale of each.
    """

    alpha: npt.ArrayLike
    scale: npt.ArrayLike


@dataclass(frozen=True, slots=True)
class RecordedNoise:
    """Vectors that were observed, drawn with replacement: whatever their law and dependence.

    Parameters
    ----------
    samples : array_like, shape (sample, d)
        The vectors.
    """

    samples: npt.ArrayLike


Noise: TypeAlias = GaussianNoise | StableNoise | RecordedNoise


@dataclass(frozen=True, slots=True)
class ExitSteps:
    """First exits of replicas.

    Parameters
    ----------
    times : ndarray of float64, shape (replica,)
        Steps until the exit, or until the replica was censored.
    places : ndarray of float64, shape (replica, d)
        Where it was then.
    censored : ndarray of bool, shape (replica,)
        Which had not left.
    """

    times: FloatArray
    places: FloatArray
    censored: BoolArray


def exit_steps(
    curvature: npt.ArrayLike,
    barrier: float,
    noise: Noise,
    *,
    gradient: npt.ArrayLike = 0.0,
    memory: float = 1.0,
    clip: float = math.inf,
    replicas: int = 200,
    max_steps: int = 20_000,
    seed: int = 0,
) -> ExitSteps:
    r"""Return the steps after which replicas have climbed a barrier of the loss.

    Parameters
    ----------
    curvature : array_like, shape (d,)
        :math:`\Lambda`; any sign.
    barrier : float
        Rise of :math:`\gamma' z + z' \Lambda z / 2` at which a replica has left.
    noise : GaussianNoise, StableNoise or RecordedNoise
        :math:`\zeta`, of one step.
    gradient : array_like, shape (d,)
        :math:`\gamma`, at the start.
    memory : float
        Steps over which gradients are averaged, :math:`1 / (1 - \beta)`; 1 without momentum.
    clip : float
        Largest norm of a gradient, noise included; longer ones are shortened to it.
    replicas, max_steps : int
        How many, and for how long at most.
    seed : int
        Of the random numbers.

    Returns
    -------
    ExitSteps

    Raises
    ------
    UsageError
        If an argument is outside its range or of another shape.

    References
    ----------
    Polyak, "Some methods of speeding up the convergence of iteration methods", 1964 (the
    recursion); Wang, Oh, Rhee, "Eliminating sharp minima from SGD with truncated heavy-tailed
    noise", ICLR 2022 (clipping).

    Examples
    --------
    >>> found = exit_steps([0.5], 1.0, GaussianNoise([[1.0]]), replicas=100)
    >>> bool(found.censored.any())
    False
    """
    bends = np.atleast_1d(np.asarray(curvature, dtype=np.float64))
    if bends.ndim != 1 or not np.isfinite(bends).all():
        raise UsageError(f"curvature must be finite numbers, one a coordinate, got {curvature!r}")
    try:
        slope = np.array(np.broadcast_to(np.asarray(gradient, dtype=np.float64), bends.shape))
    except ValueError:
        raise UsageError(
            f"gradient must be one number or one for each of the {bends.size} coordinates, got "
            f"{gradient!r}"
        ) from None
    if not np.isfinite(slope).all():
        raise UsageError(f"gradient must be finite, got {gradient!r}")
    for name, value, least in (("barrier", barrier, 0.0), ("clip", clip, 0.0)):
        if not value > least:
            raise UsageError(f"{name} must be positive, got {value!r}")
    if not 1 <= memory < math.inf:
        raise UsageError(f"memory must be at least 1 step, got {memory!r}")
    for name, count in (("replicas", replicas), ("max_steps", max_steps), ("seed", seed)):
        low = 0 if name == "seed" else 1
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < low:
            raise UsageError(f"{name} must be an integer of at least {low}, got {count!r}")
    kind, table, alpha = _drawn(noise, bends.size)
    times, censored = np.empty(replicas), np.empty(replicas, dtype=np.bool_)
    places = np.empty((replicas, bends.size))
    _run(
        bends, slope, float(barrier), kind, table, alpha, 1 - 1 / memory, float(clip),
        int(max_steps), np.random.default_rng(seed), times, places, censored,
    )  # fmt: skip
    return ExitSteps(times, places, censored)


def _drawn(noise: Noise, dim: int) -> tuple[int, FloatArray, FloatArray]:
    """Return the kind of a noise, its table of numbers and its tail indices."""
    nothing = np.empty(0)
    if isinstance(noise, StableNoise):
        alpha, _, scale = (
            np.array(np.broadcast_to(each, dim), dtype=np.float64)
            for each in check_laws(noise.alpha, 0, noise.scale)
        )
        return _STABLE, scale[None], alpha
    name = "covariance" if isinstance(noise, GaussianNoise) else "samples"
    table = np.ascontiguousarray(getattr(noise, name), dtype=np.float64)
    square = isinstance(noise, GaussianNoise)
    if table.ndim != 2 or table.shape[1] != dim or not len(table) or (square and len(table) != dim):
        wanted = (dim, dim) if square else ("sample", dim)
        raise UsageError(f"{name} must be of shape {wanted}, got {table.shape}")
    if not np.isfinite(table).all():
        raise UsageError(f"{name} must be finite")
    if not square:
        return _RECORDED, table, nothing
    values, vectors = np.linalg.eigh(table)
    if values[0] < -1e-9 * max(values[-1], 0.0) or not np.allclose(table, table.T):
        raise UsageError("covariance must be symmetric without negative eigenvalues")
    return _GAUSSIAN, vectors * np.sqrt(np.maximum(values, 0.0)), nothing


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _draw(kind: int, table: FloatArray, alpha: FloatArray, rng: Any, out: FloatArray) -> None:
    """Write one vector of noise."""
    if kind == _RECORDED:
        out[:] = table[int(rng.random() * len(table))]
    elif kind == _GAUSSIAN:
        out[:] = 0.0
        for j in range(out.size):
            normal = rng.standard_normal()
            for i in range(out.size):
                out[i] += table[i, j] * normal
    else:
        for i in range(out.size):
            # Chambers, Mallows, Stuck (1976), the symmetric case.
            a = alpha[i]
            angle, weight = math.pi * (rng.random() - 0.5), rng.standard_exponential()
            if a == 1.0:
                out[i] = table[0, i] * math.tan(angle)
            else:
                bent = math.cos((1.0 - a) * angle) / weight
                out[i] = (
                    table[0, i]
                    * math.sin(a * angle)
                    * math.cos(angle) ** (-1.0 / a)
                    * bent ** ((1.0 - a) / a)
                )


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _run(
    curvature: FloatArray,
    gradient: FloatArray,
    barrier: float,
    kind: int,
    table: FloatArray,
    alpha: FloatArray,
    beta: float,
    clip: float,
    max_steps: int,
    rng: Any,
    times: FloatArray,
    places: FloatArray,
    censored: BoolArray,
) -> None:
    dim = curvature.size
    z, moment, zeta = np.empty(dim), np.empty(dim), np.empty(dim)
    for replica in range(times.size):
        z[:] = 0.0
        moment[:] = 0.0
        censored[replica] = True
        step = 0
        while step < max_steps:
            step += 1
            _draw(kind, table, alpha, rng, zeta)
            square = 0.0
            for i in range(dim):
                zeta[i] += gradient[i] + curvature[i] * z[i]
                square += zeta[i] * zeta[i]
            norm = math.sqrt(square)
            factor = clip / norm if norm > clip else 1.0
            rise = 0.0
            for i in range(dim):
                moment[i] = beta * moment[i] + (1.0 - beta) * factor * zeta[i]
                z[i] -= moment[i]
                rise += z[i] * (gradient[i] + 0.5 * curvature[i] * z[i])
            # What is no number has left too.
            if not rise < barrier:
                censored[replica] = False
                break
        times[replica] = step
        places[replica] = z
