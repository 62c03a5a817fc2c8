"""Damaged columns of the layer table, made anew from the others and from the groups."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from tracelab.errors import DamagedError
from tracelab.trace.health.drafts import Draft
from tracelab.trace.health.tables import Column, layer_names, put_table
from tracelab.trace.places.locations import Location
from tracelab.trace.reading.labels import labels_of, stored_values
from tracelab.trace.reading.snapshot import Snapshot

__all__ = ["mend_layer_table"]


def mend_layer_table(
    location: Location, draft: Draft, snapshot: Snapshot, damaged: set[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Put columns in place of those that cannot be read.

    Parameters
    ----------
    location : Location
        The damaged trace.
    draft : Draft
        The repaired one.
    snapshot : Snapshot
        What the trace declares.
    damaged : set of str
        Columns that cannot be read.

    Returns
    -------
    restored, lost : dict of str to str
        What was done, by column; `lost` where something else stands in its place now.
    """
    table = snapshot.groups["layers"]
    count = table.sizes["layer"]
    restored: dict[str, str] = {}
    lost: dict[str, str] = {}
    found: dict[str, Column] = {}
    for name in table.arrays:
        if name not in damaged:
            try:
                found[name] = stored_values(location, f"layers/{name}", table.arrays[name])
            except DamagedError:
                damaged = damaged | {name}

    if "layer" in damaged:
        others = (
            labels_of(location, group).layers
            for name, group in snapshot.groups.items()
            if name != "layers" and "layer" in group.arrays
        )
        names = layer_names(location, table, (each for each in others if each is not None))
        if names is not None and names[1]:
            found["layer"] = names[0]
            restored["layer"] = "the names of layers, as its checksum shows"
        elif names is not None:
            found["layer"] = names[0]
            lost["layer"] = (
                "the names of layers are lost, and taken to be those of a group that has as many"
            )
        else:
            found["layer"] = [f"unknown-{number}" for number in range(count)]
            lost["layer"] = "no group has the names of all layers: they are unknown-0 and so on now"
    if "numel" in damaged:
        if "shape" in found:
            found["numel"] = np.array([_product(text) for text in found["shape"]], dtype=np.int64)
            restored["numel"] = "computed from the shapes"
        else:
            found["numel"] = np.zeros(count, dtype=np.int64)
            lost["numel"] = "the sizes of layers are lost with their shapes: they are 0 now"
    if "offset" in damaged:
        ends = np.cumsum(np.asarray(found["numel"], dtype=np.int64))
        found["offset"] = ends - np.asarray(found["numel"], dtype=np.int64)
        restored["offset"] = "computed from the sizes of the layers"
    if "shape" in damaged:
        found["shape"] = [json.dumps([int(size)]) for size in found["numel"]]
        lost["shape"] = "the shapes of layers are lost: each is its number of weights now"
    if "kind" in damaged:
        found["kind"] = ["unknown"] * count
        lost["kind"] = "the kinds of layers are lost: they are 'unknown' now"
    for name in damaged:
        put_table(draft, f"layers/{name}", table.arrays[name], found[name])
    return restored, lost


def _product(text: Any) -> int:
    try:
        return math.prod(int(size) for size in json.loads(str(text)))
    except (ValueError, TypeError):
        return 0
