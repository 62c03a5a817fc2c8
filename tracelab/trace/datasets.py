"""A group of a snapshot as a lazy xarray Dataset."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import dask.array
import numpy as np
import xarray as xr
import zarr
from zarr.storage import StorePath

from tracelab.errors import TraceError
from tracelab.trace.locations import Location
from tracelab.trace.snapshot import Group
from tracelab.typing import Array

__all__ = ["dataset"]

_INDEXES = ("step", "layer")
TASK_BYTES = 4 * 2**20


def dataset(location: Location, run: str, group: Group) -> xr.Dataset:
    """Return a group's committed rows: labels in memory, everything else as Dask arrays.

    Raises
    ------
    TraceError
        If its labels cannot be read.
    """
    coordinates = str(group.attrs.get("coordinates", "")).split()
    variables: dict[str, xr.Variable] = {}
    try:
        for name, document in group.arrays.items():
            stored = _array(location, group.name, name, document)
            values: Any = _lazy(stored, document, f"{run}-{group.name}-{name}")
            if name in _INDEXES:
                values = _labels(location, group, name, document, stored)
            variables[name] = xr.Variable(
                document["dimension_names"], values, dict(document["attributes"])
            )
    except (ValueError, TypeError, KeyError, OSError, ArithmeticError) as error:
        raise TraceError(
            f"group {group.name!r} of {location.name} is damaged: {type(error).__name__}: {error}"
        ) from error
    labels = {name: variables.pop(name) for name in (*_INDEXES, *coordinates) if name in variables}
    attrs = {key: value for key, value in group.attrs.items() if key != "coordinates"}
    return xr.Dataset(variables, labels, attrs)


def _array(location: Location, group: str, name: str, document: Mapping[str, Any]) -> Any:
    metadata: Any = dict(document)
    return zarr.Array(zarr.AsyncArray(metadata, StorePath(location.store, f"{group}/{name}")))


def _labels(
    location: Location, group: Group, name: str, document: Mapping[str, Any], stored: Any
) -> Array:
    """Return the labels of a dimension; their last chunk must be there before memory is taken."""
    length = document["shape"][0]
    shard = document["chunk_grid"]["configuration"]["chunk_shape"][0]
    if length:
        key = stored.metadata.encode_chunk_key(((length - 1) // shard,))
        if not location.has(f"{group.name}/{name}/{key}"):
            raise ValueError(f"{length} labels of {name!r} are declared and {key!r} is missing")
    labels: Array = np.asarray(stored[:])
    if name == "step" and length and not (labels[0] >= 0 and (np.diff(labels) > 0).all()):
        raise ValueError("its steps do not increase")
    return labels


def _lazy(stored: Any, document: Mapping[str, Any], name: str) -> Any:
    shape = document["shape"]
    return dask.array.from_array(  # type: ignore[no-untyped-call]
        stored,
        chunks=_tasks(document),
        name=f"{name}-{shape[0] if shape else 0}",
        lock=False,
        meta=np.empty((0,) * len(shape), dtype=stored.dtype),
    )


def _tasks(document: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the Dask chunks: chunks of the array, several of a shard's while they are small."""
    shard = document["chunk_grid"]["configuration"]["chunk_shape"]
    codec = document["codecs"][0]
    if codec["name"] != "sharding_indexed":
        return tuple(shard)
    sizes = list(codec["configuration"]["chunk_shape"])
    nbytes = np.dtype(document["data_type"]).itemsize * math.prod(sizes)
    for axis, whole in enumerate(shard):
        factor = max(1, min(TASK_BYTES // nbytes, whole // sizes[axis]))
        # Tasks that straddle shards would read chunks of both.
        while (whole // sizes[axis]) % factor:
            factor -= 1
        sizes[axis] *= factor
        nbytes *= factor
    return tuple(sizes)
