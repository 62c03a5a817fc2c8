"""Reads back what a trace holds, for its writer: on any location, every checksum checked.

Through zarr-python, which takes a chunk that is not there for missing values; so whether its
object is there is asked first. Neither xarray nor Dask are loaded into the process that trains.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import google_crc32c
import numpy as np
import zarr
from zarr.abc.store import SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.errors import BaseZarrError
from zarr.storage import StorePath

from tracelab.errors import DamagedError
from tracelab.trace.places.locations import Location
from tracelab.trace.reading.shardform import Form, form
from tracelab.typing import Array, IntArray

__all__ = ["Piece", "begun", "rows", "table"]

Document: TypeAlias = Mapping[str, Any]
Piece: TypeAlias = tuple[Array | None, int, bool]
"""Rows of one row of chunks, None where these are not stored, how many they are, and whether their
chunks have the length of uncompressed ones."""

_MISSING = np.iinfo(np.uint64).max


def table(location: Location, path: str, document: Document) -> Array:
    """Return a table, such as ``layers/numel``.

    Raises
    ------
    DamagedError
        If a part of it is missing or its checksum differs.
    """
    return rows(location, path, document, 0, document["shape"][0])


def rows(location: Location, path: str, document: Document, start: int, stop: int) -> Array:
    """Return rows `start` to ``stop - 1`` of an array.

    Raises
    ------
    DamagedError
        If a part of them is missing or its checksum differs.
    """
    with _reading(location, path):
        metadata: Any = dict(document)
        stored = zarr.Array(zarr.AsyncArray(metadata, StorePath(location.store, path)))
        for position in _shards(document, start, stop):
            key = stored.metadata.encode_chunk_key(position)
            if not location.has(f"{path}/{key}"):
                raise ValueError(f"{key} is missing")
        found: Array = np.asarray(stored[start:stop])
        return found


def begun(location: Location, path: str, document: Document) -> list[Piece]:
    """Return the rows of the last shard along ``step``, unless it is full.

    Chunks that are not stored or not compressed stay so: the shard can be written again with every
    chunk at its place.

    Raises
    ------
    DamagedError
        If a part of them is missing or its checksum differs.
    """
    stored = _form(document)
    size, begun = stored.shape[0], stored.shape[0] % stored.shard[0]
    if not begun:
        return []
    values = rows(location, path, document, size - begun, size)
    with _reading(location, path):
        present = np.zeros(stored.cells[0], dtype=np.bool_)
        plain = np.ones(stored.cells[0], dtype=np.bool_)
        for position in _shards(document, size - begun, size):
            lengths = _lengths(location, f"{path}/{stored.key(position)}", stored)
            present |= (lengths > 0).any(axis=1)
            plain &= ((lengths == 0) | (lengths >= stored.chunk_bytes)).all(axis=1)
    step = stored.chunk[0]
    return [
        (
            values[first : first + step] if present[first // step] else None,
            min(step, begun - first),
            bool(plain[first // step]),
        )
        for first in range(0, begun, step)
    ]


def _form(document: Document) -> Form:
    stored = form(document)
    if stored is None or not stored.indexed:
        raise ValueError("it is not stored as tracelab stores rows")
    return stored


def _shards(document: Document, start: int, stop: int) -> Iterator[tuple[int, ...]]:
    """Yield the positions of the objects that hold these rows."""
    extents = document["chunk_grid"]["configuration"]["chunk_shape"]
    if start >= stop or 0 in document["shape"]:
        return iter(())
    along = range(start // extents[0], (stop - 1) // extents[0] + 1)
    across = [
        range(-(-size // extent))
        for size, extent in zip(document["shape"][1:], extents[1:], strict=True)
    ]
    return itertools.product(along, *across)


def _lengths(location: Location, key: str, stored: Form) -> IntArray:
    """Return the lengths of a shard's chunks by rows of chunks, 0 where its index names none."""
    count = int(np.prod(stored.cells))
    request = SuffixByteRequest(16 * count + 4)
    found = sync(location.store.get(key, default_buffer_prototype(), request))
    content = b"" if found is None else found.to_bytes()
    if len(content) != 16 * count + 4 or google_crc32c.value(content[:-4]) != int.from_bytes(
        content[-4:], "little"
    ):
        raise ValueError(f"the index of {key} is damaged")
    index = np.frombuffer(content[:-4], "<u8").reshape(stored.cells[0], -1, 2)
    return np.where(index[..., 0] == _MISSING, 0, index[..., 1])


@contextmanager
def _reading(location: Location, path: str) -> Iterator[None]:
    try:
        yield
    except (
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        OSError,
        RuntimeError,
        BaseZarrError,
    ) as error:
        raise DamagedError(
            f"{path} of {location.name} is damaged ({error}), so that recording cannot go on "
            f"after it; `tracelab repair {location.name}` drops what cannot be read and keeps a "
            "copy"
        ) from error
