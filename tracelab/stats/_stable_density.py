r"""The standard symmetric stable density, its derivatives and its tail, from a shipped table.

With :math:`s = 2 - \alpha` and :math:`\varphi` the density of N(0, 2),

.. math:: f(z; \alpha) = \varphi(z) + s\, G(|z|; \alpha),

where G is smooth through :math:`\alpha = 2`. The table holds G as a polynomial of degree 6 in
each of 8 cells per octave of :math:`y = |z| + x_0`, so that the top bits of the float `y` are the
cell and its remaining bits the local variable; each coefficient is a Chebyshev series on panels
in alpha. Beyond ``y = EDGE`` G is the series of Bergstroem,

.. math:: G(z) = \frac{1}{z} \sum_{k=1}^{14} b_k(\alpha)\, (z / 64)^{-k\alpha}, \qquad
   b_k = \frac{\Gamma(k\alpha + 1)}{k!} \frac{\sin(\pi k s / 2)}{\pi s} 64^{-k\alpha} .

A kernel first *collapses* the table at one alpha, then evaluates many points.

References
----------
Nolan, "Numerical calculation of stable densities and distribution functions", 1997;
Zolotarev, "One-dimensional Stable Distributions", 1986, section 2.4 (tail series).
"""

from __future__ import annotations

import math
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ALPHA_MIN",
    "Table",
    "collapse",
    "cumulate",
    "density",
    "density2",
    "log_density",
    "new_law",
    "survival",
    "table",
]

Float64 = NDArray[np.float64]

ALPHA_MIN = 0.3
"""Smallest alpha of the table."""

EDGE = 64.0
"""Where the table ends (in ``y = |z| + x0``) and the tail series takes over."""

MAX_ROWS = 8 * (14 + 6) + 2
NODES = 12
_INV_SQRT_4PI = 1.0 / math.sqrt(4.0 * math.pi)
# exp(-z^2 / 4) at 16 is 1.6e-28: nothing beside the tail of the smallest s a fit visits, 1e-9.
_GAUSSIAN_END = 16.0
# Densities of float64 samples would underflow beyond; float32 data cannot get there.
_Z_MAX = 1e95


class Table(NamedTuple):
    """Everything that is tabulated once for all laws.

    Parameters
    ----------
    panels : ndarray, shape (panel, 4)
        Lower and upper alpha, ``-log2(x0)`` and the panel's offset in `coefficients`.
    coefficients : ndarray, shape (size,)
        Per panel an array (Chebyshev order, row, 7): cells, then two rows of ``b_k``.
    information : ndarray, shape (node, 5)
        Columns ``log s``, then Fisher information per sample in ``(log s, log scale, location /
        scale)``: vv / s, vu / s, uu, and of the location. Uniform in the first column.
    quantiles : ndarray, shape (node, 3)
        Columns ``log((q95 - q05) / (q75 - q25))`` (increasing), alpha, and ``q75``.
    """

    panels: Float64
    coefficients: Float64
    information: Float64
    quantiles: Float64


