"""Kullback-Leibler divergences of PAC-Bayes bounds: Bernoulli, its inverse, Gaussian."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import special

from tracelab.errors import UsageError
from tracelab.typing import FloatArray

__all__ = ["bernoulli_kl", "bernoulli_kl_inverse", "gaussian_kl"]

_NEWTON = 200
# Newton's step over where it is: its square is below rounding.
_LAST = 1e-9
# Terms of atanh's series for arguments up to 1/3: the first one left out is 9^-18.
_TERMS = 18
_TINY = 1e-290


def bernoulli_kl(q: npt.ArrayLike, p: npt.ArrayLike) -> FloatArray:
    r"""Return the divergence of Bernoulli laws, elementwise.

    .. math:: kl(q \| p) = q \log\frac{q}{p} + (1 - q) \log\frac{1 - q}{1 - p}

    It is exact to rounding also where p is near q: with d = p - q it is a sum of two terms that are
    not negative, :math:`q\,h(d / q) + (1 - q)\,h(-d / (1 - q))`, :math:`h(x) = x - \log(1 + x)`.

    Parameters
    ----------
    q, p : array_like
        Probabilities of the first and of the second law, broadcast against each other. NaN stays.

    Returns
    -------
    ndarray of float64
        In nats; infinite where p is 0 or 1 and q is not.

    Raises
    ------
    UsageError
        If one is outside [0, 1].
    """
    first, second = _probabilities("q", q), _probabilities("p", p)
    return _raised(*np.broadcast_arrays(first, second - first))


def bernoulli_kl_inverse(q: npt.ArrayLike, bound: npt.ArrayLike) -> FloatArray:
    r"""Return the largest p of which kl(q || p) is at most a bound, elementwise.

    .. math:: kl^{-1}(q \mid c) = \sup\{p \in [q, 1] : kl(q \| p) \le c\}

    Of q = 0 it is :math:`1 - e^{-c}`. Newton's method finds p - q from
    above, where the divergence is convex and every step stays there; absolute error below 1e-15.

    Parameters
    ----------
    q : array_like
        Probabilities. NaN stays.
    bound : array_like
        What the divergence may be, in nats, broadcast against `q`; infinite: p is 1. NaN stays.

    Returns
    -------
    ndarray of float64
        Probabilities, at least q.

    Raises
    ------
    UsageError
        If a probability is outside [0, 1], or a bound is negative.
    """
    first, most = np.broadcast_arrays(_probabilities("q", q), np.asarray(bound, dtype=np.float64))
    if (most < 0).any():
        raise UsageError(
            f"bound must not be negative, got {np.nanmin(most)}; a divergence is never below 0"
        )
    d = _start(first, most)
    open_ = np.isfinite(first + most) & (d > 0)
    for _ in range(_NEWTON):
        if not open_.any():
            break
        p = first + d
        with np.errstate(divide="ignore", invalid="ignore"):
            step = (_raised(first, d) - most) * p * (1.0 - p) / d
        step = np.where(open_ & (step > 0), step, 0.0)
        d = d - step
        open_ = step > _LAST * d
    found = np.where(np.isposinf(most), 1.0, np.minimum(first + d, 1.0))
    found = np.where(first == 0, -np.expm1(-most), found)
    return np.where(np.isnan(first) | np.isnan(most), np.nan, found)


def gaussian_kl(
    squared_distance: npt.ArrayLike,
    trace: npt.ArrayLike,
    log_det: npt.ArrayLike,
    dimension: npt.ArrayLike,
    prior_variance: npt.ArrayLike,
) -> FloatArray:
    r"""Return the divergence of a Gaussian law from an isotropic one, elementwise.

    .. math:: KL(N(w, \Sigma) \| N(w_0, \lambda I)) = \tfrac12\left[\frac{\|w - w_0\|^2
       + \mathrm{tr}\,\Sigma}{\lambda} - \log\det\Sigma + d \log\lambda - d\right]

    Parameters
    ----------
    squared_distance : array_like
        Of the means, in the square of their unit.
    trace, log_det : array_like
        Of the first law's covariance, in the same unit.
    dimension : array_like
        d, the number of coordinates.
    prior_variance : array_like
        Variance of the second law in each coordinate.

    Returns
    -------
    ndarray of float64
        In nats, broadcast; 0 at least.

    Raises
    ------
    UsageError
        If a variance is not positive.

    References
    ----------
    Dziugaite, Roy, "Computing nonvacuous generalization bounds for deep (stochastic) neural
    networks", UAI 2017, section 3.
    """
    variance = np.asarray(prior_variance, dtype=np.float64)
    if (variance <= 0).any():
        raise UsageError(f"prior_variance must be positive, got {np.nanmin(variance)}")
    d = np.asarray(dimension, dtype=np.float64)
    spread = (np.asarray(squared_distance, dtype=np.float64) + np.asarray(trace)) / variance
    found = 0.5 * (spread - np.asarray(log_det) + d * (np.log(variance) - 1.0))
    # Rounding can leave laws that are equal a little below 0.
    return np.asarray(np.maximum(found, 0.0))


def _probabilities(name: str, values: npt.ArrayLike) -> FloatArray:
    found = np.asarray(values, dtype=np.float64)
    outside = (found < 0) | (found > 1)
    if outside.any():
        raise UsageError(f"{name} must be probabilities in [0, 1], got {found[outside].flat[0]}")
    return found


def _start(q: FloatArray, bound: FloatArray) -> FloatArray:
    """Return a d of which kl(q || q + d) is not below the bound.

    The divergence is at least 2 d^2, and at least -h - (1 - q) log(1 - p), h the entropy of q.
    """
    entropy = special.entr(q) + special.entr(1.0 - q)
    with np.errstate(divide="ignore", invalid="ignore"):
        far = 1.0 - q - np.exp(-(bound + entropy) / (1.0 - q))
    return np.where(q < 1, np.minimum(np.sqrt(0.5 * bound), far), 0.0)


def _raised(q: FloatArray, d: FloatArray) -> FloatArray:
    """Return kl(q || q + d)."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # What is below this adds nothing, and what it divides would overflow.
        large = q > _TINY
        here = np.where(large, q * _excess(np.where(large, d / q, 0.0)), d)
        here = np.where((q > 0) & (d == -q), np.inf, here)
        rest = 1.0 - q
        there = np.where(rest > 0, rest * _excess(np.where(rest > 0, -d / rest, 0.0)), -d)
    return np.asarray(np.where(np.isnan(q), np.nan, here + there))


def _excess(x: FloatArray) -> FloatArray:
    """Return x - log(1 + x), by the series of atanh(x / (2 + x)) where x is small."""
    z = x / (2.0 + x)
    series = np.zeros_like(z)
    for term in range(_TERMS, 0, -1):
        series = series * z**2 + 1.0 / (2 * term + 1)
    # x - 2 atanh(z), of which x - 2 z = x z.
    near = x * z - 2.0 * z**3 * series
    with np.errstate(divide="ignore"):
        far = x - np.log1p(np.maximum(x, -1.0))
    return np.asarray(np.where(np.abs(x) <= 0.5, near, far))
