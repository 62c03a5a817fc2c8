"""One alpha for many series: the joint climb and the scores of its clusters.

Every series keeps its own scale and location, so the information is an arrow: alpha coupled to
each scale, nothing else. Eliminating the series leaves one equation for alpha (the efficient
score), and every step costs one pass over the data.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from tracelab.stats._stable_climb import V_MAX, V_MIN, fisher, score_sums
from tracelab.stats._stable_density import Float64, Table, collapse, density, density2

__all__ = ["climb_panel", "cluster_scores", "observed_information", "panel_score"]

_MAX_ITERATIONS = 60
# Squared distance to the maximum in standard errors: of alpha, and the mean over the series.
_TOLERANCE, _SERIES_TOLERANCE = 1e-8, 1e-4


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _panel_sums(
    rows: Float64,
    counts: Float64,
    law: Float64,
    x0: float,
    alpha: float,
    scale: Float64,
    loc: Float64,
    sums: Float64,
) -> float:
    """Write derivatives by series to `sums` (3, series); return the log-likelihood."""
    total = 0.0
    for j in range(rows.shape[0]):
        n = int(counts[j])
        loglik, sums[0, j], sums[1, j], sums[2, j] = score_sums(
            rows[j, :n], None, law, x0, alpha, scale[j], loc[j]
        )
        total += loglik
    return total


@numba.njit(nogil=True, cache=True, error_model="numpy")
def panel_score(
    rows: Float64,
    counts: Float64,
    tabulated: Table,
    law: Float64,
    v: float,
    scale: Float64,
    loc: Float64,
) -> tuple[float, float]:
    """Return the log-likelihood and its derivative in v along the maximum in the scales."""
    sums = np.empty((3, rows.shape[0]))
    alpha = 2.0 - math.exp(v)
    x0 = collapse(tabulated, alpha, 1, law)
    loglik = _panel_sums(rows, counts, law, x0, alpha, scale, loc, sums)
    _, vu, uu, _ = fisher(tabulated.information, v)
    return loglik, sums[0].sum() - vu / uu * sums[1].sum()


@numba.njit(nogil=True, cache=True, error_model="numpy")
def climb_panel(
    rows: Float64,
    counts: Float64,
    tabulated: Table,
    law: Float64,
    v: float,
    scale: Float64,
    loc: Float64,
    floor: float,
) -> tuple[float, float, int, bool]:
    """Return v, log-likelihood, iterations and whether it converged; update scale and loc.

    `rows` (series, batch) are sorted, the first ``counts[j]`` values of row j are used.
    """
    series = rows.shape[0]
    total = counts.sum()
    sums, trial_sums = np.empty((3, series)), np.empty((3, series))
    new_scale, new_loc = np.empty(series), np.empty(series)
    inverse, steps = np.zeros((3, series)), np.empty((2, series))
    alpha = 2.0 - math.exp(v)
    x0 = collapse(tabulated, alpha, 1, law)
    loglik = _panel_sums(rows, counts, law, x0, alpha, scale, loc, sums)
    last_v = last_score = np.nan
    for iteration in range(1, _MAX_ITERATIONS + 1):
        vv, vu, uu, ll = fisher(tabulated.information, v)
        coupling = vu / uu
        score = 0.0
        distance = 0.0
        for j in range(series):
            score += sums[0, j] - coupling * sums[1, j]
            distance += (sums[1, j] ** 2 / uu + sums[2, j] ** 2 / ll) / counts[j]
        expected = total * (vv - vu * coupling)
        pinned = v >= V_MAX and score > 0.0
        if distance < _SERIES_TOLERANCE * series and (pinned or score**2 < _TOLERANCE * expected):
            return v, loglik, iteration, not pinned
        if loglik <= floor and score < 0.0 and math.exp(v) * total < 0.05:
            return v, loglik, iteration, True
        # The slope of the efficient score between the last two points, where it is sane.
        curvature = expected
        far = not abs(v - last_v) < 0.3
        if not far and v != last_v:
            curvature = min(max((last_score - score) / (v - last_v), 0.25 * expected), 4 * expected)
        # Towards the Gaussian end the likelihood is flat in v: longer steps there.
        step_v = min(max(score / curvature, -4.0), 1.5)
        last_v, last_score = v, score
        for j in range(series):
            # No update was possible, or alpha moved far: start over from the expected curvature.
            if far or inverse[0, j] == 0.0:
                inverse[0, j], inverse[1, j] = 1.0 / (uu * counts[j]), 0.0
                inverse[2, j] = 1.0 / (ll * counts[j])
            step = inverse[0, j] * sums[1, j] + inverse[1, j] * sums[2, j]
            steps[0, j] = min(max(step, -1.0), 1.0)
            step = inverse[1, j] * sums[1, j] + inverse[2, j] * sums[2, j]
            steps[1, j] = min(max(step, -1.0), 1.0)
        size = 1.0
        accepted = False
        for _ in range(12):
            new_v = min(max(v + size * step_v, V_MIN), V_MAX)
            for j in range(series):
                new_scale[j] = scale[j] * math.exp(size * steps[0, j] - coupling * (new_v - v))
                new_loc[j] = loc[j] + scale[j] * size * steps[1, j]
            alpha = 2.0 - math.exp(new_v)
            x0 = collapse(tabulated, alpha, 1, law)
            new_loglik = _panel_sums(rows, counts, law, x0, alpha, new_scale, new_loc, trial_sums)
            if new_loglik >= loglik - 1e-13 * abs(loglik):
                accepted = True
                break
            size *= 0.3
        if not accepted:
            return v, loglik, iteration, score**2 < 1e-4 * expected
        for j in range(series):
            _update(inverse[:, j], size * steps[:, j], sums[1:, j] - trial_sums[1:, j])
        v, loglik = new_v, new_loglik
        scale[:], loc[:], sums[:] = new_scale, new_loc, trial_sums
    return v, loglik, _MAX_ITERATIONS, False


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _update(inverse: Float64, step: Float64, change: Float64) -> None:
    """Update one series' inverse curvature (BFGS); set its first entry to 0 if that fails."""
    a, b, c = inverse[0], inverse[1], inverse[2]
    product = step[0] * change[0] + step[1] * change[1]
    h0, h1 = a * change[0] + b * change[1], b * change[0] + c * change[1]
    quadratic = h0 * change[0] + h1 * change[1]
    # The gradient also moved with alpha: far from the expected curvature the pair says nothing.
    if not 0.1 * quadratic < product < 10.0 * quadratic:
        inverse[0] = 0.0
        return
    factor = (1.0 + quadratic / product) / product
    inverse[0] += factor * step[0] * step[0] - 2.0 * h0 * step[0] / product
    inverse[1] += factor * step[0] * step[1] - (h0 * step[1] + step[0] * h1) / product
    inverse[2] += factor * step[1] * step[1] - 2.0 * h1 * step[1] / product


