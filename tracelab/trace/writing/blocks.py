"""Rows on their way from the training thread to the background thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tracelab.trace.schema import taken_dtype
from tracelab.trace.writing.rows import GroupRules
from tracelab.typing import Array, IntArray

__all__ = ["Block", "capacity", "owned"]

BLOCK_BYTES = 2**20
BLOCK_ROWS = 256


def capacity(nbytes: int) -> int:
    """Return how many rows of this size a block gathers; one where rows are not copied."""
    return min(BLOCK_ROWS, max(1, BLOCK_BYTES // nbytes))


@dataclass(slots=True)
class Block:
    """Successive rows of a group that hold the same arrays.

    Small rows are gathered: copied once, where they are appended, into arrays with a leading
    ``step`` dimension. A large row is a block of its own and not copied here.

    Parameters
    ----------
    group : str
        Name of the group.
    steps : ndarray of int64, shape (capacity,)
        Steps of the rows.
    arrays : dict of str to ndarray, shape (capacity, ...)
        The rows.
    names : tuple of str
        The arrays, in the order in which the first row gave them.
    vectors : list of (list of str, ndarray of shape (capacity, total))
        Memory that vectors of one dtype share, side by side, so that one call copies them all.
    others : list of str
        Arrays that are no such vectors.
    row_bytes : int
        Bytes of a row.
    count : int
        Rows so far.
    """

    group: str
    steps: IntArray
    arrays: dict[str, Array]
    names: tuple[str, ...]
    vectors: list[tuple[list[str], Array]]
    others: list[str]
    row_bytes: int
    count: int = 0

    @classmethod
    def begin(cls, rules: GroupRules, row: Mapping[str, Array], nbytes: int) -> Block:
        """Return an empty block for rows like this one."""
        rows = capacity(nbytes)
        steps, names = np.empty(rows, dtype=np.int64), tuple(row)
        if rows == 1:
            alone = {name: array[None] for name, array in row.items()}
            return cls(rules.name, steps, alone, names, [], [], nbytes)
        by_dtype: dict[np.dtype[np.generic], list[str]] = {}
        arrays, others = {}, []
        for name, array in row.items():
            dtype = taken_dtype(rules.variables[name].dtype)
            if array.ndim == 1:
                by_dtype.setdefault(dtype, []).append(name)
            else:
                others.append(name)
                arrays[name] = np.empty((rows, *array.shape), dtype)
        vectors = []
        for dtype, together in by_dtype.items():
            memory = np.empty((rows, sum(row[name].size for name in together)), dtype)
            vectors.append((together, memory))
            start = 0
            for name in together:
                arrays[name] = memory[:, start : start + row[name].size]
                start += row[name].size
        return cls(rules.name, steps, arrays, names, vectors, others, nbytes)

    def takes(self, row: Mapping[str, Array]) -> bool:
        """Return whether there is room for this row."""
        return self.count < self.steps.size and (
            self.names == tuple(row) or self.arrays.keys() == row.keys()
        )

    def add(self, step: int, row: Mapping[str, Array]) -> None:
        """Add a row."""
        self.steps[self.count] = step
        for names, memory in self.vectors:
            parts = [row[name] for name in names]
            np.concatenate(parts, out=memory[self.count], casting="unsafe")
        for name in self.others:
            self.arrays[name][self.count] = row[name]
        self.count += 1

    def add_rows(self, steps: IntArray, rows: Mapping[str, Array], first: int, count: int) -> int:
        """Add rows from `first` on, `count` of them or as many as there is room for; how many."""
        taken = min(count, self.steps.size - self.count)
        there = slice(self.count, self.count + taken)
        self.steps[there] = steps[first : first + taken]
        for name, array in rows.items():
            self.arrays[name][there] = array[first : first + taken]
        self.count += taken
        return taken


def owned(rules: GroupRules, row: Mapping[str, Array], nbytes: int) -> Mapping[str, Array]:
    """Return a row that its caller can no longer change, if it will not be gathered.

    A read-only array is a promise and taken as it is.
    """
    if capacity(nbytes) > 1:
        return row
    found = {}
    for name, array in row.items():
        taken = taken_dtype(rules.variables[name].dtype)
        if array.dtype != taken:
            found[name] = array.astype(taken)
        else:
            found[name] = array.copy() if array.flags.writeable else array
    return found
