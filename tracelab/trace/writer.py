"""Writer: takes the rows of a run, from any source; needs no framework."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tracelab.contracts import Variable
from tracelab.errors import TraceError, UsageError
from tracelab.trace import documents, exits
from tracelab.trace.commit import store_layers
from tracelab.trace.locations import Location
from tracelab.trace.recorder import Recorder
from tracelab.trace.rows import GroupRules, declare

__all__ = ["Writer", "given_attributes"]

_RESERVED = ("format", "format_version", "run", "created", "state", "incomplete_reasons")


class Writer:
    """Records rows into a trace; made by `create`.

    Rows go to a background thread, which gathers them into shards and commits at least every
    ``flush_seconds``. Committed rows survive whatever happens to the process.

    Use it as a context manager: an exception inside leaves the trace ``"incomplete"`` with the
    exception as the reason, and keeps the data. A writer that is never closed commits its rows
    when the interpreter exits.

    Attributes
    ----------
    run : str
        Identifier of the run.
    location : str
        Where the trace is, as given to `create`.
    path : pathlib.Path or None
        Its folder, if it is one.
    layers : dict of str to tuple of int
        Shapes of the layers.
    """

    def __init__(
        self,
        location: Location,
        layers: Mapping[str, tuple[int, ...]],
        kinds: Mapping[str, str],
        attributes: Mapping[str, Any],
        *,
        queue_bytes: int,
        flush_seconds: float,
    ) -> None:
        self.run: str = attributes["run"]
        self.location = location.name
        self.path: Path | None = location.folder
        self.layers = dict(layers)
        self._attributes = dict(attributes)
        self._groups: dict[str, GroupRules] = {}
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._closed = False
        sink = location.sink()
        self._recorder = Recorder(
            self.location,
            sink,
            dict(attributes),
            store_layers(sink, layers, kinds),
            queue_bytes,
            flush_seconds,
        )
        exits.register(self)

    def define(
        self,
        group: str,
        *,
        kind: str | None = None,
        layers: Sequence[str] | None = None,
        sketches: Sequence[Any] = (),
        attrs: Mapping[str, Any] | None = None,
        coordinates: tuple[Any, Any] | None = None,
        variables: Sequence[Variable] | None = None,
    ) -> None:
        """Declare a group before its first row; needed only where the defaults do not fit.

        Parameters
        ----------
        group : str
            Name of the group.
        kind : str, optional
            What it records. Default: its name.
        layers : sequence of str, optional
            The layers it records, in order. Default: all.
        sketches : sequence, optional
            The sketches of its arrays (`tracelab.Project` and so on, or mappings), for readers.
        attrs : mapping, optional
            Attributes, such as ``batch_size``, ``replacement`` and ``n_data`` of noise.
        coordinates : tuple of two integer vectors, optional
            For each sampled coordinate the position of its layer in the group, and its index in
            the layer. Default: every coordinate of the group's layers, in order.
        variables : sequence of Variable, optional
            The arrays, if the kind is not one of tracelab's.

        Raises
        ------
        UsageError
            If the group exists already, or something in its declaration cannot be.
        """
        with self._lock:
            self._check_open()
            if group in self._groups:
                raise UsageError(
                    f"group {group!r} exists already; define it once, before its first row"
                )
            rules = declare(
                group,
                self.layers,
                kind=kind,
                subset=layers,
                sketches=sketches,
                attrs=attrs,
                coordinates=coordinates,
                variables=variables,
            )
            self._recorder.declare(rules)
            self._groups[group] = rules

    def append(self, group: str, *, step: int, **arrays: Any) -> None:
        """Add one row to a group.

        Parameters
        ----------
        group : str
            Name of the group.
        step : int
            Number of completed optimizer steps before this row; increases within a group.
        **arrays
            The row's arrays, without the ``step`` dimension, in the units of the kind. What is
            left out is missing in this row: NaN, or False. A read-only array is taken as it is
            and must not change any more; any other is copied.

        Raises
        ------
        UsageError
            If the row does not fit the group; nothing of it is recorded.
        TraceError
            If recording stopped, for instance on a full disk.
        """
        with self._lock:
            self._check_open()
            rules = self._groups.get(group)
            if rules is None:
                self.define(group)
                rules = self._groups[group]
            number, row = rules.row(step, arrays)
            self._recorder.put(rules, number, row)

    def set_attrs(self, **attrs: Any) -> None:
        """Set attributes of the trace, such as ``optimizer`` or ``seed``.

        Raises
        ------
        UsageError
            If tracelab sets the attribute itself, or JSON cannot hold its value.
        TraceError
            If recording stopped.
        """
        with self._lock:
            self._check_open()
            self._recorder.raise_failure()
            given = given_attributes(attrs)
            if "software" in given:
                given["software"] = {**self._attributes["software"], **given["software"]}
            self._update(given)

    def mark_incomplete(self, reason: str) -> None:
        """Note that something is missing from the trace; closing then says "incomplete"."""
        # A forked child must not touch a lock that a thread of its parent may hold.
        if self._pid != os.getpid():
            return
        with self._lock:
            if self._closed:
                return
            reasons = [*self._attributes["incomplete_reasons"], str(reason)]
            self._update({"incomplete_reasons": reasons})

    def flush(self) -> None:
        """Return once every row appended so far is committed.

        Raises
        ------
        TraceError
            If recording stopped.
        """
        self._check_open()
        self._recorder.flush()

    def close(self) -> None:
        """Commit everything and end the recording; closing again does nothing.

        Raises
        ------
        TraceError
            If recording stopped; the message counts the rows that were lost.
        """
        if self._pid != os.getpid():
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            reasons = self._attributes["incomplete_reasons"]
            for rules in self._groups.values():
                rules.attrs = {**rules.attrs, "complete": not reasons}
            self._update({"state": "incomplete" if reasons else "complete"})
            try:
                self._recorder.flush()
            finally:
                self._recorder.stop()
                exits.forget(self)

    def abandon(self) -> None:
        """End the recording without another commit, because the trace is being replaced."""
        self._closed = True
        self._recorder.stop()
        exits.forget(self)

    def _update(self, attributes: Mapping[str, Any]) -> None:
        self._attributes.update(attributes)
        self._recorder.update(attributes)

    def _check_open(self) -> None:
        if self._pid != os.getpid():
            raise UsageError(
                f"the writer of {self.location} belongs to process {self._pid}, this is "
                f"{os.getpid()}; append in the process that created it"
            )
        if self._closed:
            raise UsageError(f"the writer of {self.location} is closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
            return
        self.mark_incomplete(f"{kind.__name__}: {error}" if str(error) else kind.__name__)
        try:
            self.close()
        except TraceError as second:
            # The first exception is the news; this one goes along.
            if error is not None and not isinstance(error, TraceError):
                error.add_note(str(second))

    def __repr__(self) -> str:
        state = "closed" if self._closed else "recording"
        return (
            f"<tracelab.Writer {self.location} ({state}): {', '.join(self._groups) or 'no rows'}>"
        )


def given_attributes(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return root attributes that a user gives, as JSON can hold them.

    Raises
    ------
    UsageError
        If tracelab sets one of them itself, or JSON cannot hold it.
    """
    for name in attrs:
        if name in _RESERVED:
            raise UsageError(f"the attribute {name!r} is set by tracelab and cannot be given")
    plain: dict[str, Any] = documents.plain(dict(attrs), "attrs")
    return plain
