"""What a trace's root document says at one moment, checked before anything else is read.

A store comes from anywhere. What it declares is held against the schema here: names that are one
plain path segment, dtypes that are bytes, codecs that only unpack, sizes that can be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zarr.errors import BaseZarrError

from tracelab.errors import TraceError
from tracelab.trace.places.locations import Location
from tracelab.trace.reading import strictjson
from tracelab.trace.reading.declarations import (
    LABELS,
    check_array,
    check_group,
    check_root,
    extents,
)
from tracelab.trace.schema import FORMAT, FORMAT_VERSION, LAYER_TABLE, NAME

__all__ = [
    "MAX_DOCUMENT_BYTES",
    "ROOT",
    "Group",
    "Snapshot",
    "check_array",
    "groups_of",
    "is_trace",
    "take",
]

ROOT = "zarr.json"
MAX_DOCUMENT_BYTES = strictjson.MAX_BYTES
MAX_ROWS = 10**8
MAX_LAYERS = 10**6
MAX_SAID = 300
MAX_CHUNKS_OF_A_GROUP = 2**22
"""Along the dimensions of its arrays, together: making datasets of them takes time and memory."""


@dataclass(frozen=True, slots=True)
class Group:
    """A group's attributes and its arrays' documents."""

    name: str
    attrs: Mapping[str, Any]
    arrays: Mapping[str, Mapping[str, Any]]
    sizes: Mapping[str, int]

    @property
    def rows(self) -> int:
        """Number of committed rows."""
        return self.sizes.get("step", 0)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A trace's attributes and groups, as one commit left them."""

    attrs: Mapping[str, Any]
    groups: Mapping[str, Group]


def is_trace(location: Location) -> bool:
    """Return whether a root document names our format, whatever else is wrong with it."""
    try:
        attributes = _root(location).get("attributes")
    except TraceError:
        return False
    return isinstance(attributes, dict) and attributes.get("format") == FORMAT


def take(location: Location) -> Snapshot:
    """Return what the root document says now.

    Raises
    ------
    TraceError
        If there is none, it is damaged, or it declares what no trace holds.
    """
    document = _root(location)
    attributes = document.get("attributes")
    if not isinstance(attributes, dict) or attributes.get("format") != FORMAT:
        raise TraceError(f"{location.name} is a Zarr store but not a tracelab trace")
    found = attributes.get("format_version")
    if not isinstance(found, int) or isinstance(found, bool) or found != FORMAT_VERSION:
        raise TraceError(
            f"{location.name} has format version {repr(found)[:20]}, this tracelab reads "
            f"{FORMAT_VERSION}; install the version that wrote it, or a newer one"
        )
    try:
        members = document["consolidated_metadata"]["metadata"]
        check_root(attributes)
        groups = groups_of(members)
        _check_layers(groups.get("layers"))
        return Snapshot(attributes, groups)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _unusable(
            location, f"no {error}" if isinstance(error, KeyError) else str(error)
        ) from None


def _root(location: Location) -> dict[str, Any]:
    try:
        content = location.read(ROOT, MAX_DOCUMENT_BYTES + 1)
    except (OSError, BaseZarrError) as error:
        raise TraceError(f"{location.name} cannot be read: {error}") from None
    if content is None:
        raise TraceError(
            f"{location.name} is not a tracelab trace: there is no {ROOT} at its top; "
            "give the folder that holds it, or zip that folder's contents"
        )
    if len(content) > MAX_DOCUMENT_BYTES:
        raise TraceError(f"{location.name} is damaged: its {ROOT} is larger than any trace's")
    try:
        document = strictjson.parse(content)
    except (json.JSONDecodeError, UnicodeDecodeError):
        document = None
    except ValueError as error:
        raise _unusable(location, str(error)) from None
    if not isinstance(document, dict):
        raise TraceError(f"{location.name} is damaged: its {ROOT} is not a JSON object")
    return document


def _unusable(location: Location, problem: str) -> TraceError:
    # A document may name a thing in a million characters.
    said = problem if len(problem) <= MAX_SAID else f"{problem[:MAX_SAID]}..."
    return TraceError(f"{location.name} is damaged: its {ROOT} cannot be used ({said})")


def groups_of(members: Mapping[str, Mapping[str, Any]]) -> dict[str, Group]:
    """Return the groups that documents declare, by path.

    Raises
    ------
    ValueError, KeyError, TypeError
        If they declare what no trace holds.
    """
    groups = {}
    arrays: dict[str, dict[str, Mapping[str, Any]]] = {}
    for path, document in sorted(members.items()):
        segments = path.split("/")
        if not all(NAME.fullmatch(segment) for segment in segments) or len(segments) > 2:
            raise ValueError(f"{path!r} cannot be the path of a group or an array")
        wanted = "group" if len(segments) == 1 else "array"
        if document["node_type"] != wanted or document["zarr_format"] != 3:
            raise ValueError(f"{path!r} is no {wanted} of Zarr format 3")
        if wanted == "group":
            check_group(path, document["attributes"])
            groups[path] = document["attributes"]
        else:
            check_array(path, document)
            arrays.setdefault(segments[0], {})[segments[1]] = document
    for name in arrays:
        if name not in groups:
            raise ValueError(f"{name!r} has arrays and is no group")
    return {
        name: Group(name, attrs, arrays.get(name, {}), _sizes(name, arrays.get(name, {})))
        for name, attrs in groups.items()
    }


def _sizes(group: str, arrays: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name, document in arrays.items():
        for dim, size in zip(document["dimension_names"], document["shape"], strict=True):
            if sizes.setdefault(dim, size) != size:
                raise ValueError(
                    f"{group}/{name} has {size} along {dim!r}, other arrays {sizes[dim]}"
                )
    for name, most, what in (("step", MAX_ROWS, "rows"), ("layer", MAX_LAYERS, "layers")):
        if sizes.get(name, 0) > most:
            raise ValueError(f"{group} declares {sizes[name]} {what}, at most {most} can be read")
    for name in LABELS:
        if name in sizes and name not in arrays:
            raise ValueError(f"{group} has no array {name!r}")
    count = sum(
        -(-size // part)
        for document in arrays.values()
        for size, part in zip(document["shape"], extents(document), strict=True)
    )
    if count > MAX_CHUNKS_OF_A_GROUP:
        raise ValueError(f"{group} declares {count} chunks side by side, too many to look at")
    return sizes


def _check_layers(table: Group | None) -> None:
    if table is None:
        raise ValueError("it has no table of layers")
    for variable in LAYER_TABLE:
        document = table.arrays.get(variable.name)
        if document is None:
            raise ValueError(f"its table of layers has no {variable.name!r}")
        if document["dimension_names"] != ["layer"] or document["data_type"] != variable.dtype:
            raise ValueError(f"layers/{variable.name} is not what a table of layers has")
