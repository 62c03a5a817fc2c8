"""Clears up after a writer that died: documents ahead of the commit, files of no committed row."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tracelab.trace.places.files import PARTIAL
from tracelab.trace.places.locations import Sink
from tracelab.trace.reading.shardform import form
from tracelab.trace.writing import documents
from tracelab.trace.writing.restored import Restored, RestoredGroup
from tracelab.trace.writing.resuming import Found

__all__ = ["tidy"]


def tidy(found: Found, restored: Restored, sink: Sink) -> None:
    """Make a trace, that a writer has taken over, what its root document says.

    Parameters
    ----------
    found : Found
        The trace as it was.
    restored : Restored
        As it goes on; its root document is stored already.
    sink : Sink
        Where documents go.
    """
    if found.snapshot.attrs["state"] != "complete" or found.set_aside:
        for group in restored.groups:
            for path, document in group.members().items():
                sink.put(f"{path}/zarr.json", [documents.dump(document)])
    if found.location.folder is not None:
        for useless in _useless(found.location.folder, restored):
            # What another program holds open is hidden all the same.
            with contextlib.suppress(OSError):
                useless.unlink()


def _useless(folder: Path, restored: Restored) -> Iterator[Path]:
    yield from folder.glob(f"*{PARTIAL}")
    for path in restored.layers:
        yield from (folder / path).glob(f"*{PARTIAL}")
    for group in restored.groups:
        for path in group.members():
            yield from (folder / path).glob(f"*{PARTIAL}")
        for array in group.begun:
            yield from _beyond(folder, group, array)


def _beyond(folder: Path, group: RestoredGroup, array: str) -> Iterator[Path]:
    """Yield the shards of an array that hold no committed row."""
    stored = form(group.documents[array])
    assert stored is not None
    shards = -(-group.rows // stored.shard[0])
    with os.scandir(folder / group.rules.name / array) as entries:
        for entry in entries:
            number = entry.name.split(".")[1:2]
            if entry.name.startswith("c.") and number[0].isdecimal() and int(number[0]) >= shards:
                yield Path(entry.path)
