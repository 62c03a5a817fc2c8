"""From the training thread to the store: blocks are reduced and rows appended in the background."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tracelab.errors import TracelabError
from tracelab.trace import Writer
from tracelab.typing import Array
from tracelab_collectors.collector import Block, Recording
from tracelab_collectors.lane import Lane
from tracelab_collectors.worker import Worker, to_host

__all__ = ["STEPS", "BudgetSpentError", "Handover"]

STEPS = "steps"
Arrays: TypeAlias = Callable[[], Mapping[str, Array]]


class BudgetSpentError(TracelabError):
    """The trace has as many bytes as it may."""


class Handover:
    """The way of a session's rows into its trace.

    Parameters
    ----------
    writer : Writer
        Where rows go.
    device : torch.device
        Where blocks are. Those on a CPU are reduced in the background; any other device reduces
        them in the order of its stream, and only the results are waited for in the background.
    recorded : mapping of str to int, optional
        Step of the last row that each group has already, of a trace that goes on.
    max_bytes : int, optional
        Bytes of rows, before compression, behind which nothing more is appended.
    waits : bool
        Whether rows wait for the background; otherwise those it has no room for are left out.

    Attributes
    ----------
    failures : deque of (str, Exception)
        What went wrong since it was last emptied: group and error.
    failed : set of str
        Groups that the background appends nothing more to.
    """

    def __init__(
        self,
        writer: Writer,
        device: torch.device,
        recorded: Mapping[str, int] | None = None,
        max_bytes: int | None = None,
        *,
        waits: bool = True,
    ) -> None:
        self.failures: deque[tuple[str, Exception]] = deque()
        self.failed: set[str] = set()
        # Stopped in the training thread: what was handed over before is still appended.
        self._stopped: set[str] = set()
        self._writer = writer
        self._recorded = recorded or {}
        self._max_bytes = max_bytes
        self._bytes = 0
        self._waits = waits
        self._in_background = device.type == "cpu"
        self._worker = Worker(f"tracelab {writer.run[:8]}")

    def lane(self, lane: Lane) -> None:
        """Reduce and append what a lane has collected."""
        taken = lane.take()
        if taken is None:
            return
        block, buffers = taken

        def reduce() -> None:
            for name, recording in lane.members.items():
                self._reduce_and_append(name, recording, block)
            lane.release(buffers)

        if self._in_background:
            self._worker.put(reduce)
        else:
            for name, recording in lane.members.items():
                self.block(name, recording, block)
            lane.release(buffers)

    def block(self, name: str, recording: Recording, block: Block) -> None:
        """Reduce a block of one recording in this thread, and append its rows in the background."""
        if name in self._stopped | self.failed:
            return
        try:
            arrays = to_host(recording.reduce(block))
        except Exception as error:
            self.fail_behind(name, error)
        else:
            append = partial(self._append, name, block.steps, arrays)
            if not self._worker.put(append, wait=self._waits):
                self.leave_out(name, len(block.steps))

    def leave_out(self, name: str, rows: int = 1) -> None:
        """Count rows that found no room, which the trace then says."""
        self._writer.leave_out(name, rows)

    def rows(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows of the group ``steps``, some of whose scalars may be on a device."""
        scalars = [value for row in rows for value in row.values() if isinstance(value, Tensor)]
        stacked = {}
        if scalars:
            device = scalars[0].device
            stacked["scalars"] = torch.stack([each.to(device).double() for each in scalars])
        self._worker.put(partial(self._append_rows, rows, to_host(stacked)))

    def fail(self, name: str, error: Exception) -> None:
        """Record no more into a group, and note why."""
        self.failed.add(name)
        self.failures.append((name, error))

    def fail_behind(self, name: str, error: Exception) -> None:
        """Note a failure; record no more behind what was handed over before it."""
        self._stopped.add(name)
        self.failures.append((name, error))
        self._worker.put(partial(self.failed.add, name))

    def close(self) -> None:
        """Return once everything handed over has been appended."""
        self._worker.close()

    def _reduce_and_append(self, name: str, recording: Recording, block: Block) -> None:
        if name in self.failed:
            return
        try:
            arrays = to_host(recording.reduce(block))
        except Exception as error:
            self.fail(name, error)
        else:
            self._append(name, block.steps, arrays)

    def _append(self, name: str, steps: Sequence[int], arrays: Arrays) -> None:
        if name in self.failed:
            return
        try:
            found = arrays()
            for array in found.values():
                # Nobody changes it any more: the writer need not copy.
                array.setflags(write=False)
            # The last weights of a run that was ended are the first of the one that goes on.
            first = sum(step <= self._recorded.get(name, -1) for step in steps)
            rows = {key: array[first:] for key, array in found.items()}
            self._spend(sum(array.nbytes for array in rows.values()))
            self._writer.extend(name, steps=steps[first:], **rows)
        except Exception as error:
            self.fail(name, error)

    def _spend(self, nbytes: int) -> None:
        self._bytes += nbytes
        if self._max_bytes is not None and self._bytes > self._max_bytes:
            raise BudgetSpentError(f"the {self._max_bytes} bytes of max_bytes are recorded")

    def _append_rows(self, rows: Sequence[dict[str, Any]], scalars: Arrays) -> None:
        if STEPS in self.failed:
            return
        try:
            read = iter(scalars().get("scalars", ()))
            for row in rows:
                values = {
                    name: next(read) if isinstance(value, Tensor) else value
                    for name, value in row.items()
                }
                values["applied"] = bool(values["applied"])
                self._writer.append(STEPS, **values)
        except Exception as error:
            self.fail(STEPS, error)
