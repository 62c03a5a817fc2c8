"""One cell of ``fit_common``: preparation, the climb, the cluster-robust interval."""

from __future__ import annotations

import math

import numba
import numpy as np

from tracelab.stats._stable_climb import V_MIN, climb, fisher, gaussian
from tracelab.stats._stable_density import ALPHA_MIN, Float64, Table, collapse, new_law
from tracelab.stats._stable_fit import MIN_SAMPLES, mask_atoms, quantile, rank, start_alpha
from tracelab.stats._stable_panel import (
    climb_panel,
    cluster_scores,
    observed_information,
    panel_score,
)

__all__ = ["interval", "maximise", "prepare"]


# Start from which samples are tried for being Gaussian at once.
_NEAR_GAUSSIAN = 1.95


@numba.njit(nogil=True, cache=True, error_model="numpy")
def prepare(ordered: Float64, x: Float64, counts: Float64, centre: Float64, spread: Float64) -> int:
    """Standardise groups by median and interquartile range; return how many can be fitted.

    `ordered` (group, values) holds the sorted values of `x` (group, values). Atoms become NaN in
    `x`, and move behind ``counts[g]`` in `ordered`; groups that cannot be fitted get count 0.
    """
    used = 0
    for g in range(ordered.shape[0]):
        row = ordered[g]
        before = row.copy()
        n = mask_atoms(row)
        if n < before.size:
            # Both sorted: a value missing from the kept ones is an atom.
            for i in range(x.shape[1]):
                at = rank(row[:n], x[g, i])
                if at == n or row[at] != x[g, i]:
                    x[g, i] = np.nan
        counts[g] = 0.0
        if n < MIN_SAMPLES:
            continue
        centre[g] = quantile(row, n, 0.5)
        spread[g] = quantile(row, n, 0.75) - quantile(row, n, 0.25)
        if not spread[g] > 0.0:
            continue
        counts[g] = n
        used += 1
        for i in range(n):
            row[i] = (row[i] - centre[g]) / spread[g]
        for i in range(x.shape[1]):
            x[g, i] = (x[g, i] - centre[g]) / spread[g]
    return used


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _start(ordered: Float64, counts: Float64, quantiles: Float64) -> tuple[float, float]:
    """Return McCulloch's alpha for the mean log ratio over groups, and the q75 of that law."""
    total = 0.0
    for g in range(ordered.shape[0]):
        n = int(counts[g])
        wide = quantile(ordered[g], n, 0.95) - quantile(ordered[g], n, 0.05)
        total += math.log(wide)
    return start_alpha(quantiles, total / ordered.shape[0])


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _square(clusters: Float64) -> float:
    """Return the estimated variance of the sum of independent clusters."""
    mean = clusters.mean()
    total = 0.0
    for value in clusters:
        total += (value - mean) ** 2
    return total * clusters.size / (clusters.size - 1.0)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _variances(
    clusters: Float64, squares: tuple[float, float], naive: float
) -> tuple[float, float]:
    """Return the variance of the total efficient score, empirical and model-based.

    The second is the expected information `naive` times the design effect: the variance of
    clusters over that of their values if independent. Near alpha = 2 rare outliers carry the
    information, and a sample that happens to lack them has a small empirical variance; the
    expected one has not, and the design effect is also that of the scale scores, which are
    bounded and tell from all values how much the series of a batch move together.
    """
    empirical = _square(clusters[0])
    effect = max(empirical / squares[0], _square(clusters[1]) / squares[1], 1.0)
    return empirical, naive * effect


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _score_endpoint(
    x: Float64,
    tabulated: Table,
    law: Float64,
    counts: Float64,
    at: tuple[float, float],
    scale: Float64,
    loc: Float64,
    target: float,
    shrink: float,
    direction: int,
) -> float:
    """Return the alpha at which the studentised efficient score reaches `target`.

    From ``at = (v, first step)`` outward in `direction` of alpha, with the larger of the two
    variances. Series parameters follow along by one scoring step a trial.
    """
    groups = scale.size
    scale, loc = scale.copy(), loc.copy()
    total = counts.sum()
    clusters = np.empty((2, x.shape[1]))
    sums = np.zeros((3, groups))
    projection = np.zeros((2, groups))
    v = at[0]
    alpha = 2.0 - math.exp(v)
    # From the boundary the score grows like the root of the distance, else like the distance.
    power = 2.0 if v == V_MIN else 1.0
    inner, inner_ratio = alpha, 0.0
    outer = outer_ratio = np.nan
    trial = alpha + direction * at[1]
    for _ in range(40):
        trial = min(max(trial, ALPHA_MIN), 2.0 - 1e-9)
        new_v = math.log(2.0 - trial)
        vv, vu, uu, ll = fisher(tabulated.information, 0.5 * (v + new_v))
        for g in range(groups):
            change = sums[1, g] / (uu * counts[g]) - vu / uu * (new_v - v)
            loc[g] += scale[g] * min(max(sums[2, g] / (ll * counts[g]), -0.5), 0.5)
            scale[g] *= math.exp(min(max(change, -1.0), 1.0))
        v = new_v
        vv, vu, uu, ll = fisher(tabulated.information, v)
        projection[0] = vu / uu
        x0 = collapse(tabulated, trial, 1, law)
        squares = cluster_scores(x, law, x0, trial, scale, loc, projection, clusters, sums)
        naive = total * (vv - vu * vu / uu)
        deviation = math.sqrt(shrink * max(*_variances(clusters, squares, naive)))
        # Below the estimate the likelihood rises with alpha, that is falls with v.
        ratio = clusters[0].sum() / deviation * direction / target
        if abs(ratio - 1.0) < 1e-2 or abs(outer - inner) < 1e-10:
            return trial
        ratio = math.copysign(abs(ratio) ** power, ratio)
        if ratio < 1.0:
            inner, inner_ratio = trial, ratio
            if direction > 0 and (2.0 - trial) * total < 0.05:
                return 2.0
            if direction < 0 and trial <= ALPHA_MIN:
                return ALPHA_MIN
        else:
            outer, outer_ratio = trial, ratio
        if math.isnan(outer):
            reach = abs(inner - alpha) * min(1.0 / max(inner_ratio, 0.25), 4.0) * 1.05
            trial = alpha + direction * reach
            if direction > 0:
                trial = min(trial, inner + 0.6 * (2.0 - inner))
        else:
            w = (1.0 - inner_ratio) / (outer_ratio - inner_ratio)
            trial = inner + min(max(w, 0.05), 0.95) * (outer - inner)
    return trial


