"""Notices that another writer has taken a trace over, where no lock could keep it away."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence

from tracelab.errors import TraceError
from tracelab.trace.locations import Location, Sink
from tracelab.trace.shards import Part

__all__ = ["Guarded"]

ROOT = "zarr.json"
LIMIT = 2**28


class Guarded:
    """A sink that replaces a trace's root document only while it is this writer's own.

    Between the look and the replacement another can still come; object stores have nothing
    better that all of them understand.

    Parameters
    ----------
    location : Location
        Of the trace.
    sink : Sink
        What stores.

    Attributes
    ----------
    writer : str
        What the root document must hold; the first one stored is taken for this writer's.
    """

    def __init__(self, location: Location, sink: Sink) -> None:
        self.writer = uuid.uuid4().hex
        self._location = location
        self._sink = sink
        self._begun = False

    @property
    def width(self) -> int:
        """How many objects to put at a time."""
        return self._sink.width

    def put(self, key: str, parts: Sequence[Part]) -> None:
        """Store an object.

        Raises
        ------
        TraceError
            If it is the root document, and another writer has replaced or removed this writer's.
        """
        if key == ROOT and self._begun:
            self._check()
        self._sink.put(key, parts)
        self._begun = self._begun or key == ROOT

    def _check(self) -> None:
        # What cannot be read now may well be written: the store says so itself if not.
        with contextlib.suppress(OSError):
            content = self._location.read(ROOT, LIMIT)
            if content is None:
                raise TraceError(f"{self._location.name} was removed while it was being recorded")
            if self.writer.encode() not in content:
                raise TraceError(
                    f"another writer has taken {self._location.name} over; end one of the two "
                    "processes"
                )
