"""Copies of gradients and weights, taken by the training thread and collected into blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from queue import SimpleQueue

import torch
from torch import Tensor

from tracelab.schedule import Schedule
from tracelab_collectors.collector import Block, Recording, Run, Source
from tracelab_collectors.layout import Layout, copy_into

__all__ = ["Lane"]

# A block amortizes the cost of a hand-over over its steps; a longer one falls out of the cache.
STEPS = 16
BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class _Buffers:
    """The memory of one block: for each source its rows, and views of each row by layer."""

    rows: Mapping[Source, Tensor]
    views: Mapping[Source, list[list[Tensor]]]


class Lane:
    """The collectors that share a schedule and layers, and therefore copies.

    Parameters
    ----------
    run : Run
        What is recorded.
    layout : Layout
        Layers of every member.
    schedule : Schedule
        Schedule of every member.
    members : mapping of str to Recording
        By group name; a member that failed is taken out.
    """

    def __init__(
        self, run: Run, layout: Layout, schedule: Schedule, members: Mapping[str, Recording]
    ) -> None:
        self.layout = layout
        self.schedule = schedule
        self.members = dict(members)
        self.parameters = [run.parameters[name] for name in layout.names]
        reads = frozenset[Source]().union(*(member.reads for member in members.values()))
        self.sources: tuple[Source, ...] = tuple(sorted(reads))
        itemsize = torch.empty((), dtype=run.dtype).element_size()
        row_bytes = layout.size * itemsize * len(self.sources)
        self.capacity = max(1, min(STEPS, BYTES // row_bytes))
        self._steps: list[int] = []
        self._missing: list[tuple[int, int]] = []
        self._free: SimpleQueue[_Buffers] = SimpleQueue()
        # Where blocks are reduced by the device itself, its stream keeps the order: one is enough.
        for _ in range(2 if run.device.type == "cpu" else 1):
            self._free.put(self._allocate(run))
        self._filling: _Buffers | None = None

    @property
    def full(self) -> bool:
        """Whether the block must be taken before the next step can be copied."""
        return len(self._steps) == self.capacity

    def copy(self, step: int, scale: Tensor | None) -> None:
        """Copy what is read before the optimizer's step.

        Parameters
        ----------
        step : int
            The step.
        scale : Tensor, optional
            What gradients are still multiplied by.
        """
        if self._filling is None:
            # Waits until the background thread has reduced a block: memory stays bounded.
            self._filling = self._free.get()
        row = len(self._steps)
        with torch.no_grad():
            for source in self.sources:
                views = self._filling.views[source][row]
                if source == "gradient":
                    self._copy_gradients(views, row)
                    if scale is not None:
                        values = self._filling.rows[source][row]
                        values.div_(scale.to(values.device))
                else:
                    # An update starts as the weights before it.
                    torch._foreach_copy_(views, self.parameters)
        self._steps.append(step)

    def copy_update(self, step: int) -> None:
        """Turn the last row's weights into the update, after the optimizer's step."""
        if "update" not in self.sources or not self._steps or self._steps[-1] != step:
            return
        assert self._filling is not None
        row = len(self._steps) - 1
        with torch.no_grad():
            torch._foreach_sub_(self._filling.views["update"][row], self.parameters)
        self._filling.rows["update"][row].neg_()

    def take(self) -> tuple[Block, _Buffers] | None:
        """Return the block filled so far and its memory, to be released; None if it is empty."""
        if not self._steps or self._filling is None:
            return None
        count, buffers = len(self._steps), self._filling
        block = Block(
            tuple(self._steps),
            {source: rows[:count] for source, rows in buffers.rows.items()},
            tuple(self._missing),
        )
        self._steps, self._missing, self._filling = [], [], None
        return block, buffers

    def release(self, buffers: _Buffers) -> None:
        """Give the memory of a reduced block back."""
        self._free.put(buffers)

    def _copy_gradients(self, views: list[Tensor], row: int) -> None:
        present: list[Tensor] = []
        filled: list[Tensor] = []
        for layer, (view, parameter) in enumerate(zip(views, self.parameters, strict=True)):
            if parameter.grad is None:
                view.fill_(torch.nan)
                self._missing.append((row, layer))
            else:
                present.append(parameter.grad)
                filled.append(view)
        if present:
            copy_into(filled, present)

    def _allocate(self, run: Run) -> _Buffers:
        rows: dict[Source, Tensor] = {
            source: torch.zeros(
                (self.capacity, self.layout.size), dtype=run.dtype, device=run.device
            )
            for source in self.sources
        }
        views = {source: [self.layout.views(row) for row in rows[source]] for source in rows}
        return _Buffers(rows, views)
