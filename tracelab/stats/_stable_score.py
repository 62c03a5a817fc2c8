"""Derivatives of the log-density of stable laws, and the Fisher information."""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from tracelab.errors import UsageError
from tracelab.stats._stable_exact import PDF, log_exact, skew_tangent
from tracelab.stats._stable_parameters import (
    Parametrization,
    check_laws,
    check_parametrization,
    shift,
    tangent,
)
from tracelab.stats._stable_skew import (
    ALPHA_LOW,
    FAR,
    SkewTable,
    collapse_skew,
    new_skew_law,
    reliable,
    skew_density,
    skew_table,
)
from tracelab.stats._stable_skew_climb import skew_information

__all__ = ["information", "score"]

Float64 = NDArray[np.float64]

# Steps of differences of fourth order: their error, about h^4, is that of the integral over h.
_STEP = 2e-3


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _log_f(z: float, alpha: float, beta: float) -> float:
    return log_exact(PDF, z, z + skew_tangent(alpha, beta) if alpha != 1.0 else z, alpha, beta)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _slope(which: int, z: float, alpha: float, beta: float, h: float, offset: int) -> float:
    """Return a derivative from five points ``offset - 2 .. offset + 2`` steps away."""
    total = 0.0
    base = _log_f(z, alpha, beta)
    for i in range(5):
        k = i - 2 + offset
        # Derivative at 0 of Lagrange's polynomial through the points.
        weight = 0.0
        for j in range(5):
            if j == i:
                continue
            term = 1.0 / (i - j)
            for m in range(5):
                if m not in (i, j):
                    term *= (2.0 - offset - m) / (i - m)
            weight += term
        if weight == 0.0:
            continue
        d = k * h
        if which == 0:
            total += weight * _log_f(z + d, alpha, beta)
        elif which == 1 and alpha > 1.5:
            # Tails are proportional to 2 - alpha: there the density is smooth, its logarithm not.
            total += weight * math.exp(_log_f(z, min(alpha + d, 2.0), beta) - base)
        elif which == 1:
            total += weight * _log_f(z, alpha + d, beta)
        else:
            total += weight * _log_f(z, alpha, min(max(beta + d, -1.0), 1.0))
    return total / h


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _differences(z: float, alpha: float, beta: float, out: Float64) -> None:
    """Write the derivatives in alpha, beta and z of the integrated log-density."""
    above = int((2.0 - alpha) / _STEP + 1e-9)
    out[0] = _slope(1, z, alpha, beta, _STEP * min(1.0, alpha), min(above - 2, 0))
    up, down = int((1.0 - beta) / _STEP + 1e-9), int((1.0 + beta) / _STEP + 1e-9)
    out[1] = _slope(2, z, alpha, beta, _STEP, min(up - 2, 0) - min(down - 2, 0))
    out[2] = _slope(0, z, alpha, beta, _STEP * (1.0 + abs(z)), 0)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _scores(
    z: Float64, alpha: float, beta: float, exact: bool, tabulated: SkewTable, out: Float64
) -> None:
    """Write the derivatives of log f in alpha, beta and z (point, 3) at S0 points of one law."""
    law = new_skew_law()
    table = not exact and alpha >= ALPHA_LOW
    x0 = collapse_skew(tabulated, alpha, beta, law) if table else 0.0
    for i in range(z.size):
        if not math.isfinite(z[i]):
            out[i] = np.nan
            continue
        if table and abs(z[i]) < FAR:
            f, fz, fa, fb = skew_density(law.rows, x0, alpha, z[i])
            if reliable(f, alpha, z[i]):
                out[i, 0], out[i, 1], out[i, 2] = fa / f, fb / f, fz / f
                continue
        _differences(z[i], alpha, beta, out[i])


