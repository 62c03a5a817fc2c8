"""A real scheduler and four real workers, and what can happen to them.

Whatever does, cells have the bits that one thread computes.
"""

import os
import signal
import threading
import time
from itertools import count

import faulty
import numpy as np
import pytest
import xarray as xr
from dask_processes import Processes
from plans import together

import tracelab
from tracelab import cells, cluster, cutting, engine, planning
from tracelab.errors import TracelabError, UsageError
from tracelab.typing import Status

pytestmark = [
    pytest.mark.slow,
    # What distributed says about connections that tests cut.
    pytest.mark.filterwarnings("ignore::Warning:distributed"),
]


@pytest.fixture
def processes(tmp_path):
    (tmp_path / "dask").mkdir()
    made = Processes(tmp_path / "dask")
    made.start_scheduler()
    yield made
    made.stop()


@pytest.fixture
def trace(tmp_path):
    return tracelab.open(faulty.write_marked_trace(tmp_path / "marked.zarr"))


@pytest.fixture(autouse=True)
def fine(monkeypatch):
    """Cut the small trace as a large one is: few cells a block."""
    monkeypatch.setattr(cutting, "BLOCK_BYTES", 2000)
    monkeypatch.setattr(cutting, "SHARED_BYTES", 1)


def plan_of(trace, tmp_path, fault="nothing"):
    folder = tmp_path / "accidents"
    folder.mkdir(exist_ok=True)
    parameters = faulty.ANALYSIS.resolve({"folder": str(folder), "fault": fault})
    return planning.plan(faulty.ANALYSIS, trace, parameters), folder


@pytest.fixture
def expected(trace, tmp_path):
    plan, _ = plan_of(trace, tmp_path)
    assert len(plan.blocks) > 20
    outputs, messages = cells.run((trace, plan), plan.whole)
    assert not messages
    return cells.labelled(plan, outputs)


def collect(plan, trace, execution):
    """Run a plan on a thread of its own; return the thread and where its result will be."""
    result = {}

    def run():
        try:
            result["found"] = together(plan, engine.stream(plan, trace, execution))
        except Exception as error:
            result["error"] = error

    thread = threading.Thread(target=run)
    thread.start()
    return thread, result


def held(folder):
    """Return the process that is in the middle of the marked cell, once there is one."""
    for _ in count():
        if (folder / "attempt-0").exists() and (text := (folder / "attempt-0").read_text()):
            return int(text)
        time.sleep(0.02)


def test_a_worker_killed_in_the_middle_of_a_cell(processes, trace, tmp_path, expected):
    processes.start_workers(4)
    plan, folder = plan_of(trace, tmp_path, "hold")
    thread, result = collect(plan, trace, engine.Execution(scheduler=processes.address))
    os.kill(held(folder), signal.SIGKILL)
    (folder / "go").touch()
    thread.join()
    found, messages = result["found"]
    assert not messages
    assert len(list(folder.glob("attempt-*"))) == 2
    xr.testing.assert_identical(found, expected)


def test_the_scheduler_restarted_in_the_middle(processes, trace, tmp_path, expected, caplog):
    processes.start_workers(4)
    plan, folder = plan_of(trace, tmp_path, "hold")
    execution = engine.Execution(scheduler=processes.address, patience=60)
    thread, result = collect(plan, trace, execution)
    held(folder)
    processes.kill_scheduler()
    processes.start_scheduler()
    processes.start_workers(4)
    (folder / "go").touch()
    thread.join()
    found, messages = result["found"]
    assert not messages
    xr.testing.assert_identical(found, expected)
    assert "waiting up to 60 s to go on with the others" in caplog.text


def test_a_scheduler_that_stays_away(processes, trace, tmp_path, expected):
    processes.start_workers(2)
    plan, folder = plan_of(trace, tmp_path, "hold")
    execution = engine.Execution(scheduler=processes.address, patience=2)
    finished = []

    def take():
        for each in engine.stream(plan, trace, execution):
            finished.append(each)
            if len(finished) == 1:
                processes.kill_scheduler()

    with pytest.raises(TracelabError, match=r"was lost when \d+ of \d+ blocks were done") as caught:
        take()
    assert "the same command goes on with the others" in str(caught.value)
    assert not isinstance(caught.value, UsageError)
    (folder / "go").touch()
    for block, outputs, _ in finished:
        rows, columns = slice(block.first, block.last), slice(block.left, block.right)
        wanted = expected["mean"].transpose("step", "layer").values[rows, columns]
        np.testing.assert_array_equal(outputs["mean"], wanted)


