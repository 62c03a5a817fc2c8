"""Stores what an HDF5 file holds as a trace: shards as the writer makes them, the root last."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from zarr.storage import MemoryStore

from tracelab.contracts import Variable
from tracelab.errors import TraceError
from tracelab.trace.hdf5.reading import FoundArray, FoundGroup, FoundTrace
from tracelab.trace.hdf5.values import checked, whole
from tracelab.trace.hdf5.writing import BLOCK_BYTES
from tracelab.trace.places.locations import Location, Sink, resolve
from tracelab.trace.ranks import begin_workers
from tracelab.trace.reading.snapshot import ROOT, take
from tracelab.trace.resultstore import resultform
from tracelab.trace.schema import BFLOAT16
from tracelab.trace.writing import documents
from tracelab.trace.writing.commit import TABLE_CHUNK, store_table
from tracelab.trace.writing.layout import COMPRESSIONS, SHARD_BYTES, Layout, cut
from tracelab.trace.writing.shards import ShardBuilder

__all__ = ["Planned", "nbytes", "plan", "store"]

Advance = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class Planned:
    """A trace to store: its documents, agreed with each other, and where its values are.

    Parameters
    ----------
    attributes : mapping
        Of the root.
    members : mapping of str to dict
        Documents by path.
    arrays : mapping of str to (FoundArray, Layout or None)
        Where values are, by path, and how they are cut; None for a table.
    results : mapping of str to FoundGroup
        Results by path.
    ranks : mapping of str to Planned
        Traces of workers by path.
    """

    attributes: Mapping[str, Any]
    members: Mapping[str, dict[str, Any]]
    arrays: Mapping[str, tuple[FoundArray, Layout | None]]
    results: Mapping[str, FoundGroup]
    ranks: Mapping[str, Planned]


def plan(found: FoundTrace) -> Planned:
    """Return how a trace is stored.

    Parameters
    ----------
    found : FoundTrace
        A complete one.

    Raises
    ------
    TraceError
        If what it declares could not be opened again.
    """
    attributes = dict(found.attributes)
    if attributes["compression"] not in COMPRESSIONS:
        attributes["compression"] = "none"
    members: dict[str, dict[str, Any]] = {}
    arrays: dict[str, tuple[FoundArray, Layout | None]] = {}
    try:
        for name, group in found.groups.items():
            members[name] = documents.group(group.attributes)
            for array, values in group.arrays.items():
                path = f"{name}/{array}"
                document, layout = _document(path, values, attributes["compression"])
                members[path] = document
                arrays[path] = values, layout
        root = documents.dump(documents.root(attributes, members))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise TraceError(f"it holds what no trace does: {error}") from error
    _check(root)
    ranks = {path: plan(rank) for path, rank in found.ranks.items()}
    return Planned(attributes, members, arrays, found.results, ranks)


def _check(root: bytes) -> None:
    """Open the trace as it will be, before any of its values is there."""
    location = replace(resolve(MemoryStore()), name="the trace in it")
    location.sink().put(ROOT, [root])
    take(location)


def _document(
    path: str, array: FoundArray, compression: str
) -> tuple[dict[str, Any], Layout | None]:
    dims, shape = array.dims or (), array.shape
    if not shape or 0 in shape[1:]:
        raise ValueError(f"{path} has the shape {shape}; give every dimension but the first a size")
    bits = array.dtype == "uint16" and array.attributes.get("stored_dtype") == BFLOAT16
    variable = Variable(path.split("/")[-1], dims, "", BFLOAT16 if bits else array.dtype)
    layout = None
    if len(dims) == 1 and (dims[0] != "step" or array.dtype == "string"):
        document = documents.table(variable, shape[0], max(1, min(shape[0], TABLE_CHUNK)))
    elif array.dtype == "string":
        raise ValueError(f"{path} holds texts in {len(shape)} dimensions")
    else:
        layout = cut(dims, shape[1:], array.dtype, share=SHARD_BYTES, compression=compression)
        document = documents.array(variable, shape[1:], layout) | {"shape": list(shape)}
    return document | {"attributes": dict(array.attributes)}, layout


def nbytes(planned: Planned) -> int:
    """Return the bytes of the values of a trace and of its workers' traces."""
    own = sum(_size(array, array.shape) for array, _ in planned.arrays.values())
    return own + sum(map(nbytes, planned.ranks.values()))


