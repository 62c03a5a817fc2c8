"""What is recorded at which step: lanes of copies and probes, each with its next step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from tracelab.schedule import Schedule
from tracelab.sketch import Sample
from tracelab_collectors.collector import Block, Recording, Run
from tracelab_collectors.handover import Handover
from tracelab_collectors.lane import Lane
from tracelab_collectors.layout import Layout

__all__ = ["Agenda", "Member"]

NEVER = sys.maxsize


@dataclass(frozen=True, slots=True)
class Member:
    """A collector bound to a run."""

    kind: str
    schedule: Schedule
    recording: Recording

    def rehearse(self, run: Run) -> None:
        """Reduce one block that is thrown away, before training starts.

        Kernels are compiled and errors met here, and not beside the first steps.
        """
        if not self.recording.probe:
            weights = run.weights(self.recording.layout).unsqueeze(0)
            sources = dict.fromkeys(self.recording.reads, weights)
            self.recording.reduce(Block((0,), sources))

    def definition(self) -> dict[str, Any]:
        """Return how its group is declared: the arguments of `tracelab.Writer.define`."""
        recording = self.recording
        layout = recording.layout
        numel = dict(zip(layout.names, layout.numel, strict=True))
        tables = [each.tables(numel) for each in recording.sketches if isinstance(each, Sample)]
        return {
            "kind": self.kind,
            "layers": layout.names,
            "sketches": recording.sketches,
            "attrs": {"schedule": self.schedule.describe(), **recording.attrs},
            "coordinates": tables[0] if tables else None,
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

    Attributes
    ----------
    next : int
        The next step at which anything is due: a step before it costs one comparison.
    """

    def __init__(
        self, run: Run, members: Mapping[str, Member], handover: Handover, first: int = 0
    ) -> None:
        self._run = run
        self._members = members
        self._handover = handover
        self._scale: Tensor | None = None
        self._lanes = self._make_lanes()
        self._due = [_Due(lane.schedule, partial(self._copy, lane), first) for lane in self._lanes]
        self._due += [
            _Due(member.schedule, partial(self._probe, name, member.recording), first)
            for name, member in members.items()
            if member.recording.probe
        ]
        for due in self._due:
            due.advance(first)
        self.next = self._first()

    def record(self, step: int, scale: Tensor | None) -> None:
        """Copy and measure what is due, before the optimizer's step.

        Parameters
        ----------
        step : int
            The step.
        scale : Tensor, optional
            What gradients are still multiplied by.
        """
        self._scale = scale
        for due in self._due:
            if due.step <= step:
                due.action(step)
                due.advance(step + 1)
        self.next = self._first()

    def complete(self, step: int) -> None:
        """Copy what is known only after the optimizer's step, and hand over full blocks."""
        for lane in self._lanes:
            lane.copy_update(step)
            if lane.full:
                self._handover.lane(lane)

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

    def _first(self) -> int:
        return min((due.step for due in self._due), default=NEVER)

    def _copy(self, lane: Lane, step: int) -> None:
        if lane not in self._lanes:
            return
        try:
            lane.copy(step, self._scale)
        except Exception as error:
            self._lanes.remove(lane)
            self._handover.lane(lane)
            for name in lane.members:
                self._handover.fail_behind(name, error)

    def _probe(self, name: str, recording: Recording, step: int) -> None:
        self._handover.block(name, recording, Block((step,), {}))

    def _make_lanes(self) -> list[Lane]:
        shared: dict[tuple[Layout, Schedule], dict[str, Recording]] = {}
        for name, member in self._members.items():
            if not member.recording.probe:
                key = (member.recording.layout, member.schedule)
                shared.setdefault(key, {})[name] = member.recording
        return [
            Lane(self._run, layout, schedule, recordings)
            for (layout, schedule), recordings in shared.items()
        ]
