r"""The standard symmetric stable density, its derivatives and its tail, from a shipped table.

With :math:`s = 2 - \alpha` and :math:`\varphi` the density of N(0, 2),

.. math:: f(z; \alpha) = \varphi(z) + s\, G(|z|; \alpha),

where G is smooth through :math:`\alpha = 2`. The table holds G as a polynomial of degree 6 in
each of 8 cells per octave of :math:`y = |z| + x_0`, so that the top bits of the float `y` are the
cell and its remaining bits the local variable; each coefficient is a Chebyshev series on panels
in alpha. Beyond ``y = EDGE`` G is the series of Bergstroem,

.. math:: G(z) = \frac{1}{z} \sum_{k=1}^{14} b_k(\alpha)\, (z / 64)^{-k\alpha}, \qquad
   b_k = \frac{\Gamma(k\alpha + 1)}{k!} \frac{\sin(\pi k s / 2)}{\pi s} 64^{-k\alpha} .

A kernel first *collapses* the table at one alpha, to f and its derivatives in alpha, then
evaluates many points. Below ``y = BODY`` the collapsed cells hold all of f, so that the body of
the data costs no exponential; above they hold :math:`s\, G`, as :math:`\varphi` falls too fast
for its cells.

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

BODY = 4.0
"""Where cells stop holding the Gaussian part."""

MAX_ROWS = 8 * (14 + 6) + 2
NODES = 12
_RECIPROCALS = tuple(1.0 / (c + 1.0) for c in range(7))
_INV_SQRT_4PI = 1.0 / math.sqrt(4.0 * math.pi)
# exp(-z^2 / 4) at 16 is 1.6e-28: nothing beside the tail of the smallest s a fit visits, 1e-9.
_GAUSSIAN_END = 16.0
# Densities of float64 samples would underflow beyond; float32 data cannot get there.
_Z_MAX = 1e95


class Table(NamedTuple):
    """Everything that is tabulated once for all laws.

    Parameters
    ----------
    panels : ndarray, shape (panel, 5)
        Lower and upper alpha, ``-log2(x0)``, the panel's offsets in `coefficients`, `gaussian`.
    coefficients : ndarray, shape (size,)
        Per panel an array (Chebyshev order, row, 7): cells, then two rows of ``b_k``.
    gaussian : ndarray, shape (size,)
        Per panel an array (cell, 7): phi in the cells below ``BODY``.
    information : ndarray, shape (node, 5)
        Columns ``log s``, then Fisher information per sample in ``(log s, log scale, location /
        scale)``: vv / s, vu / s, uu, and of the location. Uniform in the first column.
    quantiles : ndarray, shape (node, 3)
        Columns ``log((q95 - q05) / (q75 - q25))`` (increasing), alpha, and ``q75``.
    """

    panels: Float64
    coefficients: Float64
    gaussian: Float64
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
    """Return room for a collapsed law: rows of f, f_alpha, f_alpha,alpha (8 columns each)."""
    return np.zeros((MAX_ROWS, 24))


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def collapse(tabulated: Table, alpha: float, order: int, law: Float64) -> float:
    """Write the law at `alpha` with `order` derivatives in alpha to `law`; return x0.

    Column 7 of a row is the inverse cell width, columns 15 and 23 are free for `cumulate`.
    """
    panels, coefficients = tabulated.panels, tabulated.coefficients
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
    size = rows * 7
    # Without the gaps of `law`, so that sums fill vector registers.
    sums = np.zeros((3, size))
    for n in range(NODES):
        start = offset + n * size
        part = coefficients[start : start + size]
        w0, w1, w2 = value, slope * dt, bend * dt * dt
        for i in range(size):
            sums[0, i] += w0 * part[i]
        if order > 0:
            for i in range(size):
                sums[1, i] += w1 * part[i]
        if order > 1:
            for i in range(size):
                sums[2, i] += w2 * part[i]
        if n == 0:
            following, following_slope, following_bend = t, 1.0, 0.0
        else:
            following = 2.0 * t * value - value_before
            following_slope = 2.0 * value + 2.0 * t * slope - slope_before
            following_bend = 4.0 * slope + 2.0 * t * bend - bend_before
        value_before, slope_before, bend_before = value, slope, bend
        value, slope, bend = following, following_slope, following_bend
    # From G to f = phi + s G and its derivatives in alpha.
    s = 2.0 - alpha
    body = 8 * (log_x0 + 2)
    offset = int(panels[panel, 4])
    width = 2.0**-log_x0 / 8.0
    for i in range(size):
        g, ga = sums[0, i], sums[1, i]
        sums[0, i], sums[1, i], sums[2, i] = s * g, s * ga - g, s * sums[2, i] - 2.0 * ga
    for i in range(body * 7):
        sums[0, i] += tabulated.gaussian[offset + i]
    for row in range(rows):
        for c in range(7):
            law[row, c] = sums[0, row * 7 + c]
            law[row, 8 + c] = sums[1, row * 7 + c]
            law[row, 16 + c] = sums[2, row * 7 + c]
        law[row, 7] = 1.0 / width
        if row % 8 == 7:
            width *= 2.0
    return float(2.0**-log_x0)


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"}, inline="always")
def density(law: Float64, x0: float, alpha: float, z: float) -> tuple[float, float, float]:
    """Return f, df/d|z| and df/dalpha at ``|z|``."""
    a = abs(z)
    y = a + x0
    if y < EDGE:
        # The first 15 bits are sign, exponent and cell in the octave, the others the place in it.
        bits = np.float64(y).view(np.int64)
        row = (bits >> 49) - (np.float64(x0).view(np.int64) >> 49)
        u = (bits & 0x1FFFFFFFFFFFF) * 2.0**-49
        f = law[row, 6]
        fz = 0.0
        fa = law[row, 14]
        for c in range(5, -1, -1):
            fz = fz * u + f
            f = f * u + law[row, c]
            fa = fa * u + law[row, 8 + c]
        fz *= law[row, 7]
        if y >= BODY and a < _GAUSSIAN_END:
            phi = _INV_SQRT_4PI * math.exp(-0.25 * a * a)
            f += phi
            fz -= 0.5 * a * phi
    else:
        f, fz, fa = _tail_density(law, x0, alpha, a)
    return f, fz, fa


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _tail_density(law: Float64, x0: float, alpha: float, a: float) -> tuple[float, float, float]:
    """Return f, df/da and df/dalpha beyond the table."""
    a = min(a, _Z_MAX)
    first = _cells(x0)
    log_ratio = math.log(a / EDGE)
    q = math.exp(-alpha * log_ratio)
    f = fk = fa = 0.0
    for k in range(14, 0, -1):
        row, c = first + (k - 1) // 7, (k - 1) % 7
        f = f * q + law[row, c]
        fk = fk * q + k * law[row, c]
        fa = fa * q + law[row, 8 + c]
    per = q / a
    return f * per, -(alpha * fk + f) * per / a, (fa - fk * log_ratio) * per


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _cells(x0: float) -> int:
    """Return the number of cells, which is the row of the first tail coefficients."""
    return int((np.float64(EDGE).view(np.int64) >> 49) - (np.float64(x0).view(np.int64) >> 49))


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def density2(
    law: Float64, x0: float, alpha: float, z: float
) -> tuple[float, float, float, float, float, float]:
    """Return f and its derivatives z, alpha, zz, z alpha, alpha alpha at ``|z|`` (order 2)."""
    a = min(abs(z), _Z_MAX)
    y = a + x0
    f = fz = fzz = fa = faz = faa = 0.0
    if y < EDGE:
        bits = np.float64(y).view(np.int64)
        row = law[(bits >> 49) - (np.float64(x0).view(np.int64) >> 49)]
        u = (bits & 0x1FFFFFFFFFFFF) * 2.0**-49
        for c in range(6, -1, -1):
            fzz = fzz * u + 2.0 * fz
            fz = fz * u + f
            f = f * u + row[c]
            faz = faz * u + fa
            fa = fa * u + row[8 + c]
            faa = faa * u + row[16 + c]
        fz, fzz, faz = fz * row[7], fzz * row[7] * row[7], faz * row[7]
        if y >= BODY:
            phi = _INV_SQRT_4PI * math.exp(-0.25 * a * a)
            f += phi
            fz -= 0.5 * a * phi
            fzz += (0.25 * a * a - 0.5) * phi
        return f, fz, fa, fzz, faz, faa
    first = _cells(x0)
    t = math.log(a / EDGE)
    q = math.exp(-alpha * t)
    for k in range(14, 0, -1):
        row = law[first + (k - 1) // 7]
        c = (k - 1) % 7
        b, ba, baa = row[c], row[8 + c], row[16 + c]
        e = k * alpha + 1.0
        f = f * q + b
        fz = fz * q - e * b
        fzz = fzz * q + e * (e + 1.0) * b
        fa = fa * q + (ba - k * t * b)
        faz = faz * q - (e * (ba - k * t * b) + k * b)
        faa = faa * q + (baa - 2.0 * k * t * ba + k * k * t * t * b)
    per = q / a
    return f * per, fz * per / a, fa * per, fzz * per / (a * a), faz * per / a, faa * per


@numba.njit(nogil=True, cache=True, error_model="numpy")
def log_density(law: Float64, x0: float, alpha: float, z: float) -> float:
    """Return log f at z, finite for every finite z."""
    a = abs(z)
    if alpha == 2.0:
        return math.log(_INV_SQRT_4PI) - 0.25 * a * a
    if a + x0 < EDGE:
        return math.log(density(law, x0, alpha, a)[0])
    first = _cells(x0)
    log_ratio = math.log(a) - math.log(EDGE)
    q = math.exp(-alpha * log_ratio)
    f = 0.0
    for k in range(14, 0, -1):
        f = f * q + law[first + (k - 1) // 7, (k - 1) % 7]
    return math.log(f) - alpha * log_ratio - math.log(a)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _tail_survival(law: Float64, x0: float, alpha: float, a: float) -> float:
    """Return the integral of the tail series from `a` to infinity."""
    first = _cells(x0)
    q = math.exp(-alpha * (math.log(a) - math.log(EDGE)))
    total = 0.0
    for k in range(14, 0, -1):
        total = total * q + law[first + (k - 1) // 7, (k - 1) % 7] / (k * alpha)
    return total * q


@numba.njit(nogil=True, cache=True, error_model="numpy")
def cumulate(law: Float64, x0: float, alpha: float) -> None:
    """Write what each cell's polynomial integrates to, and what is beyond its right edge.

    Columns 23, in units of the cell, and 15.
    """
    beyond = _tail_survival(law, x0, alpha, EDGE - x0)
    gaussian = True
    for row in range(_cells(x0) - 1, -1, -1):
        if gaussian and row < _cells(x0) - 32:
            # Four octaves below the edge the cells begin to hold the Gaussian part too.
            beyond += 0.5 * math.erfc(0.5 * (BODY - x0))
            gaussian = False
        law[row, 15] = beyond
        part = 0.0
        for c in range(6, -1, -1):
            part += law[row, c] / (c + 1.0)
        law[row, 23] = part
        beyond += part / law[row, 7]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def survival(law: Float64, x0: float, alpha: float, a: float) -> float:
    """Return P(Z > a) for ``a >= 0``, to the relative accuracy of the density; after `cumulate`."""
    if alpha == 2.0 or a == np.inf:
        return 0.5 * math.erfc(0.5 * a)
    y = a + x0
    if y >= EDGE:
        return _tail_survival(law, x0, alpha, a)
    bits = np.float64(y).view(np.int64)
    row = law[(bits >> 49) - (np.float64(x0).view(np.int64) >> 49)]
    u = (bits & 0x1FFFFFFFFFFFF) * 2.0**-49
    # Integral of the cell's polynomial from u to 1.
    part = 0.0
    for c in range(6, -1, -1):
        part = part * u + row[c] * _RECIPROCALS[c]
    within = row[15] + (row[23] - part * u) / row[7]
    return float(within + 0.5 * math.erfc(0.5 * a) if y >= BODY else within)
