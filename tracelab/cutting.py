"""Cuts a plan's cells: into blocks, one a task, and a block into pieces that fit in memory.

Cells that share a chunk on disk stay together, so that few chunks are read twice; a heavy cell is
a block of its own. How cells are cut changes no bit of a result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tracelab.typing import FloatArray, IntArray

__all__ = ["Block", "Grain", "blocks", "pieces"]

MAX_TASKS = 2_000
# A block's input as float64, so that light cells share the cost of a task. A quarter of a second of
# the heaviest shipped analysis.
BLOCK_BYTES = 2**21
# Chunks that are shared by cells are not cut up unless a block would be larger than this.
SHARED_BYTES = 2**28


@dataclass(frozen=True, slots=True)
class Block:
    """Some cells: rows ``first:last`` of a plan's steps, columns ``left:right`` of its labels."""

    first: int
    last: int
    left: int
    right: int

    def __str__(self) -> str:
        return f"{self.first}:{self.last}, {self.left}:{self.right}"


@dataclass(frozen=True, slots=True, eq=False)
class Grain:
    """What the cells of a plan weigh and which of them share chunks.

    Parameters
    ----------
    read_bytes, held_bytes : ndarray of float64, shape (label,)
        What one cell reads, and what of it is in memory at a time, as float64 numbers; without
        steps in the cell, of one row of it. Floats: what a trace declares may overflow integers.
    row_chunk, column_chunk : ndarray of int64, shape (step,), (label,)
        Number of the chunk in which a row, a column begins.
    by_step : bool
        Whether a cell is one step.
    """

    read_bytes: FloatArray
    held_bytes: FloatArray
    row_chunk: IntArray
    column_chunk: IntArray
    by_step: bool

    @property
    def cell_bytes(self) -> FloatArray:
        """What a cell of each column holds in memory as the kernel's input."""
        return self.held_bytes * (1 if self.by_step else self.row_chunk.size)


def blocks(grain: Grain) -> tuple[Block, ...]:
    """Return blocks that cover all cells once, at most `MAX_TASKS` unless one is told to."""
    whole = Block(0, grain.row_chunk.size, 0, grain.read_bytes.size)
    total = float(grain.read_bytes.sum()) * grain.row_chunk.size
    limit = max(BLOCK_BYTES, 2 * total / MAX_TASKS)
    while True:
        found = tuple(_cut(grain, whole, grain.read_bytes, limit, SHARED_BYTES))
        if len(found) <= max(MAX_TASKS, 1) or found == (whole,):
            return found
        # Cells of very different weight are packed badly.
        limit *= 2


def pieces(grain: Grain, block: Block, limit: float) -> Iterator[Block]:
    """Yield parts of a block whose input is at most `limit` bytes as float64, or single cells."""
    return _cut(grain, block, grain.held_bytes, limit, limit)


def _cut(
    grain: Grain, block: Block, weight: FloatArray, limit: float, shared: float
) -> Iterator[Block]:
    rows = block.last - block.first
    # Without steps in the cell a column's rows cannot be parted.
    height = 1 if grain.by_step else rows
    weights = weight[block.left : block.right]
    columns = grain.column_chunk[block.left : block.right]
    shared_rows = _longest(grain.row_chunk[block.first : block.last]) if grain.by_step else rows
    for left, right in _spans(weights * height, columns, limit, shared / (shared_rows / height)):
        strip = weights[left:right].sum()
        of_rows: Iterator[tuple[int, int]] = iter([(0, rows)])
        if grain.by_step:
            of_rows = _spans(
                np.broadcast_to(strip, rows),
                grain.row_chunk[block.first : block.last],
                limit,
                shared,
            )
        for first, last in of_rows:
            yield Block(
                block.first + first, block.first + last, block.left + left, block.left + right
            )


def _longest(keys: IntArray) -> int:
    """Return the length of the longest run of equal numbers."""
    starts = np.flatnonzero(np.diff(keys, prepend=keys[0] - 1))
    return int(np.diff(starts, append=keys.size).max())


def _spans(
    weights: FloatArray, keys: IntArray, limit: float, shared: float
) -> Iterator[tuple[int, int]]:
    """Yield successive ranges of up to `limit`, ending where the key changes if that can be.

    A run of equal keys stays whole up to `shared`; a single item may weigh anything.
    """
    size = weights.size
    ends = np.concatenate([[0], np.cumsum(np.maximum(weights, 1.0))])
    starts = np.append(np.flatnonzero(np.diff(keys, prepend=keys[0] - 1)), size)
    begin = 0
    while begin < size:
        end = int(np.searchsorted(ends, ends[begin] + limit, "right")) - 1
        last = int(starts[np.searchsorted(starts, end, "right") - 1])
        following = int(starts[np.searchsorted(starts, begin, "right")])
        if last > begin:
            end = last
        elif ends[following] - ends[begin] <= shared:
            end = following
        end = max(end, begin + 1)
        yield begin, end
        begin = end
