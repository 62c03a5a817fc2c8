"""The result of every fit of a stable law, and how it is made from estimates and covariances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracelab.stats._stable_parameters import check_parametrization, tangent
from tracelab.stats._stable_rows import Standardised
from tracelab.typing import Array, IntArray, Status

__all__ = ["StableFit", "assemble", "symmetric"]

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StableFit:
    """A stable law for each cell; arrays have the leading shape of the data.

    Parameters
    ----------
    alpha, alpha_se, alpha_low, alpha_high : ndarray
        Tail index, standard error, interval (within (0, 2]). Where the symmetric likelihood fit
        has ``alpha`` exactly 2 the likelihood has no curvature: the standard error is then the one
        whose normal interval would reach as far down, ``(2 - alpha_low) / z``.
    beta, beta_se, beta_low, beta_high : ndarray
        Skewness; 0 with no error where the fit is symmetric. A general fit at ``alpha = 2``, where
        beta has no meaning, gives 0, an infinite error and the interval [-1, 1].
    scale, scale_se, scale_low, scale_high : ndarray
        Scale in the units of the data; the interval is symmetric in the logarithm.
    loc, loc_se, loc_low, loc_high : ndarray
        Location in the units of the data.
    loglik, loglik_gaussian : ndarray
        Log-likelihood of this law and of the Gaussian maximum-likelihood fit; NaN from fits that
        compute none.
    tied_fraction : ndarray
        Share of values left out because more than a tenth of the cell repeats each of them
        exactly: an atom (often zero), which no continuous law has. The fit and all other
        numbers describe the remaining values.
    status : ndarray of uint8
        `tracelab.typing.Status`.
    iterations : ndarray of int64
        Iterations of the climb.
    n_samples : int or ndarray of int64
        Values per cell; an array where each was counted.
    """

    alpha: Float64
    alpha_se: Float64
    alpha_low: Float64
    alpha_high: Float64
    beta: Float64
    beta_se: Float64
    beta_low: Float64
    beta_high: Float64
    scale: Float64
    scale_se: Float64
    scale_low: Float64
    scale_high: Float64
    loc: Float64
    loc_se: Float64
    loc_low: Float64
    loc_high: Float64
    loglik: Float64
    loglik_gaussian: Float64
    tied_fraction: Float64
    status: NDArray[np.uint8]
    iterations: NDArray[np.int64]
    n_samples: int | IntArray


def _tangent_slope(alpha: Float64, beta: Float64) -> Float64:
    """Return the derivative in alpha of ``beta tan(pi alpha / 2)``."""
    slope: Float64 = 0.5 * np.pi * beta * (1 + tangent(alpha, np.ones_like(alpha)) ** 2)
    return slope


def assemble(
    rows: Standardised,
    estimates: Float64,
    covariance: Float64,
    parametrization: str,
    z: float,
    status: NDArray[np.uint8],
    iterations: NDArray[np.int64],
    *,
    alpha_interval: Float64 | None = None,
    beta_interval: Float64 | None = None,
    loglik: Float64 | None = None,
) -> StableFit:
    """Return a result with normal intervals, NaN where the status says there is no fit.

    Parameters
    ----------
    rows : Standardised
        What was fitted.
    estimates : ndarray, shape (row, 4)
        Alpha, beta, scale and the location in S0 of the standardised rows.
    covariance : ndarray, shape (row, 4, 4)
        Of alpha, beta, log scale and location / scale, in S0. Rows of a parameter that has no
        error are 0; an infinite variance of beta says that it is not identified.
    parametrization : {"S0", "S1"}
        Of the location in the result.
    z : float
        Half width of intervals in standard errors.
    status, iterations : ndarray, shape (row,)
        As in `StableFit`.
    alpha_interval, beta_interval : ndarray, shape (row, 2), optional
        Intervals, where they are not the normal ones.
    loglik : ndarray, shape (row, 2), optional
        Log-likelihood of the law and of the Gaussian fit.
    """
    check_parametrization(parametrization)
    fitted = (status == int(Status.OK)) | (status == int(Status.NOT_CONVERGED))
    alpha, beta, scale, loc = (np.where(fitted, estimates[:, i], np.nan) for i in range(4))
    scale, loc = rows.spread * scale, rows.centre + rows.spread * loc
    unknown = np.isinf(covariance[..., 1, 1])
    known = np.where(unknown[..., None, None] & _BETA, 0.0, covariance)
    errors = np.sqrt(np.where(fitted[..., None], np.diagonal(known, axis1=-2, axis2=-1), np.nan))
    alpha_se, beta_se, log_scale_se, loc_se = (errors[..., i] for i in range(4))
    beta_se = np.where(unknown & fitted, np.inf, beta_se)
    if parametrization == "S1":
        zeta = tangent(alpha, beta)
        loc = loc - scale * zeta
        gradient = np.stack(
            [
                -_tangent_slope(alpha, beta),
                -tangent(alpha, np.ones_like(alpha)),
                -zeta,
                np.ones_like(alpha),
            ],
            axis=-1,
        )
        loc_se = np.sqrt(np.einsum("ri,rij,rj->r", gradient, known, gradient))
    loc_se = scale * loc_se
    low, high = alpha - z * alpha_se, alpha + z * alpha_se
    if alpha_interval is not None:
        low, high = alpha_interval[..., 0], alpha_interval[..., 1]
    beta_low, beta_high = beta - z * beta_se, beta + z * beta_se
    if beta_interval is not None:
        beta_low, beta_high = beta_interval[..., 0], beta_interval[..., 1]
    logliks = np.full((status.size, 2), np.nan) if loglik is None else loglik
    columns: dict[str, Array] = {
        "alpha": alpha,
        "alpha_se": alpha_se,
        "alpha_low": np.maximum(low, 0),
        "alpha_high": np.minimum(high, 2),
        "beta": beta,
        "beta_se": beta_se,
        "beta_low": np.maximum(beta_low, -1),
        "beta_high": np.minimum(beta_high, 1),
        "scale": scale,
        "scale_se": scale * log_scale_se,
        "scale_low": scale * np.exp(-z * log_scale_se),
        "scale_high": scale * np.exp(z * log_scale_se),
        "loc": loc,
        "loc_se": loc_se,
        "loc_low": loc - z * loc_se,
        "loc_high": loc + z * loc_se,
        "loglik": logliks[:, 0],
        "loglik_gaussian": logliks[:, 1],
        "tied_fraction": rows.tied_fraction,
        "status": status,
        "iterations": iterations,
    }
    cells: dict[str, Any] = {name: column.reshape(rows.lead) for name, column in columns.items()}
    return StableFit(**cells, n_samples=rows.n_samples)


def symmetric(
    columns: Float64, lead: tuple[int, ...], z: float | None, n_samples: int | IntArray
) -> StableFit:
    """Return the result of symmetric fits from the columns (row, 13) of ``fit_sorted``.

    Without `z` there are no intervals, and no standard error of alpha.
    """
    each = (columns[:, i].reshape(lead) for i in range(columns.shape[1]))
    (alpha, scale, loc, alpha_se, log_scale_se, loc_se, low, high, loglik) = (
        next(each) for _ in range(9)
    )
    tied, iterations, status, loglik_gaussian = each
    if z is None:
        z, alpha_se, low, high = np.nan, np.nan * alpha, np.nan * alpha, np.nan * alpha
    # beta is 0 where there is a fit and missing where there is none.
    beta = 0 * alpha
    return StableFit(
        alpha=alpha,
        alpha_se=alpha_se,
        alpha_low=low,
        alpha_high=high,
        beta=beta,
        beta_se=beta,
        beta_low=beta,
        beta_high=beta,
        scale=scale,
        scale_se=scale * log_scale_se,
        scale_low=scale * np.exp(-z * log_scale_se),
        scale_high=scale * np.exp(z * log_scale_se),
        loc=loc,
        loc_se=loc_se,
        loc_low=loc - z * loc_se,
        loc_high=loc + z * loc_se,
        loglik=loglik,
        loglik_gaussian=loglik_gaussian,
        tied_fraction=tied,
        status=status.astype(np.uint8),
        iterations=iterations.astype(np.int64),
        n_samples=n_samples,
    )


_BETA = np.zeros((4, 4), dtype=np.bool_)
_BETA[1] = _BETA[:, 1] = True