def score(
    x: ArrayLike,
    alpha: ArrayLike,
    beta: ArrayLike = 0,
    loc: ArrayLike = 0,
    scale: ArrayLike = 1,
    parametrization: Parametrization = "S1",
    accuracy: str = "table",
) -> Float64:
    """Return the derivatives of `logpdf` in alpha, beta, scale and location.

    Parameters
    ----------
    x, alpha, beta, loc, scale, parametrization, accuracy
        As for `pdf`. From alpha 0.8 on the table's own derivatives, accurate to about 1e-5;
        elsewhere, and with ``accuracy="exact"``, differences of integrated densities, to about
        1e-7 where the density varies on the scale of the law.

    Returns
    -------
    ndarray of float64, shape (..., 4)
        One more dimension than the broadcast arguments: derivatives in alpha and beta, and in scale
        and location in 1 / units of `x`. NaN where `x` is not finite.

    Raises
    ------
    UsageError
        If a parameter is outside its range, or alpha is 1 with skewness in S1, which is not
        continuous there.

    Examples
    --------
    >>> score(1.0, 2.0)[2:].round(6)  # Gaussian: (x^2 / 2 - 1) / scale and x / 2
    array([-0.5,  0.5])
    """
    check_parametrization(parametrization)
    if accuracy not in ("table", "exact"):
        raise UsageError(f"accuracy must be 'table' or 'exact', got {accuracy!r}")
    alphas, betas, scales = check_laws(alpha, beta, scale)
    s1 = parametrization == "S1"
    if s1 and np.any((alphas == 1) & (betas != 0)):
        raise UsageError("S1 has no derivative at alpha 1 with skewness: use parametrization='S0'")
    z = (np.asarray(x, dtype=np.float64) - np.asarray(loc, dtype=np.float64)) / scales
    zeta = shift(alphas, betas, np.ones(()))
    points, alphas, betas, scales = np.broadcast_arrays(
        z - zeta if s1 else z, alphas, betas, scales
    )
    shape = points.shape
    flat = points.ravel()
    laws, which = np.unique(alphas.ravel() + 1j * betas.ravel(), return_inverse=True)
    slopes = np.empty((flat.size, 3))
    for i, law in enumerate(laws):
        where = np.flatnonzero(which == i)
        part = np.empty((where.size, 3))
        _scores(flat[where], law.real, law.imag, accuracy == "exact", skew_table(), part)
        slopes[where] = part
    by_alpha, by_beta, by_z = np.moveaxis(slopes.reshape(*shape, 3), -1, 0)
    by_loc, by_scale = -by_z / scales, -(1 + points * by_z) / scales
    if s1:
        # The S0 location is loc + scale zeta.
        one = tangent(alphas, np.ones(alphas.shape))
        by_alpha = by_alpha + scales * by_loc * 0.5 * math.pi * betas * (1 + one * one)
        by_beta = by_beta + scales * by_loc * one
        by_scale = by_scale + by_loc * betas * one
    return np.stack([by_alpha, by_beta, by_scale, by_loc], axis=-1)


def information(alpha: float, beta: float = 0) -> Float64:
    """Return the Fisher information of one sample of the law of scale 1, in S0.

    Parameters
    ----------
    alpha : float
        Tail index in [0.8, 2).
    beta : float
        Skewness in (-1, 1): at the ends the information on it is infinite.

    Returns
    -------
    ndarray of float64, shape (4, 4)
        For alpha, beta, scale and location; for another scale divide the rows and columns of the
        last two by it. Accurate to about 1e-5.

    Raises
    ------
    UsageError
        If a parameter is outside its range.

    Examples
    --------
    >>> information(1.0)[2, 2].round(4)  # a Cauchy scale: 1/2
    np.float64(0.5)
    """
    if not ALPHA_LOW <= alpha < 2:
        raise UsageError(f"alpha must be in [{ALPHA_LOW}, 2), got {alpha!r}")
    if not -1 < beta < 1:
        raise UsageError(f"beta must be in (-1, 1), got {beta!r}")
    law, found = new_skew_law(), np.empty((4, 4))
    x0 = collapse_skew(skew_table(), float(alpha), float(beta), law)
    skew_information(law.rows, x0, float(alpha), found)
    found[0] /= -(2 - alpha)
    found[:, 0] /= -(2 - alpha)
    return found
