"""Damaged tables made anew from what else a trace says, if there is evidence that it is the same.

Evidence is in the damaged files: a chunk that can still be read, or a checksum that is that of the
table made anew. Without any, only the order of the model's layers is taken for granted, and said.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tracelab.errors import UsageError
from tracelab.sketch import Sample
from tracelab.trace.health.drafts import Draft
from tracelab.trace.health.recovery import recovered_names
from tracelab.trace.places.locations import Location
from tracelab.trace.places.sources import UnreadableError, opened
from tracelab.trace.reading.shardform import form
from tracelab.trace.reading.snapshot import Group
from tracelab.trace.writing.shards import encode_strings, encode_table
from tracelab.typing import Array

__all__ = ["Column", "coordinates", "evident", "layer_names", "put_table"]

Column = Sequence[str] | Array
_LARGEST = 2**28


def put_table(draft: Draft, path: str, document: Mapping[str, Any], values: Column) -> None:
    """Store a table's chunks in a draft."""
    for key, content in _encoded(document, values):
        draft.put(f"{path}/{key}", [content])


def _encoded(document: Mapping[str, Any], values: Column) -> Iterator[tuple[str, bytes]]:
    chunk = document["chunk_grid"]["configuration"]["chunk_shape"][0]
    for number, start in enumerate(range(0, len(values), chunk)):
        part = values[start : start + chunk]
        if isinstance(part, np.ndarray):
            whole = np.zeros(chunk, dtype=np.dtype(document["data_type"]))
            whole[: len(part)] = part
            yield f"c.{number}", encode_table(whole)
        else:
            yield f"c.{number}", encode_strings([*part, *[""] * (chunk - len(part))])


def evident(location: Location, path: str, document: Mapping[str, Any], values: Column) -> bool:
    """Return whether what is left of a table's files shows that these were its values."""
    if len(values) != document["shape"][0] or form(document) is None:
        return False
    return any(
        _same(_content(location, f"{path}/{key}"), content)
        for key, content in _encoded(document, values)
    )


def _same(stored: bytes, content: bytes) -> bool:
    """Return whether two chunks have the same bytes, or the same checksum."""
    return len(stored) > 4 and (stored[-4:] == content[-4:] or stored[:-4] == content[:-4])


def _content(location: Location, key: str) -> bytes:
    try:
        with opened(location, key, follow=True) as source:
            if source is None or source.size > _LARGEST:
                return b""
            content = np.empty(source.size, dtype=np.uint8)
            source.read(0, content)
            return content.tobytes()
    except UnreadableError:
        return b""


def layer_names(
    location: Location, group: Group, candidates: Iterable[tuple[str, ...]]
) -> tuple[tuple[str, ...], bool] | None:
    """Return the names along ``layer`` of a group whose own cannot be read.

    Parameters
    ----------
    location : Location
        The damaged trace.
    group : Group
        The group.
    candidates : iterable of tuple of str
        What they may be; one of their number is taken if no file says anything else.

    Returns
    -------
    names : tuple of str
    proved : bool
        Whether there is evidence.
    """
    document, path = group.arrays["layer"], f"{group.name}/layer"
    fitting = [each for each in dict.fromkeys(candidates) if len(each) == document["shape"][0]]
    for names in fitting:
        if evident(location, path, document, names):
            return names, True
    stored = _content(location, f"{path}/c.0")
    again = recovered_names(stored) if form(document) is not None else None
    if again is not None and len(again) == document["shape"][0]:
        return again, True
    # Bytes of the right number with another checksum are evidence against it.
    for names in fitting:
        if all(
            len(_content(location, f"{path}/{key}")) != len(content)
            for key, content in _encoded(document, names)
        ):
            return names, False
    return None


def coordinates(
    location: Location, group: Group, numel: Mapping[str, int]
) -> dict[str, Array] | None:
    """Return the coordinate tables of a group of which one or both cannot be read.

    Parameters
    ----------
    location : Location
        The damaged trace.
    group : Group
        The group.
    numel : mapping of str to int
        Number of weights of each of its layers, in order.

    Returns
    -------
    dict of str to ndarray, or None
        None without evidence.
    """
    for layer, index in _coordinate_candidates(group, numel):
        tables = {"coordinate_layer": layer, "coordinate_index": index}
        documents = {name: group.arrays[name] for name in tables if name in group.arrays}
        if len(documents) == len(tables) and all(
            evident(location, f"{group.name}/{name}", documents[name], tables[name])
            for name in tables
        ):
            return tables
    return None


def _coordinate_candidates(group: Group, numel: Mapping[str, int]) -> Iterator[tuple[Array, Array]]:
    size = group.sizes.get("coordinate", 0)
    if sum(numel.values()) == size:
        counts = list(numel.values())
        yield (
            np.repeat(np.arange(len(counts), dtype=np.int32), counts),
            np.concatenate([np.arange(count, dtype=np.int64) for count in counts]),
        )
    sketches = group.attrs.get("sketches")
    for sketch in sketches if isinstance(sketches, list) else []:
        if isinstance(sketch, dict) and sketch.get("kind") == "sample":
            try:
                sample = Sample(sketch.get("k", 0), sketch.get("seed", 0))
            except UsageError:
                continue
            if sum(min(sample.k, count) for count in numel.values()) == size:
                yield sample.tables(numel)
