"""verify(): every checksum of every committed row, and a list of what is bad.

What is checked is one commit. A trace that is being recorded changes while it is read: whatever
looks bad is looked at again, and counts only if it is still bad and still committed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from tracelab.errors import TraceError, UsageError
from tracelab.trace.health.checking import Progress, check_objects
from tracelab.trace.health.damage import Damage
from tracelab.trace.health.members import check_documents, check_results, leftovers
from tracelab.trace.health.rebuilding import rebuild
from tracelab.trace.inside import ranks
from tracelab.trace.places.locations import Location, PathLike, resolve
from tracelab.trace.reading.labels import check_labels, labels_of
from tracelab.trace.reading.snapshot import ROOT, Snapshot, take

if TYPE_CHECKING:
    from tracelab.trace.reading.reader import Trace

__all__ = ["Report", "check_trace", "verify"]

WORKERS = 4
_TRIES, _PAUSE = 10, 0.05


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found.

    Parameters
    ----------
    location : str
        The trace.
    run, state : str
        As the root document says; empty if it cannot be read.
    rows : dict of str to int
        Committed rows by group.
    nbytes : int
        Bytes that were checked.
    seconds : float
        How long it took.
    damages : tuple of Damage
        What cannot be read.
    leftovers : tuple of str
        Objects that belong to no committed row, such as those of a writer that was killed. They
        are no damage.
    ranks : dict of int to Report
        The traces inside, by rank.
    """

    location: str
    run: str
    state: str
    rows: Mapping[str, int]
    nbytes: int
    seconds: float
    damages: tuple[Damage, ...]
    leftovers: tuple[str, ...]
    ranks: Mapping[int, Report]

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged, in the trace or in those of its ranks."""
        return not self.damages and all(report.sound for report in self.ranks.values())

    def all_damages(self) -> list[tuple[int | None, Damage]]:
        """Return every damage with its rank, None for the trace itself."""
        found: list[tuple[int | None, Damage]] = [(None, damage) for damage in self.damages]
        for rank, report in self.ranks.items():
            found += [(rank, damage) for _, damage in report.all_damages()]
        return found

    def summary(self) -> dict[str, Any]:
        """Return the report as JSON can hold it."""
        return {
            "location": self.location,
            "run": self.run,
            "state": self.state,
            "sound": self.sound,
            "rows": dict(self.rows),
            "bytes": self.nbytes,
            "seconds": round(self.seconds, 3),
            "damages": [damage.summary() for damage in self.damages],
            "leftovers": list(self.leftovers),
            "ranks": {str(rank): report.summary() for rank, report in self.ranks.items()},
        }

    def __repr__(self) -> str:
        found = self.all_damages()
        rows = ", ".join(f"{count:,} of {name}" for name, count in self.rows.items()) or "none"
        head = f"<tracelab.Report {self.location}: {'sound' if self.sound else 'damaged'}>"
        lines = [head, f"  rows:    {rows}", f"  checked: {self.nbytes:,} bytes"]
        for rank, damage in found[:20]:
            inside = "" if rank is None else f"rank {rank}: "
            lines.append(f"  damaged: {inside}{damage.sentence}")
        if len(found) > 20:
            lines.append(f"  and {len(found) - 20} more, in `damages`")
        return "\n".join(lines)


def verify(
    trace: PathLike | Trace,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check everything that a trace holds; nothing is changed.

    Checked are the checksums of every committed chunk, of the indexes of the shards and of the
    tables; that every committed row of every array is there; that steps increase and names of
    layers differ; that the documents of arrays agree with the root document; that results can be
    read. The trace may be recorded meanwhile, and may be on read-only media.

    Parameters
    ----------
    trace : str, path, zarr Store or Trace
        A trace or where it is.
    workers : int, optional
        Objects that are read at the same time. Default: 4.
    progress : callable, optional
        Called with (what is being checked, objects done, objects in all).

    Returns
    -------
    Report

    Raises
    ------
    UsageError
        If there is nothing at this place.
    TraceError
        If what is there is no trace, or one of another format version.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"workers must be at least 1, got {workers!r}")
    known: Location | None = getattr(trace, "_location", None)
    location = known or resolve(cast("PathLike", trace))
    if not location.exists():
        raise UsageError(f"there is no trace at {location.name}; check the path")
    return check_trace(location, workers or WORKERS, progress)


def check_trace(
    location: Location, workers: int = WORKERS, progress: Progress | None = None
) -> Report:
    """Return the report of the trace at a location; see `verify`."""
    started = time.perf_counter()
    snapshot, damages = _snapshot(location)
    found, nbytes = _check(location, snapshot, workers, progress)
    if found and not damages:
        # A trace that is being written moved on, or was replaced: what is still bad is bad.
        snapshot = take(location)
        suspects = {(damage.group, damage.array, damage.shard) for damage in found}
        found, _ = _check(location, snapshot, workers, None, suspects)
    damages += found
    damages += check_results(location)
    inside = {}
    for rank, path in ranks(location).items():
        try:
            inside[rank] = check_trace(location.at(path), workers, progress)
        except TraceError as error:
            damages.append(
                Damage(path, "", ROOT, None, "document", None, None, (), None, str(error))
            )
    return Report(
        location=location.name,
        run=str(snapshot.attrs["run"]),
        state=str(snapshot.attrs["state"]),
        rows={name: each.rows for name, each in snapshot.groups.items() if name != "layers"},
        nbytes=nbytes,
        seconds=time.perf_counter() - started,
        damages=tuple(damages),
        leftovers=leftovers(location, snapshot),
        ranks=inside,
    )


def _snapshot(location: Location) -> tuple[Snapshot, list[Damage]]:
    try:
        return take(location), []
    except TraceError as error:
        # What its groups say of themselves is all there is to go by.
        rebuilt = rebuild(location)
        if rebuilt is None:
            raise
        reason = str(error)
    # A trace that is just being created has layers before it has a root document.
    for _ in range(_TRIES):
        if location.has(ROOT):
            break
        time.sleep(_PAUSE)
    with contextlib.suppress(TraceError):
        return take(location), []
    damage = Damage("", "", ROOT, None, "document", None, None, (), None, reason)
    return rebuilt.snapshot, [damage]


def _check(
    location: Location,
    snapshot: Snapshot,
    workers: int,
    progress: Progress | None,
    only: set[tuple[str, str, str]] | None = None,
) -> tuple[list[Damage], int]:
    found, nbytes = check_objects(location, snapshot, workers, progress, only)
    complete = snapshot.attrs["state"] == "complete"
    for group in snapshot.groups.values():
        found += check_labels(group, labels_of(location, group), found)
        found += check_documents(location, group, complete=complete)
    return found, nbytes
