"""Finds what a trace holds, so that recording can go on after it."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracelab.contracts import Variable
from tracelab.errors import TraceError, UsageError
from tracelab.trace.places.locations import Location, PathLike, resolve
from tracelab.trace.ranks import place
from tracelab.trace.reading.shardform import form
from tracelab.trace.reading.snapshot import Group, Snapshot, is_trace, take
from tracelab.trace.schema import (
    BFLOAT16,
    COORDINATE_TABLES,
    KINDS,
    LAYER,
    LAYER_TABLE,
    STEP,
    Kind,
)
from tracelab.trace.writing import documents, readback
from tracelab.trace.writing.agreement import agree
from tracelab.trace.writing.restored import Restored, RestoredGroup
from tracelab.trace.writing.rows import GroupRules, declare, with_dtype
from tracelab.typing import Array

__all__ = ["Found", "find", "first_step", "look"]

BLOCK_ROWS = 65_536
_TABLES = frozenset(variable.name for variable in (LAYER, *COORDINATE_TABLES))


@dataclass(frozen=True, slots=True)
class Found:
    """A trace that recording may go on after.

    Parameters
    ----------
    location : Location
        Where it is.
    snapshot : Snapshot
        Its last commit.
    layers : mapping of str to tuple of int
        Shapes of its layers.
    kinds : mapping of str to str
        Classes of their owners.
    rows : mapping of str to int
        How many rows of each group stay: those before the step at which training goes on.
    """

    location: Location
    snapshot: Snapshot
    layers: Mapping[str, tuple[int, ...]]
    kinds: Mapping[str, str]
    rows: Mapping[str, int]

    @property
    def set_aside(self) -> dict[str, int]:
        """How many rows of each group do not stay; without groups that keep all."""
        counts = {name: self.snapshot.groups[name].rows - kept for name, kept in self.rows.items()}
        return {name: count for name, count in counts.items() if count}

    def steps(self, group: str, start: int, stop: int) -> Array:
        """Return the steps of some rows of a group."""
        return self.read(group, STEP.name, start, stop)

    def last_step(self, group: str) -> int:
        """Return the step of the last row of a group that stays, or -1 if there is none."""
        kept = self.rows.get(group, 0)
        return int(self.steps(group, kept - 1, kept)[0]) if kept else -1

    def read(self, group: str, array: str, start: int, stop: int) -> Array:
        """Return some rows of an array, as they are stored.

        Raises
        ------
        DamagedError
            If they cannot be read.
        """
        document = self.snapshot.groups[group].arrays[array]
        return readback.rows(self.location, f"{group}/{array}", document, start, stop)

    def arrays(self, group: str) -> list[str]:
        """Return the names of the arrays of rows of a group, without ``step``."""
        held = self.snapshot.groups[group].arrays
        return [name for name in held if name != STEP.name and name not in _TABLES]

    def check_layers(self, layers: Mapping[str, tuple[int, ...]], kinds: Mapping[str, str]) -> None:
        """Compare the layers that are recorded with those that shall be.

        Raises
        ------
        UsageError
            At the first difference.
        """
        where = self.location.name
        if list(layers) != list(self.layers):
            recorded, given = list(self.layers), list(layers)
            place = _unlike(recorded, given)
            raise UsageError(
                f"{where} records {len(recorded)} layers, the one at {place} being "
                f"{_at(recorded, place)}, and now there are {len(given)}, with "
                f"{_at(given, place)} there; go on with the same layers, or record into another "
                "trace"
            )
        for name, shape in layers.items():
            kind = kinds.get(name, "parameter")
            if (shape, kind) != (self.layers[name], self.kinds[name]):
                raise UsageError(
                    f"{where} records layer {name!r} with shape {self.layers[name]} and kind "
                    f"{self.kinds[name]!r}, and now it has {shape} and {kind!r}; go on with the "
                    "same model, or record into another trace"
                )

    def check_group(
        self,
        group: str,
        *,
        kind: str | None = None,
        layers: Sequence[str] | None = None,
        sketches: Sequence[Any] = (),
        attrs: Mapping[str, Any] | None = None,
        coordinates: tuple[Any, Any] | None = None,
        variables: Sequence[Variable] | None = None,
        dtype: str | None = None,
    ) -> None:
        """Compare a group, if it is recorded, with what `Writer.define` shall be given.

        Raises
        ------
        UsageError
            At the first difference.
        """
        if group in self.rows:
            declared = declare(
                group,
                self.layers,
                kind=kind,
                subset=layers,
                sketches=sketches,
                attrs=attrs,
                coordinates=coordinates,
                variables=variables,
                dtype=dtype,
            )
            agree(self.location.name, self.rules(group), declared)

    def rules(self, name: str) -> GroupRules:
        """Return what the rows of a group that stay have settled.

        Raises
        ------
        UsageError
            If tracelab did not write it.
        DamagedError
            If its tables or its last step cannot be read.
        """
        group = self.snapshot.groups[name]
        chosen = list(self.layers)
        if LAYER.name in group.arrays:
            chosen = [str(each) for each in self._table(group, LAYER.name)]
        variables = {each: _variable(each, group.arrays[each]) for each in self.arrays(name)}
        kind = str(group.attrs["kind"])
        if not set(chosen) <= set(self.layers) or any(
            variable.dims[:1] != (STEP.name,) for variable in variables.values()
        ):
            raise self._foreign(name)
        attrs = {key: item for key, item in group.attrs.items() if key != "coordinates"}
        numel = {layer: math.prod(self.layers[layer]) for layer in chosen}
        rules = GroupRules(
            name,
            _kind(kind, variables),
            numel,
            {"sketches": [], **attrs, "complete": False},
        )
        rules.sizes["layer"] = (len(numel), LAYER.name)
        if COORDINATE_TABLES[0].name in group.arrays:
            layer, index = (self._table(group, table.name) for table in COORDINATE_TABLES)
            rules.coordinates = (layer, index)
            rules.sizes["coordinate"] = (layer.size, COORDINATE_TABLES[0].name)
        shapes = {each: tuple(group.arrays[each]["shape"][1:]) for each in variables}
        rules.restore(variables, shapes, self.last_step(name))
        return rules

    def restore(self) -> Restored:
        """Return what the next writer takes over.

        Raises
        ------
        UsageError
            If tracelab did not write it.
        DamagedError
            If the rows of a shard that is not full cannot be read.
        """
        table = self.snapshot.groups["layers"]
        layers = {f"layers/{name}": dict(document) for name, document in table.arrays.items()}
        return Restored(
            {"layers": documents.group(table.attrs), **layers},
            tuple(self._restore_group(name) for name in self.rows),
        )

    def _restore_group(self, name: str) -> RestoredGroup:
        group, kept = self.snapshot.groups[name], self.rows[name]
        found: dict[str, dict[str, Any]] = {"": documents.group(group.attrs)}
        begun = {}
        for array, document in group.arrays.items():
            found[array] = dict(document)
            if array in _TABLES:
                continue
            stored = form(document)
            if stored is None or not stored.indexed or stored.separator != ".":
                raise self._foreign(name)
            found[array]["shape"] = [kept, *document["shape"][1:]]
            begun[array] = readback.begun(self.location, f"{name}/{array}", found[array])
        return RestoredGroup(self.rules(name), kept, found, begun)

    def _table(self, group: Group, name: str) -> Array:
        path = f"{group.name}/{name}"
        return readback.table(self.location, path, group.arrays[name])

    def _foreign(self, group: str) -> UsageError:
        return UsageError(
            f"group {group!r} of {self.location.name} is not stored as tracelab stores groups, so "
            "that recording cannot go on after it; record into another trace"
        )


def first_step(resume: bool | int) -> int | None:
    """Return the step at which training goes on, or None if that is after the last row.

    Raises
    ------
    UsageError
        If `resume` is neither a truth value nor a step.
    """
    if isinstance(resume, bool | np.bool_):
        return None
    try:
        step = operator.index(resume)
    except TypeError:
        step = -1
    if step < 0:
        raise UsageError(
            "resume must be True, to go on after the last row, or the step at which training goes "
            f"on, got {resume!r}"
        )
    return step


def look(path: PathLike, resume: bool | int, rank: int | None = None) -> Found | None:
    """Return the trace at a path that recording shall go on after, or None if there is none.

    Parameters
    ----------
    path : str, path or zarr Store
        As for `create`.
    resume : bool or int
        As for `create`.
    rank : int, optional
        As for `create`.
    """
    step = first_step(resume)
    location = resolve(path)
    if rank is not None:
        location = place(location, rank)
    return find(location, step) if resume is not False and is_trace(location) else None


def find(location: Location, step: int | None) -> Found:
    """Return what is recorded at a location.

    Parameters
    ----------
    location : Location
        Of a trace.
    step : int or None
        Step at which training goes on; None keeps every row.

    Raises
    ------
    TraceError
        If it cannot be read.
    """
    snapshot = take(location)
    table = snapshot.groups.get("layers")
    if table is None or any(variable.name not in table.arrays for variable in LAYER_TABLE):
        raise TraceError(f"{location.name} is damaged: it has no layer table")
    names, kinds, shapes = (
        [str(each) for each in readback.table(location, f"layers/{name}", table.arrays[name])]
        for name in ("layer", "kind", "shape")
    )
    try:
        layers = {
            name: tuple(operator.index(size) for size in json.loads(shape))
            for name, shape in zip(names, shapes, strict=True)
        }
    except (ValueError, TypeError, RecursionError):
        raise TraceError(f"{location.name} is damaged: its layers have no shapes") from None
    rows = {
        name: _kept(location, group, step)
        for name, group in snapshot.groups.items()
        if name != "layers"
    }
    return Found(location, snapshot, layers, dict(zip(names, kinds, strict=True)), rows)


def _kept(location: Location, group: Group, step: int | None) -> int:
    """Return how many rows of a group come before a step."""
    stop = group.rows
    while step is not None and stop:
        # Training goes on near the end: what comes before is not read.
        start = max(0, stop - BLOCK_ROWS)
        path = f"{group.name}/{STEP.name}"
        steps = readback.rows(location, path, group.arrays[STEP.name], start, stop)
        before = int(np.searchsorted(steps, step))
        if before:
            return start + before
        stop = start
    return stop


def _kind(name: str, variables: Mapping[str, Variable]) -> Kind:
    """Return the kind of a group, as its arrays are stored."""
    if name not in KINDS:
        return Kind(name, tuple(variables.values()))
    halved = any(each.dtype == BFLOAT16 for each in variables.values())
    return with_dtype(name, KINDS[name], BFLOAT16 if halved else None)


def _variable(name: str, document: Mapping[str, Any]) -> Variable:
    attributes = document["attributes"]
    return Variable(
        name,
        tuple(document["dimension_names"]),
        str(attributes.get("units", "1")),
        str(attributes.get("stored_dtype", document["data_type"])),
        str(attributes.get("long_name", "")),
    )


def _unlike(recorded: Sequence[str], given: Sequence[str]) -> int:
    return next(
        (
            place
            for place, pair in enumerate(zip(recorded, given, strict=False))
            if len({*pair}) > 1
        ),
        min(len(recorded), len(given)),
    )


def _at(names: Sequence[str], place: int) -> str:
    return repr(names[place]) if place < len(names) else "none"
