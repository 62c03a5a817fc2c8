"""What lies in a trace beside its rows: documents, results, the traces of ranks, leftovers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tracelab.errors import DamagedError
from tracelab.trace.health.damage import Damage, Labels, describe
from tracelab.trace.inside import RESULTS, WORKERS, entries
from tracelab.trace.places import objects
from tracelab.trace.places.locations import Location
from tracelab.trace.places.sources import UnreadableError, names, opened
from tracelab.trace.reading.shardform import form
from tracelab.trace.reading.snapshot import MAX_DOCUMENT_BYTES, ROOT, Group, Snapshot
from tracelab.trace.resultstore import resultform
from tracelab.trace.resultstore.shelves import JOBS
from tracelab.trace.writing.lock import LOCK_FILE

__all__ = [
    "check_documents",
    "check_results",
    "document_at",
    "leftovers",
    "of_group",
    "result_paths",
]

_LISTED = 1000


def document_at(location: Location, path: str) -> dict[str, Any] | str:
    """Return the document of a group or an array, or why it cannot be read."""
    key = f"{path}/{ROOT}".lstrip("/")
    try:
        with opened(location, key) as source:
            if source is None:
                return "it is missing"
            if source.size > MAX_DOCUMENT_BYTES:
                return f"it has {source.size} bytes"
            content = np.empty(source.size, dtype=np.uint8)
            source.read(0, content)
    except UnreadableError as error:
        return str(error)
    try:
        found = json.loads(content.tobytes())
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else "it is not a JSON object"


def of_group(group: Group, kind: str, reason: str) -> Damage:
    """Return a damage of a whole group."""
    return Damage(group.name, "", ROOT, None, kind, None, None, (), None, reason)


def check_documents(location: Location, group: Group, *, complete: bool) -> list[Damage]:
    """Return which documents of a group and its arrays do not agree with the root document.

    Parameters
    ----------
    location : Location
        The trace.
    group : Group
        What the root document says.
    complete : bool
        Whether the recording ended. Until then arrays may hold rows that are not committed yet.
    """
    found = []
    own = document_at(location, group.name)
    if isinstance(own, str):
        found.append(of_group(group, "document", own))
    elif own.get("node_type") != "group":
        found.append(of_group(group, "document", "it is no group's"))
    for name, declared in group.arrays.items():
        own = document_at(location, f"{group.name}/{name}")
        reason = own if isinstance(own, str) else _difference(declared, own, complete=complete)
        if reason is not None:
            found.append(
                describe(
                    group, name, Labels(), kind="document", reason=reason, shard=ROOT, spans=None
                )
            )
    return found


def _difference(
    declared: Mapping[str, Any], own: Mapping[str, Any], *, complete: bool
) -> str | None:
    for key, wanted in declared.items():
        if key == "shape":
            continue
        if own.get(key) != wanted:
            return f"its {key} is not that of the root document"
    shape = own.get("shape")
    wanted = declared["shape"]
    if not isinstance(shape, list) or len(shape) != len(wanted):
        return "its shape is not that of the root document"
    rows = declared["dimension_names"][:1] == ["step"]
    ahead = (
        rows
        and not complete
        and isinstance(shape[0], int)
        and shape[0] >= wanted[0]
        and shape[1:] == wanted[1:]
    )
    return None if shape == wanted or ahead else "its shape is not that of the root document"


def result_paths(location: Location) -> Iterator[tuple[str, bool]]:
    """Yield the path of every group that holds a result, and whether it is finished."""
    for analysis in entries(location, RESULTS):
        # What jobs that run or were interrupted have finished: the next job goes on with it.
        if analysis == JOBS:
            continue
        for key in entries(location, f"{RESULTS}/{analysis}"):
            if key == ROOT:
                continue
            path = f"{RESULTS}/{analysis}/{key}"
            document = document_at(location, path)
            finished = isinstance(document, dict) and "consolidated_metadata" in document
            yield path, finished and not key.startswith(".")


def check_results(location: Location) -> list[Damage]:
    """Return which finished results cannot be read."""
    found = []
    for path, finished in result_paths(location):
        if not finished:
            continue
        reason = _unreadable(location, path)
        # Looked at again: a job may have replaced it meanwhile.
        if reason is not None and (path, True) in set(result_paths(location)):
            reason = _unreadable(location, path)
            if reason is not None:
                found.append(Damage(path, "", "", None, "result", None, None, (), None, reason))
    return found


def _unreadable(location: Location, path: str) -> str | None:
    content = objects.read(location, f"{path}/{ROOT}", resultform.MAX_DOCUMENT_BYTES)
    try:
        resultform.load(resultform.parse(content or b"", location, path, None)).load()
    except (ValueError, DamagedError) as error:
        return f"it cannot be read: {error}"
    return None


def leftovers(location: Location, snapshot: Snapshot) -> tuple[str, ...]:
    """Return the objects that belong to no committed row and no finished result."""
    found = []
    for name in entries(location):
        if name in snapshot.groups:
            found += [f"{name}/{key}" for key in _uncommitted(location, snapshot.groups[name])]
        elif name not in (ROOT, RESULTS, WORKERS) and not name.startswith("."):
            found.append(name)
        if len(found) >= _LISTED:
            return tuple(found[:_LISTED])
    found += [path for path, finished in result_paths(location) if not finished]
    return tuple(found[:_LISTED])


def _uncommitted(location: Location, group: Group) -> Iterator[str]:
    forms = {name: form(document) for name, document in group.arrays.items()}
    for key in names(location, group.name):
        array, _, inside = key.partition("/")
        if key == ROOT or (inside == ROOT and array in forms) or f"{group.name}/{key}" == LOCK_FILE:
            continue
        stored = forms.get(array)
        if array in forms and (stored is None or _belongs(stored.key, inside, stored)):
            continue
        yield key


def _belongs(key: Any, inside: str, stored: Any) -> bool:
    numbers = inside.split(stored.separator)[1:]
    if len(numbers) != len(stored.shape) or not all(map(str.isdecimal, numbers)):
        return False
    place = tuple(map(int, numbers))
    counts = (-(-size // part) for size, part in zip(stored.shape, stored.shard, strict=True))
    return key(place) == inside and all(
        each < count for each, count in zip(place, counts, strict=True)
    )
