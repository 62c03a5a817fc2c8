"""Whether a group that is recorded and what is declared now are the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tracelab.errors import UsageError
from tracelab.trace.writing.rows import GroupRules

__all__ = ["agree"]

_NOT_DECLARED = ("kind", "complete")


def agree(where: str, recorded: GroupRules, declared: GroupRules) -> None:
    """Compare a group's rows so far with a declaration.

    Parameters
    ----------
    where : str
        What the user calls the trace.
    recorded : GroupRules
        What the rows so far have settled.
    declared : GroupRules
        A declaration, without rows.

    Raises
    ------
    UsageError
        At the first difference; it names both sides.
    """
    for what, there, now in _differences(recorded, declared):
        raise UsageError(
            f"group {recorded.name!r} of {where} was recorded with {what} {there}, and now it is "
            f"declared with {now}; declare it as it is, or record into another trace"
        )


def _differences(recorded: GroupRules, declared: GroupRules) -> Iterator[tuple[str, Any, Any]]:
    if recorded.kind.name != declared.kind.name:
        yield "kind", repr(recorded.kind.name), repr(declared.kind.name)
    if list(recorded.layers) != list(declared.layers):
        yield "layers", list(recorded.layers), list(declared.layers)
    for name, variable in recorded.variables.items():
        known = name in declared.kind.names()
        now = declared.kind[name] if known else None
        if now is None and declared.kind.open_ended:
            continue
        if now is None or (now.dims, now.dtype, now.units) != (
            variable.dims,
            variable.dtype,
            variable.units,
        ):
            yield "the array", variable, now or f"none called {name!r}"
    for name in sorted({*recorded.attrs, *declared.attrs}.difference(_NOT_DECLARED)):
        there, now = recorded.attrs.get(name), declared.attrs.get(name)
        if there != now:
            what = "sketches" if name == "sketches" else f"the attribute {name!r}:"
            yield what, there, now
    yield from _coordinates(recorded, declared)


def _coordinates(recorded: GroupRules, declared: GroupRules) -> Iterator[tuple[str, Any, Any]]:
    there, now = recorded.coordinates, declared.coordinates
    if there is not None and now is None:
        now = declared.every_coordinate()
    if there is None or now is None:
        # Without rows of coordinates nothing about them is settled yet.
        if now is not None and "coordinate" in recorded.sizes:
            yield "coordinates", "all", f"{now[0].size} of them"
        return
    if there[0].size != now[0].size:
        yield "coordinates:", there[0].size, now[0].size
        return
    unlike = np.flatnonzero((there[0] != now[0]) | (there[1] != now[1]))
    if unlike.size:
        first = int(unlike[0])
        old, new = (
            f"layer {int(layer[first])}, weight {int(index[first])}"
            for layer, index in (there, now)
        )
        yield f"coordinate {first} at", old, new
