"""Notices that another writer has taken a trace over, where no lock could keep it away."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Sequence

from tracelab.errors import TraceError
from tracelab.trace.places.files import Part
from tracelab.trace.places.locations import Location, Sink
from tracelab.trace.places.remotefaults import RemoteError

__all__ = ["NOTICE_SECONDS", "Guarded", "take_over"]

ROOT = "zarr.json"
LIMIT = 2**28

CHECK_SECONDS = 1.0
"""How long a writer without a lock stores objects without a look at whose the trace is."""

NOTICE_SECONDS = 3.0
"""How long whoever takes over waits for the one before to notice."""


class Guarded:
    """A sink that stores only while the trace's root document is this writer's own.

    Between a look and what is stored then another can still come; object stores have nothing
    better that all of them understand. With a lock, the look before each commit is for the case
    that the lock was lost.

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
    locked : bool
        Whether a lock keeps others away, so that it is enough to look before a commit.
    """

    def __init__(self, location: Location, sink: Sink) -> None:
        self.writer = uuid.uuid4().hex
        self.locked = False
        self._location = location
        self._sink = sink
        self._begun = False
        self._looking = threading.Lock()
        self._looked: float | None = None

    @property
    def width(self) -> int:
        """How many objects to put at a time."""
        return self._sink.width

    def put(self, key: str, parts: Sequence[Part]) -> None:
        """Store an object.

        Raises
        ------
        TraceError
            If another writer has replaced or removed this writer's root document.
        """
        if self._begun:
            self._check(key)
        self._sink.put(key, parts)
        if key == ROOT:
            self._begun = True
            # The next rows come later: the first of their objects is preceded by a look.
            self._looked = None

    def _check(self, key: str) -> None:
        if key != ROOT and self.locked:
            return
        with self._looking:
            now = time.monotonic()
            if key == ROOT or self._looked is None or now > self._looked + CHECK_SECONDS:
                self._look()
                self._looked = now

    def _look(self) -> None:
        # What cannot be read now may well be written: the store says so itself if not.
        with contextlib.suppress(OSError, RemoteError):
            content = self._location.read(ROOT, LIMIT)
            if content is None:
                raise TraceError(f"{self._location.name} was removed while it was being recorded")
            if self.writer.encode() not in content:
                raise TraceError(
                    f"another writer has taken {self._location.name} over; end one of the two "
                    "processes"
                )


def take_over(location: Location, sink: Guarded) -> None:
    """Make a trace this writer's own before it is read; the one before it notices and stops.

    Its rows stay as they are: of the root document only the writer changes.
    """
    document = json.loads(location.read(ROOT, LIMIT) or b"{}")
    document.setdefault("attributes", {})["writer"] = {"id": sink.writer}
    sink.put(ROOT, [json.dumps(document, separators=(",", ":")).encode()])
    if location.shareable:
        time.sleep(NOTICE_SECONDS)
