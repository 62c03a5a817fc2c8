"""Weights that a trace holds, row by row, and their mean over a window of steps."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tracelab.errors import NotRecordedError
from tracelab.trace import Trace
from tracelab.trace.reading.stored import Stored
from tracelab.typing import FloatArray, IntArray

__all__ = ["StoredWeights", "Window"]

PIECE_BYTES = 1 << 25
"""Rows that are read at once have no more, or are one row."""


@dataclass(frozen=True, slots=True)
class Window:
    """Stored weights of a window of steps.

    Parameters
    ----------
    start, stop : int
        First and last step at which weights are stored.
    count : int
        How many rows there are.
    last, average : ndarray, shape (number,)
        The weights at the last step, and the mean of all: numbers as they are stored.
    squares : ndarray, shape (layer,)
        Mean squared distance from the average.
    """

    start: int
    stop: int
    count: int
    last: FloatArray
    average: FloatArray
    squares: FloatArray


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """The weights of a trace, whole or projected.

    Parameters
    ----------
    steps : ndarray of int, shape (row,)
        Steps at which weights are stored, rising.
    shapes : dict of str to tuple of int
        Layers and their shapes, in order.
    edges : ndarray of int, shape (layer + 1,)
        Where each layer's numbers begin in a row.
    array : str
        ``full`` or ``projected``.
    """

    steps: IntArray
    shapes: dict[str, tuple[int, ...]]
    edges: IntArray
    array: str
    _stored: Stored

    @classmethod
    def of(cls, trace: Trace, group: str, *, whole: bool) -> StoredWeights:
        """Return the weights of a group.

        Parameters
        ----------
        trace : Trace
            The trace.
        group : str
            A group of kind ``weights``.
        whole : bool
            Whether all weights are needed, or projections will do.

        Raises
        ------
        NotRecordedError
            If there is no such group, or it does not hold what is needed.
        """
        if not isinstance(group, str) or trace.kinds.get(group) != "weights":
            raise NotRecordedError(
                f"the trace has no group {group!r} of weights; record Weights(sketch=tracelab."
                f"Full()). It holds: {', '.join(trace.groups) or 'no group'}"
            )
        dataset, stored = trace.groups[group], trace.stored(group)
        names = [str(name) for name in dataset["layer"].values]
        known = dict(
            zip(map(str, trace.layers["layer"].values), trace.layers["shape"].values, strict=True)
        )
        shapes = {name: tuple(json.loads(str(known[name]))) for name in names}
        if "full" in stored:
            sizes, array = [math.prod(shape) for shape in shapes.values()], "full"
        elif "projected" in stored and not whole:
            sizes, array = [stored["projected"].shape[-1]] * len(names), "projected"
        else:
            raise NotRecordedError(
                f"the group {group!r} does not hold all weights; record Weights(sketch=tracelab."
                "Full())" + ("" if whole else " or Project(k)")
            )
        return cls(dataset["step"].values, shapes, np.cumsum([0, *sizes]), array, stored[array])

    def rows(self, start: int, stop: int) -> IntArray:
        """Return the rows of the steps from `start` to `stop`, both included.

        Raises
        ------
        NotRecordedError
            If there are fewer than two.
        """
        rows = np.flatnonzero((self.steps >= start) & (self.steps <= stop))
        if rows.size < 2:
            raise NotRecordedError(
                f"weights are stored at {rows.size} steps from {start} to {stop}, and an average "
                "takes 2; choose a longer window or record Weights(every=...) more often"
            )
        return rows

    def window(self, start: int, stop: int) -> Window:
        r"""Return last weights, mean and spread of the `rows` from `start` to `stop`.

        By Welford's updates in one pass; three vectors and a piece of rows are in memory.

        Raises
        ------
        NotRecordedError
            If weights are stored at fewer than two steps of the window.
        """
        rows = self.rows(start, stop)
        average = np.zeros(self.edges[-1])
        squares = np.zeros(len(self.shapes))
        last = average
        for number, last in enumerate(self._each(int(rows[0]), int(rows[-1]) + 1), 1):
            before = last - average
            average += before / number
            products = before * (last - average)
            squares += [products[begin:end].sum() for begin, end in pairwise(self.edges)]
        return Window(
            int(self.steps[rows[0]]), int(self.steps[rows[-1]]), rows.size,
            last, average, squares / rows.size,
        )  # fmt: skip

    def distances(self, window: Window) -> FloatArray:
        """Return the distance of each layer's average from its last weights, shape (layer,)."""
        away = np.square(window.average - window.last)
        return np.sqrt([away[begin:end].sum() for begin, end in pairwise(self.edges)])

    def _each(self, first: int, end: int) -> Iterator[FloatArray]:
        """Yield rows as float64 vectors."""
        chunk = self._stored.chunk[0]
        width = max(chunk, PIECE_BYTES // (8 * max(int(self.edges[-1]), 1)) // chunk * chunk)
        for begin in range(first - first % chunk, end, width):
            low, high = max(begin, first), min(begin + width, end)
            every = [slice(0, size) for size in self._stored.shape[1:]]
            piece = self._stored[(slice(low, high), *every)]
            for row in piece:
                yield row.reshape(-1).astype(np.float64)
