"""create(): the writer of a new trace, or of one that goes on."""

from __future__ import annotations

import logging
import math
import operator
import os
import platform
import socket
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from tracelab.contracts import NETWORK
from tracelab.errors import UsageError
from tracelab.trace import ranks
from tracelab.trace.places.locations import PathLike, resolve
from tracelab.trace.schema import FORMAT, FORMAT_VERSION, NAME
from tracelab.trace.writing import aside, continuation, documents, resuming, room
from tracelab.trace.writing import compression as compressions
from tracelab.trace.writing.guard import Guarded, take_over
from tracelab.trace.writing.leftovers import tidy
from tracelab.trace.writing.resuming import Found
from tracelab.trace.writing.writer import RESERVED, Writer, given_attributes

__all__ = ["create"]

logger = logging.getLogger(__name__)

# Results of a rank are kept under it and the rank's name.
MAX_RUN = 100


def create(
    path: PathLike,
    layers: Mapping[str, Sequence[int]],
    metadata: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
    resume: bool | int = False,
    rank: int | None = None,
    world_size: int | None = None,
    run: str | None = None,
    attrs: Mapping[str, Any] | None = None,
    kinds: Mapping[str, str] | None = None,
    queue_bytes: int = 256 * 2**20,
    flush_seconds: float = 10.0,
    compression: str = "auto",
    when_full: str = "block",
) -> Writer:
    """Create a trace and return its writer.

    Parameters
    ----------
    path : str, path or zarr Store
        A folder, a URL such as ``s3://bucket/run.zarr``, or an open Zarr store.
    layers : mapping of str to tuple of int
        Shape of each trainable parameter tensor, in the order of the model.
    metadata : mapping, optional
        Anything of the user's that JSON can hold.
    overwrite : bool
        Replace the trace at `path`, if there is one. Anything else there is left alone.
    resume : bool or int
        Go on with the trace at `path`, if there is one: with True after its last row, with a step
        where training goes on at that step, from a checkpoint. Rows of that step and later ones
        are moved to a trace of their own beside it. What is declared must be what is recorded.
    rank : int, optional
        Record what one of several processes of a job does, as a trace of its own inside the trace
        at `path`: ``<path>/workers/rank-003``. No process waits for another.
    world_size : int, optional
        How many processes the job has.
    run : str, optional
        Identifier of the run, such as the job's: letters, digits, ``_``, ``.``, ``-``. Ranks that
        are given the same belong together. Default: a new one.
    attrs : mapping, optional
        Attributes of the trace: ``model``, ``optimizer``, ``seed``, ...
    kinds : mapping of str to str, optional
        Class of the module that owns a layer. Default: ``"parameter"``.
    queue_bytes : int
        Rows pending in memory beyond which `Writer.append` blocks. Beside them the writer holds, of
        each group, the rows of shards that are not full: as much again, at most 256 MiB and 4 MiB
        for each array; and as much again, at most 130 MiB, on their way to the disk.
    flush_seconds : float
        How long a row waits at most until it is committed.
    compression : {"auto", "none", "lz4"}
        Lossless, by a background thread. ``"auto"`` is the faster of the two, measured once for
        each file system, and ``"lz4"`` where the trace is not in a folder. The trace's attribute
        ``compression`` says which it is.
    when_full : {"block", "thin"}
        What `Writer.append` does when `queue_bytes` are pending: it waits for room, or leaves the
        row out. The trace is then incomplete and says how many rows of which group it lacks, in
        the attributes ``incomplete_reasons`` and ``dropped_rows``.

    Returns
    -------
    Writer

    Raises
    ------
    UsageError
        If there is something at `path`, another process writes it, or an argument cannot be used.
    TraceError
        If the trace to go on with is damaged; ``tracelab repair`` drops what cannot be read.

    Examples
    --------
    >>> import numpy as np
    >>> with create("run.zarr", layers={"fc.weight": (8, 16)}) as writer:  # doctest: +SKIP
    ...     writer.append("steps", step=0, loss=2.3)
    ...     writer.append("gradients", step=0, full=np.zeros(128, np.float32))
    """
    shapes = _shapes(layers)
    owners = dict(kinds or {})
    unknown = [name for name in owners if name not in shapes]
    if unknown:
        raise UsageError(f"kinds names {unknown[0]!r}, which is not among the layers")
    if queue_bytes < 1 or not flush_seconds >= 0:
        raise UsageError(
            "queue_bytes must be positive and flush_seconds not negative, got "
            f"{queue_bytes} and {flush_seconds}"
        )
    if when_full not in ("block", "thin"):
        raise UsageError(f"when_full must be 'block' or 'thin', got {when_full!r}")
    step = resuming.first_step(resume)
    if overwrite and resume is not False:
        raise UsageError("overwrite=True and resume= contradict each other; give one of them")
    fresh = _attributes()
    said = given_attributes(attrs or {})
    fresh["software"] |= said.pop("software", {})
    said |= _identity(rank, world_size, run)
    if metadata is not None:
        said["metadata"] = documents.plain(dict(metadata), "metadata")
    parent = resolve(path)
    location = parent if rank is None else ranks.place(parent, rank, world_size)
    sink = Guarded(location, location.sink())
    try:
        if rank is not None:
            room.check_parent(parent)
        claim = room.claim(location, overwrite=overwrite, resume=resume is not False)
        sink.locked = claim.lock is not None
        try:
            if rank is not None:
                ranks.begin_workers(parent.sink())
            found = restored = None
            if claim.found:
                found = resuming.find(location, step)
                found.check_layers(shapes, owners)
                continuation.check(found, said, compression)
                if claim.lock is None and found.snapshot.attrs["state"] == "recording":
                    take_over(location, sink)
                    found = resuming.find(location, step)
                attributes = _continued(found, said, fresh, step)
                restored = found.restore()
            else:
                attributes = {
                    **fresh,
                    "compression": compressions.choose(compression, location.folder),
                    **said,
                }
            attributes["writer"] = {
                "id": sink.writer,
                "pid": os.getpid(),
                "host": socket.gethostname(),
            }
            writer = Writer(
                location,
                sink,
                shapes,
                owners,
                attributes,
                lock=claim.lock,
                restored=restored,
                queue_bytes=queue_bytes,
                flush_seconds=flush_seconds,
                when_full=when_full,
            )
            if found is not None and restored is not None:
                tidy(found, restored, sink)
        except BaseException:
            if claim.lock is not None:
                claim.lock.release()
            raise
    except OSError as error:
        raise UsageError(
            f"no trace can be recorded at {location.name}: {type(error).__name__}: {error}"
        ) from error
    return writer


