"""Samples as weighted points, and the symmetric fit of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tracelab.stats._stable_density import Float64, new_law, table
from tracelab.stats._stable_fit import fit_row, start_alpha
from tracelab.stats._stable_result import StableFit, symmetric
from tracelab.stats._stable_rows import Standardised

__all__ = ["PointRows", "core", "fit_points"]


@dataclass(frozen=True, slots=True)
class PointRows(Standardised):
    """Cells of data as weighted points.

    Parameters
    ----------
    points : tuple of tuple of ndarray
        For each row x, in units of its spread from its centre, and weights, shape (point,): how
        many values each stands for. Both are empty where there is nothing to fit.
    """

    points: tuple[tuple[Float64, Float64], ...]


def core(wide: float, narrow: float) -> float:
    """Return how wide the middle of a symmetric law is, from ``q95 - q05`` and ``q75 - q25``.

    The length over which the density changes at its mode, ``sqrt(-f / f'')``, at most 1 scale:
    ``sqrt(Gamma(1 / alpha) / Gamma(3 / alpha))``.
    """
    alpha, q75 = start_alpha(table().quantiles, math.log(wide / narrow))
    bend = math.exp(0.5 * (math.lgamma(1 / alpha) - math.lgamma(3 / alpha)))
    return min(bend, 1.0) * 0.5 * narrow / q75


def fit_points(rows: PointRows, z: float | None) -> StableFit:
    """Return the symmetric stable law of each row, with intervals of `z` standard errors if any."""
    columns = np.full((rows.sizes.size, 13), np.nan)
    columns[:, 9], columns[:, 10], columns[:, 11] = rows.tied_fraction, 0, rows.status
    law = new_law()
    for r in np.flatnonzero(rows.sizes):
        x, weights = rows.points[r]
        q05, q25, median, q75, q95 = rows.quantiles[r]
        spans, units = (q95 - q05, q75 - q25, median), (rows.centre[r], rows.spread[r])
        worse = columns[r, 11]
        fit_row(x, weights, spans, units, table(), law, z or 0.0, columns[r])
        columns[r, 11] = max(columns[r, 11], worse)
    return symmetric(columns, rows.lead, z, rows.n_samples)
