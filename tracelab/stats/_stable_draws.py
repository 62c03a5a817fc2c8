"""Draws of stable laws: by Chambers, Mallows and Stuck, and many of one law from a table."""

from __future__ import annotations

import math

import numba
import numpy as np

from tracelab.stats._stable_exact import Float64, skew_tangent
from tracelab.stats._stable_inverse import draw, inverse
from tracelab.stats._stable_parameters import Parametrization, check_laws, check_parametrization

__all__ = ["MANY", "rvs"]

MANY = 131_072
"""From this many draws on a table is made of the law."""

# S0 is continuous at alpha = 1, where the general formula subtracts two infinities.
_NEAR_ONE = 1e-8


# Draws are made in pieces that stay in the processor's cache.
_PIECE = 4096
# Taylor's series of the sine, odd powers to 21: to the last bit on [-pi/2, pi/2].
_SINE = np.array([(-1) ** k / math.factorial(2 * k + 1) for k in range(11)])


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"}, inline="always")
def _sine(t: float) -> float:
    """Return sin t for ``|t| <= pi / 2``; a polynomial, which compilers make parallel."""
    square = t * t
    total = _SINE[10]
    for k in range(9, -1, -1):
        total = total * square + _SINE[k]
    return float(total * t)


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def _angles(
    angle: Float64, alpha: float, tilt: float, sine: Float64, cosine: Float64, rest: Float64
) -> None:
    """Write ``sin(alpha u + tilt)``, ``cos u`` and ``cos(u - alpha u - tilt)`` for each angle u."""
    half = 0.5 * math.pi
    for i in range(angle.size):
        turned = alpha * angle[i] + tilt
        # |turned| is at most pi; its sine is that of what it lacks to pi.
        folded = half - abs(abs(turned) - half)
        sine[i] = math.copysign(_sine(folded), turned)
        cosine[i] = _sine(half - abs(angle[i]))
        # Rounding may take it past the end, where it is 0.
        rest[i] = _sine(max(half - abs(angle[i] - turned), 1e-17))


def _general(angle: Float64, weight: Float64, alpha: float, skew: float) -> Float64:
    """Return S1 draws, alpha not 1, in place of `angle`; `skew` is ``beta tan(pi alpha / 2)``."""
    level, tilt = 0.5 / alpha * math.log1p(skew * skew), math.atan(skew)
    sine, cosine, rest = (np.empty(min(angle.size, _PIECE)) for _ in range(3))
    for start in range(0, angle.size, _PIECE):
        z, w = angle[start : start + _PIECE], weight[start : start + _PIECE]
        s, c, r = sine[: z.size], cosine[: z.size], rest[: z.size]
        _angles(z, alpha, tilt, s, c, r)
        r /= w
        np.log(r, out=r)
        r *= 1 / alpha - 1
        np.log(c, out=c)
        c *= -1 / alpha
        r += c
        r += level
        np.exp(r, out=r)
        np.multiply(s, r, out=z)
    return angle


def rvs(
    alpha: float,
    beta: float = 0,
    loc: float = 0,
    scale: float = 1,
    size: int | tuple[int, ...] | None = None,
    rng: np.random.Generator | None = None,
    parametrization: Parametrization = "S1",
) -> Float64:
    r"""Return draws of a stable law, skewed or not.

    By the transformation of Chambers, Mallows and Stuck; from 131,072 draws on by the inverse of
    the distribution function where it can be tabulated. That is for symmetric laws of alpha from
    0.5, with a relative error of the probabilities of tails below 1e-8, and for others of alpha
    from 1.05 and skewness to about 0.95, with one below 1e-6. The random words that are inverted
    are those of a key, which the generator gives.

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
    count = 1 if size is None else math.prod(np.atleast_1d(size).tolist())
    tabulated = inverse(float(alpha), float(beta)) if count >= MANY else None
    if tabulated is not None:
        # The table is in S0; it holds no law of alpha 1 with skewness.
        offset = skew_tangent(float(alpha), float(beta)) if parametrization == "S1" else 0.0
        many = draw(tabulated, float(loc) + scale * offset, float(scale), count, rng)
        return many.reshape(size)
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
        flat = np.ravel(angle)
        z = _general(flat, np.ravel(weight), float(alpha), skew).reshape(np.shape(angle))
        shift = -skew if parametrization == "S0" else 0.0
    return np.asarray(loc + scale * (z + shift), dtype=np.float64)
