"""Rows that are recorded again: copied into a trace of their own before they are taken away."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from tracelab.errors import TraceError
from tracelab.trace import bfloat16
from tracelab.trace.places.locations import Location, resolve
from tracelab.trace.reading.snapshot import is_trace, take
from tracelab.trace.schema import BFLOAT16, KINDS
from tracelab.trace.writing.continuation import GENERATION
from tracelab.trace.writing.resuming import Found
from tracelab.trace.writing.room import vacant
from tracelab.trace.writing.writer import Writer

__all__ = ["SUPERSEDED", "copy", "mark", "place"]

SUPERSEDED = "superseded"
"""Root attribute of a trace of rows that were recorded again: whose they were."""

BLOCK_BYTES = 16 * 2**20
_DECLARED = ("kind", "sketches", "complete")


def mark(found: Found) -> dict[str, Any]:
    """Return what says whose rows they were, and which of several times this is."""
    attrs = found.snapshot.attrs
    return {
        "run": attrs["run"],
        "location": found.location.name,
        "generation": int(attrs.get(GENERATION, 0)),
    }


def place(found: Found) -> Location:
    """Return where rows go: beside the trace, or inside it where there is no beside.

    What is there already is left alone, but for the copy of a resumption that was killed before
    it took the rows away: they are all in the trace still.
    """
    for number in itertools.count(1):
        there = _numbered(found.location, number)
        if vacant(there) or _unfinished(there, mark(found)):
            return there
    raise AssertionError("there is always another number")


def _unfinished(there: Location, ours: Mapping[str, Any]) -> bool:
    if not is_trace(there):
        return False
    try:
        theirs = take(there).attrs.get(SUPERSEDED)
    except TraceError:
        return False
    return isinstance(theirs, dict) and all(
        theirs.get(key) == ours[key] for key in ("run", "generation")
    )


def _numbered(location: Location, number: int) -> Location:
    ending = f".superseded-{number}.zarr"
    if location.folder is not None:
        folder = location.folder
        return resolve(folder.with_name(folder.name.removesuffix(".zarr") + ending))
    url = location.reopen
    if isinstance(url, str) and urlsplit(url).path.strip("/"):
        return resolve(url.rstrip("/").removesuffix(".zarr") + ending)
    return location.at(ending.lstrip("."))


def copy(found: Found, writer: Writer) -> None:
    """Append the rows that do not stay to another trace, a few MiB at a time.

    Raises
    ------
    DamagedError
        If one cannot be read.
    TraceError
        If they cannot be written.
    """
    for name in found.set_aside:
        rules = found.rules(name)
        writer.define(
            name,
            kind=rules.kind.name,
            layers=list(rules.layers),
            sketches=rules.attrs["sketches"],
            attrs={key: item for key, item in rules.attrs.items() if key not in _DECLARED},
            coordinates=rules.coordinates,
            variables=None if rules.kind.name in KINDS else rules.kind.variables,
            dtype=rules.sketched_dtype,
        )
        arrays = found.arrays(name)
        row_bytes = 8 + sum(
            np.dtype(rules.known[array][0]).itemsize * math.prod(rules.shapes[array])
            for array in arrays
        )
        block = max(1, BLOCK_BYTES // row_bytes)
        last = found.snapshot.groups[name].rows
        for start in range(found.rows[name], last, block):
            stop = min(start + block, last)
            values = {array: found.read(name, array, start, stop) for array in arrays}
            for array in arrays:
                if rules.variables[array].dtype == BFLOAT16:
                    values[array] = bfloat16.decode(values[array])
            writer.extend(name, steps=found.steps(name, start, stop), **values)
