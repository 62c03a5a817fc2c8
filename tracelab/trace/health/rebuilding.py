"""A root document made anew from what groups and arrays say of themselves."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from tracelab.trace.health.members import document_at, result_paths
from tracelab.trace.inside import RESULTS, WORKERS, entries
from tracelab.trace.places.locations import Location
from tracelab.trace.places.sources import ForbiddenError, UnreadableError, opened
from tracelab.trace.reading.snapshot import (
    MAX_DOCUMENT_BYTES,
    ROOT,
    Snapshot,
    check_array,
    groups_of,
)
from tracelab.trace.schema import FORMAT, FORMAT_VERSION, KINDS, NAME
from tracelab.trace.writing import documents

__all__ = ["Rebuilt", "rebuild"]

_ATTRIBUTES = b'"attributes":'

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A root document in place of a damaged one.

    Parameters
    ----------
    snapshot : Snapshot
        What it says.
    members : dict
        Documents by path.
    lost : tuple of str
        What could not be found again, in sentences.
    """

    snapshot: Snapshot
    members: Mapping[str, Document]
    lost: tuple[str, ...]


def rebuild(location: Location) -> Rebuilt | None:
    """Return the root document that a trace should have, or None if this is no such trace.

    A group has as many rows as the shortest of its arrays: their documents are written after
    their shards, so that these rows are there, and before the root document, so that no committed
    row is left out.

    Parameters
    ----------
    location : Location
        A trace whose root document cannot be used.
    """
    content = _content(location)
    if content is None or not _ours(location, content):
        return None
    members: dict[str, Document] = {}
    lost: list[str] = []
    for group in entries(location):
        if NAME.fullmatch(group) and group not in (RESULTS, WORKERS, ROOT):
            found = _group(location, group, lost)
            try:
                groups_of(found)
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                lost.append(f"the group {group!r}: its documents cannot be used ({error})")
                continue
            members |= found
    attributes = _attributes(location, content, lost)
    return Rebuilt(Snapshot(attributes, groups_of(members)), members, tuple(lost))


def _content(location: Location) -> bytes | None:
    """Return what is left of the root document; None where only the user can help."""
    try:
        with opened(location, ROOT) as source:
            if source is None:
                return b""
            content = np.empty(min(source.size, MAX_DOCUMENT_BYTES), dtype=np.uint8)
            source.read(0, content)
            return content.tobytes()
    except ForbiddenError:
        return None
    except UnreadableError:
        return b""


def _ours(location: Location, content: bytes) -> bool:
    """Return whether this is a trace of the present format."""
    try:
        attributes = json.loads(content)["attributes"]
        version = attributes["format_version"]
        if attributes["format"] == FORMAT and version != FORMAT_VERSION:
            return not isinstance(version, int) or isinstance(version, bool)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    table = document_at(location, "layers")
    if isinstance(table, str):
        table = document_at(location, "layers/layer")
        return isinstance(table, dict) and table.get("dimension_names") == ["layer"]
    attributes = table.get("attributes")
    return isinstance(attributes, dict) and attributes.get("kind") == "layers"


def _group(location: Location, name: str, lost: list[str]) -> dict[str, Document]:
    found: dict[str, Document] = {}
    for array in entries(location, name):
        document = document_at(location, f"{name}/{array}") if NAME.fullmatch(array) else ""
        if isinstance(document, str) or document.get("node_type") != "array":
            if any(key.startswith("c") for key in entries(location, f"{name}/{array}")):
                lost.append(f"{name}/{array}: its document is lost")
            continue
        try:
            check_array(f"{name}/{array}", document)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            lost.append(f"{name}/{array}: its document cannot be used ({error})")
            continue
        found[f"{name}/{array}"] = document
    rows = [
        document["shape"][0]
        for document in found.values()
        if document["dimension_names"][:1] == ["step"]
    ]
    for path, document in found.items():
        if document["dimension_names"][:1] == ["step"]:
            found[path] = document | {"shape": [min(rows), *document["shape"][1:]]}
    own = document_at(location, name)
    if found and (isinstance(own, str) or not _usable(own)):
        kind = name if name in KINDS or name == "layers" else None
        lost.append(f"{name}: its attributes are lost")
        own = documents.group({"kind": kind or "unknown"})
    if isinstance(own, dict) and _usable(own):
        found[name] = own
    return found


def _usable(document: Mapping[str, Any]) -> bool:
    attributes = document.get("attributes")
    return (
        document.get("node_type") == "group"
        and document.get("zarr_format") == 3
        and isinstance(attributes, dict)
        and isinstance(attributes.get("kind"), str)
    )


def _attributes(location: Location, content: bytes, lost: list[str]) -> dict[str, Any]:
    """Return the trace's attributes: those of a document that is cut off behind them, or new."""
    start = content.find(_ATTRIBUTES)
    if start >= 0:
        try:
            text = content[start + len(_ATTRIBUTES) :].decode(errors="strict")
            attributes, _ = json.JSONDecoder().raw_decode(text)
            known = attributes["format"] == FORMAT
            known = known and attributes["format_version"] == FORMAT_VERSION
            if (
                known
                and isinstance(attributes["run"], str)
                and isinstance(attributes["state"], str)
            ):
                kept: dict[str, Any] = attributes
                return kept
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
    run = _run(location)
    if run is None:
        run = uuid.uuid4().hex
        lost.append("the run's identifier: it has a new one from now on")
    lost.append("the attributes of the trace: metadata, model, optimizer, seed, created")
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "run": run,
        "created": datetime.now(UTC).isoformat(),
        "state": "incomplete",
        "incomplete_reasons": [],
        "metadata": {},
        "software": {},
    }


def _run(location: Location) -> str | None:
    """Return the run that a result names."""
    for path, finished in result_paths(location):
        document = document_at(location, path)
        if finished and isinstance(document, dict):
            run = document.get("attributes", {}).get("run")
            if isinstance(run, str):
                return run
    return None