def test_workers_that_never_come(processes, trace, tmp_path):
    plan, _ = plan_of(trace, tmp_path)
    execution = engine.Execution(scheduler=processes.address, patience=1)
    with pytest.raises(UsageError, match="has no workers and none came within 1 s"):
        next(engine.stream(plan, trace, execution))


def test_a_worker_out_of_memory_once(processes, trace, tmp_path, expected):
    processes.start_workers(4, nanny=True, memory="700MB")
    plan, folder = plan_of(trace, tmp_path, "memory once")
    found, messages = together(
        plan, engine.stream(plan, trace, engine.Execution(scheduler=processes.address))
    )
    assert not messages
    assert len(list(folder.glob("attempt-*"))) == 2
    xr.testing.assert_identical(found, expected)


def test_a_cell_that_always_runs_out_of_memory(processes, trace, tmp_path, expected):
    processes.start_workers(4, nanny=True, memory="700MB")
    plan, _ = plan_of(trace, tmp_path, "memory")
    found, (message,) = together(
        plan, engine.stream(plan, trace, engine.Execution(scheduler=processes.address))
    )
    assert message.startswith(f"step {faulty.MARKED_STEP}, fc.bias: the worker that computes it")
    assert "give workers more" in message
    failed = (found["status"] == int(Status.FAILED)).values
    assert failed.sum() == 1
    np.testing.assert_array_equal(found["mean"].values[~failed], expected["mean"].values[~failed])


def test_two_clients_at_once(processes, trace, tmp_path, expected):
    processes.start_workers(4)
    held_plan, folder = plan_of(trace, tmp_path, "hold")
    free_plan, _ = plan_of(trace, tmp_path)
    execution = engine.Execution(scheduler=processes.address)
    thread, result = collect(held_plan, trace, execution)
    held(folder)
    # All of the second while the first is in the middle.
    found, _ = together(free_plan, engine.stream(free_plan, trace, execution))
    (folder / "go").touch()
    thread.join()
    xr.testing.assert_identical(found, expected)
    xr.testing.assert_identical(result["found"][0], expected)


def test_a_worker_that_does_not_see_the_trace(processes, trace, tmp_path, monkeypatch):
    processes.start_workers(1)
    plan, _ = plan_of(trace, tmp_path)
    monkeypatch.setattr(cluster, "_dumps", lambda value, real=cluster._dumps: real(Elsewhere()))
    with pytest.raises(
        UsageError, match=r"worker tcp://\S+ cannot read the trace: there is no"
    ) as e:
        next(engine.stream(plan, trace, engine.Execution(scheduler=processes.address)))
    assert "/nowhere/run.zarr" in str(e.value)


class Elsewhere:
    """Pickles as a trace at a place that workers do not have."""

    def __reduce__(self):
        return tracelab.open, ("/nowhere/run.zarr",)


def test_a_worker_of_another_version(processes, trace, tmp_path, monkeypatch):
    processes.start_workers(1)
    plan, _ = plan_of(trace, tmp_path)
    ours = cluster._versions()
    monkeypatch.setattr(cluster, "_versions", lambda: {**ours, "tracelab": "9.9"})
    words = rf"worker tcp://\S+ has tracelab {ours['tracelab']} and this process 9\.9"
    with pytest.raises(UsageError, match=words):
        next(engine.stream(plan, trace, engine.Execution(scheduler=processes.address)))


def test_an_interrupted_stream_leaves_the_cluster_idle(processes, trace, tmp_path):
    processes.start_workers(2)
    plan, folder = plan_of(trace, tmp_path, "hold")
    execution = engine.Execution(scheduler=processes.address)
    stream = engine.stream(plan, trace, execution)
    next(stream)
    held(folder)
    stream.close()
    (folder / "go").touch()
    from distributed import Client

    with Client(processes.address, set_as_default=False) as client:
        while any(client.processing().values()):
            time.sleep(0.05)
        assert client.submit(sum, [1, 2]).result(timeout=30) == 3
