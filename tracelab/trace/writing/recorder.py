"""The background thread of a writer: a bounded queue in, commits out."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

from tracelab.errors import TraceError, UsageError
from tracelab.trace.places.locations import Sink
from tracelab.trace.writing import documents
from tracelab.trace.writing.blocks import Block, capacity, owned
from tracelab.trace.writing.commit import Documents, GroupStore
from tracelab.trace.writing.layout import GROUP_BYTES
from tracelab.trace.writing.outbox import Outbox
from tracelab.trace.writing.restored import RestoredGroup, interrupted
from tracelab.trace.writing.rows import GroupRules
from tracelab.typing import Array, IntArray

__all__ = ["Recorder"]

# The thread sleeps until this much is handed over: waking it for every row would make training
# wait for the interpreter lock.
_WAKE_BYTES = 8 * 2**20
_WAKE_BLOCKS = 64

# Two of the largest shards and their indexes: one is written while another waits for the disk.
IN_FLIGHT_BYTES = 130 * 2**20


class Recorder:
    """Takes rows from the training thread and commits them.

    Parameters
    ----------
    name : str
        Location, for messages.
    sink : Sink
        Where objects go.
    attributes : dict
        Root attributes; changed through `update` only. ``compression`` is how rows are stored.
    members : dict
        Documents that are stored already.
    queue_bytes : int
        Rows pending beyond which `put` blocks.
    flush_seconds : float
        How long a row waits for its commit at most.
    when_full : {"block", "thin"}
        Whether `put` waits for room or leaves rows out, which the trace then says.
    restored : sequence of RestoredGroup
        Groups that have rows already.
    """

    def __init__(
        self,
        name: str,
        sink: Sink,
        attributes: dict[str, Any],
        members: Documents,
        queue_bytes: int,
        flush_seconds: float,
        when_full: str = "block",
        restored: Sequence[RestoredGroup] = (),
    ) -> None:
        self._name = name
        self._sink = sink
        self._compression: str = attributes["compression"]
        self._thins = when_full == "thin"
        self._attributes = attributes
        self._queue_bytes = queue_bytes
        self._flush_seconds = flush_seconds
        self._memory = min(GROUP_BYTES, max(queue_bytes, 2**16))
        self._groups: dict[str, GroupStore] = {}
        self._members = members
        self._changed = threading.Condition()
        # Everything below is guarded by the condition's lock.
        self._queue: deque[Block | GroupRules] = deque()
        self._filling: dict[str, Block] = {}
        self._pending = 0
        self._starved = False
        self._accepted: Counter[str] = Counter()
        self._committed: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._commit_at: float | None = None
        self._asked = 0
        self._answered = 0
        self._closing = False
        self._failure: Exception | None = None
        for group in restored:
            self._members = self._members | group.members()
            self._accepted[group.rules.name] = self._committed[group.rules.name] = group.rows
        self._commit_root(attributes, self._members)
        self._outbox = Outbox(
            sink, f"tracelab {name} storing", min(IN_FLIGHT_BYTES, self._memory), self._wake
        )
        for group in restored:
            store = GroupStore(group.rules, self._outbox, self._memory, self._compression)
            store.restore(group)
            self._groups[group.rules.name] = store
        self._thread = threading.Thread(target=self._run, name=f"tracelab {name}", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------- from the training thread

    def put(self, rules: GroupRules, step: int, row: Mapping[str, Array]) -> None:
        """Hand a row over; blocks while as much as the queue may hold is pending."""
        nbytes = rules.row_bytes(row)
        kept = owned(rules, row, nbytes)
        with self._changed:
            if self._admits(rules.name, 1, nbytes):
                self._block(rules, kept, nbytes).add(step, kept)
                self._count(rules.name, 1, nbytes)

    def extend(self, rules: GroupRules, steps: IntArray, rows: Mapping[str, Array]) -> None:
        """Hand rows over, arrays with a leading dimension; what `put` does with each of them."""
        nbytes = rules.row_bytes(rows)
        if capacity(nbytes) == 1:
            for number, step in enumerate(steps):
                self.put(rules, int(step), {name: array[number] for name, array in rows.items()})
            return
        at_once = min(capacity(nbytes), max(1, self._queue_bytes // nbytes))
        done = 0
        while done < len(steps):
            with self._changed:
                count = min(at_once, len(steps) - done)
                if not self._admits(rules.name, count, nbytes):
                    done += count
                    continue
                first = {name: array[done] for name, array in rows.items()}
                block = self._block(rules, first, nbytes)
                taken = block.add_rows(steps, rows, done, count)
                self._count(rules.name, taken, nbytes)
            done += taken

    def leave_out(self, group: str, count: int) -> None:
        """Note rows that were not handed over because there was no room for them."""
        with self._changed:
            self._dropped[group] += count

    def _admits(self, group: str, count: int, nbytes: int) -> bool:
        """Wait until there is room for rows and return True; False if they are left out."""
        wanted = count * nbytes
        while self._going() and self._pending and self._pending + wanted > self._queue_bytes:
            self._starved = True
            self._changed.notify_all()
            if self._thins:
                self._dropped[group] += count
                self._schedule()
                return False
            self._changed.wait()
        return True

    def _block(self, rules: GroupRules, row: Mapping[str, Array], nbytes: int) -> Block:
        """Return the block that takes rows like this one, with room for one at least."""
        block = self._filling.get(rules.name)
        if block is None or not block.takes(row):
            if block is not None:
                self._queue.append(block)
            block = self._filling[rules.name] = Block.begin(rules, row, nbytes)
        return block

    def _count(self, group: str, rows: int, nbytes: int) -> None:
        self._pending += rows * nbytes
        self._accepted[group] += rows
        self._schedule()
        if self._full():
            self._changed.notify_all()

    def declare(self, rules: GroupRules) -> None:
        """Hand over a group's declaration, before its rows."""
        with self._changed:
            if self._going():
                self._queue.append(rules)
                self._schedule()

    def update(self, attributes: Mapping[str, Any]) -> None:
        """Change root attributes; they are stored with the next commit."""
        with self._changed:
            self._attributes = {**self._attributes, **attributes}
            self._schedule()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _schedule(self) -> None:
        if self._commit_at is None:
            self._commit_at = time.monotonic() + self._flush_seconds
            self._changed.notify_all()

    def _full(self) -> bool:
        return (
            self._starved
            or self._pending >= min(_WAKE_BYTES, self._queue_bytes // 2)
            or len(self._queue) >= _WAKE_BLOCKS
        )

    def flush(self) -> None:
        """Return once everything handed over so far is committed.

        Raises
        ------
        TraceError
            If it could not be.
        """
        with self._changed:
            self._asked += 1
            mine = self._asked
            self._changed.notify_all()
            while self._answered < mine and self._going():
                self._changed.wait()

    @property
    def dropped(self) -> Mapping[str, int]:
        """Number of rows left out so far, by group."""
        with self._changed:
            return dict(self._dropped)

    def stop(self) -> None:
        """End the threads, without another commit."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._outbox.stop()

    def _going(self) -> bool:
        """Return True, or raise because recording stopped."""
        self.raise_failure()
        if self._closing:
            raise UsageError(f"the writer of {self._name} is closed")
        return True

    def raise_failure(self) -> None:
        """Raise TraceError if recording stopped; it counts the rows that were lost."""
        if self._failure is None:
            return
        lost = self._accepted - self._committed
        by_group = ", ".join(f"{count} of {group!r}" for group, count in sorted(lost.items()))
        remedy = "please report this to tracelab's developers"
        if isinstance(self._failure, OSError):
            remedy = "make room or choose another location, then record again"
        if isinstance(self._failure, TraceError):
            remedy = "resume=True goes on after it"
        raise TraceError(
            f"recording to {self._name} stopped: {type(self._failure).__name__}: {self._failure}; "
            f"rows handed over and lost: {by_group or 'none'}; what was committed before can be "
            f"read; {remedy}"
        ) from self._failure

    # ---------------------------------------------------------------------------- in the thread

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._due():
                    wait = None
                    if self._commit_at is not None:
                        wait = min(self._commit_at - time.monotonic(), threading.TIMEOUT_MAX)
                    self._changed.wait(wait)
                if self._closing:
                    return
                asked = self._asked
                commit = asked > self._answered or self._overdue()
                attributes = self._attributes
                items = self._take()
            try:
                if self._outbox.failed:
                    self._outbox.settle()
                self._absorb(items)
                if commit:
                    self._commit(attributes)
            except Exception as error:
                self._fail(error)
                return
            with self._changed:
                if commit:
                    self._answered = asked
                    self._changed.notify_all()

    def _due(self) -> bool:
        return (
            self._closing
            or self._asked > self._answered
            or self._full()
            or self._overdue()
            or self._outbox.failed
        )

    def _overdue(self) -> bool:
        return self._commit_at is not None and time.monotonic() >= self._commit_at

    def _take(self) -> deque[Block | GroupRules]:
        items, self._queue = self._queue, deque()
        items.extend(self._filling.values())
        self._filling = {}
        self._starved = False
        return items

    def _absorb(self, items: deque[Block | GroupRules]) -> None:
        """Move rows into shards; each block is free for others as soon as it has been."""
        while items:
            item = items.popleft()
            if isinstance(item, GroupRules):
                self._groups[item.name] = GroupStore(
                    item, self._outbox, self._memory, self._compression
                )
                continue
            self._groups[item.group].extend(item)
            with self._changed:
                self._pending -= item.count * item.row_bytes
                self._changed.notify_all()

    def _commit(self, attributes: Mapping[str, Any]) -> None:
        with self._changed:
            # Rows that arrive from here on wait for the next commit.
            self._commit_at = None
            if self._queue or self._filling or self._attributes is not attributes:
                self._schedule()
            attributes = self._described(attributes)
        members = dict(self._members)
        for group in self._groups.values():
            group.store_rows()
        self._outbox.settle()
        for group in self._groups.values():
            members |= group.store_documents()
        self._outbox.settle()
        self._commit_root(attributes, members)
        self._members = members
        with self._changed:
            self._committed = Counter({name: group.rows for name, group in self._groups.items()})

    def _described(self, attributes: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return root attributes that say which rows were left out."""
        if not self._dropped:
            return attributes
        by_group = ", ".join(
            f"{count} of {name!r}" for name, count in sorted(self._dropped.items())
        )
        reason = f"rows left out because storage did not keep up: {by_group}"
        before = Counter(attributes.get("dropped_rows", {}))
        return {
            **attributes,
            "state": "recording" if attributes["state"] == "recording" else "incomplete",
            "incomplete_reasons": [*attributes["incomplete_reasons"], reason],
            "dropped_rows": dict(sorted((before + self._dropped).items())),
        }

    def _commit_root(self, attributes: Mapping[str, Any], members: Documents) -> None:
        document = documents.root(attributes, members)
        self._sink.put("zarr.json", [documents.dump(document)])

    def _fail(self, error: Exception) -> None:
        with self._changed:
            attributes = self._described(self._attributes)
        attributes = {
            **attributes,
            "state": "incomplete",
            **interrupted(attributes, f"{type(error).__name__}: {error}"),
        }
        # What was on its way when the first object failed must not come after the last document.
        with contextlib.suppress(Exception):
            self._outbox.settle()
        # On a full disk this fails too; the trace then says "recording" for ever.
        with contextlib.suppress(Exception):
            self._commit_root(attributes, self._members)
        with self._changed:
            self._failure = error
            self._queue.clear()
            self._filling = {}
            self._groups = {}
            self._pending = 0
            self._changed.notify_all()
