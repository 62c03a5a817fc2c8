"""Steps and layers of a group by what users call them, with errors that say what there is."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from tracelab.errors import NotRecordedError, UsageError
from tracelab.noise import coordinate_layers

__all__ = ["close", "layers", "steps"]

_SHOWN = 20


def close(name: str, known: Iterable[str]) -> str:
    """Return a hint at what `name` may have meant, or at what there is."""
    names = list(known)
    similar = difflib.get_close_matches(name, names, n=3)
    if similar:
        return f"did you mean {' or '.join(map(repr, similar))}?"
    shown = ", ".join(names[:_SHOWN]) or "none yet"
    return f"there are: {shown}{', ...' if len(names) > _SHOWN else ''}"


def steps(group: xr.Dataset, name: str, step: Any, state: str) -> xr.Dataset:
    """Return the rows of a group at `step`: None, an integer, a sequence or a label slice.

    Raises
    ------
    NotRecordedError
        If a step has no row: not yet, or never.
    """
    if step is None:
        return group
    if isinstance(step, slice):
        return group.sel(step=step)
    recorded = group["step"].values
    for wanted in np.atleast_1d(np.asarray(step)):
        if wanted in recorded:
            continue
        if state == "recording" and (not recorded.size or wanted > recorded[-1]):
            last = f"the last is {recorded[-1]}" if recorded.size else "there is none so far"
            raise NotRecordedError(
                f"group {name!r} has no row at step {wanted} yet: {last}, and the run is still "
                "recording; call refresh() and try again"
            )
        if not recorded.size:
            raise NotRecordedError(f"group {name!r} has no rows")
        nearest = recorded[np.abs(recorded - wanted).argmin()]
        raise NotRecordedError(
            f"group {name!r} was not recorded at step {wanted}; the nearest is {nearest}"
        )
    return group.sel(step=step)


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
        chosen = group.isel(coordinate=kept).assign_coords(
            coordinate_layer=("coordinate", renumbered[owners[kept]].astype(np.int32))
        )
    if isinstance(layer, str) and layer in known:
        return chosen.isel(layer=positions[0])
    return chosen.isel(layer=positions)


def _positions(known: Sequence[str], group: str, layer: Any) -> list[int]:
    if not isinstance(layer, str):
        for name in layer:
            if name not in known:
                raise NotRecordedError(
                    f"group {group!r} has no layer {name!r}; {close(str(name), known)}"
                )
        return [known.index(name) for name in layer]
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
