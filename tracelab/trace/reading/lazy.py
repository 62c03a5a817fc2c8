"""Arrays of a trace for Dask, and for whoever only wants the values of a part of one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import dask
import dask.array
import numpy as np
from dask.array.core import Array as DaskArray
from dask.callbacks import Callback

from tracelab.trace.reading.arrays import Readable
from tracelab.typing import Array

__all__ = ["TASK_BYTES", "lazy", "tasks"]

TASK_BYTES = 16 * 2**20


def lazy(stored: Readable, document: Mapping[str, Any], name: str) -> Any:
    """Return an array as a Dask array; nothing is read.

    Parameters
    ----------
    stored : Readable
        What reads it.
    document : Mapping
        Its document: says how it is chunked.
    name : str
        Different for different content: Dask takes arrays of the same name for the same.
    """
    made = tasks(stored, chunks(document), name)
    if type(made) is not DaskArray:
        # Dask's newer arrays, on request: they have another constructor.
        return made
    return _part(made, stored, tuple(map(range, stored.shape)))


def tasks(stored: Any, sizes: tuple[int, ...], name: str, *, fancy: bool = True) -> Any:
    """Return a Dask array whose tasks read parts of so many elements.

    Parameters
    ----------
    stored : object
        Has a shape and a dtype; what its index gives is read.
    sizes : tuple of int
        Elements of a part, by dimension.
    name : str
        Different for different content.
    fancy : bool
        Whether it takes lists of positions as an index.
    """
    return dask.array.from_array(  # type: ignore[no-untyped-call]
        stored,
        chunks=sizes,
        name=name,
        fancy=fancy,
        lock=False,
        meta=np.empty((0,) * len(stored.shape), dtype=stored.dtype),
    )


def chunks(document: Mapping[str, Any]) -> tuple[int, ...]:
    """Return what a task reads: whole chunks, side by side along steps first, up to 16 MiB.

    Within a shard as long as there is something to add, so that its index is read once; of small
    shards, several.
    """
    shape, codec = document["shape"], document["codecs"][0]
    shard = document["chunk_grid"]["configuration"]["chunk_shape"]
    inner = codec["name"] == "sharding_indexed"
    sizes = list(codec["configuration"]["chunk_shape"] if inner else shard)
    dtype = document["data_type"]
    nbytes = (16 if dtype == "string" else np.dtype(dtype).itemsize) * math.prod(sizes)
    for limits in (shard, shape):
        for axis, limit in enumerate(limits):
            count = -(-limit // sizes[axis])
            factor = max(1, min(TASK_BYTES // max(1, nbytes), count))
            # Tasks that straddle shards would read the indexes of both.
            while limits is shard and count % factor:
                factor -= 1
            sizes[axis] *= factor
            nbytes *= factor
    return tuple(sizes)


class _Stored(DaskArray):
    """A Dask array that knows which part of a stored array it is.

    Whoever asks for its values, and nothing else, gets them read straight into one array: a graph
    of tasks would read them into many, and copy those. Whatever is computed from it, or as part of
    something larger, is an ordinary Dask array's doing.
    """

    def __getitem__(self, index: Any) -> Any:
        found: Any = super().__getitem__(index)  # type: ignore[no-untyped-call]
        known = self.__dict__.get("_source")
        if known is None or known[0] != self.name or type(found) is not DaskArray:
            return found
        spans = _narrowed(known[2], index)
        # Dask takes x[-4:0:-1] of three elements for two of them, numpy for none.
        if spans is None or found.shape != tuple(len(s) for s in spans if isinstance(s, range)):
            return found
        return _part(found, known[1], spans)

    def __array__(self, dtype: Any = None, copy: bool | None = None, **kwargs: Any) -> Array:
        known = self.__dict__.get("_source")
        # A change in place gives an array another name.
        if known is None or known[0] != self.name or kwargs or copy is False or _told_how():
            found: Array = super().__array__(dtype, copy, **kwargs)  # type: ignore[no-untyped-call]
            return found
        values = np.asarray(known[1][tuple(map(_slice, known[2]))])
        return values if dtype is None else values.astype(dtype, copy=False)


def _part(array: Any, stored: Readable, spans: tuple[range | int, ...]) -> Any:
    made: Any = _Stored
    found = made(array.dask, array.name, array.chunks, meta=array._meta)
    # In the dictionary, which Dask clears when an array changes.
    found.__dict__["_source"] = (found.name, stored, spans)
    return found


def _narrowed(spans: tuple[range | int, ...], index: Any) -> tuple[range | int, ...] | None:
    """Return a part of a part, or None if it is not made by integers and slices alone."""
    given = list(index) if isinstance(index, tuple) else [index]
    free = sum(isinstance(span, range) for span in spans)
    if any(item is Ellipsis for item in given):
        place = next(place for place, item in enumerate(given) if item is Ellipsis)
        given[place : place + 1] = [slice(None)] * (free - len(given) + 1)
    if len(given) > free:
        return None
    items = iter([*given, *[slice(None)] * (free - len(given))])
    found: list[range | int] = []
    for span in spans:
        if not isinstance(span, range):
            found.append(span)
            continue
        item = next(items)
        if isinstance(item, bool) or not isinstance(item, int | np.integer | slice):
            return None
        found.append(span[item] if isinstance(item, slice) else span[int(item)])
    return tuple(found)


def _slice(span: range | int) -> slice | int:
    if not isinstance(span, range):
        return span
    if not span:
        return slice(0, 0)
    # A range down to the first element ends at -1, which means another thing in a slice.
    stop = None if span.stop < 0 else span.stop
    return slice(span.start, stop, span.step)


def _told_how() -> bool:
    """Return whether somebody said how to compute, or wants to watch."""
    said = dask.config.get("scheduler", None) is not None or dask.config.get("get", None)
    return bool(said or Callback.active or dask.config.get("pool", None))
