"""A trace in words: for terminals, notebooks and ``tracelab info``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import numpy as np
import xarray as xr

from tracelab.errors import DamagedError
from tracelab.trace.places.locations import Location
from tracelab.trace.reading.snapshot import Group, Snapshot
from tracelab.typing import Array

__all__ = ["html", "summary", "text"]


def summary(
    location: Location,
    snapshot: Snapshot,
    groups: Mapping[str, xr.Dataset],
    layers: Callable[[], xr.Dataset],
) -> dict[str, Any]:
    """Return everything about a trace that JSON can hold; what cannot be read is in ``damage``."""
    attrs = snapshot.attrs
    damage: list[str] = []
    described: dict[str, Any] = {
        "location": location.name,
        "run": attrs["run"],
        "state": attrs["state"],
        "incomplete_reasons": attrs.get("incomplete_reasons", []),
        "created": attrs.get("created"),
        "format_version": attrs["format_version"],
        "metadata": attrs.get("metadata", {}),
        "model": attrs.get("model"),
        "optimizer": attrs.get("optimizer"),
        "seed": attrs.get("seed"),
        "software": attrs.get("software", {}),
        "layers": _layers(layers, damage),
        "steps": {},
        "groups": {},
        "damage": damage,
    }
    for name in groups:
        group = snapshot.groups[name]
        labels = _labels(groups, name, damage)
        described["steps"][name] = {
            "count": group.rows,
            "first": int(labels[0]) if labels.size else None,
            "last": int(labels[-1]) if labels.size else None,
        }
        described["groups"][name] = {
            "kind": group.attrs["kind"],
            "rows": group.rows,
            "attrs": {key: value for key, value in group.attrs.items() if key != "coordinates"},
            "arrays": {array: _array(document) for array, document in group.arrays.items()},
            "bytes": location.stored_bytes(name),
        }
    return described


def _layers(load: Callable[[], xr.Dataset], damage: list[str]) -> list[dict[str, Any]]:
    try:
        layers = load()
    except DamagedError as error:
        damage.append(str(error))
        return []
    columns = {name: layers[name].values for name in ("layer", "kind", "shape", "numel")}
    return [
        {"name": str(name), "kind": str(kind), "shape": str(shape), "numel": int(numel)}
        for name, kind, shape, numel in zip(*columns.values(), strict=True)
    ]


def _labels(groups: Mapping[str, xr.Dataset], name: str, damage: list[str]) -> Array:
    try:
        rows = groups[name]
    except DamagedError as error:
        damage.append(str(error))
        return np.empty(0, dtype=np.int64)
    return rows["step"].values if "step" in rows.coords else np.empty(0, dtype=np.int64)


def _array(document: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "dims": list(document["dimension_names"]),
        "shape": list(document["shape"]),
        "units": document["attributes"].get("units"),
        "dtype": document["data_type"],
    }


def _lines(name: str, snapshot: Snapshot) -> tuple[list[tuple[str, str]], list[tuple[str, ...]]]:
    """Return facts (label, value) and a table of groups (name, kind, rows, bytes, arrays)."""
    attrs = snapshot.attrs
    layers = snapshot.groups.get("layers")
    facts = [
        ("location", name),
        ("run", str(attrs["run"])),
        ("state", _state(attrs)),
        ("created", str(attrs.get("created", "unknown"))),
        ("layers", str(layers.sizes.get("layer", 0) if layers else 0)),
    ]
    table: list[tuple[str, ...]] = [
        (
            group.name,
            str(group.attrs["kind"]),
            f"{group.rows:,}",
            _size(_nbytes(group)),
            ", ".join(array for array in group.arrays if array not in ("step", "layer")),
        )
        for group in snapshot.groups.values()
        if group.name != "layers"
    ]
    return facts, table


def _state(attrs: Mapping[str, Any]) -> str:
    reasons = list(attrs.get("incomplete_reasons") or [])
    if "world_size" in attrs and "rank" not in attrs:
        # They are not opened for a line of text.
        reasons.append(f"of its {attrs['world_size']} ranks: see trace.rank_states")
    return " · ".join([str(attrs["state"]), *map(str, reasons)])


def _nbytes(group: Group) -> int:
    return sum(
        np.dtype(document["data_type"]).itemsize * math.prod(document["shape"])
        for document in group.arrays.values()
        if document["data_type"] != "string"
    )


def _size(nbytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.4g} {unit}"
        nbytes /= 1024
    return f"{nbytes:,.1f} TiB"


def text(name: str, snapshot: Snapshot) -> str:
    """Return the trace as a few lines of plain text."""
    facts, table = _lines(name, snapshot)
    lines = ["<tracelab.Trace>", *(f"  {label + ':':<10}{value}" for label, value in facts)]
    lines.append("  groups:" if table else "  groups:   none yet")
    lines += [
        f"    {group} ({kind}): {rows} rows, {size}: {arrays}"
        for group, kind, rows, size, arrays in table
    ]
    return "\n".join(_shown(line) for line in lines)


def _shown(line: str) -> str:
    # A trace from anywhere must not move the cursor, nor fill the screen.
    safe = "".join(each if each.isprintable() else "?" for each in line[:121])
    return safe if len(safe) <= 120 else f"{safe[:117]}..."


def html(name: str, snapshot: Snapshot) -> str:
    """Return the trace as an HTML fragment; everything from the store is escaped."""
    facts, table = _lines(name, snapshot)
    head = "".join(f"<tr><th>{label}</th><td>{escape(value)}</td></tr>" for label, value in facts)
    titles = "".join(f"<th>{title}</th>" for title in ("group", "kind", "rows", "size", "arrays"))
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table
    )
    return (
        f"<div><b>tracelab.Trace</b><table>{head}</table>"
        f"<table><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
