"""Takes rows out of a group: its arrays are cut anew from the first of them on.

In memory are one shard and a few rows of its chunks, whatever the size of a row.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tracelab.errors import DamagedError
from tracelab.trace.health.checking import tasks
from tracelab.trace.health.drafts import Draft
from tracelab.trace.health.integrity import MISSING, check
from tracelab.trace.places.files import Part
from tracelab.trace.places.locations import Location, resolve
from tracelab.trace.places.sources import opened
from tracelab.trace.reading.labels import stored_values
from tracelab.trace.reading.shardform import Form, form
from tracelab.trace.reading.snapshot import Group
from tracelab.trace.writing.layout import Layout
from tracelab.trace.writing.shards import ShardBuilder
from tracelab.typing import Array, BoolArray

__all__ = ["keep_rows"]

Document = dict[str, Any]


def keep_rows(draft: Draft, group: Group, keep: BoolArray) -> dict[str, Document]:
    """Take rows out of all arrays of a group.

    Parameters
    ----------
    draft : Draft
        A trace whose chunks can all be read, except those in which no row is kept.
    group : Group
        The group.
    keep : ndarray of bool, shape (row,)
        The rows that stay.

    Returns
    -------
    dict of str to dict
        The documents of its arrays of rows, by name.
    """
    found = {}
    location = None if draft.folder is None else resolve(draft.folder)
    for name, document in group.arrays.items():
        if document["dimension_names"][:1] != ["step"]:
            continue
        stored = form(document)
        assert stored is not None
        if location is not None:
            first = _first_shard(stored, keep)
            old = {task.path for task in tasks(group, name) if task.shard[0] >= first}
            for key, parts in _recut(location, f"{group.name}/{name}", document, stored, keep):
                draft.put(key, parts)
                old.discard(key)
            for key in old:
                draft.remove(key)
        found[name] = {**document, "shape": [int(keep.sum()), *document["shape"][1:]]}
    return found


def _first_shard(stored: Form, keep: BoolArray) -> int:
    """Return the first shard that a row is taken out of; those before stay as they are."""
    return int(np.argmin(keep)) // stored.shard[0]


def _recut(
    location: Location, path: str, document: Mapping[str, Any], stored: Form, keep: BoolArray
) -> Iterator[tuple[str, list[Part]]]:
    """Yield the shards of an array from the first that changes, as (key, content).

    Rows only move towards the start: a shard is complete once everything up to its own last row
    has been read, so that it may take the place of the one it is made from.
    """
    first = _first_shard(stored, keep)
    counts = [-(-size // part) for size, part in zip(stored.shape, stored.shard, strict=True)]
    compression = "lz4" if stored.compressed else "none"
    layout = Layout(stored.chunk, stored.shard, compression)
    for place in itertools.product(*map(range, counts[1:])):
        spans = [
            slice(each * part, min((each + 1) * part, size))
            for each, part, size in zip(place, stored.shard[1:], stored.shape[1:], strict=True)
        ]
        extents = tuple(span.stop - span.start for span in spans)
        builder = ShardBuilder(layout, extents, stored.dtype.name, stored.fill)

        def named(key: str, place: tuple[int, ...] = place) -> str:
            number = first + int(key.split(".")[1])
            return f"{path}/{stored.key((number, *place))}"

        for number in range(first, counts[0]):
            for rows, values in _bands(
                location, path, document, stored, (number, *place), spans, keep
            ):
                for key, parts in builder.extend(values, rows):
                    yield named(key), parts
        for key, parts in builder.partial():
            yield named(key), parts


def _bands(
    location: Location,
    path: str,
    document: Mapping[str, Any],
    stored: Form,
    shard: tuple[int, ...],
    spans: list[slice],
    keep: BoolArray,
) -> Iterator[tuple[int, Array | None]]:
    """Yield the kept rows of a shard by rows of chunks: their number, and None if all missing."""
    with opened(location, f"{path}/{stored.key(shard)}") as source:
        entries = check(source, stored, shard).index
    if entries is None:
        raise DamagedError(f"{path} of {location.name} is damaged: shard {stored.key(shard)}")
    present = ~(entries == np.uint64(MISSING)).all(axis=1).reshape(stored.cells[0], -1).all(axis=1)
    start = shard[0] * stored.shard[0]
    for cell in range(stored.cells[0]):
        begin = start + cell * stored.chunk[0]
        chosen = keep[begin : begin + stored.chunk[0]]
        count = int(chosen.sum())
        if count == 0:
            continue
        if not present[cell]:
            yield count, None
            continue
        rows = slice(begin, begin + chosen.size)
        values = stored_values(location, path, document, (rows, *spans))
        yield count, values[chosen]