def _size(array: FoundArray, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * (16 if array.dtype == "string" else np.dtype(array.dtype).itemsize)


def store(planned: Planned, location: Location, advance: Advance) -> None:
    """Store a trace where nothing is; it is there once its root document is.

    Parameters
    ----------
    planned : Planned
        The trace.
    location : Location
        Where.
    advance : callable
        Called with the path of an array and the bytes of it that were read.

    Raises
    ------
    DamagedError
        If values cannot be read from the file.
    OSError
        If something cannot be written.
    """
    sink = location.sink()
    for path, (array, layout) in planned.arrays.items():
        if layout is None:
            group, name = path.split("/")
            variable = Variable(name, array.dims or (), "", array.dtype)
            with checked(array.values) as values:
                store_table(sink, group, variable, _table(array, values))
            advance(path, _size(array, array.shape))
        else:
            _store_rows(sink, path, array, layout, advance)
    for path, document in planned.members.items():
        sink.put(f"{path}/zarr.json", [documents.dump(document)])
    _store_results(sink, planned)
    if planned.ranks:
        begin_workers(sink)
    for path, rank in planned.ranks.items():
        store(rank, location.at(path), advance)
    root = documents.root(planned.attributes, planned.members)
    sink.put(ROOT, [documents.dump(root)])


def _table(array: FoundArray, values: Any) -> Any:
    return [str(text) for text in values[:]] if array.dtype == "string" else values


def _store_rows(sink: Sink, path: str, array: FoundArray, layout: Layout, advance: Advance) -> None:
    count, row_shape = array.shape[0], array.shape[1:]
    builder = ShardBuilder(layout, row_shape, array.dtype, None)
    row_bytes = _size(array, row_shape)
    with checked(array.values) as values:
        for start, stop, rows in _bands(values, count, row_bytes, layout.chunk[0]):
            for key, parts in builder.extend(rows, stop - start):
                sink.put(f"{path}/{key}", parts)
            advance(path, (stop - start) * row_bytes)
    for key, parts in builder.partial():
        sink.put(f"{path}/{key}", parts)


def _bands(
    values: Any, count: int, row_bytes: int, chunk_rows: int
) -> Iterator[tuple[int, int, Any]]:
    """Yield ranges of rows with what gives them: read at once while they are small."""
    fitting = BLOCK_BYTES // (row_bytes * chunk_rows)
    band = chunk_rows * max(1, fitting)
    for start in range(0, count, band):
        stop = min(start + band, count)
        yield start, stop, values[start:stop] if fitting else _Window(values, start, stop)


class _Window:
    """Some rows of an array in a file, of which each chunk is read when it is asked for."""

    def __init__(self, values: Any, start: int, stop: int) -> None:
        self._values, self._start, self._stop = values, start, stop

    def __getitem__(self, selection: Any) -> Any:
        if isinstance(selection, slice):
            start, stop, _ = selection.indices(self._stop - self._start)
            return _Window(self._values, self._start + start, self._start + stop)
        return self._values[(slice(self._start, self._stop), *selection[1:])]


def _store_results(sink: Sink, planned: Planned) -> None:
    for path in dict.fromkeys(
        parent
        for result in planned.results
        for parent in itertools.accumulate(result.split("/")[:-1], lambda a, b: f"{a}/{b}")
    ):
        sink.put(f"{path}/zarr.json", [documents.dump(documents.group({}))])
    for path, group in planned.results.items():
        dataset = _result(group)
        described: dict[str, Any] = {}
        checksums: dict[str, list[int]] = {}
        for key, content, document, crc in resultform.encode(dataset):
            sink.put(f"{path}/{key}", content)
            name = key.split("/")[0]
            described[name] = document
            checksums.setdefault(name, [])
            if crc is not None:
                checksums[name].append(crc)
        sink.put(f"{path}/zarr.json", [resultform.document(dataset.attrs, described, checksums)])


def _result(group: FoundGroup) -> xr.Dataset:
    variables = {
        name: (array.dims, whole(array.values), dict(array.attributes))
        for name, array in group.arrays.items()
    }
    return xr.Dataset(variables, attrs=dict(group.attributes))
