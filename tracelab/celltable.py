"""The cells of a plan as a table: their numbers, and which of them there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tracelab.cells import unfilled
from tracelab.contracts import Analysis
from tracelab.planning import Plan
from tracelab.trace.resultstore.parts import Cells
from tracelab.typing import Array, BoolArray, IntArray, Status

__all__ = ["Table", "by_step", "good"]

_AGAIN = (int(Status.FAILED), int(Status.UNREADABLE))


@dataclass(frozen=True, slots=True)
class Table:
    """The cells of a plan: their numbers, and which of them there are.

    Parameters
    ----------
    plan : Plan
        The plan.
    outputs : dict of str to ndarray, dims of the outputs
        Numbers; those of a missing cell have the status FAILED.
    have : ndarray of bool, shape (step, layer)
        Which are there; one row where cells have no step.
    """

    plan: Plan
    outputs: dict[str, Array]
    have: BoolArray

    @classmethod
    def empty(cls, plan: Plan) -> Table:
        """Return the table of a plan of which nothing is there."""
        rows = len(plan.steps) if by_step(plan.analysis) else 1
        return cls(plan, unfilled(plan, plan.whole), np.zeros((rows, len(plan.labels)), bool))

    def put(self, rows: IntArray, columns: IntArray, values: Mapping[str, Array]) -> None:
        """Take the numbers of cells, given side by side along the first axis of `values`."""
        for name, numbers in values.items():
            place = (rows, columns) if by_step(self.plan.analysis) else (columns,)
            self.outputs[name][place] = numbers

    def take(self, rows: IntArray, columns: IntArray) -> Cells:
        """Return cells, side by side."""
        steps = np.asarray(self.plan.steps, dtype=np.int64)[rows] if self._by_step else None
        place = (rows, columns) if self._by_step else (columns,)
        outputs = {name: numbers[place] for name, numbers in self.outputs.items()}
        return Cells(steps, self.plan.labels, columns, outputs)

    @property
    def _by_step(self) -> bool:
        return by_step(self.plan.analysis)

    @property
    def cell_shapes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Dtype and shape of one cell, by output."""
        skip = len(self.plan.analysis.cell)
        return {name: (each.dtype.name, each.shape[skip:]) for name, each in self.outputs.items()}

    def holds(self, cells: Cells) -> bool:
        """Return whether all these cells are among those that are there."""
        rows, columns = self._places(cells)
        inside = (rows >= 0) & (columns >= 0)
        return bool(inside.all()) and bool(self.have[rows, columns].all())

    def adopt(self, cells: Cells) -> int:
        """Take those cells that belong here, are missing and are good; return how many."""
        rows, columns = self._places(cells)
        wanted = (rows >= 0) & (columns >= 0) & good(cells.outputs["status"])
        wanted[wanted] = ~self.have[rows[wanted], columns[wanted]]
        if wanted.any():
            values = {name: numbers[wanted] for name, numbers in cells.outputs.items()}
            self.put(rows[wanted], columns[wanted], values)
            self.have[rows[wanted], columns[wanted]] = True
        return int(wanted.sum())

    def _places(self, cells: Cells) -> tuple[IntArray, IntArray]:
        known = {label: column for column, label in enumerate(self.plan.labels)}
        table = np.asarray([known.get(label, -1) for label in cells.layers], dtype=np.int64)
        columns = table[cells.columns]
        if cells.steps is None or not self._by_step:
            return np.zeros_like(columns), columns
        steps = np.asarray(self.plan.steps, dtype=np.int64)
        rows = np.searchsorted(steps, cells.steps)
        rows[rows == steps.size] = 0
        return np.where(steps[rows] == cells.steps, rows, -1), columns


def by_step(analysis: Analysis) -> bool:
    """Return whether the analysis has a cell for each step."""
    return "step" in analysis.cell


def good(status: Array) -> BoolArray:
    """Return which cells need not be tried again: all but the failed and the unreadable."""
    answer: BoolArray = ~np.isin(status, _AGAIN)
    return answer
