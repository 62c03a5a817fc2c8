"""Laws with a location and a scale: what is fitted to samples, and what may have made them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from scipy import special

from tracelab.stats import _generalized_normal, _shape_climb, stable
from tracelab.typing import Array, FloatArray, Status

__all__ = ["FAMILIES", "Family"]

# Parameters and errors (row, parameter), log-likelihoods, iterations, whether it converged.
_Found: TypeAlias = tuple[FloatArray, FloatArray, FloatArray, Array, Array]


@dataclass(frozen=True, slots=True)
class Family:
    """A law, and how it is fitted.

    Parameters
    ----------
    names : tuple of str
        Of its parameters; those that end in ``scale`` go with the unit of the data, and ``loc``
        with its origin, too.
    fit : callable
        Sorted rows of median 0 and interquartile range 1, to parameters and errors (row,
        parameter), log-likelihoods, iterations, and whether the search ended.
    logpdf, cdf : callable
        Values and parameters, which broadcast.
    draw : callable
        Generator, shape and parameters to draws.
    """

    names: tuple[str, ...]
    fit: Callable[[FloatArray], _Found]
    logpdf: Callable[..., FloatArray]
    cdf: Callable[..., FloatArray]
    draw: Callable[..., FloatArray]


def _closed(loc: FloatArray, scale: FloatArray, errors: FloatArray, loglik: FloatArray) -> _Found:
    count = len(loc)
    values = np.stack([loc, scale], axis=1)
    return values, errors * scale[:, None], loglik, np.zeros(count), np.ones(count, dtype=bool)


def _fit_gaussian(rows: FloatArray) -> _Found:
    n = rows.shape[1]
    loc, scale = rows.mean(axis=1), rows.std(axis=1)
    loglik = -n * (np.log(scale) + 0.5 * math.log(2 * math.pi) + 0.5)
    return _closed(loc, scale, np.array([1.0, math.sqrt(0.5)]) / math.sqrt(n), loglik)


def _fit_laplace(rows: FloatArray) -> _Found:
    n = rows.shape[1]
    loc = np.median(rows, axis=1)
    scale = np.abs(rows - loc[:, None]).mean(axis=1)
    return _closed(loc, scale, np.ones(2) / math.sqrt(n), -n * (np.log(2 * scale) + 1))


def _climbed(family: int, rows: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    out = np.full((len(rows), 11), np.nan)
    _shape_climb.fit_rows(family, np.ascontiguousarray(rows), out)
    return out[:, :4], out[:, 4:8], out[:, 8:]


def _fit_student(rows: FloatArray) -> _Found:
    values, errors, loglik, iterations, converged = _fit_gaussian(rows)
    values = np.concatenate([np.full((len(rows), 1), np.inf), values], axis=1)
    errors = np.concatenate([np.full((len(rows), 1), np.nan), errors], axis=1)
    # With 1 / df = 0 the likelihood's slope in 1 / df is a quarter of the excess kurtosis.
    centred = rows - values[:, 1:2]
    kurtosis = (centred**4).mean(axis=1) / (centred**2).mean(axis=1) ** 2
    heavy = np.flatnonzero(kurtosis > 3)
    theta, theta_errors, (own, steps, reached) = (
        each.T for each in _climbed(_shape_climb.STUDENT, rows[heavy])
    )
    better = own > loglik[heavy]
    heavy = heavy[better]
    df, scale = np.exp(theta[0]), np.exp(theta[1])
    values[heavy] = np.stack([df, theta[2], scale], axis=1)[better]
    errors[heavy] = np.stack(
        [df * theta_errors[0], theta_errors[2], scale * theta_errors[1]], axis=1
    )[better]
    loglik[heavy], converged[heavy] = own[better], reached[better] > 0
    iterations[heavy] = steps[better]
    return values, errors, loglik, iterations, converged


def _fit_generalized_normal(rows: FloatArray) -> _Found:
    n = rows.shape[1]
    out = np.full((len(rows), 6), np.nan)
    _generalized_normal.fit_rows(np.ascontiguousarray(rows), out)
    shape, loc, scale, loglik, turns, converged = out.T
    inverse = 1 / shape
    # Of the location by the information where the density is smooth enough, else as of a median.
    smooth = shape > 1
    safe = np.where(smooth, inverse, 0.5)
    information = np.exp(special.gammaln(2 - safe) - special.gammaln(safe)) / safe**2
    median = np.exp(special.gammaln(inverse)) * inverse
    loc_error = scale * np.where(smooth, 1 / np.sqrt(information), median)
    # Information of (shape, log scale): |z|^shape has the Gamma law of shape a = 1 / shape.
    psi, psi_next = special.digamma(inverse + 1), special.digamma(inverse + 2)
    square = inverse * (inverse + 1) * (special.polygamma(1, inverse + 2) + psi_next**2)
    shape_shape = (square - (inverse * psi) ** 2) * inverse**2
    mixed = inverse**2 * psi - inverse * (inverse + 1) * psi_next
    determinant = shape_shape * shape - mixed**2
    error = np.stack(
        [np.sqrt(shape / determinant), loc_error, scale * np.sqrt(shape_shape / determinant)],
        axis=1,
    )
    values = np.stack([shape, loc, scale], axis=1)
    return values, error / math.sqrt(n), loglik, turns, converged > 0


def _fit_scale_mixture(rows: FloatArray) -> _Found:
    theta, errors, (loglik, iterations, converged) = (
        each.T for each in _climbed(_shape_climb.SCALE_MIXTURE, rows)
    )
    share, narrow, wide = special.expit(theta[0]), np.exp(theta[1]), np.exp(theta[2])
    swapped = narrow > wide
    values = np.stack(
        [
            np.where(swapped, 1 - share, share),
            theta[3],
            np.minimum(narrow, wide),
            np.maximum(narrow, wide),
        ],
        axis=1,
    )
    narrow_error, wide_error = narrow * errors[1], wide * errors[2]
    error = np.stack(
        [
            share * (1 - share) * errors[0],
            errors[3],
            np.where(swapped, wide_error, narrow_error),
            np.where(swapped, narrow_error, wide_error),
        ],
        axis=1,
    )
    return values, error, loglik, iterations, converged > 0


def _fit_stable(rows: FloatArray) -> _Found:
    found = stable.fit(rows)
    values = np.stack([found.alpha, found.loc, found.scale], axis=1)
    errors = np.stack([found.alpha_se, found.loc_se, found.scale_se], axis=1)
    # Values that many share are left out of the fit; all are counted here.
    loglik = stable.logpdf(
        rows, found.alpha[:, None], loc=found.loc[:, None], scale=found.scale[:, None]
    ).sum(axis=1)
    return values, errors, loglik, found.iterations, found.status == Status.OK


def _log_mixture(
    x: FloatArray, wide: FloatArray, loc: FloatArray, scale: FloatArray, wide_scale: FloatArray
) -> FloatArray:
    constant = 0.5 * math.log(2 * math.pi)
    one = np.log1p(-wide) - np.log(scale) - 0.5 * ((x - loc) / scale) ** 2
    two = np.log(wide) - np.log(wide_scale) - 0.5 * ((x - loc) / wide_scale) ** 2
    found: FloatArray = np.logaddexp(one, two) - constant
    return found


def _log_student(x: FloatArray, df: FloatArray, loc: FloatArray, scale: FloatArray) -> FloatArray:
    z = (x - loc) / scale
    gaussian = -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
    finite = np.where(np.isinf(df), 1.0, df)
    # gammaln of large arguments cancels; the difference is that of Pochhammer's symbol.
    constant = np.log(special.poch(0.5 * finite, 0.5)) - 0.5 * np.log(finite * math.pi)
    student = constant - 0.5 * (finite + 1) * np.log1p(z**2 / finite)
    found: FloatArray = np.where(np.isinf(df), gaussian, student) - np.log(scale)
    return found


def _cdf_student(x: FloatArray, df: FloatArray, loc: FloatArray, scale: FloatArray) -> FloatArray:
    z = (x - loc) / scale
    finite = np.where(np.isinf(df), 1.0, df)
    found: FloatArray = np.where(np.isinf(df), special.ndtr(z), special.stdtr(finite, z))
    return found


def _cdf_generalized(
    x: FloatArray, shape: FloatArray, loc: FloatArray, scale: FloatArray
) -> FloatArray:
    z = (x - loc) / scale
    half = 0.5 * special.gammaincc(1 / shape, np.abs(z) ** shape)
    found: FloatArray = np.where(z < 0, half, 1 - half)
    return found


def _cdf_laplace(x: FloatArray, loc: FloatArray, scale: FloatArray) -> FloatArray:
    z = (x - loc) / scale
    half = 0.5 * np.exp(-np.abs(z))
    found: FloatArray = np.where(z < 0, half, 1 - half)
    return found


def _draw_generalized(
    rng: np.random.Generator, size: tuple[int, ...], shape: float, loc: float, scale: float
) -> FloatArray:
    magnitude = rng.standard_gamma(1 / shape, size) ** (1 / shape)
    found: FloatArray = loc + scale * magnitude * rng.choice([-1.0, 1.0], size)
    return found


def _draw_student(
    rng: np.random.Generator, size: tuple[int, ...], df: float, loc: float, scale: float
) -> FloatArray:
    drawn = rng.standard_normal(size) if math.isinf(df) else rng.standard_t(df, size)
    return loc + scale * drawn


def _draw_mixture(
    rng: np.random.Generator,
    size: tuple[int, ...],
    wide: float,
    loc: float,
    scale: float,
    wide_scale: float,
) -> FloatArray:
    scales = np.where(rng.uniform(size=size) < wide, wide_scale, scale)
    return loc + scales * rng.standard_normal(size)


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "gaussian": Family(
            ("loc", "scale"),
            _fit_gaussian,
            lambda x, loc, scale: (
                -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * math.log(2 * math.pi)
            ),
            lambda x, loc, scale: special.ndtr((x - loc) / scale),
            lambda rng, size, loc, scale: rng.normal(loc, scale, size),
        ),
        "laplace": Family(
            ("loc", "scale"),
            _fit_laplace,
            lambda x, loc, scale: -np.abs(x - loc) / scale - np.log(2 * scale),
            _cdf_laplace,
            lambda rng, size, loc, scale: rng.laplace(loc, scale, size),
        ),
        "student_t": Family(
            ("df", "loc", "scale"), _fit_student, _log_student, _cdf_student, _draw_student
        ),
        "generalized_normal": Family(
            ("shape", "loc", "scale"),
            _fit_generalized_normal,
            lambda x, shape, loc, scale: (
                np.log(shape)
                - np.log(2 * scale)
                - special.gammaln(1 / shape)
                - np.abs((x - loc) / scale) ** shape
            ),
            _cdf_generalized,
            _draw_generalized,
        ),
        "stable": Family(
            ("alpha", "loc", "scale"),
            _fit_stable,
            lambda x, alpha, loc, scale: stable.logpdf(x, alpha, loc=loc, scale=scale),
            lambda x, alpha, loc, scale: stable.cdf(x, alpha, loc=loc, scale=scale),
            lambda rng, size, alpha, loc, scale: stable.rvs(
                alpha, loc=loc, scale=scale, size=size, rng=rng
            ),
        ),
        "scale_mixture": Family(
            ("wide", "loc", "scale", "wide_scale"),
            _fit_scale_mixture,
            _log_mixture,
            lambda x, wide, loc, scale, wide_scale: (
                (1 - wide) * special.ndtr((x - loc) / scale)
                + wide * special.ndtr((x - loc) / wide_scale)
            ),
            _draw_mixture,
        ),
    }
)
"""The laws, by name."""
