"""The mean distance of a point from a standard normal vector."""

from __future__ import annotations

import math

from numba import njit

__all__ = ["gamma_ratio", "mean_distance"]


@njit(nogil=True, cache=True, error_model="numpy")
def gamma_ratio(z: float) -> float:
    """Return Gamma(z + 1/2) / Gamma(z) for z > 0; relative error below 1e-15 but for rounding."""
    factor = 1.0
    while z < 50.0:
        factor *= z / (z + 0.5)
        z += 1.0
    # The asymptotic series (Tricomi & Erdelyi 1951); its next term is 0.0012 z^-7.
    r = 1.0 / z
    series = 1.0 + r * (
        -1.0 / 8
        + r
        * (
            1.0 / 128
            + r * (5.0 / 1024 + r * (-21.0 / 32768 + r * (-399.0 / 262144 + r * 869.0 / 4194304)))
        )
    )
    return factor * math.sqrt(z) * series


@njit(nogil=True, cache=True, error_model="numpy")
def mean_distance(norm2: float, d: int) -> float:
    r"""Return E abs(a - Z) for abs(a)^2 = `norm2` and Z standard normal in `d` dimensions.

    .. math:: \sqrt2 \frac{\Gamma((d + 1)/2)}{\Gamma(d/2)}
        {}_1F_1\Big(-\frac12; \frac d2; -\frac{|a|^2}2\Big)
        = \sum_k e^{-x} \frac{x^k}{k!} \sqrt2 \frac{\Gamma(d/2 + k + 1/2)}{\Gamma(d/2 + k)},
        \quad x = \frac{|a|^2}2

    by Kummer's transformation (Abramowitz & Stegun 13.1.27): a mean over a Poisson law, whose
    terms are all positive. They are summed from the middle outwards, and divided by the sum of the
    weights, so that none overflows.
    """
    x, b = 0.5 * norm2, 0.5 * d
    middle = float(math.floor(x))
    top = math.sqrt(2.0) * gamma_ratio(b + middle)
    total, weights = top, 1.0
    weight, value, k = 1.0, top, middle
    while weight > 1e-18:
        weight *= x / (k + 1.0)
        value *= (b + k + 0.5) / (b + k)
        k += 1.0
        total += weight * value
        weights += weight
    weight, value, k = 1.0, top, middle
    while weight > 1e-18 and k > 0.0:
        weight *= k / x
        value *= (b + k - 1.0) / (b + k - 0.5)
        k -= 1.0
        total += weight * value
        weights += weight
    return total / weights
