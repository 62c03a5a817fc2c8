"""Draws of stable laws by Chambers, Mallows and Stuck."""

from __future__ import annotations

import math

import numpy as np

from tracelab.stats._stable_exact import Float64, skew_tangent
from tracelab.stats._stable_parameters import Parametrization, check_laws, check_parametrization

__all__ = ["rvs"]

# S0 is continuous at alpha = 1, where the general formula subtracts two infinities.
_NEAR_ONE = 1e-8


def rvs(
    alpha: float,
    beta: float = 0,
    loc: float = 0,
    scale: float = 1,
    size: int | tuple[int, ...] | None = None,
    rng: np.random.Generator | None = None,
    parametrization: Parametrization = "S1",
) -> Float64:
    r"""Return draws of a stable law, skewed or not, by Chambers, Mallows and Stuck.

    Parameters
    ----------
    alpha : float
        Tail index in (0, 2].
    beta : float
        Skewness in [-1, 1].
    loc, scale : float
        Location and scale (``scale > 0``).
    size : int or tuple of int, optional
        Shape of the result; one draw, of shape (), by default.
    rng : numpy.random.Generator, optional
        Source of randomness; a fresh one by default.
    parametrization : {"S1", "S0"}
        Nolan's: S1 has mean `loc` for ``alpha > 1``; S0 is continuous in alpha at 1.

    Returns
    -------
    ndarray of float64, shape `size`

    Raises
    ------
    UsageError
        If a parameter is outside its range.

    References
    ----------
    Chambers, Mallows, Stuck, "A method for simulating stable random variables", JASA 71, 1976,
    eqs. 2.3 and 2.4; Weron, "On the Chambers-Mallows-Stuck method", Statistics & Probability
    Letters 28, 1996, eqs. 3.2 and 3.9 (the correction).
    """
    check_parametrization(parametrization)
    check_laws(alpha, beta, scale)
    rng = np.random.default_rng() if rng is None else rng
    angle = rng.uniform(-0.5 * np.pi, 0.5 * np.pi, size)
    weight = rng.standard_exponential(size)
    if alpha == 1 or (parametrization == "S0" and beta != 0 and abs(alpha - 1) < _NEAR_ONE):
        half = 0.5 * np.pi + beta * angle
        z = half * np.tan(angle)
        if beta != 0:
            z = z - beta * np.log(0.5 * np.pi * weight * np.cos(angle) / half)
        z = z / (0.5 * np.pi)
        shift = 2 / np.pi * beta * math.log(scale) if parametrization == "S1" else 0.0
    else:
        skew = skew_tangent(float(alpha), float(beta))
        turned = alpha * angle + math.atan(skew)
        z = (
            (1 + skew * skew) ** (0.5 / alpha)
            * np.sin(turned)
            / np.cos(angle) ** (1 / alpha)
            * (np.cos(angle - turned) / weight) ** ((1 - alpha) / alpha)
        )
        shift = -skew if parametrization == "S0" else 0.0
    return np.asarray(loc + scale * (z + shift), dtype=np.float64)
