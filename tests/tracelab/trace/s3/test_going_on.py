"""Object stores have no locks: what goes on there, and who stops."""

import numpy as np
import pytest

from tracelab.errors import TraceError, UsageError
from tracelab.trace import create
from tracelab.trace import open as open_trace
from tracelab.trace.health.verification import verify
from tracelab.trace.writing import guard

LAYERS = {"w": (30, 4)}


def record(url, first, last, **options):
    with create(url, LAYERS, **{"resume": True} | options) as writer:
        append(writer, first, last)


def append(writer, first, last):
    for step in range(first, last):
        writer.append("gradients", step=step, full=np.full(120, step))
        writer.append("steps", step=step, loss=float(step))


def check(url, steps):
    trace = open_trace(url)
    assert trace.steps["step"].values.tolist() == list(steps)
    np.testing.assert_array_equal(trace.gradients["full"].values[:, 5], list(steps))
    assert not verify(url).damages
    return trace


@pytest.mark.slow
def test_a_trace_goes_on(bucket):
    record(bucket.url(), 0, 40)
    record(bucket.url(), 40, 70)
    record(bucket.url(), 50, 60, resume=50)
    trace = check(bucket.url(), range(60))
    assert (trace.state, trace.attrs["generation"]) == ("complete", 1)
    assert trace.attrs["resumed"][-1]["set_aside"] == "run.superseded-1.zarr"
    check(bucket.url("run.superseded-1.zarr"), range(50, 70))


def test_who_is_taken_over_stops(bucket, monkeypatch):
    monkeypatch.setattr(guard, "NOTICE_SECONDS", 0)
    first = create(bucket.url(), LAYERS, flush_seconds=3600)
    append(first, 0, 10)
    first.flush()
    append(first, 10, 12)
    record(bucket.url(), 10, 20)
    with pytest.raises(TraceError, match=r"another writer has taken s3://.* over; .* 2 of 'steps'"):
        first.close()
    check(bucket.url(), range(20))


@pytest.mark.slow
def test_ranks(bucket):
    for rank in range(2):
        record(bucket.url(), 0, 3 + rank, rank=rank, run="job")
    with pytest.raises(UsageError, match="itself, only those of the ranks 0, 1; open one"):
        open_trace(bucket.url())
    record(bucket.url(), 0, 1, run="job")
    record(bucket.url(), 4, 6, rank=1)
    trace = check(bucket.url(), range(1))
    assert {rank: each.rows["steps"] for rank, each in trace.ranks.items()} == {0: 3, 1: 6}
