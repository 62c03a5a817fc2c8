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
from tracelab.trace.places.locations import Location, Sink
from tracelab.trace.writing import documents, exits
from tracelab.trace.writing.agreement import agree
from tracelab.trace.writing.commit import store_layers
from tracelab.trace.writing.lock import Lock
from tracelab.trace.writing.recorder import Recorder
from tracelab.trace.writing.restored import Restored, interrupted
from tracelab.trace.writing.rows import GroupRules, declare

__all__ = ["RESERVED", "Writer", "given_attributes"]

RESERVED = (
    "format",
    "format_version",
    "run",
    "created",
    "state",
    "incomplete_reasons",
    "interruptions",
    "dropped_rows",
    "generation",
    "resumed",
    "writer",
    "rank",
    "world_size",
)
"""Root attributes that tracelab sets."""


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
        sink: Sink,
        layers: Mapping[str, tuple[int, ...]],
        kinds: Mapping[str, str],
        attributes: Mapping[str, Any],
        *,
        queue_bytes: int,
        flush_seconds: float,
        when_full: str = "block",
        lock: Lock | None = None,
        restored: Restored | None = None,
    ) -> None:
        self.run: str = attributes["run"]
        self.location = location.name
        self.path: Path | None = location.folder
        self.layers = dict(layers)
        self._attributes = dict(attributes)
        groups = () if restored is None else restored.groups
        self._groups: dict[str, GroupRules] = {each.rules.name: each.rules for each in groups}
        # Recorded by an earlier writer, and not declared anew.
        self._inherited = {*self._groups}
        self._held = lock
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._closed = False
        self._recorder = Recorder(
            self.location,
            sink,
            dict(attributes),
            store_layers(sink, layers, kinds) if restored is None else dict(restored.layers),
            queue_bytes,
            flush_seconds,
            when_full,
            groups,
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
        dtype: str | None = None,
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
        dtype : {"float32", "bfloat16"}, optional
            How the sketches of one of tracelab's kinds are stored. Default: ``"float32"``.
            ``"bfloat16"`` takes half the bytes and keeps three digits of any magnitude.

        Raises
        ------
        UsageError
            If the group exists already, or something in its declaration cannot be. A group of a
            trace that goes on is declared as it was, or not at all.
        """
        with self._lock:
            self._check_open()
            known = self._groups.get(group)
            if known is not None and group not in self._inherited:
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
                dtype=dtype,
            )
            if known is not None:
                agree(self.location, known, rules)
                # It may have arrays that no row has held yet.
                known.kind = rules.kind
                self._inherited.discard(group)
                return
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
            rules = self._rules(group)
            number, row = rules.row(step, arrays)
            self._recorder.put(rules, number, row)

    def extend(self, group: str, *, steps: Any, **arrays: Any) -> None:
        """Add many rows to a group; as `append` of each of them, and much cheaper.

        Parameters
        ----------
        group : str
            Name of the group.
        steps : sequence of int, shape (row,)
            The rows' steps, increasing.
        **arrays
            What `append` takes, with a leading dimension ``row``. All rows hold the same arrays.

        Raises
        ------
        UsageError
            If a row does not fit the group; none of them is recorded.
        TraceError
            If recording stopped, for instance on a full disk.
        """
        with self._lock:
            rules = self._rules(group)
            numbers, rows = rules.rows(steps, arrays)
            if numbers.size:
                self._recorder.extend(rules, numbers, rows)

    def _rules(self, group: str) -> GroupRules:
        self._check_open()
        rules = self._groups.get(group)
        if rules is None:
            self.define(group)
            rules = self._groups[group]
        return rules

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

    def mark_incomplete(self, reason: str, *, lasting: bool = True) -> None:
        """Note that something is missing from the trace; closing then says "incomplete".

        Parameters
        ----------
        reason : str
            What, or why.
        lasting : bool
            Whether it still holds when recording goes on with ``resume=``; the end of a process
            does not.
        """
        # A forked child must not touch a lock that a thread of its parent may hold.
        if self._pid != os.getpid():
            return
        with self._lock:
            if self._closed:
                return
            if lasting:
                reasons = [*self._attributes["incomplete_reasons"], str(reason)]
                self._update({"incomplete_reasons": reasons})
            else:
                self._update(interrupted(self._attributes, str(reason)))

    def leave_out(self, group: str, rows: int = 1) -> None:
        """Note that rows of a group were not recorded because there was no room for them.

        Parameters
        ----------
        group : str
            Name of the group.
        rows : int
            How many.
        """
        if self._pid == os.getpid():
            self._recorder.leave_out(group, rows)

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
                complete = not reasons and not self._recorder.dropped
                rules.attrs = {**rules.attrs, "complete": complete}
            self._update({"state": "incomplete" if reasons else "complete"})
            try:
                self._recorder.flush()
            finally:
                self._end()

    def abandon(self) -> None:
        """End the recording without another commit, because the trace is being replaced."""
        self._closed = True
        self._end()

    def _end(self) -> None:
        self._recorder.stop()
        if self._held is not None:
            self._held.release()
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
        reason = f"{kind.__name__}: {error}" if str(error) else kind.__name__
        self.mark_incomplete(reason, lasting=False)
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
        if name in RESERVED:
            raise UsageError(f"the attribute {name!r} is set by tracelab and cannot be given")
    plain: dict[str, Any] = documents.plain(dict(attrs), "attrs")
    return plain
