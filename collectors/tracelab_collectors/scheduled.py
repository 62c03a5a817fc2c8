"""What the arguments of every collector have in common."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import InitVar, dataclass, field
from typing import Any

from tracelab.errors import UsageError
from tracelab.schedule import Schedule
from tracelab_collectors.collector import Run, select_layers
from tracelab_collectors.layout import Layout

__all__ = ["Scheduled", "at_least", "rising"]


@dataclass(frozen=True)
class Scheduled:
    """When something is recorded, of which layers, and into which group.

    Parameters
    ----------
    every : int or Schedule
        Record at every so many steps, or as ``tracelab.log_spaced(...)`` says.
    start, stop : int, optional
        First step, and the first one that is not recorded any more.
    steps : iterable of int, optional
        The steps themselves, in place of `every`.
    layers, exclude : str, optional
        Regular expressions that whole layer names must, or must not, match.
    name : str
        Name of the group.

    Raises
    ------
    UsageError
        If the schedule is invalid.
    """

    every: InitVar[int | Schedule] = 1
    start: InitVar[int] = 0
    stop: InitVar[int | None] = None
    steps: InitVar[Iterable[int] | None] = None
    layers: str | None = None
    exclude: str | None = None
    name: str = ""
    schedule: Schedule = field(init=False)

    def __post_init__(
        self,
        every: int | Schedule,
        start: int,
        stop: int | None,
        steps: Iterable[int] | None,
    ) -> None:
        object.__setattr__(self, "schedule", Schedule.of(every, start, stop, steps))
        self.validate()

    def validate(self) -> None:
        """Check what a collector has of its own; a collector may do so."""

    @property
    def whose(self) -> str:
        """Who asks, for errors."""
        return f"collector {self.name!r}"

    def layout(self, run: Run) -> Layout:
        """Return the layers of a run that are recorded.

        Raises
        ------
        UsageError
            If there is none.
        """
        return select_layers(run.layout, self.layers, self.exclude, self.whose)


def at_least(least: int, **values: Any) -> None:
    """Check that values are integers of at least `least`.

    Raises
    ------
    UsageError
        If one is not.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UsageError(f"{name} must be an integer of at least {least}, got {value!r}")


def rising(name: str, values: Any) -> tuple[float, ...]:
    """Return values as a tuple.

    Raises
    ------
    UsageError
        If there is none, or they are not finite, positive and rising.
    """
    several = isinstance(values, Iterable) and not isinstance(values, str)
    found = tuple(values) if several else ()
    numbers = all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in found)
    usable = numbers and all(a < b for a, b in itertools.pairwise((0, *found, math.inf)))
    if not found or not usable:
        raise UsageError(f"{name} must be one or more positive numbers, rising, got {values!r}")
    return tuple(float(each) for each in found)
