"""Checks every object of a trace's committed rows, several at a time, and names what is bad."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracelab.errors import DamagedError
from tracelab.trace.health.damage import Damage, Labels, describe, region
from tracelab.trace.health.integrity import Checked, Flaw, check, committed
from tracelab.trace.places.locations import Location
from tracelab.trace.places.sources import ForbiddenError, UnreadableError, names, opened
from tracelab.trace.reading.labels import labels_of, stored_values
from tracelab.trace.reading.shardform import Form, form
from tracelab.trace.reading.snapshot import Group, Snapshot

__all__ = ["Progress", "Task", "check_objects", "check_task", "objects", "tasks"]

# More damaged chunks of one shard, or missing shards of one array, are told as one damage.
_CHUNKS_TOLD = 16
_MISSING_TOLD = 1000
_OBJECTS = 10**6

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Task:
    """One object to check.

    Parameters
    ----------
    group : Group
        Its group.
    array : str
        Its array.
    form : Form
        How the array is stored.
    shard : tuple of int
        Which object of the array it is.
    """

    group: Group
    array: str
    form: Form
    shard: tuple[int, ...]

    @property
    def key(self) -> str:
        """Path of the object below the array."""
        return self.form.key(self.shard)

    @property
    def path(self) -> str:
        """Path of the object in the trace."""
        return f"{self.group.name}/{self.array}/{self.key}"


def objects(stored: Form) -> int:
    """Return the number of objects that an array must have."""
    return math.prod(
        -(-size // part) for size, part in zip(stored.shape, stored.shard, strict=True)
    )


def tasks(group: Group, array: str) -> Iterator[Task]:
    """Yield every object that the committed rows of an array are in."""
    stored = form(group.arrays[array])
    if stored is not None:
        for shard in stored.shards():
            yield Task(group, array, stored, shard)


def check_task(location: Location, task: Task) -> Checked:
    """Check one object."""
    try:
        with opened(location, task.path) as source:
            return check(source, task.form, task.shard)
    except UnreadableError as error:
        kind = "permission" if isinstance(error, ForbiddenError) else "unreadable"
        return Checked(0, Flaw(kind, str(error)))


def check_objects(
    location: Location,
    snapshot: Snapshot,
    workers: int,
    progress: Progress | None = None,
    only: set[tuple[str, str, str]] | None = None,
) -> tuple[list[Damage], int]:
    """Return what is damaged among the committed rows, and how many bytes were read.

    Parameters
    ----------
    location : Location
        The trace.
    snapshot : Snapshot
        One of its commits.
    workers : int
        Objects that are read at the same time.
    progress : callable, optional
        Called with (group, objects done, objects in all).
    only : set of tuple, optional
        Group, array and key of the objects to check. Default: all.
    """
    found: list[Damage] = []
    planned: list[tuple[Group, str]] = []
    total = 0
    for group in snapshot.groups.values():
        for array, document in group.arrays.items():
            if only is not None and not any(key[:2] == (group.name, array) for key in only):
                continue
            stored = form(document)
            unusual = (
                _foreign(location, group, array)
                if stored is None
                else _mostly_missing(location, group, array, stored)
            )
            found += unusual
            if stored is not None and not unusual:
                planned.append((group, array))
                total += objects(stored)
    wanted = (
        task
        for group, array in planned
        for task in tasks(group, array)
        if only is None or (group.name, array, task.key) in only
    )
    nbytes = 0
    labels: dict[str, Labels] = {}
    for done, (task, checked) in enumerate(_mapped(location, wanted, workers), start=1):
        nbytes += checked.nbytes
        if not checked.sound:
            if task.group.name not in labels:
                labels[task.group.name] = labels_of(location, task.group)
            found += _damages(task, checked, labels[task.group.name])
        if progress is not None:
            progress(task.group.name, done, total)
    return found, nbytes


def _mapped(
    location: Location, wanted: Iterator[Task], workers: int
) -> Iterator[tuple[Task, Checked]]:
    """Check in parallel, in order, with few tasks waiting."""
    if workers == 1:
        for task in wanted:
            yield task, check_task(location, task)
        return
    waiting: deque[tuple[Task, Future[Checked]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="tracelab verify") as pool:
        try:
            for task in wanted:
                waiting.append((task, pool.submit(check_task, location, task)))
                if len(waiting) >= 4 * workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _damages(task: Task, checked: Checked, labels: Labels) -> Iterator[Damage]:
    if checked.whole is not None:
        spans = region(task.form, task.shard, None)
        flaw = checked.whole
        yield _damage(task, labels, flaw.kind, flaw.reason, None, spans)
        return
    chunks = checked.chunks or {}
    if len(chunks) > _CHUNKS_TOLD:
        regions = np.array([region(task.form, task.shard, number) for number in chunks])
        spans = [
            (int(first), int(last))
            for first, last in zip(
                regions[:, :, 0].min(axis=0), regions[:, :, 1].max(axis=0), strict=True
            )
        ]
        flaw = next(iter(chunks.values()))
        count = int(committed(task.form, task.shard).sum())
        reason = f"{len(chunks)} of {count} chunks are damaged, the first: {flaw.reason}"
        yield _damage(task, labels, flaw.kind, reason, None, spans)
        return
    for number, flaw in chunks.items():
        position = tuple(
            place * count + int(cell)
            for place, count, cell in zip(
                task.shard,
                task.form.cells,
                np.unravel_index(number, task.form.cells),
                strict=True,
            )
        )
        spans = region(task.form, task.shard, number)
        yield _damage(task, labels, flaw.kind, flaw.reason, position, spans)


def _damage(
    task: Task,
    labels: Labels,
    kind: str,
    reason: str,
    chunk: tuple[int, ...] | None,
    spans: list[tuple[int, int]],
) -> Damage:
    return describe(
        task.group,
        task.array,
        labels,
        kind=kind,
        reason=reason,
        shard=task.key,
        chunk=chunk,
        spans=spans,
    )


def _mostly_missing(location: Location, group: Group, array: str, stored: Form) -> list[Damage]:
    """Return one damage where most objects of an array are missing; a million are not named."""
    total = objects(stored)
    if total <= _MISSING_TOLD:
        return []
    missing = total - len(names(location, f"{group.name}/{array}"))
    if missing <= _MISSING_TOLD:
        return []
    reason = f"{missing} of its {total} shards are missing"
    labels = labels_of(location, group)
    return [describe(group, array, labels, kind="missing", reason=reason)]


def _foreign(location: Location, group: Group, array: str) -> list[Damage]:
    """Read an array that is not stored as tracelab stores arrays; one that cannot be is damaged."""
    document = group.arrays[array]
    extents = document["chunk_grid"]["configuration"]["chunk_shape"]
    counts = [-(-size // part) for size, part in zip(document["shape"], extents, strict=True)]
    path = f"{group.name}/{array}"
    found = []
    for place in itertools.islice(np.ndindex(*counts), _OBJECTS):
        part: Any = tuple(
            slice(each * extent, (each + 1) * extent)
            for each, extent in zip(place, extents, strict=True)
        )
        try:
            stored_values(location, path, document, part)
        except DamagedError as error:
            spans = [
                (each * extent, min((each + 1) * extent, size) - 1)
                for each, extent, size in zip(place, extents, document["shape"], strict=True)
            ]
            reason = str(error).removeprefix(f"{path} of {location.name} is damaged: ")
            found.append(
                describe(
                    group,
                    array,
                    labels_of(location, group),
                    kind="unreadable",
                    reason=reason,
                    chunk=tuple(place),
                    spans=spans,
                )
            )
    return found
