"""One stored array of a trace, read now and in part, without Dask or xarray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracelab.trace.places.locations import Location
from tracelab.trace.reading.arrays import open_array
from tracelab.typing import Array

__all__ = ["Stored", "chunk_of", "stored"]


@dataclass(frozen=True, slots=True)
class Stored:
    """An array of a trace; indexing it reads.

    Parameters
    ----------
    dims : tuple of str
        Names of its dimensions.
    shape : tuple of int
        What is committed.
    chunk : tuple of int
        What is read at once, however little of it is wanted.
    dtype : numpy.dtype
        Of its elements.
    units : str or None
        As recorded.
    source : object
        What reads it: indexed by slices, it returns an ndarray.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: np.dtype[Any]
    units: str | None
    source: Any

    def __getitem__(self, selection: tuple[slice, ...]) -> Array:
        """Read a part.

        Raises
        ------
        DamagedError
            If it cannot be read, or its checksum differs.
        """
        return np.asarray(self.source[selection])


def chunk_of(document: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape of what a checksum covers: a chunk of a shard, or the whole of a file."""
    codec = document["codecs"][0]
    if codec["name"] == "sharding_indexed":
        return tuple(codec["configuration"]["chunk_shape"])
    return tuple(document["chunk_grid"]["configuration"]["chunk_shape"])


def stored(location: Location, group: str, name: str, document: Mapping[str, Any]) -> Stored:
    """Return an array of a trace; nothing is read."""
    source = open_array(location, f"{group}/{name}", document)
    return Stored(
        dims=tuple(document["dimension_names"]),
        shape=tuple(document["shape"]),
        chunk=chunk_of(document),
        dtype=source.dtype,
        units=document["attributes"].get("units"),
        source=source,
    )
