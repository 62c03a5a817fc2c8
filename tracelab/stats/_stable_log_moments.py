r"""Symmetric stable laws from the mean and variance of log |x|, with errors by the delta method.

For :math:`\beta = 0` and location 0, with Euler's constant C,

.. math:: E \log|X| = C (1/\alpha - 1) + \log\gamma, \qquad
   \mathrm{Var} \log|X| = \frac{\pi^2}{6} \left(\frac{1}{\alpha^2} + \frac{1}{2}\right).
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from tracelab.stats._confidence import normal_quantile
from tracelab.stats._stable_result import StableFit, assemble
from tracelab.stats._stable_rows import prepare

__all__ = ["fit_log_moments", "log_cumulants"]

Float64 = NDArray[np.float64]

_MIN_SAMPLES = 20


def log_cumulants(alpha: Float64) -> tuple[Float64, Float64, Float64]:
    r"""Return the cumulants 2, 3 and 4 of log |X|, one array each.

    Of :math:`E|X|^p = (2\gamma)^p\, \Gamma(1 - p/\alpha)\, \Gamma((1 + p)/2) /
    (\sqrt\pi\, \Gamma(1 - p/2))`, term by term.
    """
    second, third, fourth = (
        (-1 / alpha) ** k * special.polygamma(k - 1, 1.0)
        - (-0.5) ** k * special.polygamma(k - 1, 1.0)
        + 0.5**k * special.polygamma(k - 1, 0.5)
        for k in (2, 3, 4)
    )
    return second, third, fourth


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _moments(rows: Float64, counts: NDArray[np.int64], out: Float64) -> None:
    """Write midmean, its variance, mean and variance of log |x - midmean|, number of logarithms."""
    for r in range(rows.shape[0]):
        n = counts[r]
        if n == 0:
            out[r] = 1.0
            continue
        row, quarter = rows[r, :n], n // 4
        loc = row[quarter : n - quarter].mean()
        low, high = row[quarter], row[n - quarter - 1]
        winsorized = 0.0
        for value in row:
            winsorized += (min(max(value, low), high) - loc) ** 2
        total, used = 0.0, 0
        for value in row:
            if value != loc:
                total += math.log(abs(value - loc))
                used += 1
        mean = total / used
        square = 0.0
        for value in row:
            if value != loc:
                square += (math.log(abs(value - loc)) - mean) ** 2
        out[r, 0], out[r, 1] = loc, winsorized / (n * (1.0 - 2.0 * quarter / n) ** 2 * n)
        out[r, 2], out[r, 3], out[r, 4] = mean, square / (used - 1.0), used


def fit_log_moments(x: ArrayLike, axis: int = -1, confidence: float = 0.95) -> StableFit:
    r"""Return the symmetric stable law of each cell from the moments of log |x - midmean|.

    One pass and a closed form, for any alpha; 1.5 (alpha 1.1) to 12 (alpha 1.99) times as
    scattered as the likelihood fit, since it looks at small values as much as at large ones. The
    location is the midmean, the mean of the middle half: values near the median are too close to
    it for what follows. It is only consistent for symmetric laws.

    Parameters
    ----------
    x : array_like
        Samples along `axis`; leading dims are cells. Computed in float64.
    axis : int
        Axis of the samples.
    confidence : float
        Level of the intervals, in (0, 1).

    Returns
    -------
    StableFit
        Without likelihoods and iterations; beta is 0. Alpha is 2 where the variance of the
        logarithms is below that of a Gaussian. Status TOO_FEW_SAMPLES below 20 values;
        NON_FINITE_INPUT; CONSTANT_INPUT if all values, or their middle half, are equal.

    Raises
    ------
    UsageError
        If an argument is outside its range.

    References
    ----------
    Ma, Nikias, "Parameter estimation and blind channel identification in impulsive signal
    environments", IEEE Transactions on Signal Processing 43, 1995; Kuruoglu, "Density parameter
    estimation of skewed alpha-stable distributions", same journal 49, 2001.

    Examples
    --------
    >>> from tracelab.stats import stable
    >>> x = stable.rvs(1.3, size=5000, rng=np.random.default_rng(0))
    >>> found = fit_log_moments(x)
    >>> bool(found.alpha_low < 1.3 < found.alpha_high)
    True
    """
    z = normal_quantile(confidence)
    rows = prepare(x, axis, _MIN_SAMPLES)
    moments = np.empty((rows.counts.size, 5))
    _moments(rows.values, rows.counts, moments)
    loc, loc_variance, mean, variance, used = moments.T
    alpha = np.maximum(6 * variance / np.pi**2 - 0.5, 0.25) ** -0.5
    log_scale = mean - np.euler_gamma * (1 / alpha - 1)
    second, third, fourth = log_cumulants(alpha)
    # d alpha / d variance from 2 / alpha^3 d alpha = -6 / pi^2 d variance.
    slope = -3 / np.pi**2 * alpha**3
    scale_slope = np.euler_gamma / alpha**2 * slope
    covariance = np.zeros((alpha.size, 4, 4))
    square = fourth + 2 * second**2
    covariance[:, 0, 0] = slope**2 * square / used
    covariance[:, 0, 2] = covariance[:, 2, 0] = slope * (third + scale_slope * square) / used
    covariance[:, 2, 2] = (second + 2 * scale_slope * third + scale_slope**2 * square) / used
    scale = np.exp(log_scale)
    covariance[:, 3, 3] = loc_variance / scale**2
    estimates = np.stack([alpha, np.zeros(alpha.size), scale, loc], axis=-1)
    iterations = np.zeros(alpha.size, dtype=np.int64)
    return assemble(rows, estimates, covariance, "S0", z, rows.status, iterations)
