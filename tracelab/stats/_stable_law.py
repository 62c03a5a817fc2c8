"""Density, distribution and quantiles of stable laws."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numba
import numpy as np
from numpy.typing import ArrayLike

from tracelab.errors import UsageError
from tracelab.stats._stable_density import (
    ALPHA_MIN,
    Float64,
    Table,
    collapse,
    cumulate,
    density,
    log_density,
    new_law,
    survival,
    table,
)
from tracelab.stats._stable_exact import CDF, PDF, SF, exact, exact_quantiles, log_exact
from tracelab.stats._stable_parameters import (
    Parametrization,
    check_laws,
    check_parametrization,
    shift,
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

__all__ = ["Accuracy", "cdf", "logpdf", "pdf", "ppf", "sf"]

Accuracy = Literal["table", "exact"]
_ONE = np.ones(())
_PDF, _LOGPDF, _CDF, _SF, _PPF = range(5)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _quantile(law: Float64, x0: float, alpha: float, q: float) -> float:
    """Return ``a >= 0`` with ``P(Z > a) = q`` for ``0 < q <= 1/2``: bracketed Newton in log a."""
    if q == 0.5:
        return 0.0
    low, high = 0.0, 1.0
    while survival(law, x0, alpha, high) > q:
        low = high
        high *= 16.0
        if high == np.inf:
            return np.inf
    a = 0.5 * (low + high)
    for _ in range(200):
        tail = survival(law, x0, alpha, a)
        if tail > q:
            low = a
        else:
            high = a
        fall = math.log(tail / q)
        # d log P / d log a, from logarithms: far out the density itself underflows.
        rate = math.exp(log_density(law, x0, alpha, a) + math.log(a) - math.log(tail))
        new = a + a * fall / rate if a < 1.0 else a * math.exp(min(max(fall / rate, -3.0), 3.0))
        if not low < new < high:
            new = 0.5 * (low + high) if low == 0.0 or high < 4.0 * low else math.sqrt(low * high)
        if abs(new - a) <= 1e-15 * a or new in (low, high):
            return new
        a = new
    return a


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _evaluate(what: int, z: Float64, alpha: float, tabulated: Table, out: Float64) -> None:
    law = new_law()
    x0 = collapse(tabulated, alpha, 0, law)
    if what >= _CDF:
        cumulate(law, x0, alpha)
    for i in range(z.size):
        a = abs(z[i])
        if math.isnan(a):
            out[i] = np.nan
        elif what == _PDF:
            # Far out the tail's logarithm outlasts the products behind `density`.
            if alpha == 2.0 or a > 1e3:
                out[i] = math.exp(log_density(law, x0, alpha, a)) if a < np.inf else 0.0
            else:
                out[i] = density(law, x0, alpha, a)[0]
        elif what == _LOGPDF:
            out[i] = log_density(law, x0, alpha, a) if a < np.inf else -np.inf
        elif what == _CDF:
            tail = survival(law, x0, alpha, a)
            out[i] = tail if z[i] < 0.0 else 1.0 - tail
        elif what == _SF:
            tail = survival(law, x0, alpha, a)
            out[i] = 1.0 - tail if z[i] < 0.0 else tail
        elif not 0.0 <= z[i] <= 1.0:
            out[i] = np.nan
        elif z[i] in (0.0, 1.0):
            out[i] = np.inf if z[i] == 1.0 else -np.inf
        else:
            q = min(z[i], 1.0 - z[i])
            out[i] = math.copysign(_quantile(law, x0, alpha, q), z[i] - 0.5)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _skewed(
    z0: Float64, z1: Float64, alpha: float, beta: float, tabulated: SkewTable, out: Float64
) -> None:
    """Write the logarithm of the density of one law, integrated where the table is too rough."""
    law = new_skew_law()
    x0 = collapse_skew(tabulated, alpha, beta, law)
    for i in range(z0.size):
        if abs(z0[i]) < FAR:
            f = skew_density(law.rows, x0, alpha, z0[i])[0]
            if reliable(f, alpha, z0[i]):
                out[i] = math.log(f)
                continue
        out[i] = log_exact(PDF, z0[i], z1[i], alpha, beta)


def _skewed_laws(
    what: int, z0: Float64, z1: Float64, alpha: Float64, beta: Float64, out: Float64
) -> None:
    """Write density or its logarithm from the table of skewed laws, one law at a time."""
    # Pairs as complex numbers: rows would be sorted as bytes, ten times as long.
    laws, which = np.unique(alpha + 1j * beta, return_inverse=True)
    order = np.argsort(which, kind="stable")
    bounds = np.searchsorted(which[order], np.arange(len(laws) + 1))
    for i, law in enumerate(laws):
        where = order[bounds[i] : bounds[i + 1]]
        part = np.empty(where.size)
        _skewed(z0[where], z1[where], law.real, law.imag, skew_table(), part)
        out[where] = part if what == _LOGPDF else np.exp(part)


def _symmetric(what: int, z: Float64, alpha: Float64, out: Float64) -> None:
    """Evaluate one function of standard symmetric laws from the table, one alpha at a time."""
    unique, which = np.unique(alpha, return_inverse=True)
    order = np.argsort(which, kind="stable")
    bounds = np.searchsorted(which[order], np.arange(unique.size + 1))
    tabulated = table()
    for i, value in enumerate(unique):
        where = order[bounds[i] : bounds[i + 1]]
        part = np.empty(where.size)
        _evaluate(what, z[where], value, tabulated, part)
        out[where] = part


def _both(z: Float64, offset: Float64, s1: bool) -> tuple[Float64, Float64]:
    """Return S0 and S1 coordinates; the one that is given stays exact."""
    return (z - offset, z) if s1 else (z, z + offset)


def _exact(
    what: int, z: Float64, alpha: Float64, beta: Float64, offset: Float64, s1: bool, out: Float64
) -> None:
    """Evaluate one function of standard laws by Zolotarev's integral."""
    if what == _PPF:
        exact_quantiles(z, alpha, beta, s1, out)
        # At alpha = 1 the S1 law of another scale is moved.
        out[:] = np.where((alpha == 1) & s1, out + offset, out)
        return
    z0, z1 = _both(z, offset, s1)
    exact({_CDF: CDF, _SF: SF}.get(what, PDF), z0, z1, alpha, beta, out)
    if what != _LOGPDF:
        np.exp(out, out=out)


