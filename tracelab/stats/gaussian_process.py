"""Marginal likelihood of binary labels under a Gaussian process, approximated in two ways."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special
from scipy.linalg import lapack, solve_triangular

from tracelab.errors import UsageError
from tracelab.typing import FloatArray, Status

__all__ = ["LINKS", "Evidence", "expectation_propagation", "laplace"]

LINKS = ("heaviside", "probit")
"""Likelihoods of expectation propagation: of the sign of f itself, and Phi(y f)."""

_NEWTON = 100
_SWEEPS = 2000
# Change of a site, relative to its precision, at which the sweeps end.
_TOLERANCE = 1e-9
# Negative eigenvalues below this part of the largest are rounding.
_ROUNDING = 1e-9
_LOG_SQRT_2PI = 0.5 * np.log(2 * np.pi)


@dataclass(frozen=True, slots=True)
class Evidence:
    """The marginal likelihood of labels, ``Z = E prod_i p(y_i | f_i)`` over f ~ N(0, K).

    Parameters
    ----------
    log_evidence : float
        log Z, in nats; NaN unless the status is OK.
    n_iterations : int
        Newton's steps, or sweeps over the sites.
    status : Status
        NON_FINITE_INPUT, CONSTANT_INPUT (an example has no variance), NOT_CONVERGED: the iteration
        did not end, or the kernel has eigenvalues that are negative by more than rounding.
    """

    log_evidence: float
    n_iterations: int
    status: Status


def laplace(kernel: npt.ArrayLike, labels: npt.ArrayLike) -> Evidence:
    r"""Return Laplace's approximation of the evidence with the logistic link.

    .. math:: \log Z \approx -\tfrac12 \hat f^T K^{-1} \hat f + \sum_i \log\sigma(y_i \hat f_i)
       - \tfrac12 \log\det(I + W^{1/2} K W^{1/2})

    at the mode :math:`\hat f`, by Newton's method with halved steps; the kernel is not inverted,
    and nothing is added to its diagonal.

    Parameters
    ----------
    kernel : array_like, shape (example, example)
        Covariance of f. Its symmetric part is taken.
    labels : array_like, shape (example,)
        -1 or 1.

    Returns
    -------
    Evidence

    Raises
    ------
    UsageError
        If shapes do not fit or a label is another.

    References
    ----------
    Rasmussen, Williams, "Gaussian Processes for Machine Learning", 2006, algorithm 3.1, eq. 3.32.
    """
    covariance, signs, status = _given(kernel, labels)
    if status is not Status.OK:
        return Evidence(np.nan, 0, status)
    targets = (signs + 1) / 2
    f = alpha = np.zeros(signs.size)

    def height(alpha: FloatArray, f: FloatArray) -> float:
        return float(-0.5 * alpha @ f - np.logaddexp(0, -signs * f).sum())

    reached = height(alpha, f)
    for iteration in range(1, _NEWTON + 1):
        p = special.expit(f)
        w = p * (1 - p)
        root = np.sqrt(w)
        lower = _cholesky(covariance, root)
        if lower is None:
            return Evidence(np.nan, iteration, Status.NOT_CONVERGED)
        b = w * f + targets - p
        inner = _solve(lower, root * (covariance @ b))
        step = b - root * inner - alpha
        length = 1.0
        while True:
            trial = alpha + length * step
            there = covariance @ trial
            value = height(trial, there)
            if value >= reached or length < 1e-6:
                break
            length /= 2
        gain, alpha, f, reached = value - reached, trial, there, value
        if abs(gain) <= 1e-13 * (1 + abs(reached)):
            p = special.expit(f)
            lower = _cholesky(covariance, np.sqrt(p * (1 - p)))
            if lower is None:
                break
            log_z = reached - float(np.log(np.diag(lower)).sum())
            return Evidence(log_z, iteration, Status.OK)
    return Evidence(np.nan, _NEWTON, Status.NOT_CONVERGED)


def expectation_propagation(
    kernel: npt.ArrayLike, labels: npt.ArrayLike, link: str = "heaviside"
) -> Evidence:
    r"""Return the evidence by expectation propagation.

    With the Heaviside link it approximates the probability that f has the signs of the labels, an
    orthant probability, which does not change with the scale of any :math:`f_i`: the kernel is
    scaled to a unit diagonal. It is exact for one example and for independent ones.

    Sites :math:`c_i \exp(\nu_i f_i - \tau_i f_i^2 / 2)` are updated all at once, by a part of the
    way to where moments match, which is halved where they part. At the fixed point

    .. math:: \log Z = \sum_i \log c_i - \tfrac12 \log\det(I + S^{1/2} K S^{1/2})
       + \tfrac12 \nu^T (K^{-1} + S)^{-1} \nu, \quad S = \mathrm{diag}\,\tau .

    Parameters
    ----------
    kernel, labels
        As for `laplace`.
    link : {"heaviside", "probit"}
        ``p(y | f)``: 1 where f has the sign y, or Phi(y f).

    Returns
    -------
    Evidence

    Raises
    ------
    UsageError
        If shapes do not fit, a label or the link is another.

    Notes
    -----
    Neither a bound of the probability nor exact: within 6 % of its logarithm up to correlations
    of .9 (5.3 % there, of two equal labels), mostly within 1 %. Where labels have a probability of
    0, under a kernel of deficient rank, it does not converge.

    References
    ----------
    Minka, "Expectation propagation for approximate Bayesian inference", UAI 2001; Rasmussen,
    Williams 2006, section 3.6; Cunningham, Hennig, Lacoste-Julien, "Gaussian probabilities and
    expectation propagation", 2011 (orthants).
    """
    if link not in LINKS:
        raise UsageError(f"link must be one of {', '.join(LINKS)}, got {link!r}")
    covariance, signs, status = _given(kernel, labels)
    if status is not Status.OK:
        return Evidence(np.nan, 0, status)
    extra = 1.0 if link == "probit" else 0.0
    if link == "heaviside":
        scale = np.sqrt(np.diag(covariance))
        covariance = covariance / scale / scale[:, None]
    # In units of the label: f_i y_i, of which all signs are to be positive.
    covariance = covariance * signs * signs[:, None]
    tau = nu = np.zeros(signs.size)
    part, before = 1.0, np.inf
    for sweep in range(1, _SWEEPS + 1):
        posterior = _posterior(covariance, tau, nu)
        if posterior is None:
            break
        mean, variance, lower = posterior
        # The law without a site: it is one, since sites only ever narrow it.
        kept = np.maximum(1.0 / variance - tau, 1e-12 / np.diag(covariance))
        cavity_variance = 1.0 / kept
        cavity_mean = cavity_variance * (mean / variance - nu)
        log_hat, slope, bend = _tilted(cavity_mean, cavity_variance, extra)
        new_tau = bend / np.maximum(1.0 - cavity_variance * bend, 1e-300)
        new_nu = (slope + cavity_mean * bend) / np.maximum(1.0 - cavity_variance * bend, 1e-300)
        if not (np.isfinite(new_tau).all() and np.isfinite(new_nu).all()):
            break
        size = np.sqrt(new_tau) + 1e-300
        change = max(
            float(np.abs((new_tau - tau) / (new_tau + 1e-300)).max()),
            float(np.abs((new_nu - nu) / size).max()),
        )
        if change < _TOLERANCE:
            log_z = _log_evidence(tau, nu, mean, lower, log_hat, cavity_mean, cavity_variance)
            return Evidence(log_z, sweep, Status.OK)
        if sweep > 3 and change > before:
            part = max(0.5 * part, 0.02)
        before = change
        tau, nu = tau + part * (new_tau - tau), nu + part * (new_nu - nu)
    return Evidence(np.nan, sweep, Status.NOT_CONVERGED)


def _log_evidence(
    tau: FloatArray,
    nu: FloatArray,
    mean: FloatArray,
    lower: FloatArray,
    log_hat: FloatArray,
    cavity_mean: FloatArray,
    cavity_variance: FloatArray,
) -> float:
    """Return log Z from the sites: each integrates with its cavity to what the tilted law has."""
    spread = 1.0 + tau * cavity_variance
    quadratic = nu**2 * cavity_variance + 2 * nu * cavity_mean - tau * cavity_mean**2
    log_c = log_hat + 0.5 * np.log(spread) - 0.5 * quadratic / spread
    return float(log_c.sum() - np.log(np.diag(lower)).sum() + 0.5 * nu @ mean)


def _tilted(
    mean: FloatArray, variance: FloatArray, extra: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return log E p(1 | f) over N(mean, variance), its first and minus its second derivative."""
    deviation = np.sqrt(variance + extra)
    z = mean / deviation
    log_hat = special.log_ndtr(z)
    ratio = np.exp(-0.5 * z**2 - _LOG_SQRT_2PI - log_hat)
    return log_hat, ratio / deviation, ratio * (z + ratio) / (variance + extra)


