"""create(): a new trace, where there is room for one."""

from __future__ import annotations

import math
import operator
import platform
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from tracelab.contracts import NETWORK
from tracelab.errors import UsageError
from tracelab.trace import documents, exits
from tracelab.trace.locations import Location, PathLike, resolve
from tracelab.trace.schema import FORMAT, FORMAT_VERSION
from tracelab.trace.snapshot import is_trace
from tracelab.trace.writer import Writer, given_attributes

__all__ = ["create"]


def create(
    path: PathLike,
    layers: Mapping[str, Sequence[int]],
    metadata: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
    attrs: Mapping[str, Any] | None = None,
    kinds: Mapping[str, str] | None = None,
    queue_bytes: int = 256 * 2**20,
    flush_seconds: float = 10.0,
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
    attrs : mapping, optional
        Attributes of the trace: ``model``, ``optimizer``, ``seed``, ...
    kinds : mapping of str to str, optional
        Class of the module that owns a layer. Default: ``"parameter"``.
    queue_bytes : int
        Rows pending in memory beyond which `Writer.append` blocks.
    flush_seconds : float
        How long a row waits at most until it is committed.

    Returns
    -------
    Writer

    Raises
    ------
    UsageError
        If there is something at `path`, or an argument cannot be used.

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
    attributes: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "run": uuid.uuid4().hex,
        "created": datetime.now(UTC).isoformat(),
        "state": "recording",
        "incomplete_reasons": [],
        "metadata": documents.plain(dict(metadata or {}), "metadata"),
        "compression": "none",
        "software": {"python": platform.python_version()}
        | {name: version(name) for name in ("tracelab", "numpy", "zarr")},
    }
    given = given_attributes(attrs or {})
    software = attributes["software"] | given.pop("software", {})
    location = resolve(path)
    location.sink()
    _make_room(location, overwrite)
    try:
        return Writer(
            location,
            shapes,
            owners,
            {**attributes, **given, "software": software},
            queue_bytes=queue_bytes,
            flush_seconds=flush_seconds,
        )
    except OSError as error:
        raise UsageError(
            f"no trace can be recorded at {location.name}: {type(error).__name__}: {error}"
        ) from error


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


def _make_room(location: Location, overwrite: bool) -> None:
    if not location.exists():
        return
    if not is_trace(location):
        raise UsageError(
            f"{location.name} exists and is not a trace, so it is left alone; choose another path"
        )
    if not overwrite:
        raise UsageError(
            f"there is a trace at {location.name}; choose another path or pass overwrite=True"
        )
    for other in exits.writers():
        if location.folder is not None and other.path == location.folder:
            other.abandon()
    location.clear()
