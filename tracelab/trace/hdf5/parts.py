"""What of a trace goes into an HDF5 file: its groups, its results, the traces of its workers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from tracelab.errors import DamagedError, NotRecordedError, TraceError
from tracelab.trace.inside import ranks
from tracelab.trace.reading import selection
from tracelab.trace.reading.arrays import Readable, open_array
from tracelab.trace.reading.reader import Trace
from tracelab.trace.resultstore.resultform import Entry, load
from tracelab.trace.resultstore.results import RESULTS, Results
from tracelab.typing import Array

__all__ = ["Part", "parts"]


@dataclass(frozen=True, slots=True)
class Part:
    """A group to write.

    Parameters
    ----------
    path : str
        Its path in the file; empty for the root.
    attributes : mapping
        Its attributes.
    arrays : mapping of str to (mapping, array)
        Zarr document of each array, and what gives its values when indexed.
    """

    path: str
    attributes: Mapping[str, Any]
    arrays: Mapping[str, tuple[Mapping[str, Any], Any]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of its values; a text counts as 16."""
        return sum(
            math.prod(document["shape"]) * _itemsize(document["data_type"])
            for document, _ in self.arrays.values()
        )


def _itemsize(data_type: Any) -> int:
    texts = data_type == "string" or isinstance(data_type, Mapping)
    return 16 if texts else np.dtype(data_type).itemsize


def parts(trace: Trace, groups: Sequence[str] | None, prefix: str = "") -> Iterator[Part]:
    """Yield what to write of a trace, the root first.

    Parameters
    ----------
    trace : Trace
        What it shows is exported, not what was committed since.
    groups : sequence of str, optional
        Only these groups. Default: all, with results and workers.
    prefix : str
        Where in the file the trace goes, ending in ``/``.

    Raises
    ------
    NotRecordedError
        If there is no such group.
    """
    known = trace._snapshot.groups
    for name in groups or ():
        if name not in known:
            raise NotRecordedError(
                f"{trace.location} has no group {name!r}; {selection.close(name, known)}"
            )
    yield Part(prefix.rstrip("/"), trace.attrs)
    for name, group in known.items():
        if groups is None or name in groups or name == "layers":
            arrays = {
                array: (document, _as_stored(trace, f"{name}/{array}", document))
                for array, document in group.arrays.items()
            }
            yield Part(prefix + name, group.attrs, arrays)
    if groups is None:
        yield from _results(trace, prefix)
        for path in ranks(trace._location).values():
            yield from parts(Trace(trace._location.at(path)), None, f"{prefix}{path}/")


def _as_stored(trace: Trace, path: str, document: Mapping[str, Any]) -> Readable:
    # Without its attributes nobody takes the bits of bfloat16 for anything but integers.
    return open_array(trace._location, path, {**document, "attributes": {}})


def _results(trace: Trace, prefix: str) -> Iterator[Part]:
    shown = trace.results
    held = _Held()
    for name in shown:
        for entry in shown.entries(name):
            arrays = {
                array: (document, _OfResult(shown, entry, array, held))
                for array, document in entry.arrays.items()
            }
            yield Part(f"{prefix}{RESULTS}/{name}/{_key(entry)}", entry.attrs, arrays)


def _key(entry: Entry) -> str:
    return entry.path.rpartition("/")[2]


@dataclass(slots=True)
class _Held:
    """The result that is in memory: one, however many there are."""

    entry: Entry | None = None
    dataset: xr.Dataset | None = None


@dataclass(frozen=True, slots=True)
class _OfResult:
    """An array of a result, which is loaded when the first of its arrays is read."""

    shown: Results
    entry: Entry
    array: str
    held: _Held

    def __getitem__(self, selection: Any) -> Array:
        if self.held.entry is not self.entry or self.held.dataset is None:
            try:
                self.held.dataset = load(self.entry)
            except DamagedError:
                analysis = self.entry.attrs["analysis"]
                if _key(self.entry) in self.shown.keys_of(analysis):
                    raise
                raise TraceError(
                    f"a result of {analysis!r} was replaced while it was exported; export again"
                ) from None
            self.held.entry = self.entry
        found: Array = self.held.dataset[self.array].values[selection]
        return found
