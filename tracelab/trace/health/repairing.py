"""repair(): a trace without what cannot be read, and the damaged one beside it, untouched."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tracelab.errors import TraceError, UsageError
from tracelab.trace.health import drafts
from tracelab.trace.health.checking import Progress, check_objects
from tracelab.trace.health.drafts import Draft
from tracelab.trace.health.losses import Loss, Mended
from tracelab.trace.health.members import check_documents
from tracelab.trace.health.mending import mend
from tracelab.trace.health.verification import WORKERS as THREADS
from tracelab.trace.health.verification import Report, check_trace
from tracelab.trace.inside import WORKERS
from tracelab.trace.places.locations import Location, PathLike, resolve
from tracelab.trace.reading.labels import check_labels, labels_of
from tracelab.trace.reading.snapshot import is_trace, take
from tracelab.trace.writing import lock

if TYPE_CHECKING:
    from tracelab.trace.reading.reader import Trace

__all__ = ["Repair", "repair"]


@dataclass(frozen=True, slots=True)
class Repair:
    """What `repair` did, or would do.

    Parameters
    ----------
    location : str
        The trace.
    copy : str or None
        Where the damaged trace is now; None if there is nothing to repair.
    dropped : tuple of Loss
        What the repaired trace does not have any more.
    restored : tuple of str
        What was damaged and is whole again, in sentences.
    dry_run : bool
        Whether nothing was changed.
    finished : bool
        Whether this only finished a repair that had been killed.
    seconds : float
        How long it took.
    """

    location: str
    copy: str | None
    dropped: tuple[Loss, ...]
    restored: tuple[str, ...]
    dry_run: bool
    finished: bool
    seconds: float

    def summary(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {**asdict(self), "seconds": round(self.seconds, 3)}

    def __repr__(self) -> str:
        if not self.dropped and not self.restored:
            done = "a repair was finished" if self.finished else "nothing is damaged"
            return f"<tracelab.Repair {self.location}: {done}>"
        what = "would be repaired" if self.dry_run else "repaired"
        lines = [f"<tracelab.Repair {self.location}: {what}>"]
        if self.copy is not None:
            lines.append(f"  damaged trace: {self.copy}")
        lines += [f"  dropped:  {loss.sentence}" for loss in self.dropped]
        lines += [f"  restored: {sentence}" for sentence in self.restored]
        return "\n".join(lines)


def repair(
    trace: PathLike | Trace, *, dry_run: bool = False, progress: Progress | None = None
) -> Repair:
    """Drop what cannot be read from a trace; the damaged trace stays beside it, untouched.

    A damaged chunk becomes a missing one where the format has missing values (NaN, or false).
    Where it has none, as for steps and integers, the rows it holds are dropped from their group.
    Tables and documents are made anew from others that say the same, or what depends on them is
    dropped. Damaged results are removed. The damaged trace is ``<name>.damaged-1.zarr`` then, and
    shares the files that did not change with the repaired one.

    Parameters
    ----------
    trace : str, path or Trace
        A folder.
    dry_run : bool
        Change nothing, and say what would be dropped.
    progress : callable, optional
        Called with (what is being checked, objects done, objects in all).

    Returns
    -------
    Repair

    Raises
    ------
    UsageError
        If there is no trace, it is being recorded, it is not in a folder, or nothing can be
        written beside it.
    TraceError
        If what is there is no trace, or nothing of it can be used.
    """
    started = time.perf_counter()
    known: Location | None = getattr(trace, "_location", None)
    location = known or resolve(cast("PathLike", trace))
    folder = location.folder
    if folder is None:
        raise UsageError(
            f"{location.name} is not in a folder, and only there it can be repaired without ever "
            "being half repaired; copy it to a folder, repair that and copy it back"
        )
    finished = not dry_run and drafts.finish(folder)
    if not location.exists():
        raise UsageError(f"there is no trace at {location.name}; check the path")
    outer = folder.parent.parent
    if folder.parent.name == WORKERS and is_trace(resolve(outer)):
        raise UsageError(f"{location.name} is a part of the trace {outer}; repair that")
    held = _lock(location.name, folder) if not dry_run else None
    try:
        report = check_trace(location, progress=progress)
        _check_permissions(report)
        if report.sound:
            seconds = time.perf_counter() - started
            return Repair(location.name, None, (), (), dry_run, finished, seconds)
        draft = Draft(None) if dry_run else drafts.begin(folder)
        done = _mend_all(location, draft, report)
        copy = None
        if draft.folder is not None:
            damaged = drafts.swap(folder, draft)
            with contextlib.suppress(OSError):
                (damaged / lock.LOCK_FILE).unlink()
            copy = str(damaged)
    finally:
        if held is not None:
            held.release()
    return Repair(
        location.name,
        copy,
        tuple(done.dropped),
        tuple(done.restored),
        dry_run,
        finished,
        time.perf_counter() - started,
    )


def _lock(name: str, folder: Path) -> lock.Lock | None:
    try:
        return lock.acquire(name, folder)
    except (FileExistsError, NotADirectoryError):
        # The folder of the lock is what is damaged.
        return None
    except OSError as error:
        raise UsageError(
            f"{name} cannot be repaired where it is: it cannot be written ({error.strerror}); copy "
            "it to a folder of your own and repair that"
        ) from error


def _check_permissions(report: Report) -> None:
    for _, damage in report.all_damages():
        if damage.kind == "permission":
            raise UsageError(
                f"{report.location} has files that you may not read, which may be all right: "
                f"{damage.sentence}; get permission, then repair it"
            )


def _mend_all(location: Location, draft: Draft, report: Report) -> Mended:
    done = Mended()
    if report.damages:
        done = mend(location, draft, report)
        if draft.folder is not None:
            _check_draft(location.name, draft.folder, draft.written)
    for rank, inside in report.ranks.items():
        if inside.sound:
            continue
        prefix = f"{WORKERS}/rank-{rank:03d}"
        part = _mend_all(location.at(prefix), draft.at(prefix), inside)
        done.dropped += [
            replace(loss, group=f"{prefix}/{loss.group}", sentence=f"rank {rank}: {loss.sentence}")
            for loss in part.dropped
        ]
        done.restored += [f"rank {rank}: {sentence}" for sentence in part.restored]
    return done


def _check_draft(name: str, folder: Path, keys: Sequence[str]) -> None:
    """Check what a repair wrote, before it takes the place of the trace."""
    location = resolve(folder)
    snapshot = take(location)
    written = {tuple(key.split("/", 2)) for key in keys}
    objects = {(key[0], key[1], key[2]) for key in written if len(key) == 3}
    found, _ = check_objects(location, snapshot, THREADS, None, objects)
    for group in snapshot.groups.values():
        found += check_labels(group, labels_of(location, group), found)
        found += check_documents(location, group, complete=False)
    if found:
        raise TraceError(
            f"{name} could not be repaired, and is as it was: {found[0].sentence}; please report "
            "this to tracelab's developers"
        )
