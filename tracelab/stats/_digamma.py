"""The digamma function, compiled."""

from __future__ import annotations

import math

import numba

__all__ = ["digamma", "trigamma"]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def digamma(x: float) -> float:
    """Return the logarithmic derivative of the Gamma function, for x > 0."""
    value = 0.0
    while x < 10.0:
        value -= 1.0 / x
        x += 1.0
    inverse = 1.0 / (x * x)
    # Abramowitz & Stegun 6.3.18; the first term left out is 1/12 of 1e-14.
    series = inverse * (
        1 / 12
        - inverse * (1 / 120 - inverse * (1 / 252 - inverse * (1 / 240 - inverse * (1 / 132))))
    )
    return value + math.log(x) - 0.5 / x - series


@numba.njit(nogil=True, cache=True, error_model="numpy")
def trigamma(x: float) -> float:
    """Return the second logarithmic derivative of the Gamma function, for x > 0."""
    value = 0.0
    while x < 10.0:
        value += 1.0 / (x * x)
        x += 1.0
    r = 1.0 / (x * x)
    # Abramowitz & Stegun 6.4.12; the first term left out is 7/6 of 1e-15.
    series = r * (
        1 / 6 - r * (1 / 30 - r * (1 / 42 - r * (1 / 30 - r * (5 / 66 - r * 691 / 2730))))
    )
    return value + 1.0 / x + 0.5 * r + series / x
