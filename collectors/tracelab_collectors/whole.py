"""The trace of a whole job, which rank 0 makes and through which analyses read all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracelab.errors import UsageError
from tracelab.trace import Writer, create
from tracelab.trace.places.locations import resolve
from tracelab.trace.reading.snapshot import ROOT
from tracelab.trace.writing.resuming import look
from tracelab_collectors.subject import Subject

__all__ = ["begin_whole"]


def begin_whole(
    path: str | Path,
    subject: Subject,
    metadata: Mapping[str, Any] | None,
    *,
    world_size: int | None,
    run: str | None,
    resume: bool,
) -> Writer | None:
    """Return the writer of the trace of a job, or None if there is one that is left as it is.

    No rank waits for another, so that it is never replaced: the others' traces are inside. A job
    that goes on opens it again, unless somebody has it open: where rank 0 was killed, it would say
    that it is being recorded for ever.

    Parameters
    ----------
    path : str or path
        Where it is.
    subject : Subject
        What is recorded.
    metadata : mapping, optional
        Anything of the user's.
    world_size, run : optional
        As of `tracelab_collectors.attach.attach`.
    resume : bool
        Whether recording goes on.

    Raises
    ------
    UsageError
        If the one that is there is of another job.
    """
    said = {name: each for name, each in subject.attrs.items() if name != "shards"}
    location = resolve(path)
    if not location.has(ROOT):
        return create(
            path,
            subject.shapes,
            metadata,
            world_size=world_size,
            run=run,
            attrs=said,
            kinds=subject.kinds,
        )
    found = look(path, resume=True)
    if found is None:
        return None
    old = found.snapshot.attrs
    now: dict[str, Any] = {} if run is None else {"run": run}
    if not resume:
        now |= said
        if world_size is not None:
            now["world_size"] = world_size
        if "model" in old:
            found.check_layers(subject.shapes, subject.kinds)
    for name, value in now.items():
        if name in old and old[name] != value:
            raise UsageError(
                f"the trace of the whole job at {location.name} was recorded with {name} "
                f"{old[name]!r}, and now {name} is {value!r}; remove it with the ranks' traces "
                "inside, which rank 0 does not replace, or record into another path"
            )
    if not resume or location.folder is None:
        return None
    try:
        return create(
            path,
            found.layers,
            resume=True,
            world_size=world_size,
            attrs=said,
            kinds=found.kinds,
        )
    except UsageError:
        # Somebody writes into it, and says at the end what has become of it.
        return None