def _attributes() -> dict[str, Any]:
    """Return the root attributes of a new trace, as far as its user has no say in them."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "run": uuid.uuid4().hex,
        "created": datetime.now(UTC).isoformat(),
        "state": "recording",
        "incomplete_reasons": [],
        "metadata": {},
        "software": {"python": platform.python_version()}
        | {name: version(name) for name in ("tracelab", "numpy", "zarr")},
    }


def _identity(rank: int | None, world_size: int | None, run: str | None) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if run is not None:
        if not isinstance(run, str) or not NAME.fullmatch(run) or len(run) > MAX_RUN:
            raise UsageError(
                f"run must be a text of at most {MAX_RUN} letters, digits, '_', '.', '-', got "
                f"{run!r}; leave it out for a new one"
            )
        said["run"] = run
    if world_size is not None:
        if isinstance(world_size, bool) or not isinstance(world_size, int) or world_size < 1:
            raise UsageError(f"world_size must be an integer of at least 1, got {world_size!r}")
        said["world_size"] = world_size
    if rank is not None:
        said["rank"] = rank
    return said


def _continued(
    found: Found,
    said: Mapping[str, Any],
    fresh: Mapping[str, Any],
    step: int | None,
) -> dict[str, Any]:
    """Return the root attributes of a trace that goes on; rows that do not stay are aside then."""
    name = found.location.name
    attributes = continuation.attributes(found, said, fresh, step=step)
    if step is not None:
        last = found.last_step("steps")
        if 0 <= last < step - 1:
            logger.warning("%s goes on at step %d and lacks those after %d", name, step, last)
    if found.set_aside:
        where = _set_aside(found)
        attributes["resumed"][-1]["set_aside"] = where.rsplit("/", 1)[-1]
        counts = ", ".join(f"{count} of {group!r}" for group, count in found.set_aside.items())
        logger.warning(
            "%s goes on at step %s; its rows from there on are in %s now: %s",
            name,
            step,
            where,
            counts,
        )
    return attributes


def _set_aside(found: Found) -> str:
    """Copy the rows that do not stay into a trace of their own; return where it is."""
    where = aside.place(found)
    old = {key: value for key, value in found.snapshot.attrs.items() if key not in RESERVED}
    compression = old.pop("compression", "none")
    metadata = old.pop("metadata", None)
    with create(
        where.reopen,
        found.layers,
        metadata,
        overwrite=True,
        attrs={**old, aside.SUPERSEDED: aside.mark(found)},
        kinds=found.kinds,
        compression=compression,
    ) as writer:
        aside.copy(found, writer)
    return where.name


def _shapes(layers: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    if not layers:
        raise UsageError("layers is empty; give at least one layer's name and shape")
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in layers.items():
        if not isinstance(name, str) or not name.isprintable() or not name or name == NETWORK:
            raise UsageError(
                f"a layer cannot be called {name!r}; give a printable text other than {NETWORK!r}"
            )
        try:
            sizes = tuple(operator.index(size) for size in shape)
        except TypeError:
            sizes = (0,)
        if any(size < 1 for size in sizes) or math.prod(sizes) > 2**62:
            raise UsageError(
                f"layer {name!r}: a shape is a tuple of positive integers, got {shape!r}"
            )
        shapes[name] = sizes
    return shapes