def _standard(
    what: int,
    z: Float64,
    alpha: ArrayLike,
    beta: ArrayLike,
    scale: Float64,
    parametrization: str,
    accuracy: str,
) -> Float64:
    """Evaluate one function of the law ``(z - loc) / scale`` at broadcast arguments."""
    check_parametrization(parametrization)
    if accuracy not in get_args(Accuracy):
        raise UsageError(f"accuracy must be 'table' or 'exact', got {accuracy!r}")
    alphas, betas, _ = check_laws(alpha, beta, scale)
    s1 = parametrization == "S1"
    if accuracy == "table" and np.all(betas == 0) and np.all(alphas >= ALPHA_MIN):
        shape = np.broadcast_shapes(z.shape, alphas.shape, betas.shape)
        out = np.empty(shape)
        laws = np.broadcast_to(alphas, shape).ravel()
        _symmetric(what, np.broadcast_to(z, shape).ravel(), laws, out.reshape(-1))
        return out
    arrays = np.broadcast_arrays(z, alphas, betas, shift(alphas, betas, scale if s1 else _ONE))
    out = np.empty(arrays[0].shape)
    points, alphas, betas, offset = (a.ravel() for a in arrays)
    result = out.reshape(-1)
    tabulated = (betas == 0) & (alphas >= ALPHA_MIN) & (accuracy == "table")
    part = np.empty(int(tabulated.sum()))
    _symmetric(what, points[tabulated], alphas[tabulated], part)
    result[tabulated] = part
    rest = ~tabulated
    if accuracy == "table" and what in (_PDF, _LOGPDF):
        skewed = rest & (alphas >= ALPHA_LOW)
        rest &= ~skewed
        z0, z1 = _both(points[skewed], offset[skewed], s1)
        part = np.empty(z0.size)
        _skewed_laws(what, z0, z1, alphas[skewed], betas[skewed], part)
        result[skewed] = part
    part = np.empty(int(rest.sum()))
    _exact(what, points[rest], alphas[rest], betas[rest], offset[rest], s1, part)
    result[rest] = part
    return out


def _located(x: ArrayLike, loc: ArrayLike, scale: ArrayLike) -> tuple[Float64, Float64]:
    scales = np.asarray(scale, dtype=np.float64)
    if not np.all(scales > 0):
        raise UsageError(f"scale must be positive, got {scale!r}")
    z: Float64 = (np.asarray(x, dtype=np.float64) - np.asarray(loc, dtype=np.float64)) / scales
    return z, scales


