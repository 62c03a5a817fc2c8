"""A group of a snapshot as a lazy xarray Dataset."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from dask.base import tokenize

from tracelab.errors import DamagedError
from tracelab.trace.places.locations import Location
from tracelab.trace.reading.arrays import Readable, open_array
from tracelab.trace.reading.lazy import lazy
from tracelab.trace.reading.snapshot import Group
from tracelab.typing import Array

__all__ = ["dataset"]

_INDEXES = ("step", "layer")
PIECE = 2**20


def dataset(location: Location, version: str, group: Group) -> xr.Dataset:
    """Return a group's committed rows: labels in memory, everything else as Dask arrays.

    Parameters
    ----------
    location : Location
        The trace.
    version : str
        Of the trace's content: another one for other values in rows that were there before.
    group : Group
        The group, as one commit left it.

    Raises
    ------
    DamagedError
        If its labels cannot be read.
    """
    # Copies of a trace say that they are the same run, and one of them may be damaged or repaired.
    token = tokenize(location.name, version, group.name, sorted(group.sizes.items()))
    coordinates = str(group.attrs.get("coordinates", "")).split()
    variables: dict[str, xr.Variable] = {}
    for name, document in group.arrays.items():
        stored = open_array(location, f"{group.name}/{name}", document)
        values: Any = (
            _labels(location, group, name, stored)
            if name in _INDEXES
            else lazy(stored, document, f"{name}-{token}")
        )
        variables[name] = xr.Variable(
            document["dimension_names"], values, dict(document["attributes"])
        )
    labels = {name: variables.pop(name) for name in (*_INDEXES, *coordinates) if name in variables}
    attrs = {key: value for key, value in group.attrs.items() if key != "coordinates"}
    return xr.Dataset(variables, labels, attrs)


def _labels(location: Location, group: Group, name: str, stored: Readable) -> Array:
    """Return the labels of a dimension."""
    if name != "step":
        return stored[...]
    # Checked piece by piece: what is declared and not there must not take memory.
    labels = np.empty(stored.shape, np.int64)
    last = -1
    for start in range(0, labels.size, PIECE):
        part = stored[start : start + PIECE]
        if not (part[0] > last and (np.diff(part) > 0).all()):
            raise DamagedError(
                f"group {group.name!r} of {location.name} is damaged: its steps do not increase; "
                f"all damage is listed by: tracelab verify {location.name}"
            )
        labels[start : start + PIECE] = part
        last = part[-1]
    return labels
