"""Where the cells of a plan lie in the arrays of a group: its rows, layers and coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tracelab.contracts import NETWORK
from tracelab.errors import NotRecordedError
from tracelab.trace import Trace
from tracelab.trace.reading.stored import Stored
from tracelab.typing import IntArray

__all__ = ["Address", "Spans", "address", "spans"]

_TABLE_PIECE = 2**22


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """Which coordinates belong to each layer of a group.

    Parameters
    ----------
    start, stop : ndarray of int64, shape (layer,)
        First coordinate of each layer, and one past its last.
    count : ndarray of int64, shape (layer,)
        How many it has.
    owners : ndarray of int32, shape (coordinate,), or None
        Position of each coordinate's layer, where the coordinates of layers are intermixed.
    """

    start: IntArray
    stop: IntArray
    count: IntArray
    owners: IntArray | None


@dataclass(frozen=True, slots=True, eq=False)
class Address:
    """Where a plan's cells are in one group.

    Parameters
    ----------
    rows : ndarray of int64, shape (step,)
        Rows of the plan's steps, increasing; -1 for steps that a group of optional inputs has not.
    layers : ndarray of int64, shape (label,)
        Positions of the plan's labels along ``layer``; -1 for the network.
    count : int
        Layers of the group.
    spans : Spans or None
        Its coordinates, where the plan needs to know.
    """

    rows: IntArray
    layers: IntArray
    count: int
    spans: Spans | None


def address(
    recorded: IntArray, names: Sequence[str], steps: IntArray, labels: Sequence[str]
) -> Address:
    """Return where steps and labels are in a group of these steps and layers.

    A group without layers has its one row for all of them.
    """
    positions = {name: position for position, name in enumerate(names)}
    layers = [positions[label] if names and label != NETWORK else -1 for label in labels]
    rows = np.searchsorted(recorded, steps)
    there = np.append(recorded, -1)[rows] == steps
    return Address(np.where(there, rows, -1), np.asarray(layers, dtype=np.int64), len(names), None)


def spans(trace: Trace, group: str, names: Sequence[str]) -> Spans:
    """Return which coordinates of a group belong to each of its layers.

    Reads the group's table of coordinates, if it has one, piece by piece: one 4-byte number a
    coordinate.

    Raises
    ------
    NotRecordedError
        If the group samples coordinates and has no table of which.
    """
    stored = trace.stored(group)
    if "coordinate_layer" in stored:
        return _from_table(stored["coordinate_layer"], len(names))
    numel = trace.layers["numel"].sel(layer=list(names)).values.astype(np.int64)
    edges = np.concatenate([[0], np.cumsum(numel)])
    size = next(
        array.shape[array.dims.index("coordinate")]
        for array in stored.values()
        if "coordinate" in array.dims
    )
    if edges[-1] != size:
        raise NotRecordedError(
            f"the group {group!r} holds {size} coordinates of layers with {edges[-1]} and no "
            "table of which they are; define it with coordinates="
        )
    return Spans(edges[:-1], edges[1:], numel, None)


def _from_table(table: Stored, count: int) -> Spans:
    size = table.shape[0]
    start, stop = np.full(count, size, dtype=np.int64), np.zeros(count, dtype=np.int64)
    of_layer = np.zeros(count, dtype=np.int64)
    for begin in range(0, size, _TABLE_PIECE):
        owners = table[slice(begin, min(begin + _TABLE_PIECE, size)),].astype(np.int64)
        if owners.size and not (owners.min() >= 0 and owners.max() < count):
            raise NotRecordedError(
                f"the table of coordinates names layers that the group's {count} are not"
            )
        where = np.arange(begin, begin + owners.size)
        np.minimum.at(start, owners, where)
        np.maximum.at(stop, owners, where + 1)
        of_layer += np.bincount(owners, minlength=count)
    start = np.minimum(start, stop)
    mixed = bool((stop - start != of_layer).any())
    return Spans(start, stop, of_layer, table[slice(0, size),] if mixed else None)
