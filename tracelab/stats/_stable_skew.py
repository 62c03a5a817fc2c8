r"""The standard stable density with skewness, and its derivatives, from a shipped table.

With :math:`s = 2 - \alpha`, :math:`\varphi` the density of N(0, 2) and z in S0,

.. math:: f(z; \alpha, \beta) = \varphi(z) + s\, G(|z|; \alpha, \pm\beta),

the sign that of z. The table holds G as `_stable_density` does: polynomials of degree 6 in 8 cells
an octave of :math:`y = |z| + x_0`. Each coefficient is a double Chebyshev series, in alpha on
panels, and in beta on [-1, 1]; orders that contribute nothing are left out. From ``y = EDGE`` on,
where laws of different skewness have no common series, there are 2 cells an octave of
:math:`G (y / 64)^{1 + \alpha}` up to ``FAR``; beyond, that is constant.

A kernel first *collapses* the table at one law, to f and its derivatives in alpha and beta on both
sides of 0, even and odd orders in beta serving both; then it evaluates many points. The sum over
orders in beta is most of it, and is kept: another law of the same skewness takes a fifth. A search
that is still far from its end leaves out orders that matter little.

Errors are a part in 1e8 of :math:`\varphi + s\,(1 + |z|)^{-1-\alpha}`. A light tail, where the
density is a small part of that, has no relative accuracy: use Zolotarev's integral there.
"""

from __future__ import annotations

import math
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from tracelab.stats._stable_density import BODY, EDGE

__all__ = [
    "ALPHA_LOW",
    "EDGE",
    "FAR",
    "TAIL_ROWS",
    "SkewLaw",
    "SkewTable",
    "collapse_skew",
    "envelope",
    "new_skew_law",
    "reliable",
    "skew_density",
    "skew_table",
]

Float64 = NDArray[np.float64]

ALPHA_LOW = 0.8
"""Smallest alpha of the table."""

TAIL_ROWS = 36
"""Cells from ``EDGE`` to ``FAR``."""