@numba.njit(nogil=True, cache=True, error_model="numpy")
def maximise(
    ordered: Float64, counts: Float64, tabulated: Table, v: float, scale: Float64, loc: Float64
) -> tuple[float, float, float, float, int, bool]:
    """Return v, alpha, log-likelihood, the Gaussian one, iterations, whether it converged.

    `ordered` is (group, values), standardised, all of `counts` positive. Starts from `v`, `scale`
    and `loc`, or, where `v` is NaN, from quantiles. Writes `scale` and `loc`.
    """
    groups = ordered.shape[0]
    g_scale, g_loc = np.empty(groups), np.empty(groups)
    g_loglik = 0.0
    for g in range(groups):
        g_scale[g], g_loc[g], part = gaussian(ordered[g, : int(counts[g])], None)
        g_loglik += part
    if math.isnan(v):
        start, q75 = _start(ordered, counts, tabulated.quantiles)
        v = math.log(2.0 - start)
        scale[:], loc[:] = 0.5 / q75, 0.0
    law = new_law()
    if groups > 1 and 2.0 - math.exp(v) > _NEAR_GAUSSIAN:
        # Where the likelihood rises to the Gaussian end from here and from just before it.
        here, slope = panel_score(ordered, counts, tabulated, law, v, scale, loc)
        if here <= g_loglik and slope < 0.0:
            end = math.log(0.04 / counts.sum())
            if panel_score(ordered, counts, tabulated, law, end, g_scale, g_loc)[1] < 0.0:
                scale[:], loc[:] = g_scale, g_loc
                return V_MIN, 2.0, g_loglik, g_loglik, 1, True
    if groups == 1:
        row = ordered[0, : int(counts[0])]
        first = (v, scale[0], loc[0])
        v, scale[0], loc[0], loglik, _, iterations, converged = climb(
            row, None, tabulated, law, first, True, g_loglik, 1e-9
        )
    else:
        v, loglik, iterations, converged = climb_panel(
            ordered, counts, tabulated, law, v, scale, loc, g_loglik
        )
    if loglik <= g_loglik + 1e-9:
        scale[:], loc[:] = g_scale, g_loc
        return V_MIN, 2.0, g_loglik, g_loglik, iterations, True
    return v, 2.0 - math.exp(v), loglik, g_loglik, iterations, converged


@numba.njit(nogil=True, cache=True, error_model="numpy")
def interval(
    x: Float64,
    counts: Float64,
    tabulated: Table,
    at: tuple[float, float],
    scale: Float64,
    loc: Float64,
    target: float,
    shrink: float,
) -> tuple[float, float, float]:
    """Return standard error, low and high of alpha at the maximum ``at = (v, alpha)``.

    `x` is (series, batch), standardised, NaN where left out; `target` is Student's quantile and
    `shrink` makes up for the degrees of freedom that fitting took from the scores.
    """
    v, alpha = at
    total = counts.sum()
    law = new_law()
    se, low, high = 0.0, 2.0, np.inf
    if alpha < 2.0:
        groups = scale.size
        expected = fisher(tabulated.information, v)
        projection = np.zeros((2, groups))
        x0 = collapse(tabulated, alpha, 2, law)
        curvature = observed_information(x, law, x0, alpha, scale, loc, expected, projection)
        clusters, sums = np.empty((2, x.shape[1])), np.empty((3, groups))
        squares = cluster_scores(x, law, x0, alpha, scale, loc, projection, clusters, sums)
        vv, vu, uu, _ = expected
        naive = total * (vv - vu * vu / uu)
        robust, modelled = _variances(clusters, squares, naive)
        se = max(math.sqrt(robust) / curvature, math.sqrt(modelled) / naive)
        se *= (2.0 - alpha) * math.sqrt(shrink)
        low, high = alpha - target * se, alpha + target * se
    if high > 2.0 - 2.0 * target * se or low < ALPHA_MIN + target * se:
        first = target * se if alpha < 2.0 else min(0.2, 30.0 / total)
        start = (v, min(first, 0.5 * (alpha - ALPHA_MIN)))
        low = _score_endpoint(x, tabulated, law, counts, start, scale, loc, target, shrink, -1)
        high = 2.0
        if alpha < 2.0:
            start = (v, min(target * se, 0.5 * (2.0 - alpha)))
            high = _score_endpoint(x, tabulated, law, counts, start, scale, loc, target, shrink, 1)
    if alpha == 2.0:
        se = (2.0 - low) / target
    return se, low, high
