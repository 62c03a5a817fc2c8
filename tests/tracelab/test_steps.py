"""Rows by step: which there are, and which of three reasons why one is not there."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from tracelab import steps
from tracelab.errors import NotRecordedError, UsageError


def group(labels):
    labels = np.asarray(labels, dtype=np.int64)
    return xr.Dataset({"loss": ("step", labels * 2.0)}, {"step": labels})


def select(labels, step, recording=False):
    return steps.select(group(labels), step, name="g", recording=recording)["step"].values.tolist()


@pytest.mark.parametrize(
    ("step", "found"),
    [
        (None, [0, 10, 20, 30]),
        (20, 20),
        (np.int32(20), 20),
        (np.array(20), 20),
        ([30, 0, 0], [30, 0, 0]),
        ((10,), [10]),
        (range(0, 31, 10), [0, 10, 20, 30]),
        (np.array([10, 20], np.uint8), [10, 20]),
        (xr.DataArray([10, 20], dims="step"), [10, 20]),
        (slice(None), [0, 10, 20, 30]),
        (slice(10, 20), [10, 20]),
        (slice(1, 29), [10, 20]),
        (slice(15, None), [20, 30]),
        (slice(None, 15), [0, 10]),
        (slice(None, None, 2), [0, 20]),
        (slice(5, 10**30, 2), [10, 30]),
        (slice(np.int64(10), np.int16(10)), [10]),
    ],
)
def test_what_selects(step, found):
    assert select([0, 10, 20, 30], step) == found


@given(
    st.lists(st.integers(0, 50), unique=True, min_size=1).map(sorted),
    st.integers(0, 60) | st.none(),
    st.integers(0, 60) | st.none(),
    st.integers(1, 4) | st.none(),
)
def test_slices_are_what_they_say(labels, start, stop, step):
    wanted = [
        label
        for label in labels
        if (start is None or label >= start) and (stop is None or label <= stop)
    ][::step]
    if wanted:
        assert select(labels, slice(start, stop, step)) == wanted
    else:
        with pytest.raises(NotRecordedError):
            select(labels, slice(start, stop, step))


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (-1, r"do not count from the end, got -1; for rows by position use \.isel\(step="),
        ([0, -1], r"do not count from the end, got \[0, -1\]"),
        (slice(-5, None), "do not count from the end, got slice"),
        (slice(None, -5), "do not count from the end, got slice"),
        (slice(None, None, -1), "do not count from the end, got slice"),
        (slice(None, None, 0), "takes every first row or fewer, got slice"),
        (slice(0.5, None), "has integers as its ends, got slice"),
        (slice("a", None), "has integers as its ends, got slice"),
        (slice(True, None), "has integers as its ends, got slice"),
        (float("nan"), "must be an integer, a list of integers or a slice, got nan"),
        (10.0, r"must be an integer, a list of integers or a slice, got 10\.0"),
        ("10", "must be an integer, a list of integers or a slice, got '10'"),
        (True, "must be an integer, a list of integers or a slice, got True"),
        ([[0, 10]], r"must be an integer, a list of integers or a slice, got \[\[0, 10\]\]"),
        ([0, None], r"must be an integer, a list of integers or a slice, got \[0, None\]"),
        ({0, 10}, "must be an integer, a list of integers or a slice, got {0, 10}"),
        ([], "an empty list, which selects nothing; leave it out"),
    ],
)
def test_what_is_no_step(step, words):
    for labels in ([0, 10], []):
        with pytest.raises(UsageError, match=words):
            select(labels, step)


NOT_THEN, NOT_YET, NEVER = "was not recorded at step", "yet: ", "has no rows"


@pytest.mark.parametrize(
    ("labels", "step", "recording", "words"),
    [
        ([0, 10], 4, False, f"group 'g' {NOT_THEN} 4; the nearest is 0"),
        ([0, 10], 4, True, f"{NOT_THEN} 4; the nearest is 0"),
        ([0, 10], 11, False, f"{NOT_THEN} 11; the nearest is 10"),
        ([0, 10], 11, True, f"no row at step 11 {NOT_YET}the last is 10, and the run is still rec"),
        ([0, 10], [0, 10, 12, 4], True, f"no row at step 12 {NOT_YET}"),
        ([0, 10], 2**63, False, f"{NOT_THEN} 9223372036854775808"),
        ([], 4, False, NEVER),
        ([], 4, True, f"no row at step 4 {NOT_YET}there is none so far"),
        ([0, 10], slice(3, 4), False, "no row from 3 to 4; its 2 rows are from step 0 to 10"),
        ([0, 10], slice(3, 4), True, "no row from 3 to 4; its 2 rows are from step 0 to 10"),
        ([0, 10], slice(11, None), False, "no row from 11 to the last; its 2 rows"),
        ([0, 10], slice(11, None), True, f"no row from 11 to the last {NOT_YET}the last is 1"),
        ([5, 10], slice(None, 4), False, "no row from the first to 4; its 2 rows"),
        ([0, 10], slice(4, 3), False, "no step from 4 to 3: the slice begins behind its end"),
        ([], slice(0, 5), False, NEVER),
        ([], slice(0, 5), True, f"no row from 0 to 5 {NOT_YET}there is none so far"),
    ],
)
def test_why_there_is_no_row(labels, step, recording, words):
    with pytest.raises(NotRecordedError, match=words):
        select(labels, step, recording)


def test_all_of_nothing_is_nothing():
    assert select([], None) == select([], slice(None)) == select([], None, recording=True) == []


def test_a_group_without_steps():
    with pytest.raises(NotRecordedError, match="group 'g' has no rows: nothing was recorded by st"):
        steps.select(xr.Dataset(), 3, name="g")
