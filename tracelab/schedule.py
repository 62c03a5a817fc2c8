"""At which optimizer steps something is recorded: a frozen value that answers in constant time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from tracelab.errors import UsageError

__all__ = ["Schedule", "log_spaced"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """The steps at which something is due.

    Either every `every` steps from `start` on, or exactly the listed `steps`; in both cases only
    steps ``t`` with ``start <= t < stop``.

    Parameters
    ----------
    every : int
        Period, at least 1. Ignored where `steps` are listed.
    start : int
        First step, at least 0.
    stop : int, optional
        First step that is not due any more. Default: never.
    steps : iterable of int, optional
        The steps themselves, in any order.

    Raises
    ------
    UsageError
        If a number is out of its range or `steps` is empty.

    Examples
    --------
    >>> Schedule(every=10, start=5).due(25)
    True
    >>> Schedule(steps=[1, 10, 100]).next(11)
    100
    """

    every: int = 1
    start: int = 0
    stop: int | None = None
    steps: tuple[int, ...] | None = None
    _members: frozenset[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, value, least in (
            ("every", self.every, 1),
            ("start", self.start, 0),
            ("stop", self.start if self.stop is None else self.stop, self.start),
        ):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
                raise UsageError(f"{name} must be an integer of at least {least}, got {value!r}")
        listed: tuple[int, ...] | None = None
        if self.steps is not None:
            listed = _listed(self.steps)
            listed = tuple(
                step
                for step in listed
                if step >= self.start and (self.stop is None or step < self.stop)
            )
        object.__setattr__(self, "steps", listed)
        object.__setattr__(self, "_members", frozenset(listed or ()))

    @classmethod
    def of(
        cls,
        every: int | Schedule = 1,
        start: int = 0,
        stop: int | None = None,
        steps: Iterable[int] | None = None,
    ) -> Schedule:
        """Return the schedule that a collector's arguments describe.

        Parameters
        ----------
        every : int or Schedule
            A period, or a schedule such as ``log_spaced(...)``.
        start, stop, steps
            As for `Schedule`.

        Raises
        ------
        UsageError
            If `every` is a schedule and `steps` is given too.
        """
        if not isinstance(every, Schedule):
            return cls(every, start, stop, None if steps is None else tuple(steps))
        if steps is not None:
            raise UsageError(
                f"every={every!r} already lists its steps, so steps={steps!r} cannot be given "
                "beside it; leave one of them out"
            )
        stops = [each for each in (every.stop, stop) if each is not None]
        return cls(every.every, max(every.start, start), min(stops, default=None), every.steps)

    def due(self, step: int) -> bool:
        """Return whether `step` is due, in constant time."""
        if self.steps is not None:
            return step in self._members
        if step < self.start or (self.stop is not None and step >= self.stop):
            return False
        return (step - self.start) % self.every == 0

    def next(self, step: int) -> int | None:
        """Return the first due step that is not before `step`, or None where there is none."""
        if self.steps is not None:
            position = bisect_left(self.steps, step)
            return self.steps[position] if position < len(self.steps) else None
        periods = max(0, -(-(step - self.start) // self.every))
        found = self.start + periods * self.every
        return found if self.stop is None or found < self.stop else None

    def describe(self) -> str:
        """Return the schedule in words, as the trace stores it."""
        if self.steps is not None:
            return f"steps {', '.join(map(str, self.steps))}"
        until = "" if self.stop is None else f" before {self.stop}"
        return f"every {self.every} from {self.start}{until}"


def log_spaced(stop: int, count: int, start: int = 1) -> Schedule:
    """Return at most `count` distinct steps, evenly spaced in their logarithm, below `stop`.

    Small steps coincide after rounding, so that fewer than `count` can remain.

    Parameters
    ----------
    stop : int
        First step beyond the last; usually the length of the run.
    count : int
        How many steps before rounding, at least 1.
    start : int
        First step, at least 1.

    Returns
    -------
    Schedule
        To be given as ``every=``.

    Raises
    ------
    UsageError
        If ``start`` is below 1, ``stop`` not above it or ``count`` below 1.

    Examples
    --------
    >>> log_spaced(1001, 4).steps
    (1, 10, 100, 1000)
    """
    if start < 1 or stop <= start or count < 1:
        raise UsageError(
            "log_spaced needs 1 <= start < stop and count >= 1, "
            f"got start={start}, stop={stop}, count={count}"
        )
    return Schedule(steps=tuple(np.rint(np.geomspace(start, stop - 1, count)).astype(int).tolist()))


def _listed(steps: Iterable[int]) -> tuple[int, ...]:
    values = tuple(steps)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
            raise UsageError(f"steps must be integers of at least 0, got {value!r}")
    if not values:
        raise UsageError("steps lists no step; name at least one or leave it out")
    return tuple(sorted({int(value) for value in values}))
