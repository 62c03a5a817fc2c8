"""The float-bit histogram: counts of values by the leading bits of their float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tracelab.errors import UsageError
from tracelab.typing import Array, FloatArray, IntArray

__all__ = ["Histogram"]

MANTISSA = 23
BIAS = 127
LOWEST, HIGHEST = -126, 128
MOST_MANTISSA_BITS = 10
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITE = np.uint32(0x7F800000)


@dataclass(frozen=True, slots=True)
class Histogram:
    r"""Keep, of each layer, how many values have which leading bits as a float32.

    Magnitudes from :math:`2^\text{low}` up to :math:`2^\text{high}` are counted in
    :math:`2^M` equal bins an octave, smaller and larger ones in one bin an octave, subnormal
    numbers (below :math:`2^{-126}`) in one bin; each sign has its own. Zeros, both infinities and
    NaN are counted in four bins of their own. So every value is counted, once, and nothing is
    clamped: the counts of a layer sum to its number of weights. Values of other floating types are
    rounded to float32 first, as they are when they are stored.

    The histogram preserves order statistics, and so quantiles and the distribution function, to
    within one bin, whose relative width is at most :math:`2^{-M}` inside the window; counts are
    exact, so that histograms of steps, shards and layers add up exactly, in any order. It keeps
    nothing of which coordinate had which value, hence nothing about dependence between
    coordinates or steps.

    Parameters
    ----------
    mantissa_bits : int
        :math:`M`, at most 10.
    exponents : tuple of int
        ``(low, high)`` of the window, from -126 to 128.

    Raises
    ------
    UsageError
        If they cannot be.

    Notes
    -----
    Bins are in the order of their values: negative infinity, the largest negative magnitudes, ...,
    the smallest, zero, the smallest positive values, ..., the largest, infinity; then NaN. A bin
    reaches from the edge of the smaller magnitude, which belongs to it, to the other, which does
    not. Changing every sign reverses all bins but the last. A layer without a gradient has no
    counts at all: its row is zero, and its sum is not the number of its weights.

    Examples
    --------
    >>> counts = Histogram().count(np.array([0.0, 1.0, 1.01, -np.inf]))
    >>> counts[Histogram().zero], counts.sum()
    (np.int64(1), np.int64(4))
    """

    mantissa_bits: int = 6
    exponents: tuple[int, int] = (-40, 8)
    kind: ClassVar[str] = "histogram"

    def __post_init__(self) -> None:
        if not _between(0, self.mantissa_bits, MOST_MANTISSA_BITS):
            raise UsageError(
                f"Histogram needs mantissa_bits to be an integer from 0 to {MOST_MANTISSA_BITS}, "
                f"got {self.mantissa_bits!r}"
            )
        window: Any = self.exponents
        fits = (
            isinstance(window, Sequence)
            and len(window) == 2
            and all(_between(LOWEST, each, HIGHEST) for each in window)
            and window[0] <= window[1]
        )
        if not fits:
            raise UsageError(
                f"Histogram needs exponents=(low, high) with {LOWEST} <= low <= high <= {HIGHEST}, "
                f"got {window!r}"
            )
        object.__setattr__(self, "mantissa_bits", int(self.mantissa_bits))
        object.__setattr__(self, "exponents", (int(window[0]), int(window[1])))

    @classmethod
    def of(cls, attrs: Mapping[str, Any]) -> Histogram:
        """Return the histogram that a group of a trace holds, from the group's attributes.

        Raises
        ------
        UsageError
            If it holds none, or none that can be.
        """
        sketches = attrs.get("sketches")
        for each in sketches if isinstance(sketches, list) else []:
            if isinstance(each, Mapping) and each.get("kind") == cls.kind:
                return cls(each.get("mantissa_bits", -1), each.get("exponents", ()))
        raise UsageError(
            "these attributes name no histogram; give those of a group that was recorded with "
            "sketch=Histogram()"
        )

    @property
    def magnitudes(self) -> int:
        """Number of bins of each sign."""
        window = self.exponents[1] - self.exponents[0]
        return 1 + (HIGHEST - LOWEST - window) + (window << self.mantissa_bits)

    @property
    def bins(self) -> int:
        """Number of bins."""
        return 2 * self.magnitudes + 4

    @property
    def zero(self) -> int:
        """The bin of zeros of either sign; the bins beside it hold the subnormal numbers."""
        return self.magnitudes + 1

    @property
    def infinite(self) -> tuple[int, int]:
        """The bins of negative and of positive infinity."""
        return 0, self.bins - 2

    @property
    def nan(self) -> int:
        """The bin of NaN."""
        return self.bins - 1

    def edges(self) -> FloatArray:
        """Return the edges of the bins.

        Returns
        -------
        ndarray of float64, shape (bins,)
            Bin ``j`` lies between elements ``j`` and ``j + 1``, exactly; the last, of NaN, lies
            nowhere. The bin of zeros has no width.
        """
        magnitudes = np.append(self._magnitudes(), 2.0**HIGHEST)
        # 0.0 - x, so that no edge is -0.
        return np.concatenate([[-np.inf], 0.0 - magnitudes[::-1], magnitudes, [np.inf]])

    def centres(self) -> FloatArray:
        """Return the middle of each bin, shape (bins,): infinite and NaN where values are."""
        edges = self.edges()
        return np.append((edges[:-1] + edges[1:]) / 2, np.nan)

    def _magnitudes(self) -> FloatArray:
        """Return the smallest magnitude of each bin of one sign; 0 for that of subnormals."""
        low, high = self.exponents
        fractions = 1 + np.arange(1 << self.mantissa_bits) / (1 << self.mantissa_bits)
        return np.concatenate(
            [
                [0.0],
                np.ldexp(1.0, np.arange(LOWEST, low)),
                np.ldexp(fractions, np.arange(low, high)[:, None]).ravel(),
                np.ldexp(1.0, np.arange(high, HIGHEST)),
            ]
        )

    def table(self) -> npt.NDArray[np.int32]:
        """Return the bin of each value of a float32's leading ``9 + mantissa_bits`` bits.

        Zeros have the leading bits of the smallest subnormal numbers and are in their bins here,
        and infinities in that of NaN.
        """
        bits = self.mantissa_bits
        low, high = self.exponents
        octave = np.arange(1 << 8)
        inside = np.clip(octave - BIAS, low, high) - low
        # A full octave of the window has moved everything behind it up by its bins, less its own.
        first = octave + inside * ((1 << bits) - 1)
        within = (octave - BIAS >= low) & (octave - BIAS < high)
        place = first[:, None] + np.where(within[:, None], np.arange(1 << bits), 0)
        positive, negative = self.zero + 1 + place, self.zero - 1 - place
        positive[-1] = negative[-1] = self.nan
        return np.concatenate([positive.ravel(), negative.ravel()]).astype(np.int32)

    def index(self, values: Array) -> IntArray:
        """Return the bin of each value, in the values' shape."""
        # What is beyond float32 is infinite there.
        with np.errstate(over="ignore"):
            word = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        found = self.table()[word >> np.uint32(MANTISSA - self.mantissa_bits)].astype(np.int64)
        magnitude = word & _MAGNITUDE
        found[magnitude == 0] = self.zero
        infinite = magnitude == _INFINITE
        found[infinite] = np.where(word[infinite] > _INFINITE, *self.infinite)
        shaped: IntArray = found.reshape(np.shape(values))
        return shaped

    def count(self, values: Array) -> IntArray:
        """Return how many values are in each bin.

        Parameters
        ----------
        values : ndarray, shape (..., numel)
            Values, in any floating type.

        Returns
        -------
        ndarray of int64, shape (..., bins)
        """
        found = self.index(values)
        counts = np.zeros((*found.shape[:-1], self.bins), dtype=np.int64)
        for place in np.ndindex(found.shape[:-1]):
            counts[place] = np.bincount(found[place], minlength=self.bins)
        return counts

    def merge(self, *counts: Array) -> IntArray:
        """Return the histogram of all values together: the sum of counts, in int64.

        Parameters
        ----------
        *counts : ndarray of integers, shape (..., bins)
            Histograms of steps, shards, layers or runs, with the same bins.

        Raises
        ------
        UsageError
            If one has another number of bins.
        """
        total = np.zeros(self.bins, dtype=np.int64)
        for each in counts:
            if np.shape(each)[-1:] != (self.bins,):
                raise UsageError(
                    f"{self} has {self.bins} bins, got counts of shape {np.shape(each)}; merge "
                    "histograms of the same mantissa_bits and exponents"
                )
            total = total + np.asarray(each).astype(np.int64)
        return total

    def describe(self) -> dict[str, Any]:
        """Return the sketch as the trace stores it."""
        return {
            "kind": self.kind,
            "mantissa_bits": self.mantissa_bits,
            "exponents": list(self.exponents),
        }


def _between(least: int, value: Any, most: int) -> bool:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return whole and least <= value <= most
