"""Whether a trace may be written at a place: what is there, and who else writes it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum, auto

from tracelab.errors import TraceError, UsageError
from tracelab.trace.inside import WORKERS, entries
from tracelab.trace.places.locations import Location
from tracelab.trace.reading.snapshot import ROOT, is_trace, take
from tracelab.trace.writing import exits
from tracelab.trace.writing.guard import NOTICE_SECONDS
from tracelab.trace.writing.lock import LOCK_FILE, Lock, acquire

__all__ = ["Claim", "check_parent", "claim", "idle_ranks", "vacant"]


_LOOKS = (0.01, 0.03, 0.1, 0.3, 0.6)


class _State(Enum):
    """What is at a place."""

    FREE = auto()
    """Nothing, or ranks' traces, or what a writer left that died before its first commit."""
    TRACE = auto()
    TORN = auto()
    """What a process left that died while it removed a trace; or another's, until that is known."""
    OTHER = auto()


class Claim:
    """A place that is this writer's.

    Parameters
    ----------
    lock : Lock or None
        What keeps others away, on a file system with locks.
    found : bool
        Whether there is a trace to go on after.
    """

    def __init__(self, lock: Lock | None, found: bool) -> None:
        self.lock = lock
        self.found = found


def claim(location: Location, *, overwrite: bool, resume: bool) -> Claim:
    """Take a place; remove the trace that is there if `overwrite`.

    Raises
    ------
    UsageError
        If it is not free, or another writer has it.
    OSError
        If it cannot be written.
    """
    # Nothing of what is not ours is touched, not even by a lock.
    _refuse(location, _state(location), overwrite=overwrite, resume=resume)
    if location.folder is None:
        lock = None
    else:
        if overwrite:
            for other in exits.writers():
                if other.path == location.folder:
                    other.abandon()
        lock = acquire(location.name, location.folder)
    try:
        # Looked at again, now that nobody else changes it.
        state = _state(location)
        if state is _State.TORN and not (lock and lock.clearing):
            state = _State.OTHER
        _refuse(location, state, overwrite=overwrite, resume=resume)
        if state is _State.TORN or (state is _State.TRACE and overwrite):
            # Where there is no lock, its writer may be alive: it notices that the trace is gone.
            alive = not lock and location.shareable and _recording(location)
            with idle_ranks(location):
                if lock:
                    lock.describe(clearing=True)
                location.clear(keep=lock.path if lock else None)
                if lock:
                    lock.describe()
                if alive:
                    time.sleep(NOTICE_SECONDS)
    except BaseException:
        if lock:
            lock.release()
        raise
    return Claim(lock, state is _State.TRACE and resume)


def check_parent(location: Location) -> None:
    """Check that ranks may write inside a place.

    Raises
    ------
    UsageError
        If there is something else than a trace.
    """
    # Rank 0 may be making its trace at this moment: looked at half-way, it may seem anything.
    for pause in _LOOKS:
        if _state(location) is not _State.OTHER:
            return
        time.sleep(pause)
    raise _left_alone(location)


def vacant(location: Location) -> bool:
    """Return whether nothing is at a place, or only what a writer that died at once left there."""
    return _state(location) is _State.FREE


def _state(location: Location) -> _State:
    if not location.exists():
        return _State.FREE
    if is_trace(location):
        return _State.TRACE
    names = {*entries(location)}
    if location.has(ROOT) or not names:
        return _State.OTHER
    if names == {WORKERS}:
        return _State.FREE
    begun = location.has(LOCK_FILE if location.folder is not None else "layers/layer/c.0")
    if not begun:
        return _State.OTHER
    return _State.FREE if names <= {WORKERS, "layers"} else _State.TORN


def _refuse(location: Location, state: _State, *, overwrite: bool, resume: bool) -> None:
    if state is _State.OTHER:
        raise _left_alone(location)
    if state is _State.TRACE and not overwrite and not resume:
        raise UsageError(
            f"there is a trace at {location.name}; choose another path or pass overwrite=True to "
            "replace it or resume=True to go on after its last row"
        )


def _left_alone(location: Location) -> UsageError:
    return UsageError(
        f"{location.name} exists and is not a trace, so it is left alone; choose another path"
    )


@contextmanager
def idle_ranks(location: Location) -> Iterator[None]:
    """Keep the ranks of a trace from being written; refuse if one is."""
    with ExitStack() as held:
        for name in entries(location, WORKERS):
            if not name.startswith("rank-"):
                continue
            inside = location.at(f"{WORKERS}/{name}")
            if inside.folder is not None:
                lock = acquire(inside.name, inside.folder)
                if lock is not None:
                    held.callback(lock.release)
            elif _recording(inside):
                raise UsageError(
                    f"{inside.name} is being recorded, or its process was killed; if no process "
                    "records it, remove it and try again"
                )
        yield


def _recording(location: Location) -> bool:
    try:
        return bool(take(location).attrs["state"] == "recording")
    except TraceError:
        return False
