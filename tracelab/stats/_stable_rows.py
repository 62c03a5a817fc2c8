"""Rows for the fits of stable laws: sorted, without atoms, standardised, with their statuses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from tracelab.stats._samples import as_rows
from tracelab.stats._stable_fit import mask_atoms
from tracelab.typing import IntArray, Status

__all__ = ["LEVELS", "Rows", "Standardised", "hazen", "prepare"]

Float64 = NDArray[np.float64]

_OK, _TOO_FEW = int(Status.OK), int(Status.TOO_FEW_SAMPLES)
_NON_FINITE, _CONSTANT = int(Status.NON_FINITE_INPUT), int(Status.CONSTANT_INPUT)


LEVELS = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
"""Levels of the quantiles that fits start from."""


@dataclass(frozen=True, slots=True)
class Standardised:
    """What is known of standardised cells of data, however their values are held.

    Parameters
    ----------
    sizes : ndarray, shape (row,)
        Values to fit, 0 where there is nothing to fit.
    quantiles : ndarray, shape (row, 5)
        At `LEVELS`, in units of `spread` from `centre`.
    centre, spread : ndarray, shape (row,)
        In units of the data.
    tied_fraction, status : ndarray, shape (row,)
        As in ``StableFit``.
    lead : tuple of int
        Leading shape of the cells.
    n_samples : int or ndarray of int64, shape lead
        Values per cell, those that are not fitted included.
    """

    sizes: Float64
    quantiles: Float64
    centre: Float64
    spread: Float64
    tied_fraction: Float64
    status: NDArray[np.uint8]
    lead: tuple[int, ...]
    n_samples: int | IntArray


@dataclass(frozen=True, slots=True)
class Rows(Standardised):
    """Cells of data as sorted rows.

    Parameters
    ----------
    values : ndarray, shape (row, n)
        Sorted, less `centre`, over `spread`: the median and interquartile range of the first
        ``counts[row]``, which remain without atoms.
    counts : ndarray of int64, shape (row,)
        Values to fit.
    """

    values: Float64
    counts: NDArray[np.int64]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def hazen(ordered: Float64, n: int, q: float) -> float:
    """Return the quantile of the first `n` sorted values at which the i-th is (i - 1/2) / n."""
    position = min(max(q * n - 0.5, 0.0), n - 1.0)
    i = min(int(position), n - 2)
    return float(ordered[i] + (position - i) * (ordered[i + 1] - ordered[i]))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _prepare(
    rows: Float64,
    least: int,
    counts: NDArray[np.int64],
    centre: Float64,
    spread: Float64,
    quantiles: Float64,
    tied: Float64,
    status: NDArray[np.uint8],
) -> None:
    size = rows.shape[1]
    for r in range(rows.shape[0]):
        row = rows[r]
        if size > 0 and not (math.isfinite(row[0]) and math.isfinite(row[-1])):
            status[r], tied[r] = _NON_FINITE, np.nan
            continue
        if size < least:
            status[r] = _TOO_FEW
            continue
        constant = row[0] == row[-1]
        n = mask_atoms(row)
        tied[r] = 1.0 - n / size
        if constant:
            status[r] = _CONSTANT
            continue
        if n < least:
            status[r] = _TOO_FEW
            continue
        centre[r] = hazen(row, n, 0.5)
        spread[r] = hazen(row, n, 0.75) - hazen(row, n, 0.25)
        if not spread[r] > 0.0:
            status[r] = _CONSTANT
            continue
        counts[r] = n
        for i in range(n):
            row[i] = (row[i] - centre[r]) / spread[r]
        for i in range(LEVELS.size):
            quantiles[r, i] = hazen(row, n, LEVELS[i])


def prepare(x: ArrayLike, axis: int, least: int) -> Rows:
    """Return the cells of `x` as rows; those of fewer than `least` values are not fitted."""
    values, lead = as_rows(x, axis)
    rows = np.sort(values.astype(np.float64), axis=-1)
    count = rows.shape[0]
    counts = np.zeros(count, dtype=np.int64)
    quantiles = np.full((count, LEVELS.size), np.nan)
    centre, spread, tied = np.zeros(count), np.ones(count), np.zeros(count)
    status = np.full(count, _OK, dtype=np.uint8)
    _prepare(rows, least, counts, centre, spread, quantiles, tied, status)
    return Rows(
        sizes=counts.astype(np.float64),
        quantiles=quantiles,
        centre=centre,
        spread=spread,
        tied_fraction=tied,
        status=status,
        lead=lead,
        n_samples=rows.shape[1],
        values=rows,
        counts=counts,
    )
