"""What lies in a trace beside its groups, by name: results, the traces of ranks."""

from __future__ import annotations

import re

from zarr.core.sync import sync

from tracelab.trace.places.locations import Location
from tracelab.trace.reading.snapshot import ROOT

__all__ = ["RESULTS", "WORKERS", "entries", "ranks"]

RESULTS, WORKERS = "results", "workers"
_RANK = re.compile(r"rank-([0-9]{3,9})")


def entries(location: Location, prefix: str = "") -> list[str]:
    """Return the names directly below a group, sorted; links are left out."""
    if location.folder is None:
        return sorted(name.rstrip("/") for name in sync(_names(location, prefix)))
    try:
        inside = (location.folder / prefix).iterdir()
        return sorted(entry.name for entry in inside if not entry.is_symlink())
    except OSError:
        return []


async def _names(location: Location, prefix: str) -> list[str]:
    return [name async for name in location.store.list_dir(prefix)]


def ranks(location: Location) -> dict[int, str]:
    """Return the path of the trace of each rank."""
    found = {}
    for name in entries(location, WORKERS):
        match = _RANK.fullmatch(name)
        path = f"{WORKERS}/{name}"
        # A rank that has written nothing yet has no trace.
        if match is not None and any(
            location.has(f"{path}/{key}") for key in (ROOT, f"layers/{ROOT}")
        ):
            found[int(match[1])] = path
    return dict(sorted(found.items()))
