"""Labels of a group, read as far as they can be, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import zarr
from zarr.storage import StorePath

from tracelab.errors import DamagedError
from tracelab.trace.health.damage import Damage, Labels, describe
from tracelab.trace.places.locations import Location
from tracelab.trace.reading import shardfile
from tracelab.trace.reading.snapshot import Group
from tracelab.typing import Array, IntArray

__all__ = ["check_labels", "labels_of", "stored_values"]

# Beyond that, damage is told by row: labels of so many steps are not held.
_MOST = 10**7
_ERRORS = (DamagedError, ValueError, TypeError, KeyError, OSError, ArithmeticError, RuntimeError)


def stored_values(
    location: Location, path: str, document: Mapping[str, Any], selection: Any = ...
) -> Array:
    """Return a part of an array.

    Raises
    ------
    DamagedError
        If it cannot be read.
    """
    if location.folder is not None and shardfile.readable(document):
        return shardfile.read(location.folder, path, document, selection)
    metadata: Any = dict(document)
    try:
        stored: Any = zarr.Array(zarr.AsyncArray(metadata, StorePath(location.store, path)))
        return np.asarray(stored[selection])
    except _ERRORS as error:
        raise DamagedError(
            f"{path} of {location.name} is damaged: {type(error).__name__}: {error}"
        ) from error


def labels_of(location: Location, group: Group) -> Labels:
    """Return what rows, layers and coordinates of a group are called, as far as can be read."""
    return Labels(_steps(location, group), _layers(location, group), _owners(location, group))


def _steps(location: Location, group: Group) -> IntArray | None:
    document = group.arrays.get("step")
    if document is None or group.rows > _MOST:
        return None
    path = f"{group.name}/step"
    try:
        return stored_values(location, path, document)
    except DamagedError:
        labels = np.full(group.rows, -1, dtype=np.int64)
    extent = _chunk_rows(document)
    for first in range(0, group.rows, extent):
        part = slice(first, min(first + extent, group.rows))
        try:
            labels[part] = stored_values(location, path, document, part)
        except DamagedError:
            continue
    return labels


def _chunk_rows(document: Mapping[str, Any]) -> int:
    codec = document["codecs"][0]
    inner = codec["name"] == "sharding_indexed"
    holder = codec["configuration"] if inner else document["chunk_grid"]["configuration"]
    return int(holder["chunk_shape"][0])


def _layers(location: Location, group: Group) -> tuple[str, ...] | None:
    document = group.arrays.get("layer")
    if document is None:
        return None
    try:
        return tuple(map(str, stored_values(location, f"{group.name}/layer", document)))
    except DamagedError:
        return None


def _owners(location: Location, group: Group) -> IntArray | None:
    document = group.arrays.get("coordinate_layer")
    if document is None or document["shape"][0] > _MOST:
        return None
    try:
        return stored_values(location, f"{group.name}/coordinate_layer", document)
    except DamagedError:
        return None


def check_labels(group: Group, labels: Labels, known: Iterable[Damage]) -> list[Damage]:
    """Return what is wrong with labels whose checksums are right.

    Parameters
    ----------
    group : Group
        The group.
    labels : Labels
        Its labels.
    known : iterable of Damage
        What was found before: an array among it is not named again.
    """
    named = {(damage.group, damage.array) for damage in known}
    found = []
    if labels.steps is not None and (group.name, "step") not in named:
        odd = _not_increasing(labels.steps)
        if odd is not None:
            reason = "its steps do not increase"
            found.append(describe(group, "step", labels, kind="labels", reason=reason, spans=[odd]))
    if "layer" in group.arrays and (group.name, "layer") not in named:
        names = labels.layers
        if names is None:
            reason = "its names cannot be decoded"
        elif len(set(names)) < len(names) or not all(names):
            reason = "its names are not different ones"
        else:
            return found
        found.append(describe(group, "layer", Labels(), kind="labels", reason=reason))
    return found


def _not_increasing(steps: IntArray) -> tuple[int, int] | None:
    """Return the first and the last row whose step does not come after the one before."""
    before = np.concatenate([[-1], steps[:-1]])
    odd = np.flatnonzero(steps <= before)
    return None if odd.size == 0 else (int(odd[0]), int(odd[-1]))