FAR = EDGE * 2.0 ** (TAIL_ROWS // 2)
"""Where the table ends."""

# Chebyshev orders in alpha, at most.
_ORDERS = 12
MAX_ROWS = 8 * (5 + 6) + TAIL_ROWS
_INV_SQRT_4PI = 1.0 / math.sqrt(4.0 * math.pi)
# As in `_stable_density`: no Gaussian part beside the smallest tail.
_GAUSSIAN_END = 16.0
_Z_MAX = 1e90


class SkewTable(NamedTuple):
    """The tabulated laws.

    Parameters
    ----------
    panels : ndarray, shape (panel, 6)
        Lower and upper alpha, ``-log2(x0)``, the panel's first order, their number, and the
        panel's offset in `gaussian`.
    orders : ndarray of int64, shape (order, 4)
        Chebyshev orders in alpha and beta, sorted; whether the coefficients are in `single`, and
        their offset there or in `double`.
    double, single : ndarray of float64, of float32, shape (size,)
        An array (row, 7) for each order: cells, then those of the tail.
    gaussian : ndarray, shape (size,)
        Per panel an array (cell, 7): phi in the cells below ``BODY``.
    importance : ndarray, shape (order,)
        The most that an order contributes, as a part of what errors are a part of.
    """

    panels: Float64
    orders: NDArray[np.int64]
    double: Float64
    single: NDArray[np.float32]
    gaussian: Float64
    importance: Float64


class SkewLaw(NamedTuple):
    """A collapsed law, and what another of the same skewness is made from.

    Parameters
    ----------
    rows : ndarray, shape (2, row, 24)
        Sides z >= 0 and z < 0; f, f_alpha, f_beta in columns from 0, 8, 16.
    series : ndarray, shape (order in alpha, 2, 2, size)
        Summed over even and over odd orders in beta: value and derivative in beta.
    sums : ndarray, shape (2, 3, size)
        Of these over orders in alpha: value, and derivatives in alpha and beta.
    key : ndarray, shape (4,)
        Panel, beta and least importance that `series` is of, and how many values of `size`.
    """

    rows: Float64
    series: Float64
    sums: Float64
    key: Float64


@cache
def skew_table() -> SkewTable:
    """Return the shipped table (read once); ``data/make_stable_skew_table.py`` makes it."""
    path = files("tracelab.stats") / "tables" / "stable_skew.npz"
    with path.open("rb") as file, np.load(file) as stored:
        names = SkewTable._fields[:-1]
        panels, orders, double, single, gaussian = (
            np.ascontiguousarray(stored[name]) for name in names
        )
    importance = np.empty(len(orders))
    for _, high, log_x0, first, count, _ in panels:
        cells = 8 * (int(log_x0) + 6)
        # Cells begin at 1, 1 + 1/8, ... times powers of 2; tails are divided by theirs.
        y = np.ldexp(1 + np.arange(8) / 8, np.arange(-int(log_x0), 6)[:, None]).ravel()
        envelope = np.append((1 + y) ** (-1 - high), np.full(TAIL_ROWS, EDGE ** (-1 - high)))
        for k in range(int(first), int(first + count)):
            _, _, rough, start = orders[k]
            part = (single if rough else double)[start : start + 7 * (cells + TAIL_ROWS)]
            importance[k] = (np.abs(part.reshape(-1, 7)).sum(axis=1) / envelope).max()
    return SkewTable(panels, orders, double, single, gaussian, importance)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def new_skew_law() -> SkewLaw:
    """Return room for a collapsed law."""
    size = MAX_ROWS * 7
    return SkewLaw(
        np.zeros((2, MAX_ROWS, 24)),
        np.empty((_ORDERS, 2, 2, size)),
        np.empty((2, 3, size)),
        np.full(4, np.nan),
    )


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _chebyshev(t: float, values: Float64, slopes: Float64) -> None:
    values[0], values[1] = 1.0, t
    slopes[0], slopes[1] = 0.0, 1.0
    for n in range(2, values.size):
        values[n] = 2.0 * t * values[n - 1] - values[n - 2]
        slopes[n] = 2.0 * values[n - 1] + 2.0 * t * slopes[n - 1] - slopes[n - 2]


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def _contract(
    tabulated: SkewTable,
    panel: int,
    beta: float,
    least: float,
    begin: int,
    end: int,
    series: Float64,
) -> None:
    """Write to `series` the sums over orders in beta that have the `least` importance."""
    first, count = int(tabulated.panels[panel, 3]), int(tabulated.panels[panel, 4])
    in_beta, d_beta = np.empty(40), np.empty(40)
    _chebyshev(beta, in_beta, d_beta)
    series[: tabulated.orders[first + count - 1, 0] + 1, :, :, begin:end] = 0.0
    for k in range(first, first + count):
        if tabulated.importance[k] < least:
            continue
        n, m, single, start = tabulated.orders[k]
        w, dw = in_beta[m], d_beta[m]
        value, slope = series[n, m % 2, 0, begin:end], series[n, m % 2, 1, begin:end]
        if single:
            rough = tabulated.single[start + begin : start + end]
            for i in range(end - begin):
                value[i] += w * rough[i]
                slope[i] += dw * rough[i]
        else:
            fine = tabulated.double[start + begin : start + end]
            for i in range(end - begin):
                value[i] += w * fine[i]
                slope[i] += dw * fine[i]


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def collapse_skew(
    tabulated: SkewTable,
    alpha: float,
    beta: float,
    law: SkewLaw,
    least: float = 0.0,
    reach: float = np.inf,
) -> float:
    """Write the law at ``alpha >= ALPHA_LOW`` and `beta` to `law`; return x0.

    Orders that matter less than `least` are left out, and cells beyond the octave of `reach`.
    Column 7 of a row is the inverse cell width.
    """
    panels = tabulated.panels
    panel = 0
    while panel < panels.shape[0] - 1 and alpha > panels[panel, 1]:
        panel += 1
    low, high, log_x0 = panels[panel, 0], panels[panel, 1], int(panels[panel, 2])
    last = int(panels[panel, 3] + panels[panel, 4]) - 1
    start_gaussian = int(panels[panel, 5])
    cells = 8 * (log_x0 + 6)
    rows = cells + TAIL_ROWS
    if reach < FAR / 4.0:
        octave = int(math.log2(1.000001 * reach + 2.0**-log_x0)) + 1
        rows = 8 * (log_x0 + octave) if octave <= 6 else cells + 2 * (octave - 6)
    size = rows * 7
    if law.key[0] != panel or law.key[1] != beta or law.key[2] != least:
        law.key[0], law.key[1], law.key[2], law.key[3] = panel, beta, least, 0.0
    if law.key[3] < size:
        _contract(tabulated, panel, beta, least, int(law.key[3]), size, law.series)
        law.key[3] = size
    in_alpha, d_alpha = np.empty(_ORDERS), np.empty(_ORDERS)
    _chebyshev((2.0 * alpha - low - high) / (high - low), in_alpha, d_alpha)
    d_alpha *= 2.0 / (high - low)
    sums = law.sums
    for parity in range(2):
        out, out_alpha, out_beta = sums[parity, 0], sums[parity, 1], sums[parity, 2]
        out[:size] = 0.0
        out_alpha[:size] = 0.0
        out_beta[:size] = 0.0
        for n in range(tabulated.orders[last, 0] + 1):
            a, da = in_alpha[n], d_alpha[n]
            value, slope = law.series[n, parity, 0], law.series[n, parity, 1]
            for i in range(size):
                out[i] += a * value[i]
                out_alpha[i] += da * value[i]
                out_beta[i] += a * slope[i]
    s = 2.0 - alpha
    body = 8 * (log_x0 + 2)
    sides = law.rows
    width = 2.0**-log_x0 / 8.0
    for row in range(rows):
        for c in range(7):
            i = row * 7 + c
            phi = tabulated.gaussian[start_gaussian + i] if row < body else 0.0
            for side in range(2):
                sign = 1.0 - 2.0 * side
                g = sums[0, 0, i] + sign * sums[1, 0, i]
                sides[side, row, c] = s * g + phi
                sides[side, row, 8 + c] = s * (sums[0, 1, i] + sign * sums[1, 1, i]) - g
                sides[side, row, 16 + c] = s * (sums[0, 2, i] + sign * sums[1, 2, i])
        sides[:, row, 7] = 1.0 / width
        if row < cells and row % 8 == 7:
            width *= 2.0
    return float(2.0**-log_x0)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def envelope(alpha: float, z: float) -> float:
    """Return what errors of the table are a part of, but for the Gaussian part."""
    return float((2.0 - alpha) * (1.0 + abs(z)) ** (-1.0 - alpha))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def reliable(f: float, alpha: float, z: float, least: float = 0.1) -> bool:
    """Return whether the table's density is `least` of what its errors are a part of, or more."""
    return f > least * (_INV_SQRT_4PI * math.exp(-0.25 * z * z) + envelope(alpha, z))


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"}, inline="always")
def skew_density(
    law: Float64, x0: float, alpha: float, z: float
) -> tuple[float, float, float, float]:
    """Return f and its derivatives in z, alpha and beta."""
    a = abs(z)
    side = 0 if z >= 0.0 else 1
    y = a + x0
    if y < EDGE:
        bits = np.float64(y).view(np.int64)
        row = (bits >> 49) - (np.float64(x0).view(np.int64) >> 49)
        u = (bits & 0x1FFFFFFFFFFFF) * 2.0**-49
        cell = law[side, row]
        f, fz, fa, fb = cell[6], 0.0, cell[14], cell[22]
        for c in range(5, -1, -1):
            fz = fz * u + f
            f = f * u + cell[c]
            fa = fa * u + cell[8 + c]
            fb = fb * u + cell[16 + c]
        fz *= cell[7]
        if y >= BODY and a < _GAUSSIAN_END:
            phi = _INV_SQRT_4PI * math.exp(-0.25 * a * a)
            f += phi
            fz -= 0.5 * a * phi
    else:
        f, fz, fa, fb = _tail(law[side], x0, alpha, y)
    return f, fz if z >= 0.0 else -fz, fa, fb


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _tail(side: Float64, x0: float, alpha: float, y: float) -> tuple[float, float, float, float]:
    """Return f and its derivatives in |z|, alpha and beta at ``y >= EDGE``."""
    y = min(y, _Z_MAX)
    within = min(y, FAR * (1.0 - 1e-15))
    bits = np.float64(within).view(np.int64)
    first = (np.float64(EDGE).view(np.int64) >> 49) - (np.float64(x0).view(np.int64) >> 49)
    row = first + (bits >> 51) - (np.float64(EDGE).view(np.int64) >> 51)
    u = (bits & 0x7FFFFFFFFFFFF) * 2.0**-51
    cell = side[row]
    f, fu, fa, fb = cell[6], 0.0, cell[14], cell[22]
    for c in range(5, -1, -1):
        fu = fu * u + f
        f = f * u + cell[c]
        fa = fa * u + cell[8 + c]
        fb = fb * u + cell[16 + c]
    log_ratio = math.log(y / EDGE)
    power = math.exp(-(1.0 + alpha) * log_ratio)
    # Half an octave wide.
    fz = fu * 2.0 / 2.0 ** math.floor(math.log2(within)) if y < FAR else 0.0
    fz -= (1.0 + alpha) * f / y
    return f * power, fz * power, (fa - f * log_ratio) * power, fb * power