@cache
def table() -> Table:
    """Return the shipped table (read once); ``data/make_stable_table.py`` makes it."""
    with (
        (files("tracelab.stats") / "tables" / "stable.npz").open("rb") as file,
        np.load(file) as stored,
    ):
        return Table(*(np.ascontiguousarray(stored[name]) for name in Table._fields))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def new_law() -> Float64:
    """Return room for a collapsed law: rows of G, G_alpha, G_alpha,alpha (8 columns each)."""
    return np.zeros((MAX_ROWS, 24))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def collapse(
    panels: Float64, coefficients: Float64, alpha: float, order: int, law: Float64
) -> float:
    """Write the law at `alpha` with `order` derivatives in alpha to `law`; return x0.

    Column 7 of a row is the inverse cell width, column 15 is free for `cumulate`.
    """
    panel = 0
    while panel < panels.shape[0] - 1 and alpha > panels[panel, 1]:
        panel += 1
    low, high = panels[panel, 0], panels[panel, 1]
    log_x0, offset = int(panels[panel, 2]), int(panels[panel, 3])
    cells = 8 * (log_x0 + 6)
    rows = cells + 2
    t = (2.0 * alpha - low - high) / (high - low)
    dt = 2.0 / (high - low)
    # T_n, T_n', T_n'' by their three-term recurrences.
    value, slope, bend = 1.0, 0.0, 0.0
    value_before, slope_before, bend_before = t, 0.0, 0.0
    law[:rows] = 0.0
    for n in range(NODES):
        start = offset + n * rows * 7
        w0, w1, w2 = value, slope * dt, bend * dt * dt
        for row in range(rows):
            for c in range(7):
                q = coefficients[start + row * 7 + c]
                law[row, c] += w0 * q
                if order > 0:
                    law[row, 8 + c] += w1 * q
                if order > 1:
                    law[row, 16 + c] += w2 * q
        if n == 0:
            following, following_slope, following_bend = t, 1.0, 0.0
        else:
            following = 2.0 * t * value - value_before
            following_slope = 2.0 * value + 2.0 * t * slope - slope_before
            following_bend = 4.0 * slope + 2.0 * t * bend - bend_before
        value_before, slope_before, bend_before = value, slope, bend
        value, slope, bend = following, following_slope, following_bend
    width = 2.0**-log_x0 / 8.0
    for row in range(cells):
        law[row, 7] = 1.0 / width
        if row % 8 == 7:
            width *= 2.0
    # The tail rows stand first after the cells; kernels find them from x0.
    return float(2.0**-log_x0)


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def density(law: Float64, x0: float, alpha: float, z: float) -> tuple[float, float, float]:
    """Return f, df/d|z| and df/dalpha at ``|z|``."""
    s = 2.0 - alpha
    a = min(abs(z), _Z_MAX)
    y = a + x0
    base = np.float64(x0).view(np.int64) >> 49
    if y < EDGE:
        bits = np.float64(y).view(np.int64)
        row = law[(bits >> 49) - base]
        u = (bits & 0x1FFFFFFFFFFFF) * 2.0**-49
        g = row[6]
        slope = 0.0
        for c in range(5, -1, -1):
            slope = slope * u + g
            g = g * u + row[c]
        ga = row[14]
        for c in range(13, 7, -1):
            ga = ga * u + row[c]
        f, fz = s * g, s * slope * row[7]
        if a < _GAUSSIAN_END:
            phi = _INV_SQRT_4PI * math.exp(-0.25 * a * a)
            f += phi
            fz -= 0.5 * a * phi
        return f, fz, s * ga - g
    tail = law[(np.float64(EDGE).view(np.int64) >> 49) - base :]
    log_ratio = math.log(a / 64.0)
    q = math.exp(-alpha * log_ratio)
    g = gk = ga = 0.0
    for k in range(14, 0, -1):
        b = tail[(k - 1) // 7, (k - 1) % 7]
        g = g * q + b
        gk = gk * q + k * b
        ga = ga * q + tail[(k - 1) // 7, 8 + (k - 1) % 7]
    per = q / a
    g, gk, ga = g * per, gk * per, ga * per
    return s * g, -s * (alpha * gk + g) / a, s * (ga - gk * log_ratio) - g


@numba.njit(nogil=True, cache=True, error_model="numpy")
def density2(
    law: Float64, x0: float, alpha: float, z: float
) -> tuple[float, float, float, float, float, float]:
    """Return f and its derivatives z, alpha, zz, z alpha, alpha alpha at ``|z|`` (order 2)."""
    s = 2.0 - alpha
    a = min(abs(z), _Z_MAX)
    y = a + x0
    base = np.float64(x0).view(np.int64) >> 49
    if y < EDGE:
        bits = np.float64(y).view(np.int64)
        row = law[(bits >> 49) - base]
        u = (bits & 0x1FFFFFFFFFFFF) * 2.0**-49
        g = gu = guu = ga = gau = gaa = 0.0
        for c in range(6, -1, -1):
            guu = guu * u + 2.0 * gu
            gu = gu * u + g
            g = g * u + row[c]
            gau = gau * u + ga
            ga = ga * u + row[8 + c]
            gaa = gaa * u + row[16 + c]
        gz, gzz, gaz = gu * row[7], guu * row[7] * row[7], gau * row[7]
        phi = _INV_SQRT_4PI * math.exp(-0.25 * a * a)
        return (
            phi + s * g,
            s * gz - 0.5 * a * phi,
            s * ga - g,
            s * gzz + (0.25 * a * a - 0.5) * phi,
            s * gaz - gz,
            s * gaa - 2.0 * ga,
        )
    tail = law[(np.float64(EDGE).view(np.int64) >> 49) - base :]
    t = math.log(a / 64.0)
    q = math.exp(-alpha * t)
    g = gz = gzz = ga = gaz = gaa = 0.0
    for k in range(14, 0, -1):
        i, j = (k - 1) // 7, (k - 1) % 7
        b, ba, baa = tail[i, j], tail[i, 8 + j], tail[i, 16 + j]
        e = k * alpha + 1.0
        g = g * q + b
        gz = gz * q - e * b
        gzz = gzz * q + e * (e + 1.0) * b
        ga = ga * q + (ba - k * t * b)
        gaz = gaz * q - (e * (ba - k * t * b) + k * b)
        gaa = gaa * q + (baa - 2.0 * k * t * ba + k * k * t * t * b)
    per = q / a
    g, gz, gzz = g * per, gz * per / a, gzz * per / (a * a)
    ga, gaz, gaa = ga * per, gaz * per / a, gaa * per
    return s * g, s * gz, s * ga - g, s * gzz, s * gaz - gz, s * gaa - 2.0 * ga


@numba.njit(nogil=True, cache=True, error_model="numpy")
def log_density(law: Float64, x0: float, alpha: float, z: float) -> float:
    """Return log f at z, finite for every finite z if ``alpha < 2``."""
    a = abs(z)
    if alpha == 2.0:
        return math.log(_INV_SQRT_4PI) - 0.25 * a * a
    if a + x0 < EDGE:
        return math.log(density(law, x0, alpha, a)[0])
    tail = law[(np.float64(EDGE).view(np.int64) >> 49) - (np.float64(x0).view(np.int64) >> 49) :]
    log_ratio = math.log(a) - math.log(64.0)
    q = math.exp(-alpha * log_ratio)
    g = 0.0
    for k in range(14, 0, -1):
        g = g * q + tail[(k - 1) // 7, (k - 1) % 7]
    return math.log((2.0 - alpha) * g) - alpha * log_ratio - math.log(a)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def cumulate(law: Float64, x0: float, alpha: float) -> None:
    """Write to column 15 the integral of G from each cell's right edge to infinity."""
    cells = (np.float64(EDGE).view(np.int64) >> 49) - (np.float64(x0).view(np.int64) >> 49)
    beyond = tail_integral(law[cells:], alpha, EDGE - x0)
    for row in range(cells - 1, -1, -1):
        law[row, 15] = beyond
        part = 0.0
        for c in range(6, -1, -1):
            part += law[row, c] / (c + 1.0)
        beyond += part / law[row, 7]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def tail_integral(tail: Float64, alpha: float, a: float) -> float:
    """Return the integral of the tail series of G from `a` to infinity."""
    q = math.exp(-alpha * (math.log(a) - math.log(64.0)))
    total = 0.0
    for k in range(14, 0, -1):
        total = total * q + tail[(k - 1) // 7, (k - 1) % 7] / (k * alpha)
    return total * q


@numba.njit(nogil=True, cache=True, error_model="numpy")
def survival(law: Float64, x0: float, alpha: float, a: float) -> float:
    """Return P(Z > a) for ``a >= 0``, to the relative accuracy of the density; after `cumulate`."""
    s = 2.0 - alpha
    y = a + x0
    base = np.float64(x0).view(np.int64) >> 49
    gaussian = 0.5 * math.erfc(0.5 * a)
    if s == 0.0:
        return gaussian
    if y >= EDGE:
        tail = law[(np.float64(EDGE).view(np.int64) >> 49) - base :]
        return s * tail_integral(tail, alpha, a) if a < np.inf else 0.0
    bits = np.float64(y).view(np.int64)
    row = law[(bits >> 49) - base]
    u = (bits & 0x1FFFFFFFFFFFF) * 2.0**-49
    # Integral of the cell's polynomial from u to 1, without cancellation between two values.
    part, whole = 0.0, 0.0
    for c in range(6, -1, -1):
        part = part * u + row[c] / (c + 1.0)
        whole += row[c] / (c + 1.0)
    return float(gaussian + s * (row[15] + (whole - part * u) / row[7]))
