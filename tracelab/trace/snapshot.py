"""What a trace's root document says at one moment, checked before anything else is read.

A store comes from anywhere. What it declares is held against the schema here: names that are one
plain path segment, dtypes that are bytes, codecs that only unpack, sizes that can be.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from zarr.errors import BaseZarrError

from tracelab.errors import TraceError
from tracelab.trace.locations import Location
from tracelab.trace.schema import DTYPES, FORMAT, FORMAT_VERSION, NAME

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
MAX_DOCUMENT_BYTES = 2**28
MAX_ROWS = 10**8
MAX_CHUNK_BYTES = 2**31
MAX_CHUNKS_PER_SHARD = 2**24
MAX_CHUNKS_ALONG_A_DIMENSION = 2**22

_CODECS = frozenset(
    {"blosc", "bytes", "crc32c", "gzip", "sharding_indexed", "transpose", "vlen-utf8", "zstd"}
)


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
    if found != FORMAT_VERSION:
        raise TraceError(
            f"{location.name} has format version {found!r}, this tracelab reads {FORMAT_VERSION}; "
            "install the version that wrote it, or a newer one"
        )
    try:
        members = document["consolidated_metadata"]["metadata"]
        if not isinstance(attributes["run"], str) or not isinstance(attributes["state"], str):
            raise TypeError("run and state must be texts")
        return Snapshot(attributes, groups_of(members))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        problem = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise TraceError(
            f"{location.name} is damaged: its {ROOT} cannot be used ({problem})"
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
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise TraceError(f"{location.name} is damaged: its {ROOT} is not a JSON object")
    return document


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
            if not isinstance(document["attributes"].get("kind"), str):
                raise ValueError(f"{path!r} has no kind")
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
    if sizes.get("step", 0) > MAX_ROWS:
        raise ValueError(f"{group} declares {sizes['step']} rows, at most {MAX_ROWS} can be read")
    for name in ("step", "layer"):
        if name in sizes and name not in arrays:
            raise ValueError(f"{group} has no array {name!r}")
    return sizes


def check_array(path: str, document: Mapping[str, Any]) -> None:
    """Check an array's document.

    Raises
    ------
    ValueError, KeyError, TypeError
        If it cannot be what a trace holds.
    """
    if document["data_type"] not in DTYPES:
        raise ValueError(f"{path} has the data type {document['data_type']!r}")
    shape, dims = document["shape"], document["dimension_names"]
    if not (_whole(shape, 0) and len(dims) == len(shape) and math.prod(shape) < 2**62):
        raise ValueError(f"{path} has the shape {shape!r} and the dimensions {dims!r}")
    if not all(isinstance(dim, str) and NAME.fullmatch(dim) for dim in dims):
        raise ValueError(f"{path} has the dimensions {dims!r}")
    name = path.split("/")[-1]
    if name in ("step", "layer") and (
        dims != [name] or document["data_type"] != ("int64" if name == "step" else "string")
    ):
        raise ValueError(f"{path} is not what labels the dimension {name!r}")
    grid = document["chunk_grid"]
    chunk = grid["configuration"]["chunk_shape"]
    if grid["name"] != "regular" or not _whole(chunk, 1) or len(chunk) != len(shape):
        raise ValueError(f"{path} has the chunk grid {grid!r}")
    for codec in document["codecs"]:
        if codec["name"] not in _CODECS:
            raise ValueError(f"{path} needs the codec {codec['name']!r}")
        if codec["name"] == "sharding_indexed":
            chunk = _check_sharding(path, codec["configuration"], chunk)
    if any(
        size // part > MAX_CHUNKS_ALONG_A_DIMENSION for size, part in zip(shape, chunk, strict=True)
    ):
        raise ValueError(f"{path} has the shape {shape}, too large for chunks of {chunk}")
    itemsize = 16 if document["data_type"] == "string" else np.dtype(document["data_type"]).itemsize
    if itemsize * math.prod(chunk) > MAX_CHUNK_BYTES:
        raise ValueError(f"{path} has chunks of shape {chunk}, too large to read")


def _check_sharding(path: str, sharding: Mapping[str, Any], shard: list[int]) -> list[int]:
    chunk: list[int] = sharding["chunk_shape"]
    fits = _whole(chunk, 1) and len(chunk) == len(shard)
    if not fits or any(whole % part for whole, part in zip(shard, chunk, strict=True)):
        raise ValueError(f"{path} has shards {shard!r} of chunks {chunk!r}")
    if math.prod(shard) // math.prod(chunk) > MAX_CHUNKS_PER_SHARD:
        raise ValueError(f"{path} has shards {shard!r} of too many chunks {chunk!r}")
    for codec in [*sharding["codecs"], *sharding["index_codecs"]]:
        if codec["name"] not in _CODECS - {"sharding_indexed"}:
            raise ValueError(f"{path} needs the codec {codec['name']!r}")
    return chunk


def _whole(numbers: Any, least: int) -> bool:
    return isinstance(numbers, list) and all(
        isinstance(number, int) and not isinstance(number, bool) and number >= least
        for number in numbers
    )