def pdf(
    x: ArrayLike,
    alpha: ArrayLike,
    beta: ArrayLike = 0,
    loc: ArrayLike = 0,
    scale: ArrayLike = 1,
    parametrization: Parametrization = "S1",
    accuracy: Accuracy = "table",
) -> Float64:
    r"""Return the density of a stable law.

    In S1, with location :math:`\delta`, scale :math:`\gamma` and
    :math:`\omega = \tan(\pi\alpha/2)`, or :math:`-(2/\pi)\log|t|` if ``alpha = 1``,

    .. math:: E\, e^{itX} = \exp\{-|\gamma t|^\alpha (1 - i\beta\,\mathrm{sign}(t)\,\omega)
       + i\delta t\};

    in S0 the location is :math:`\delta + \beta\gamma\tan(\pi\alpha/2)`
    (:math:`\delta + (2/\pi)\beta\gamma\log\gamma` if ``alpha = 1``), and the law continuous in
    all parameters. ``alpha = 2`` is N(loc, 2 scale^2), ``alpha = 1, beta = 0`` Cauchy,
    ``alpha = 0.5, beta = 1`` Levy.

    Symmetric laws from alpha 0.3 are read from a table with a relative error below 1e-8 everywhere,
    tails included; densities of skewed laws from alpha 0.8 from another, with one below 1e-6
    (alpha from 1.05) or 2e-5. All other laws, distributions of skewed laws, and points in light
    tails are integrated, a tenth of a millisecond a point, with a relative error below 1e-9.

    Parameters
    ----------
    x : array_like
        Where; broadcasts with all parameters. NaN gives NaN.
    alpha : array_like
        Tail index in (0, 2].
    beta : array_like
        Skewness in [-1, 1].
    loc, scale : array_like
        Location and scale (``scale > 0``), in the units of `x`.
    parametrization : {"S1", "S0"}
        Nolan's; the two coincide for ``beta = 0``.
    accuracy : {"table", "exact"}
        Whether to use the table, or integrate at every point.

    Returns
    -------
    ndarray of float64
        Density, in 1 / units of `x`.

    Raises
    ------
    UsageError
        If a parameter is outside its range.

    References
    ----------
    Nolan, "Numerical calculation of stable densities and distribution functions",
    Communications in Statistics. Stochastic Models 13, 1997.

    Examples
    --------
    >>> float(pdf(0.0, 1.0).round(6))
    0.31831
    >>> float(pdf(2.0, 0.5, 1.0).round(6))  # Levy: exp(-1 / (2 x)) / sqrt(2 pi x^3)
    0.109848
    """
    z, scales = _located(x, loc, scale)
    return _standard(_PDF, z, alpha, beta, scales, parametrization, accuracy) / scales


def logpdf(
    x: ArrayLike,
    alpha: ArrayLike,
    beta: ArrayLike = 0,
    loc: ArrayLike = 0,
    scale: ArrayLike = 1,
    parametrization: Parametrization = "S1",
    accuracy: Accuracy = "table",
) -> Float64:
    """Return the logarithm of `pdf`, also where the density underflows; arguments as there."""
    z, scales = _located(x, loc, scale)
    return _standard(_LOGPDF, z, alpha, beta, scales, parametrization, accuracy) - np.log(scales)


def cdf(
    x: ArrayLike,
    alpha: ArrayLike,
    beta: ArrayLike = 0,
    loc: ArrayLike = 0,
    scale: ArrayLike = 1,
    parametrization: Parametrization = "S1",
    accuracy: Accuracy = "table",
) -> Float64:
    """Return P(X <= x), relatively accurate in the lower tail; arguments as for `pdf`."""
    z, scales = _located(x, loc, scale)
    return _standard(_CDF, z, alpha, beta, scales, parametrization, accuracy)


def sf(
    x: ArrayLike,
    alpha: ArrayLike,
    beta: ArrayLike = 0,
    loc: ArrayLike = 0,
    scale: ArrayLike = 1,
    parametrization: Parametrization = "S1",
    accuracy: Accuracy = "table",
) -> Float64:
    """Return P(X > x), relatively accurate in the upper tail; arguments as for `pdf`."""
    z, scales = _located(x, loc, scale)
    return _standard(_SF, z, alpha, beta, scales, parametrization, accuracy)


def ppf(
    q: ArrayLike,
    alpha: ArrayLike,
    beta: ArrayLike = 0,
    loc: ArrayLike = 0,
    scale: ArrayLike = 1,
    parametrization: Parametrization = "S1",
    accuracy: Accuracy = "table",
) -> Float64:
    """Return the quantile, the inverse of `cdf`; NaN outside [0, 1], parameters as for `pdf`."""
    _, scales = _located(0.0, loc, scale)
    probability = np.asarray(q, dtype=np.float64)
    z = _standard(_PPF, probability, alpha, beta, scales, parametrization, accuracy)
    return np.asarray(loc, dtype=np.float64) + scales * z
