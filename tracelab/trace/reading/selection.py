"""Layers of a group by what users call them, with errors that say what there is."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from tracelab.errors import NotRecordedError, UsageError
from tracelab.noise import coordinate_layers

__all__ = ["close", "layers"]

_SHOWN = 20


def close(name: str, known: Iterable[str]) -> str:
    """Return a hint at what `name` may have meant, or at what there is."""
    names = list(known)
    similar = difflib.get_close_matches(name, names, n=3)
    if similar:
        return f"did you mean {' or '.join(map(repr, similar))}?"
    shown = ", ".join(names[:_SHOWN]) or "none yet"
    return f"there are: {shown}{', ...' if len(names) > _SHOWN else ''}"


def layers(group: xr.Dataset, table: xr.Dataset, name: str, layer: Any) -> xr.Dataset:
    """Return some layers of a group: a name, a regular expression or a sequence of names.

    Raises
    ------
    NotRecordedError
        If no layer, or not every one asked for, is there.
    UsageError
        If a text is neither a layer nor a regular expression.
    """
    if layer is None:
        return group
    if "layer" not in group.dims:
        raise NotRecordedError(f"group {name!r} has no layers")
    known = [str(label) for label in group["layer"].values]
    positions = _positions(known, name, layer)
    chosen = group
    if "coordinate" in group.dims:
        owners = coordinate_layers(group, table)
        kept = np.flatnonzero(np.isin(owners, positions))
        renumbered = np.full(len(known), -1)
        renumbered[positions] = np.arange(len(positions))
        # A range is read without what lies beside it.
        together = kept.size and kept[-1] - kept[0] + 1 == kept.size
        part = slice(int(kept[0]), int(kept[-1]) + 1) if together else kept
        chosen = group.isel(coordinate=part).assign_coords(
            coordinate_layer=("coordinate", renumbered[owners[kept]].astype(np.int32))
        )
    if "weight" in group.dims:
        ends = np.cumsum(table["numel"].sel(layer=known).values)
        ours = [
            np.arange(end - numel, end)
            for end, numel in zip(ends[positions], np.diff(ends, prepend=0)[positions], strict=True)
        ]
        # A range is read without what lies beside it.
        alone = slice(int(ours[0][0]), int(ours[0][-1]) + 1)
        chosen = chosen.isel(weight=alone if len(ours) == 1 else np.concatenate(ours))
    if isinstance(layer, str) and layer in known:
        return chosen.isel(layer=positions[0])
    return chosen.isel(layer=positions)


def _positions(known: Sequence[str], group: str, layer: Any) -> list[int]:
    if not isinstance(layer, str):
        return _named(known, group, layer)
    if layer in known:
        return [known.index(layer)]
    try:
        pattern = re.compile(layer)
    except re.error as error:
        raise UsageError(
            f"layer must be a name or a regular expression, got {layer!r} ({error}); "
            f"{close(layer, known)}"
        ) from None
    found = [index for index, name in enumerate(known) if pattern.fullmatch(name)]
    if not found:
        raise NotRecordedError(
            f"no layer of group {group!r} matches {layer!r}; {close(layer, known)}"
        )
    return found


def _named(known: Sequence[str], group: str, names: Any) -> list[int]:
    if not isinstance(names, Iterable) or isinstance(names, bytes | Mapping):
        raise UsageError(
            f"layer must be a name, a regular expression or a list of names, got {names!r}"
        )
    places = {name: place for place, name in enumerate(known)}
    found: dict[str, int] = {}
    for given in names:
        name = str(given)
        if name not in places:
            raise NotRecordedError(f"group {group!r} has no layer {name!r}; {close(name, known)}")
        if name in found:
            raise UsageError(f"layer names {name!r} twice; give each layer once")
        found[name] = places[name]
    if not found:
        raise UsageError("layer is an empty list, which selects nothing; leave it out for all")
    return list(found.values())
