"""What running analysis jobs have finished so far, kept where the next job finds it.

A job owns the folder ``.jobs/<job>`` of its shelf: parts, each holding finished cells, and the
result in the making. On a file system it holds a lock for as long as it lives, which the kernel
releases however it dies. Anyone may read any part, because a cell has the same bits whoever
computed it; only what no living job owns, or what is in a finished result, is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tracelab.trace.places import objects
from tracelab.trace.resultstore.parts import Cells, decode, encode
from tracelab.trace.resultstore.shelves import JOBS, Shelf, storing
from tracelab.trace.writing import documents

__all__ = ["PART_BYTES", "Job", "Kind", "clean", "parts"]

logger = logging.getLogger(__name__)

PART_BYTES = 2**26
_LOCK = "lock"
_PART = re.compile(r"([0-9a-f]{20})\.v(\d{1,9})\.g(\d{1,9})\.(\d{1,9})")
_JOB = re.compile(r"([A-Za-z0-9_.-]{1,100})-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Kind:
    """What cells must have in common to be cells of one result.

    Parameters
    ----------
    analysis : str
        The analysis.
    version : int
        Its version.
    generation : int
        The trace's; rows that were committed before have changed since an older one.
    basis : str
        Digest of these, the parameters and the input.
    """

    analysis: str
    version: int
    generation: int
    basis: str


class Job:
    """The folder of a running job; a context manager that releases it.

    What was saved stays unless `discard` was called: the next job goes on with it.

    Parameters
    ----------
    shelf : Shelf
        Where its result will go.
    kind : Kind
        What it computes.

    Raises
    ------
    UsageError
        If nothing can be written there.
    StorageError
        If the disk is full, or failed.
    """

    def __init__(self, shelf: Shelf, kind: Kind) -> None:
        self.shelf, self.kind = shelf, kind
        self._number = 0
        self._discarded = False
        with storing(shelf):
            self.name, self._lock = _claim(shelf, kind)

    @property
    def path(self) -> str:
        """Path of the job's folder in the store."""
        return _path(self.shelf, self.name)

    def save(self, cells: Cells) -> str:
        """Keep finished cells; return the name of the part.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        self._number += 1
        kind = self.kind
        name = f"{kind.basis}.v{kind.version}.g{kind.generation}.{self._number}"
        objects.put(self.shelf.location, f"{self.path}/{name}", list(encode(cells)))
        return name

    def drop(self, part: str) -> None:
        """Remove a part whose cells another one holds."""
        objects.drop(self.shelf.location, f"{self.path}/{part}")

    def discard(self) -> None:
        """Remove everything when the job ends: its result is stored."""
        self._discarded = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        location = self.shelf.location
        with contextlib.suppress(OSError):
            kept = [name for name in objects.names(location, self.path) if _PART.fullmatch(name)]
            if self._discarded or not kept:
                _remove(self.shelf, self.name)
                _leave(self.shelf)
        if self._lock is not None:
            os.close(self._lock)


def parts(
    shelf: Shelf, kind: Kind, wanted: Mapping[str, tuple[str, tuple[int, ...]]]
) -> Iterator[Cells]:
    """Yield the cells that jobs have finished and not yet stored, of this kind.

    Parameters
    ----------
    shelf : Shelf
        Where.
    kind : Kind
        What cells.
    wanted : mapping of str to (dtype, shape)
        Outputs each part must hold: dtype, and shape of one cell.
    """
    for job in _jobs(shelf):
        for name in objects.names(shelf.location, _path(shelf, job)):
            found = _PART.fullmatch(name)
            if found is None or found[1] != kind.basis:
                continue
            content = objects.read(shelf.location, f"{_path(shelf, job)}/{name}", 2 * PART_BYTES)
            if content is None:
                continue
            try:
                yield decode(content, wanted)
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                logger.debug("%s/%s cannot be used: %s", job, name, error)


def clean(shelf: Shelf, kind: Kind, holds: Callable[[Cells], bool], wanted: Any) -> None:
    """Remove what dead jobs left and nobody can use any more.

    That are results in the making, parts that cannot be read, parts of an older version of the
    analysis or an older generation of the trace, and parts all of whose cells are in a result. Of
    a living job nothing is touched; where there are no locks, only parts of the last sort go.

    Parameters
    ----------
    shelf : Shelf
        Where.
    kind : Kind
        What was computed just now.
    holds : callable
        Tells whether a stored result has all these cells, of this kind.
    wanted : mapping
        As `parts` takes it.
    """
    location = shelf.location
    for job in _jobs(shelf):
        lock = None
        if location.folder is not None:
            lock = _dead(location.folder / _path(shelf, job))
            if lock is None:
                continue
        try:
            useful = False
            for name in objects.names(location, _path(shelf, job)):
                path = f"{_path(shelf, job)}/{name}"
                if name == _LOCK:
                    continue
                if lock is not None and not _PART.fullmatch(name):
                    objects.drop(location, path)
                    objects.remove(location, path)
                elif _of_no_use(location, path, job, kind, holds, wanted, lock is not None):
                    objects.drop(location, path)
                else:
                    useful = True
            if not useful:
                _remove(shelf, job)
        finally:
            if lock is not None:
                os.close(lock)
    _leave(shelf)


def _of_no_use(
    location: Any,
    path: str,
    job: str,
    kind: Kind,
    holds: Callable[[Cells], bool],
    wanted: Any,
    dead: bool,
) -> bool:
    found = _PART.fullmatch(path.rpartition("/")[2])
    analysis = _JOB.fullmatch(job)
    if found is None or analysis is None:
        return False
    basis, version, generation = found[1], int(found[2]), int(found[3])
    old = generation < kind.generation or (analysis[1] == kind.analysis and version < kind.version)
    if basis != kind.basis:
        return dead and old
    content = objects.read(location, path, 2 * PART_BYTES)
    if content is None:
        return dead
    try:
        return holds(decode(content, wanted))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return dead


# ------------------------------------------------------------------------------------ jobs, locks


def _path(shelf: Shelf, job: str) -> str:
    return f"{shelf.prefix}/{JOBS}/{job}"


def _jobs(shelf: Shelf) -> list[str]:
    try:
        found = objects.names(shelf.location, f"{shelf.prefix}/{JOBS}")
    except OSError:
        return []
    return [name for name in found if _JOB.fullmatch(name)]


def _claim(shelf: Shelf, kind: Kind) -> tuple[str, int | None]:
    """Return the name of a new job, and its lock where there are locks."""
    location = shelf.location
    while True:
        name = f"{kind.analysis}-{uuid.uuid4().hex[:12]}"
        try:
            objects.put(location, f"{shelf.prefix}/{JOBS}/zarr.json", [_hidden()])
            if location.folder is None:
                return name, None
            folder = location.folder / _path(shelf, name)
            folder.mkdir(parents=True)
            lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o644)
        except FileNotFoundError:
            # Another job just left, and removed the folder of jobs.
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Another one found the folder before it was locked, and is removing it.
            os.close(lock)
            continue
        except OSError:
            logger.debug("%s has no locks: nobody takes this job for dead", folder)
        if _is(folder / _LOCK, lock):
            return name, lock
        os.close(lock)


def _dead(folder: Path) -> int | None:
    """Return the lock of a job that does not live any more, or None."""
    try:
        lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o644)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is(folder / _LOCK, lock):
            return lock
    except OSError:
        pass
    os.close(lock)
    return None


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False


def _remove(shelf: Shelf, job: str) -> None:
    location = shelf.location
    path = _path(shelf, job)
    if location.folder is None:
        objects.remove(location, path)
        return
    for name in objects.names(location, path):
        # The lock goes last: what is locked is not there for others.
        if name != _LOCK:
            objects.drop(location, f"{path}/{name}")
            objects.remove(location, f"{path}/{name}")
    objects.drop(location, f"{path}/{_LOCK}")
    with contextlib.suppress(OSError):
        (location.folder / path).rmdir()


def _leave(shelf: Shelf) -> None:
    """Remove the folder of jobs once nothing is in it."""
    folder = f"{shelf.prefix}/{JOBS}"
    location = shelf.location
    with contextlib.suppress(OSError):
        if set(objects.names(location, folder)) <= {"zarr.json"}:
            objects.drop(location, f"{folder}/zarr.json")
            if location.folder is not None:
                (location.folder / folder).rmdir()


def _hidden() -> bytes:
    # For readers other than tracelab: a group that says it has no members, so that none is sought.
    attributes = {"long_name": "what running analyses have finished so far"}
    inline = {"kind": "inline", "must_understand": False, "metadata": {}}
    group: dict[str, Any] = documents.group({**attributes})
    return documents.dump(group | {"consolidated_metadata": inline})
