import os
import threading

import psutil
import pytest
import xarray as xr

from tracelab import cells, cutting, engine, planning, registry
from tracelab.errors import UsageError


def plan_of(trace, name="noise_scale", **options):
    analysis = registry.analysis(name)
    return planning.plan(analysis, trace, analysis.resolve({}), **options)


def listening():
    """Return the addresses on which this process and its children listen."""
    here = psutil.Process()
    return {
        connection.laddr.ip
        for process in (here, *here.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


def test_embedded_clusters_listen_on_loopback_and_do_not_clash():
    with engine._local(1, 2**30, 10), engine._local(1, 2**30, 10):
        assert listening() == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"memory": "much"}, "memory must be a positive size such as '4GiB', got 'much'"),
        ({"memory": -1}, "memory must be a positive size"),
    ],
)
def test_where_to_run_is_checked_at_once(options, words):
    with pytest.raises(UsageError, match=words):
        engine.Execution(**options)


def test_a_plan_restricted_to_some_steps_gives_their_bits(trace):
    made = plan_of(trace, "gaussianity")
    whole, _ = engine.compute(made, trace, engine.Execution())
    some, _ = engine.compute(planning.restrict(made, (0, 100)), trace, engine.Execution())
    xr.testing.assert_identical(some, whole.sel(step=[0, 100]))


@pytest.fixture
def fine(monkeypatch):
    """Cut small traces as large ones are: one cell a block."""
    monkeypatch.setattr(cutting, "BLOCK_BYTES", 1)
    monkeypatch.setattr(cutting, "SHARED_BYTES", 1)


@pytest.mark.parametrize("steps", [(), (0, 7)])
def test_a_plan_cannot_be_restricted_to_steps_it_lacks(trace, steps):
    with pytest.raises(UsageError, match="restricted to some of its own 3 steps"):
        planning.restrict(plan_of(trace), steps)


def test_blocks_are_delivered_while_others_run(trace, monkeypatch, fine):
    """The second cell cannot finish before the first was delivered."""
    delivered = threading.Event()
    made = plan_of(trace, "gaussianity")
    assert len(made.blocks) > 1

    def gated(common, block, real=cells.run):
        if block != made.blocks[0]:
            assert delivered.wait(30)
        return real(common, block)

    monkeypatch.setattr(engine, "run", gated)
    blocks = []
    for block, outputs, failures in engine.stream(made, trace, engine.Execution()):
        delivered.set()
        assert not failures
        assert outputs["status"].shape == (block.last - block.first, block.right - block.left)
        blocks.append(block)
    assert blocks[0] == made.blocks[0]
    assert sorted(blocks, key=str) == sorted(made.blocks, key=str)


def test_a_closed_stream_starts_nothing_more(trace, monkeypatch, fine):
    started = []

    def counted(common, block, real=cells.run):
        started.append(block)
        return real(common, block)

    monkeypatch.setattr(engine, "run", counted)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    stream = engine.stream(plan_of(trace, "gaussianity"), trace, engine.Execution())
    next(stream)
    stream.close()
    for thread in threading.enumerate():
        if thread.name.startswith("tracelab-"):
            thread.join(30)
    assert len(started) < len(plan_of(trace, "gaussianity").blocks)
