"""Rows on their way from the training thread to the background thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tracelab.trace.rows import GroupRules
from tracelab.typing import Array, IntArray

__all__ = ["Block", "owned"]

BLOCK_BYTES = 2**20
BLOCK_ROWS = 256


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
    row_bytes : int
        Bytes of a row.
    count : int
        Rows so far.
    """

    group: str
    steps: IntArray
    arrays: dict[str, Array]
    row_bytes: int
    count: int = 0

    @classmethod
    def begin(cls, rules: GroupRules, row: Mapping[str, Array], nbytes: int) -> Block:
        """Return an empty block for rows like this one."""
        capacity = min(BLOCK_ROWS, max(1, BLOCK_BYTES // nbytes))
        arrays = {
            name: array[None]
            if capacity == 1
            else np.empty((capacity, *array.shape), rules.variables[name].dtype)
            for name, array in row.items()
        }
        return cls(rules.name, np.empty(capacity, dtype=np.int64), arrays, nbytes)

    def takes(self, row: Mapping[str, Array]) -> bool:
        """Return whether there is room for this row."""
        return self.count < self.steps.size and self.arrays.keys() == row.keys()

    def add(self, step: int, row: Mapping[str, Array]) -> None:
        """Add a row."""
        self.steps[self.count] = step
        if self.steps.size > 1:
            for name, array in row.items():
                self.arrays[name][self.count] = array
        self.count += 1


def owned(rules: GroupRules, row: Mapping[str, Array], nbytes: int) -> dict[str, Array]:
    """Return a row that its caller can no longer change, if it will not be gathered.

    A read-only array is a promise and taken as it is.
    """
    if nbytes <= BLOCK_BYTES // 2:
        return dict(row)
    found = {}
    for name, array in row.items():
        stored = np.dtype(rules.variables[name].dtype)
        if array.dtype != stored:
            found[name] = array.astype(stored)
        else:
            found[name] = array.copy() if array.flags.writeable else array
    return found