def _posterior(
    covariance: FloatArray, tau: FloatArray, nu: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray] | None:
    """Return mean and variances under the sites, and the root of I + S^1/2 K S^1/2."""
    root = np.sqrt(tau)
    lower = _cholesky(covariance, root)
    if lower is None:
        return None
    half = solve_triangular(lower, root[:, None] * covariance, lower=True, check_finite=False)
    mean = covariance @ nu - half.T @ (half @ nu)
    variance = np.diag(covariance) - np.einsum("ij,ij->j", half, half)
    if not (variance > 0).all():
        return None
    return mean, variance, lower


def _cholesky(covariance: FloatArray, root: FloatArray) -> FloatArray | None:
    """Return the lower Cholesky factor of I + R K R, or None if there is none."""
    matrix = root[:, None] * covariance * root
    matrix[np.diag_indices_from(matrix)] += 1.0
    lower, info = lapack.dpotrf(matrix, lower=1, clean=1)
    return lower if info == 0 else None


def _solve(lower: FloatArray, right: FloatArray) -> FloatArray:
    half = solve_triangular(lower, right, lower=True, check_finite=False)
    return np.asarray(solve_triangular(lower, half, lower=True, trans=1, check_finite=False))


def _given(kernel: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[FloatArray, FloatArray, Status]:
    covariance = np.asarray(kernel, dtype=np.float64)
    signs = np.asarray(labels, dtype=np.float64)
    if signs.ndim != 1 or signs.size == 0 or covariance.shape != (signs.size, signs.size):
        raise UsageError(
            "kernel must be of shape (example, example) and labels of (example,), got "
            f"{covariance.shape} and {signs.shape}"
        )
    other = ~np.isin(signs, (-1.0, 1.0))
    if other.any():
        raise UsageError(f"labels must be -1 or 1, got {signs[other][0]:g}")
    if not np.isfinite(covariance).all():
        return covariance, signs, Status.NON_FINITE_INPUT
    covariance = 0.5 * (covariance + covariance.T)
    if (np.diag(covariance) <= 0).any():
        return covariance, signs, Status.CONSTANT_INPUT
    eigenvalues = np.linalg.eigvalsh(covariance)
    if eigenvalues[0] < -_ROUNDING * eigenvalues[-1]:
        return covariance, signs, Status.NOT_CONVERGED
    return covariance, signs, Status.OK
