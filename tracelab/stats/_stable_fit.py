"""Symmetric stable fits of many rows: preparation, start, maximum, interval."""

from __future__ import annotations

import math

import numba
import numpy as np

from tracelab.stats._stable_climb import V_MIN, climb, fisher, gaussian, total_weight
from tracelab.stats._stable_density import ALPHA_MIN, Float64, Table, new_law

__all__ = [
    "ATOM_SHARE",
    "MIN_SAMPLES",
    "fit_row",
    "fit_sorted",
    "mask_atoms",
    "quantile",
    "rank",
    "start_alpha",
]

MIN_SAMPLES = 8
"""Fewer values than this are not fitted."""

ATOM_SHARE = 0.1
"""A value shared by more than this part of a sample is no draw of a continuous law."""

# Twice the log-likelihood still to gain when a climb stops; looser along the profile.
_TOLERANCE, _POINT_TOLERANCE, _PROFILE_TOLERANCE = 1e-9, 1e-5, 1e-3


@numba.njit(nogil=True, cache=True, error_model="numpy")
def mask_atoms(ordered: Float64) -> int:
    """Drop from a sorted row all values that a tenth of it shares; return how many remain.

    The remaining values are moved to the front, still sorted.
    """
    n = ordered.size
    least = max(3, math.floor(ATOM_SHARE * n) + 1)
    kept = 0
    first = 0
    while first < n:
        last = first + 1
        while last < n and ordered[last] == ordered[first]:
            last += 1
        if last - first < least:
            for i in range(first, last):
                ordered[kept] = ordered[i]
                kept += 1
        first = last
    return kept


