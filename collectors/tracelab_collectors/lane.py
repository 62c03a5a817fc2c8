"""Copies of gradients and weights, taken by the training thread and collected into blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import torch
from torch import Tensor

from tracelab.schedule import Schedule
from tracelab_collectors.collector import Block, Recording, Run, Source, local_part
from tracelab_collectors.layout import Layout, copy_into

__all__ = ["Lane"]

# A block amortizes the cost of a hand-over over its steps; a longer one falls out of the cache.
STEPS = 16
BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class _Buffers:
    """The memory of one block: for each source its rows, and views of each row by layer."""

    rows: Mapping[str, Tensor]
    views: Mapping[str, list[list[Tensor]]]
    # Of each row and each backward pass, the views by layer.
    passes: list[list[list[Tensor]]]


class Lane:
    """The collectors that share a schedule and layers, and therefore copies.

    A row is begun before the step of the first optimizer, gets the gradients of each optimizer's
    layers before that optimizer's step, and their updates behind it.

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
    waits : bool
        Whether a row waits until there is memory for it; otherwise it is left out.
    """

    def __init__(
        self,
        run: Run,
        layout: Layout,
        schedule: Schedule,
        members: Mapping[str, Recording],
        *,
        waits: bool = True,
    ) -> None:
        self.layout = layout
        self.schedule = schedule
        self.members = dict(members)
        self._run = run
        self._waits = waits
        reads = set[str | Source]().union(*(member.reads for member in members.values()))
        self.sources = tuple(sorted(each for each in reads if isinstance(each, str)))
        self._own = tuple(each for each in reads if isinstance(each, Source))
        self.passes = max(member.passes for member in members.values())
        names = [*self.sources, *(each.name for each in self._own)]
        itemsize = torch.empty((), dtype=run.dtype).element_size()
        row_bytes = layout.size * itemsize * max(1, len(names) + self.passes)
        self.capacity = max(1, min(STEPS, BYTES // row_bytes))
        self._names = names
        self._steps: list[int] = []
        self._missing: dict[str, list[tuple[int, int]]] = {}
        self._free: SimpleQueue[_Buffers] = SimpleQueue()
        # Where blocks are reduced by the device itself, its stream keeps the order: one is enough.
        for _ in range(2 if run.device.type == "cpu" else 1):
            self._free.put(self._allocate())
        self._filling: _Buffers | None = None
        # Whether something of the row to come found no memory.
        self._starved = False
        # Whether the last row has no gradients yet.
        self.awaits = False
        # Of the row to come: backward passes and the layers that they reached.
        self._arrived: set[tuple[int, int]] = set()
        self.refresh()

    def refresh(self) -> None:
        """Look up the layers' parameters anew, and which optimizer trains each."""
        self._parameters = [self._run.parameters[name] for name in self.layout.names]
        owner = {
            id(parameter): which
            for which, optimizer in enumerate(self._run.optimizers)
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        self._owned: dict[int, list[int]] = {
            which: [] for which in range(len(self._run.optimizers))
        }
        # A parameter that no optimizer has any more is nobody's: gradient and update are missing.
        self._unowned: list[int] = []
        for layer, parameter in enumerate(self._parameters):
            which = owner.get(id(parameter))
            (self._unowned if which is None else self._owned[which]).append(layer)

    @property
    def full(self) -> bool:
        """Whether the block must be taken before the next step can be copied."""
        return len(self._steps) == self.capacity

    @property
    def listens(self) -> bool:
        """Whether anything is copied behind each backward pass."""
        return bool(self.passes) or "pre_clip" in self.sources

    def begins(self, step: int) -> bool:
        """Return whether the row of a step has been begun."""
        return bool(self._steps) and self._steps[-1] == step

    def begin(self, step: int) -> bool:
        """Begin a row: copy the weights. Return whether there was memory for it.

        Not if there was none while a backward pass left something for it: rows are whole.
        """
        if not self._ready() or self._starved:
            self._starved = False
            return False
        assert self._filling is not None
        row = len(self._steps)
        with torch.no_grad():
            for source in self.sources:
                # An update starts as the weights before it.
                if source in ("weight", "update"):
                    copy_into(self._filling.views[source][row], self._local(self._parameters))
            for own in self._own:
                self._read(own, row)
            if len(self._owned) > 1 and "gradient" in self.sources:
                _lack(self._filling.views["gradient"][row])
                places = [(row, layer) for layer in range(len(self._parameters))]
                self._missing.setdefault("gradient", []).extend(places)
        self.awaits = "gradient" in self.sources and len(self._owned) == 1
        self._steps.append(step)
        return True

    def copy_gradients(self, which: int, scale: Tensor | None) -> None:
        """Copy the gradients of an optimizer's layers.

        Parameters
        ----------
        which : int
            The optimizer.
        scale : Tensor, optional
            What gradients are still multiplied by.
        """
        if "gradient" not in self.sources:
            return
        self._copy_step(which, scale)
        self.awaits = False

    def _copy_step(self, which: int, scale: Tensor | None) -> None:
        assert self._filling is not None
        row = len(self._steps) - 1
        views = self._filling.views["gradient"][row]
        with torch.no_grad():
            if len(self._owned) == 1 and len(self._owned[0]) == len(self._parameters):
                self._copy_gradients("gradient", views, row, range(len(views)))
                if scale is not None:
                    values = self._filling.rows["gradient"][row]
                    values.div_(scale.to(values.device))
                return
            layers = self._owned[which]
            if len(self._owned) > 1:
                places = {(row, layer) for layer in layers}
                self._missing["gradient"] = [
                    place for place in self._missing["gradient"] if place not in places
                ]
            else:
                for layer in set(range(len(views))) - set(layers):
                    views[layer].fill_(torch.nan)
                    self._missing.setdefault("gradient", []).append((row, layer))
            self._copy_gradients("gradient", views, row, layers)
            if scale is not None:
                for layer in layers:
                    views[layer].div_(scale.to(views[layer].device))

    def take_update(self, step: int, which: int) -> None:
        """Turn the copies of an optimizer's weights into updates, after its step."""
        if "update" not in self.sources or not self.begins(step):
            return
        assert self._filling is not None
        row = len(self._steps) - 1
        views = self._filling.views["update"][row]
        layers = self._owned[which]
        with torch.no_grad():
            chosen = [views[layer] for layer in layers]
            after = self._local([self._parameters[layer] for layer in layers])
            if chosen:
                torch._foreach_sub_(chosen, after)
                torch._foreach_neg_(chosen)

    # Backward passes: what they leave is copied into the row of the step that is to come.

    def heard(self, step: int, layer: int, index: int, gradient: Tensor) -> None:
        """Copy the gradient that backward pass `index` adds to a layer.

        The row of `step` may have been begun: closures run, and other optimizers step, within it.
        """
        if index < self.passes and self._ready():
            assert self._filling is not None
            if (0, layer) in self._arrived and index == 0:
                # What came before was thrown away, or was no backward pass.
                owned = next((each for each in self._owned.values() if layer in each), ())
                self._arrived = {place for place in self._arrived if place[1] not in owned}
            self._arrived.add((index, layer))
            view = self._filling.passes[len(self._steps) - self.begins(step)][index][layer]
            with torch.no_grad():
                copy_into([view], self._local([gradient.detach()]))

    def passed(self, step: int, stepped: set[int]) -> None:
        """Copy the gradients that the backward passes so far have accumulated.

        Parameters
        ----------
        step : int
            The step whose row it is, begun or to come.
        stepped : set of int
            Optimizers that have taken that step already.
        """
        if "pre_clip" not in self.sources or not self._ready():
            return
        assert self._filling is not None
        row = len(self._steps) - self.begins(step)
        layers = [
            layer for which, owned in self._owned.items() if which not in stepped for layer in owned
        ]
        kept = set(layers)
        places = self._missing.setdefault("pre_clip", [])
        places[:] = [place for place in places if place[0] != row or place[1] not in kept]
        with torch.no_grad():
            views = self._filling.views["pre_clip"][row]
            self._copy_gradients("pre_clip", views, row, layers)

    def settle(self, passes: int, scale: Tensor | None, seen: bool) -> None:
        """Complete what was copied behind backward passes, once the step has begun.

        Parameters
        ----------
        passes : int
            Backward passes since the last step.
        scale : Tensor, optional
            What their gradients are multiplied by.
        seen : bool
            Whether `passed` was called for this step.
        """
        assert self._filling is not None
        row = len(self._steps) - 1
        with torch.no_grad():
            if self.passes:
                values = self._filling.rows["passes"][row]
                for index, views in enumerate(self._filling.passes[row]):
                    for layer, view in enumerate(views):
                        if index >= passes or (index, layer) not in self._arrived:
                            view.fill_(torch.nan)
                            place = (row * self.passes + index, layer)
                            self._missing.setdefault("passes", []).append(place)
                self._arrived.clear()
                if scale is not None:
                    values.div_(scale.to(values.device))
            if "pre_clip" in self.sources:
                values = self._filling.rows["pre_clip"][row]
                if not seen:
                    _lack(self._filling.views["pre_clip"][row])
                    self._missing["pre_clip"] = [
                        *(p for p in self._missing.get("pre_clip", ()) if p[0] != row),
                        *((row, layer) for layer in range(len(self._parameters))),
                    ]
                elif scale is not None:
                    values.div_(scale.to(values.device))

    def lack_gradients(self) -> None:
        """Mark the gradients of the last row as missing: an optimizer never came to use one."""
        assert self._filling is not None
        row = len(self._steps) - 1
        self.awaits = False
        _lack(self._filling.views["gradient"][row])
        places = [(row, layer) for layer in range(len(self._parameters))]
        self._missing.setdefault("gradient", []).extend(places)

    def lack_updates(self, stepped: set[int]) -> None:
        """Mark the updates of the last row as missing where no step has been taken."""
        if "update" not in self.sources or self._filling is None:
            return
        lacking = list(self._unowned)
        for which, layers in self._owned.items():
            if which not in stepped:
                lacking += layers
        row = len(self._steps) - 1
        views = self._filling.views["update"][row]
        _lack([views[layer] for layer in lacking])
        self._missing.setdefault("update", []).extend((row, layer) for layer in lacking)

    def abandon(self, step: int) -> None:
        """Take back the row of a step, if it has been begun."""
        if self.begins(step):
            self._steps.pop()
            row = len(self._steps)
            self._missing = {
                source: [
                    place
                    for place in places
                    if place[0] // (self.passes if source == "passes" else 1) != row
                ]
                for source, places in self._missing.items()
            }

    def take(self) -> tuple[Block, _Buffers] | None:
        """Return the block filled so far and its memory, to be released; None if it is empty."""
        if not self._steps or self._filling is None:
            return None
        count, buffers = len(self._steps), self._filling
        block = Block(
            tuple(self._steps),
            {source: rows[:count] for source, rows in buffers.rows.items()},
            {source: self._places(source, count) for source in self._missing},
        )
        self._steps, self._missing, self._filling = [], {}, None
        return block, buffers

    def _places(self, source: str, count: int) -> tuple[tuple[int, int], ...]:
        """Return what is missing from the first rows: behind them a row may have been prepared."""
        each = self.passes if source == "passes" else 1
        return tuple(place for place in self._missing[source] if place[0] < count * each)

    def release(self, buffers: _Buffers) -> None:
        """Give the memory of a reduced block back."""
        self._free.put(buffers)

    def _ready(self) -> bool:
        """Return whether there is memory for a row, having waited for it if rows wait."""
        if self._filling is None:
            try:
                # Waits until the background thread has reduced a block: memory stays bounded.
                self._filling = self._free.get(block=self._waits)
            except Empty:
                self._starved = True
                return False
        return True

    def _read(self, source: Source, row: int) -> None:
        assert self._filling is not None
        groups = {
            id(parameter): (optimizer, group)
            for optimizer in self._run.optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        views = self._filling.views[source.name][row]
        for layer, (view, parameter) in enumerate(zip(views, self._parameters, strict=True)):
            optimizer, group = groups.get(id(parameter), (None, {}))
            state: Mapping[str, Any] = (
                {} if optimizer is None else optimizer.state.get(parameter, {})
            )
            value = None if optimizer is None else source.read(parameter.detach(), state, group)
            if value is None:
                view.fill_(torch.nan)
                self._missing.setdefault(source.name, []).append((row, layer))
            else:
                copy_into([view], self._local([value]))

    def _copy_gradients(
        self, source: str, views: list[Tensor], row: int, layers: Sequence[int]
    ) -> None:
        present: list[Tensor] = []
        filled: list[Tensor] = []
        for layer in layers:
            gradient = self._parameters[layer].grad
            if gradient is None:
                views[layer].fill_(torch.nan)
                self._missing.setdefault(source, []).append((row, layer))
            else:
                present.append(gradient)
                filled.append(views[layer])
        if present:
            copy_into(filled, self._local(present))

    def _local(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return the parts of tensors that this process has."""
        if self.layout.shards is None:
            return tensors
        return [local_part(each) for each in tensors]

    def _allocate(self) -> _Buffers:
        run, size = self._run, self.layout.size
        rows: dict[str, Tensor] = {
            name: torch.zeros((self.capacity, size), dtype=run.dtype, device=run.device)
            for name in self._names
        }
        views = {name: [self.layout.views(row) for row in rows[name]] for name in rows}
        passes: list[list[list[Tensor]]] = []
        if self.passes:
            shape = (self.capacity, self.passes, size)
            rows["passes"] = torch.zeros(shape, dtype=run.dtype, device=run.device)
            passes = [[self.layout.views(each) for each in row] for row in rows["passes"]]
        return _Buffers(rows, views, passes)


def _lack(views: Sequence[Tensor]) -> None:
    """Mark what is missing; the padding between layers stays zero."""
    for view in views:
        view.fill_(torch.nan)
