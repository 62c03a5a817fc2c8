"""Schedules against a slow enumeration, and what they refuse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracelab.errors import UsageError
from tracelab.schedule import Schedule, log_spaced

schedules = st.one_of(
    st.builds(
        lambda every, start, length: Schedule(
            every, start, None if length is None else start + length
        ),
        st.integers(1, 7),
        st.integers(0, 9),
        st.none() | st.integers(0, 20),
    ),
    st.builds(
        lambda steps, start: Schedule(steps=tuple(steps), start=start),
        st.lists(st.integers(0, 30), min_size=1),
        st.integers(0, 9),
    ),
)


@given(schedules, st.integers(0, 40))
def test_next_is_the_first_due_step(schedule: Schedule, step: int) -> None:
    found = next((t for t in range(step, step + 60) if schedule.due(t)), None)
    assert schedule.next(step) == found


def test_period_start_and_stop() -> None:
    schedule = Schedule(every=10, start=5, stop=26)
    assert [t for t in range(100) if schedule.due(t)] == [5, 15, 25]
    assert schedule.describe() == "every 10 from 5 before 26"


def test_listed_steps_are_sorted_and_distinct() -> None:
    schedule = Schedule(steps=[7, 0, 7, 3], stop=7)
    assert schedule.steps == (0, 3)
    assert schedule.describe() == "steps 0, 3"


def test_equal_schedules_are_one_key() -> None:
    assert len({Schedule(every=2), Schedule.of(2), Schedule.of(every=Schedule(2))}) == 1


def test_log_spaced_steps_are_evenly_spaced_in_their_logarithm() -> None:
    assert log_spaced(10_001, 5).steps == (1, 10, 100, 1000, 10_000)
    crowded = log_spaced(6, 50).steps
    assert crowded == (1, 2, 3, 4, 5)


def test_every_takes_a_schedule_and_cuts_it() -> None:
    assert Schedule.of(log_spaced(1001, 4), start=10, stop=1000).steps == (10, 100)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Schedule(every=0), "every must be an integer of at least 1, got 0"),
        (lambda: Schedule(every=2.5), "every must be an integer"),
        (lambda: Schedule(every=True), "every must be an integer"),
        (lambda: Schedule(start=-1), "start must be an integer of at least 0, got -1"),
        (lambda: Schedule(start=5, stop=4), "stop must be an integer of at least 5, got 4"),
        (lambda: Schedule(steps=[]), "steps lists no step"),
        (lambda: Schedule(steps=[1, -2]), "steps must be integers of at least 0, got -2"),
        (lambda: Schedule.of(log_spaced(9, 2), steps=[1]), "leave one of them out"),
        (lambda: log_spaced(5, 0), "count >= 1, got start=1, stop=5, count=0"),
        (lambda: log_spaced(1, 3), "1 <= start < stop"),
        (lambda: log_spaced(9, 3, start=0), "1 <= start < stop"),
    ],
)
def test_refusals(make, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()
