"""What functions of stable laws are told: parameters, their checks, and the standard variable."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tracelab.errors import UsageError
from tracelab.stats._stable_exact import skew_tangent

__all__ = ["Parametrization", "check_laws", "check_parametrization", "shift", "tangent"]

Float64 = NDArray[np.float64]
Parametrization = Literal["S0", "S1"]

tangent = np.vectorize(skew_tangent, otypes=[np.float64])
"""``beta tan(pi alpha / 2)`` of arrays, accurate near ``alpha = 2``."""


def check_parametrization(parametrization: str) -> None:
    """Raise a UsageError unless `parametrization` is S0 or S1."""
    if parametrization not in get_args(Parametrization):
        raise UsageError(f"parametrization must be 'S0' or 'S1', got {parametrization!r}")


def check_laws(
    alpha: ArrayLike, beta: ArrayLike, scale: ArrayLike
) -> tuple[Float64, Float64, Float64]:
    """Return alpha, beta, scale as float64 arrays; raise a UsageError if one is no law's."""
    alphas, betas, scales = (np.asarray(a, dtype=np.float64) for a in (alpha, beta, scale))
    if not np.all((alphas > 0) & (alphas <= 2)):
        raise UsageError(f"alpha must be in (0, 2], got {alpha!r}")
    if not np.all(np.abs(betas) <= 1):
        raise UsageError(f"beta must be in [-1, 1], got {beta!r}")
    if not np.all(scales > 0):
        raise UsageError(f"scale must be positive, got {scale!r}")
    return alphas, betas, scales


def shift(alpha: Float64, beta: Float64, scale: Float64) -> Float64:
    """Return ``(loc_S0 - loc_S1) / scale`` of one law, infinite nowhere: alpha 1 has its own."""
    at_one = (2 / math.pi) * beta * np.log(scale)
    if np.all(beta == 0):
        return 0.0 * (alpha + at_one)
    general = tangent(np.where(alpha == 1, 2.0, alpha), beta)
    return np.where(alpha == 1, at_one, general)