@numba.njit(nogil=True, cache=True, error_model="numpy")
def quantile(ordered: Float64, n: int, q: float) -> float:
    """Return the linearly interpolated quantile of the first `n` sorted values."""
    position = q * (n - 1)
    i = min(int(position), n - 2)
    return float(ordered[i] + (position - i) * (ordered[i + 1] - ordered[i]))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def rank(ordered: Float64, value: float) -> int:
    """Return how many of the sorted values are smaller than `value`."""
    low, high = 0, ordered.size
    while low < high:
        middle = (low + high) // 2
        if ordered[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@numba.njit(nogil=True, cache=True, error_model="numpy")
def start_alpha(quantiles: Float64, log_ratio: float) -> tuple[float, float]:
    """Return McCulloch's alpha for ``log((q95 - q05) / (q75 - q25))`` and that law's q75."""
    nodes = quantiles[:, 0]
    i = min(max(rank(nodes, log_ratio) - 1, 0), nodes.size - 2)
    w = min(max((log_ratio - nodes[i]) / (nodes[i + 1] - nodes[i]), 0.0), 1.0)
    row = quantiles[i] + w * (quantiles[i + 1] - quantiles[i])
    # Away from both ends of the table, where steps are slow.
    alpha = min(max(row[1], ALPHA_MIN + 0.03), 1.96)
    return alpha, row[2]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _endpoint(
    x: Float64,
    weights: Float64 | None,
    tabulated: Table,
    law: Float64,
    best: tuple[float, float, float, float],
    guess: float,
    target: float,
) -> float:
    """Return the alpha at which the profile log-likelihood has fallen by ``target**2 / 2``.

    `best` is alpha, scale, location and log-likelihood of the maximum; the search starts at
    `guess` and stays on its side of the maximum. Newton steps on the root of the fall, which is
    nearly linear in alpha; from the boundary on the fall itself, which is.
    """
    inner, outer = best[0], ALPHA_MIN if guess < best[0] else 2.0 - 1e-9
    scale, loc = best[1], best[2]
    trial, before = guess, math.log(max(2.0 - best[0], 1e-9))
    for _ in range(40):
        v = math.log(2.0 - trial)
        # Where the scale goes with alpha, so that one step usually does.
        _, vu, uu, _ = fisher(tabulated.information, 0.5 * (v + before))
        scale *= math.exp(-vu / uu * (v - before))
        before = v
        start = (v, scale, loc)
        _, scale, loc, loglik, slope, _, _ = climb(
            x, weights, tabulated, law, start, False, -np.inf, _PROFILE_TOLERANCE
        )
        fall = max(2.0 * (best[3] - loglik), 0.0)
        root = math.sqrt(fall)
        if abs(root - target) < 2e-3 * target:
            return trial
        if root < target:
            inner = trial
        else:
            outer = trial
        if abs(outer - inner) < 1e-10:
            return trial
        # d fall / d alpha = 2 / s * d loglik / d v.
        per_alpha = 2.0 * slope / (2.0 - trial)
        if best[0] == 2.0:
            trial += (target * target - fall) / per_alpha
        else:
            trial += (target - root) * 2.0 * root / per_alpha
        if not min(inner, outer) < trial < max(inner, outer):
            trial = 0.5 * (inner + outer)
    return trial


@numba.njit(nogil=True, cache=True, error_model="numpy")
def fit_row(
    x: Float64,
    weights: Float64 | None,
    spans: tuple[float, float, float],
    units: tuple[float, float],
    tabulated: Table,
    law: Float64,
    target: float,
    out: Float64,
) -> None:
    """Fit one sample, write to `out` the columns of `fit_sorted` but the atom share.

    `spans` are ``q95 - q05``, ``q75 - q25`` and the median of `x`, `units` the location and scale
    of `x` in the units of the data.
    """
    n = total_weight(x, weights)
    wide, narrow, median = spans
    centre, spread = units
    unit = n * math.log(spread)
    start, q75 = start_alpha(tabulated.quantiles, math.log(wide / narrow))
    g_scale, g_loc, g_loglik = gaussian(x, weights)
    v, scale, loc, loglik, _, iterations, converged = climb(
        x,
        weights,
        tabulated,
        law,
        (math.log(2.0 - start), 0.5 * narrow / q75, median),
        True,
        g_loglik,
        _TOLERANCE if target > 0.0 else _POINT_TOLERANCE,
    )
    alpha = 2.0 - math.exp(v)
    if loglik <= g_loglik + 1e-9:
        alpha, scale, loc, loglik, converged = 2.0, g_scale, g_loc, g_loglik, True
        v = V_MIN
    vv, vu, uu, ll = fisher(tabulated.information, v)
    best = (alpha, scale, loc, loglik)
    if alpha == 2.0:
        low, high, se_alpha, se_scale = 2.0, np.inf, 0.0, math.sqrt(0.5 / n)
    else:
        determinant = vv * uu - vu * vu
        se_alpha = (2.0 - alpha) * math.sqrt(uu / determinant / n)
        se_scale = math.sqrt(vv / determinant / n)
        low, high = alpha - target * se_alpha, alpha + target * se_alpha
    if target > 0.0 and (low < ALPHA_MIN + 3.0 * se_alpha or high > 2.0 - 3.0 * se_alpha):
        guess = max(low, 0.5 * (ALPHA_MIN + alpha)) if alpha < 2.0 else 2.0 - min(0.2, 30.0 / n)
        low = _endpoint(x, weights, tabulated, law, best, guess, target)
        if 2.0 * (loglik - g_loglik) <= target * target:
            high = 2.0
        else:
            guess = min(high, 0.5 * (alpha + 2.0))
            high = _endpoint(x, weights, tabulated, law, best, guess, target)
    if alpha == 2.0 and target > 0.0:
        se_alpha = (2.0 - low) / target
    out[0], out[1], out[2] = alpha, scale * spread, centre + loc * spread
    out[3], out[4] = se_alpha, se_scale
    out[5] = scale * spread / math.sqrt(ll * n)
    out[6], out[7] = low, high
    out[8] = loglik - unit
    out[10] = iterations
    out[11] = 0.0 if converged else 1.0
    out[12] = g_loglik - unit


@numba.njit(nogil=True, cache=True, error_model="numpy")
def fit_sorted(
    rows: Float64,
    tabulated: Table,
    target: float,
    out: Float64,
) -> None:
    """Fit every sorted row of `rows` (overwritten), write columns of `out`.

    Columns: alpha, scale, loc, their standard errors (of log scale; of loc), alpha low and high,
    log-likelihood, Gaussian log-likelihood, atom share, iterations, status code (0 fitted,
    1 not converged, 2 too few, 3 non-finite, 4 constant). `target` is the normal quantile;
    0 leaves out the search for intervals, and then the climb ends .003 standard errors from the
    maximum, which is far inside any use of an estimate without its error.
    """
    law = new_law()
    n_all = rows.shape[1]
    for r in range(rows.shape[0]):
        ordered = rows[r]
        out[r, :9] = out[r, 12] = np.nan
        out[r, 9] = out[r, 10] = 0.0
        if n_all > 0 and not (math.isfinite(ordered[0]) and math.isfinite(ordered[-1])):
            out[r, 11] = 3.0
            out[r, 9] = np.nan
            continue
        if n_all < MIN_SAMPLES:
            out[r, 11] = 2.0
            continue
        constant = ordered[0] == ordered[-1]
        n = mask_atoms(ordered)
        out[r, 9] = 1.0 - n / n_all
        if constant or (n > 0 and ordered[0] == ordered[n - 1]):
            out[r, 11] = 4.0
            continue
        if n < MIN_SAMPLES:
            out[r, 11] = 2.0
            continue
        centre = quantile(ordered, n, 0.5)
        spread = quantile(ordered, n, 0.75) - quantile(ordered, n, 0.25)
        if not spread > 0.0:
            out[r, 11] = 4.0
            continue
        wide = quantile(ordered, n, 0.95) - quantile(ordered, n, 0.05)
        x = ordered[:n]
        for i in range(n):
            x[i] = (x[i] - centre) / spread
        spans = (wide / spread, 1.0, 0.0)
        fit_row(x, None, spans, (centre, spread), tabulated, law, target, out[r])
