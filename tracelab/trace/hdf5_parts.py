"""What of a trace goes into an HDF5 file: its groups, its results, the traces of its workers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tracelab.errors import NotRecordedError
from tracelab.trace import selection
from tracelab.trace.members import ranks
from tracelab.trace.reader import Trace
from tracelab.trace.resultform import load
from tracelab.trace.shelves import analyses, beside, entries
from tracelab.trace.stored import stored

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
                array: (document, stored(trace._location, name, array, document))
                for array, document in group.arrays.items()
            }
            yield Part(prefix + name, group.attrs, arrays)
    if groups is None:
        yield from _results(trace, prefix)
        for path in ranks(trace._location).values():
            yield from parts(Trace(trace._location.at(path)), None, f"{prefix}{path}/")


def _results(trace: Trace, prefix: str) -> Iterator[Part]:
    shelf = beside(trace._location, trace.run)
    for name in analyses(shelf):
        for entry in entries(shelf, name):
            found = load(entry)
            arrays = {
                str(array): (document, found[array].variable)
                for array, document in entry.arrays.items()
            }
            yield Part(prefix + entry.path, entry.attrs, arrays)