@numba.njit(nogil=True, cache=True, error_model="numpy")
def cluster_scores(
    x: Float64,
    law: Float64,
    x0: float,
    alpha: float,
    scale: Float64,
    loc: Float64,
    projection: Float64,
    clusters: Float64,
    sums: Float64,
) -> tuple[float, float]:
    """Return the sums of squares of the efficient scores and of the scale scores, by value.

    `clusters` (2, batch) takes the efficient score of alpha and the score of the scales, summed
    over each batch; `sums` the derivatives by series. `x` (series, batch) is in its original
    order, NaN where a value is left out; `scale`, `loc` and `projection` (2, groups) have one
    entry for all series or one for each. The efficient score is
    ``s_v - p_0 s_scale - p_1 s_loc``.
    """
    s = 2.0 - alpha
    shared = scale.size == 1
    clusters[:] = 0.0
    sums[:] = 0.0
    squares = scale_squares = 0.0
    for j in range(x.shape[0]):
        g = 0 if shared else j
        inverse, centre = 1.0 / scale[g], loc[g]
        p_scale, p_loc = projection[0, g], projection[1, g]
        sum_v = sum_scale = sum_loc = 0.0
        for k in range(x.shape[1]):
            if math.isnan(x[j, k]):
                continue
            z = (x[j, k] - centre) * inverse
            f, fz, fa = density(law, x0, alpha, z)
            r = 1.0 / f
            score_v = -s * fa * r
            score_scale = -(1.0 + abs(z) * fz * r)
            score_loc = -fz * r if z > 0.0 else fz * r
            efficient = score_v - p_scale * score_scale - p_loc * score_loc
            clusters[0, k] += efficient
            clusters[1, k] += score_scale
            squares += efficient * efficient
            scale_squares += score_scale * score_scale
            sum_v += score_v
            sum_scale += score_scale
            sum_loc += score_loc
        sums[0, g] += sum_v
        sums[1, g] += sum_scale
        sums[2, g] += sum_loc
    return squares, scale_squares


@numba.njit(nogil=True, cache=True, error_model="numpy")
def observed_information(
    x: Float64,
    law: Float64,
    x0: float,
    alpha: float,
    scale: Float64,
    loc: Float64,
    expected: tuple[float, float, float, float],
    projection: Float64,
) -> float:
    """Return minus the second derivative of the profile log-likelihood in v.

    Arguments as for `cluster_scores`; `law` is collapsed to order 2. Writes the projection that
    makes the score efficient. A series whose curvature is not positive takes the `expected`
    information per sample instead, and so does the whole if the result is not positive.
    """
    s = 2.0 - alpha
    vv, vu, uu, ll = expected
    groups = scale.size
    h = np.zeros((6, groups))
    count = np.zeros(groups)
    for j in range(x.shape[0]):
        g = 0 if groups == 1 else j
        inverse, centre = 1.0 / scale[g], loc[g]
        for k in range(x.shape[1]):
            if math.isnan(x[j, k]):
                continue
            z = (x[j, k] - centre) * inverse
            a, sign = abs(z), 1.0 if z > 0.0 else -1.0
            f, fz, fa, fzz, fza, faa = density2(law, x0, alpha, a)
            r = 1.0 / f
            lz, la = fz * r, fa * r
            lzz, lza, laa = fzz * r - lz * lz, fza * r - lz * la, faa * r - la * la
            h[0, g] -= s * s * laa - s * la
            h[1, g] -= s * a * lza
            h[2, g] -= sign * s * lza
            h[3, g] -= a * lz + a * a * lzz
            h[4, g] -= sign * (lz + a * lzz)
            h[5, g] -= lzz
            count[g] += 1.0
    total = 0.0
    for g in range(groups):
        determinant = h[3, g] * h[5, g] - h[4, g] ** 2
        # A tenth of the expected curvature: below, the quadratic is no description.
        if h[3, g] > 0.0 and determinant > 0.01 * uu * ll * count[g] ** 2:
            p_scale = (h[5, g] * h[1, g] - h[4, g] * h[2, g]) / determinant
            p_loc = (h[3, g] * h[2, g] - h[4, g] * h[1, g]) / determinant
            total += h[0, g] - p_scale * h[1, g] - p_loc * h[2, g]
        else:
            p_scale, p_loc = vu / uu, 0.0
            total += count[g] * (vv - vu * vu / uu)
        projection[0, g], projection[1, g] = p_scale, p_loc
    expected_total = count.sum() * (vv - vu * vu / uu)
    return total if total > 0.05 * expected_total else expected_total
