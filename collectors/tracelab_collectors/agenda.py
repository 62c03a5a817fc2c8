"""What is recorded at which step: lanes of copies and probes, each with its next step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor

from tracelab.schedule import Schedule
from tracelab_collectors.collector import Block, Recording, Run, Source
from tracelab_collectors.handover import Handover
from tracelab_collectors.lane import Lane
from tracelab_collectors.layout import Layout

__all__ = ["Agenda", "Member"]

NEVER = sys.maxsize

# What collectors have in common that share copies.
_Shared: TypeAlias = tuple[Layout, Schedule, int, bool, frozenset[Source]]


@dataclass(frozen=True, slots=True)
class Member:
    """A collector bound to a run."""

    kind: str
    schedule: Schedule
    recording: Recording

    def rehearse(self, run: Run) -> int:
        """Reduce one block that is thrown away, before training starts; return its row's bytes.

        Kernels are compiled and errors met here, and not beside the first steps. What probes
        measure is not known before: they count as 0.
        """
        if self.recording.probe:
            return 0
        weights = run.weights(self.recording.layout).unsqueeze(0)
        names = [each.name if isinstance(each, Source) else each for each in self.recording.reads]
        sources = dict.fromkeys(names, weights)
        if self.recording.passes:
            sources["passes"] = weights.unsqueeze(1).expand(-1, self.recording.passes, -1)
        arrays = self.recording.reduce(Block((0,), sources))
        return sum(array.numel() * array.element_size() for array in arrays.values())

    def definition(self) -> dict[str, Any]:
        """Return how its group is declared: the arguments of `tracelab.Writer.define`."""
        recording = self.recording
        return {
            "kind": self.kind,
            "layers": recording.layout.names,
            "sketches": recording.sketches,
            "attrs": {"schedule": self.schedule.describe(), **recording.attrs},
            "coordinates": recording.layout.coordinates(recording.sketches),
            "variables": recording.variables or None,
        }


@dataclass(slots=True)
class _Due:
    """Something to do at the steps of a schedule, and the next of them."""

    schedule: Schedule
    action: Callable[[int], None]
    step: int

    def advance(self, step: int) -> None:
        found = self.schedule.next(step)
        self.step = NEVER if found is None else found


class Agenda:
    """Does what is due.

    Parameters
    ----------
    run : Run
        What is recorded.
    members : mapping of str to Member
        The collectors, by group name.
    handover : Handover
        Where blocks go.
    first : int
        The first step.
    waits : bool
        Whether rows wait for memory; otherwise they are left out, and counted.

    Attributes
    ----------
    next : int
        The next step at which anything is due: a step before it costs one comparison.
    listens : bool
        Whether anything is copied behind backward passes.
    hears : bool
        Whether anything is copied while gradients arrive.
    """

    def __init__(
        self,
        run: Run,
        members: Mapping[str, Member],
        handover: Handover,
        first: int = 0,
        *,
        waits: bool = True,
    ) -> None:
        self._run = run
        self._members = members
        self._handover = handover
        self._waits = waits
        self._lanes = self._make_lanes()
        self._copies = {
            lane: _Due(lane.schedule, partial(self._begin, lane), first) for lane in self._lanes
        }
        self._due = [*self._copies.values()]
        self._due += [
            _Due(member.schedule, partial(self._probe, name, member.recording), first)
            for name, member in members.items()
            if member.recording.probe
        ]
        for due in self._due:
            due.advance(first)
        self._listen([lane for lane in self._lanes if lane.listens])
        self._heard: set[Lane] = set()
        self._scales: dict[int, Tensor | None] = {}
        self._step = first
        self.next = self._first()

    def begin(self, step: int) -> None:
        """Copy and measure what is due, before the first optimizer's step."""
        self._step = step
        for due in self._due:
            if due.step <= step:
                due.action(step)
                due.advance(step + 1)
        self.next = self._first()

    def gradients(
        self, step: int, which: int, scale: Tensor | None, passes_scale: Tensor | None
    ) -> None:
        """Copy gradients that are due, before an optimizer's step.

        Parameters
        ----------
        step : int
            The step.
        which : int
            The optimizer.
        scale : Tensor, optional
            What its gradients are still multiplied by.
        passes_scale : Tensor, optional
            What they were multiplied by when backward passes ended.
        """
        self._scales[which] = passes_scale
        for lane in tuple(self._lanes):
            if lane.begins(step):
                self._attempt(lane, partial(lane.copy_gradients, which, scale))

    def expects(self, step: int) -> list[Lane]:
        """Return the lanes that copy something behind the backward passes before a step."""
        return [
            lane for lane in self._listening if lane.begins(step) or self._copies[lane].step <= step
        ]

    def arriving(self, step: int, layer: int, index: int, gradient: Tensor) -> None:
        """Copy what a backward pass is about to add to a layer's gradient."""
        name = self._run.layout.names[layer]
        for lane in self.expects(step):
            if lane.passes and name in lane.layout.positions:
                position = lane.layout.positions[name]
                self._attempt(lane, partial(lane.heard, step, position, index, gradient))

    def passed(self, step: int, stepped: set[int]) -> None:
        """Copy what backward passes have accumulated so far; some optimizers may have stepped."""
        for lane in self.expects(step):
            self._heard.add(lane)
            self._attempt(lane, partial(lane.passed, step, stepped))

    def complete(self, step: int, which: int) -> None:
        """Copy what is known only after an optimizer's step."""
        for lane in tuple(self._lanes):
            self._attempt(lane, partial(lane.take_update, step, which))

    def close(self, step: int, passes: int, stepped: set[int]) -> None:
        """Complete the rows of a step, and hand over full blocks.

        Parameters
        ----------
        step : int
            The step.
        passes : int
            The backward passes that its gradient is made of.
        stepped : set of int
            The optimizers that have taken the step.
        """
        for lane in tuple(self._lanes):
            if lane.awaits and lane.begins(step):
                self._attempt(lane, lane.lack_gradients)
        for lane in tuple(self._lanes):
            if lane.begins(step):
                self._attempt(lane, partial(lane.lack_updates, stepped))
        for lane in tuple(self._listening):
            if lane.begins(step):
                scale = next((s for s in self._scales.values() if s is not None), None)
                self._attempt(lane, partial(lane.settle, passes, scale, lane in self._heard))
        self._heard.clear()
        self._scales.clear()
        for lane in self._lanes:
            if lane.full:
                self._handover.lane(lane)

    def refresh(self) -> None:
        """Record the parameters that took the place of others."""
        for lane in self._lanes:
            lane.refresh()

    def hand_over(self) -> None:
        """Hand over what has been copied so far."""
        for lane in self._lanes:
            self._handover.lane(lane)

    def conclude(self, step: int) -> None:
        """Record what is recorded at the end of a run."""
        for name, member in self._members.items():
            if member.recording.final:
                weights = self._run.weights(member.recording.layout).unsqueeze(0)
                self._handover.block(name, member.recording, Block((step,), {"weight": weights}))

    def stop(self) -> None:
        """Record nothing from now on."""
        self._lanes, self._due, self.next = [], [], NEVER
        self._listen([])

    def _listen(self, lanes: list[Lane]) -> None:
        self._listening = lanes
        self.listens = bool(lanes)
        self.hears = any(lane.passes for lane in lanes)

    def _first(self) -> int:
        return min((due.step for due in self._due), default=NEVER)

    def _begin(self, lane: Lane, step: int) -> None:
        if lane in self._lanes:
            self._attempt(lane, partial(self._begin_row, lane, step))

    def _begin_row(self, lane: Lane, step: int) -> None:
        if not lane.begin(step):
            for name in lane.members:
                self._handover.leave_out(name)

    def _attempt(self, lane: Lane, action: Callable[[], Any]) -> None:
        """Do something with a lane; record no more of its members if that fails."""
        try:
            action()
        except Exception as error:
            if lane not in self._lanes:
                return
            self._lanes.remove(lane)
            self._listen([each for each in self._listening if each is not lane])
            lane.abandon(self._step)
            self._handover.lane(lane)
            for name in lane.members:
                self._handover.fail_behind(name, error)

    def _probe(self, name: str, recording: Recording, step: int) -> None:
        self._handover.block(name, recording, Block((step,), {}))

    def _make_lanes(self) -> list[Lane]:
        shared: dict[_Shared, dict[str, Recording]] = {}
        for name, member in self._members.items():
            recording = member.recording
            if not recording.probe:
                pre_clip = "pre_clip" in recording.reads
                # Reading a source of its own may fail, and takes the others of the lane along.
                own = frozenset(each for each in recording.reads if isinstance(each, Source))
                key = (recording.layout, member.schedule, recording.passes, pre_clip, own)
                shared.setdefault(key, {})[name] = recording
        return [
            Lane(self._run, layout, schedule, recordings, waits=self._waits)
            for (layout, schedule, *_), recordings in shared.items()
        ]
