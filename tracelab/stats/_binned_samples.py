"""Counts of float-bit histograms as rows, checked, with their moments and statuses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tracelab.errors import UsageError
from tracelab.histogram import Histogram
from tracelab.stats._binned import moment_rows
from tracelab.typing import FloatArray, Status

__all__ = ["BinnedSamples"]

# The standard deviation must be as wide as this many bins of its neighbourhood.
_RESOLUTION = 8


@dataclass(frozen=True, slots=True)
class BinnedSamples:
    """Counts as rows, of the finite bins alone.

    Parameters
    ----------
    lead : tuple of int
        Leading shape of the counts.
    counts : ndarray of int64, shape (row, bin)
        Of the bins of finite values.
    edges : ndarray of float64, shape (bin + 1,)
        Ascending; the bin of zeros has no width.
    n, zeros, excluded : ndarray of int64, shape (row,)
        Finite values, those that are zero, and those that are not finite.
    """

    lead: tuple[int, ...]
    counts: npt.NDArray[np.int64]
    edges: FloatArray
    n: npt.NDArray[np.int64]
    zeros: npt.NDArray[np.int64]
    excluded: npt.NDArray[np.int64]

    @classmethod
    def of(cls, counts: npt.ArrayLike, histogram: Histogram) -> BinnedSamples:
        """Return checked counts."""
        given = np.asarray(counts)
        if given.dtype.kind not in "iu" or given.shape[-1:] != (histogram.bins,):
            raise UsageError(
                f"counts must be whole numbers, {histogram.bins} of them along the last axis, for "
                f"{histogram}; got {given.dtype} of shape {given.shape}"
            )
        lead = given.shape[:-1]
        rows = given.reshape(math.prod(lead), histogram.bins).astype(np.int64)
        if (rows < 0).any():
            raise UsageError(f"counts must not be negative, got {int(rows.min())}")
        finite = rows[:, 1:-2]
        outside = rows[:, [*histogram.infinite, histogram.nan]].sum(axis=-1)
        edges = histogram.edges()[1:-1]
        return cls(
            lead, finite, edges, finite.sum(axis=-1), rows[:, histogram.zero].copy(), outside
        )

    def status(self, least: int) -> npt.NDArray[np.uint8]:
        """Return what is wrong with the counts themselves."""
        found = np.full(len(self.n), Status.OK, dtype=np.uint8)
        found[self.n < least] = Status.TOO_FEW_SAMPLES
        found[self.excluded > 0] = Status.NON_FINITE_INPUT
        return found

    def moments(self, least: int = 2) -> tuple[FloatArray, npt.NDArray[np.uint8]]:
        """Return number, mean and variance of every row, and its status."""
        found = np.empty((len(self.n), 3))
        moment_rows(self.counts, self.edges, found)
        status = self.status(least)
        good = status == Status.OK
        one = good & ((self.counts > 0).sum(axis=-1) < 2)
        status[one] = Status.CONSTANT_INPUT
        good &= ~one
        status[good & ~(self.resolution(found) <= 1 / _RESOLUTION)] = Status.NOT_CONVERGED
        return found, status

    def resolution(self, found: FloatArray) -> FloatArray:
        """Return the width of the widest bin within a deviation of the mean, in deviations."""
        _, mean, variance = found.T
        with np.errstate(invalid="ignore"):
            std = np.sqrt(variance)
            reach = np.abs(mean) + std
        widths = np.diff(self.edges)
        places = np.searchsorted(self.edges, np.nan_to_num(reach), side="right") - 1
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio: FloatArray = widths[np.clip(places, 0, len(widths) - 1)] / std
        return ratio
