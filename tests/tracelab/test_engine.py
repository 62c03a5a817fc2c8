import json
import os
import pickle
import sys
import threading

import numpy as np
import psutil
import pytest
import xarray as xr
import zarr
from plans import computed, plan_of

import tracelab
from tracelab import cells, cutting, engine, memory, planning, threads
from tracelab.errors import UsageError


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
    whole, _ = computed(made, trace)
    some, _ = computed(planning.restrict(made, (0, 100)), trace)
    xr.testing.assert_identical(some, whole.sel(step=[0, 100]))


@pytest.fixture
def fine(monkeypatch):
    """Cut small traces as large ones are: one cell a block."""
    monkeypatch.setattr(cutting, "BLOCK_BYTES", 1)
    monkeypatch.setattr(cutting, "SHARED_BYTES", 1)


@pytest.mark.parametrize("steps", [(), (0, 7)])
def test_a_plan_cannot_be_restricted_to_steps_it_lacks(trace, steps):
    with pytest.raises(UsageError, match="restricted to some of its own 3 steps"):
        planning.restrict(plan_of(trace, "noise_scale"), steps)


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


@pytest.mark.parametrize("count", [1, 3])
def test_threads_together_weigh_no_more_than_is_allowed(count):
    """Four weigh 3 of 6: two run at a time, whatever the number of threads; one of 9 runs alone."""
    running, most, lock = [0], [], threading.Lock()
    items = [3, 3, 9, 3, 3]

    def weigh(item):
        with lock:
            running[0] += item
            most.append(running[0])
        with lock:
            running[0] -= item
        return item

    found = [item for item, _ in threads.unordered(weigh, items, count, items, 6)]
    assert sorted(found) == sorted(items)
    assert max(most) <= 9
    assert all(total in (3, 6, 9) for total in most)


def test_the_interpreter_is_left_as_it_was():
    before = sys.getswitchinterval()
    first, second = (threads.unordered(abs, [-1, -2], 1) for _ in range(2))
    next(first), next(second)
    assert sys.getswitchinterval() < before
    first.close()
    assert sys.getswitchinterval() < before
    second.close()
    assert sys.getswitchinterval() == before


def test_what_a_thread_raises_is_delivered():
    ((item, found),) = threads.unordered(lambda _: 1 / 0, ["x"], 1)
    assert item == "x"
    assert isinstance(found, ZeroDivisionError)


def test_a_cell_larger_than_the_bound_is_refused_before_anything_runs(trace, monkeypatch):
    monkeypatch.setattr(engine, "run", None)
    plan = plan_of(trace, "tail_index")
    bound = memory.resident() + 1000
    with pytest.raises(UsageError) as caught:
        next(engine.stream(plan, trace, engine.Execution(memory=bound)))
    message = str(caught.value)
    assert "'tail_index': a cell of 'network' has 4.1 kB of input and needs about" in message
    assert f"a bound of {bound} on all processes leaves " in message
    assert "allow more memory, leave the layer out, or analyse another sketch" in message


def test_little_memory_means_smaller_pieces_and_fewer_at_a_time(trace):
    plan = plan_of(trace, "tail_index")
    enough = memory.fitting(plan, 2**40, 4, "x")
    assert enough.piece_bytes == plan.piece_bytes
    little = memory.fitting(plan, 40 * 2**20, 4, "x")
    assert little.piece_bytes == memory.LEAST_PIECE_BYTES
    result, _ = computed(plan, trace)
    tight = engine.Execution(memory=memory.resident() + 100 * 2**20)
    xr.testing.assert_identical(computed(plan, trace, tight)[0], result)


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Files of a system with control groups, version 2 and 1."""
    monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "cgroup")

    def write(**files):
        for name, content in files.items():
            path = tmp_path / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    write(proc__meminfo="MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    return write


def test_free_memory_is_what_the_system_says(system):
    assert memory.available() == 8000 * 1024


def test_a_control_group_around_it_allows_less(system):
    system(
        proc__self__cgroup="0::/job/step\n",
        cgroup__job__memory_dot_max="5000\n",
        cgroup__job__memory_dot_current="3000\n",
        cgroup__job__memory_dot_stat="anon 1\ninactive_file 500\n",
        cgroup__job__step__memory_dot_max="max\n",
        cgroup__job__step__memory_dot_current="3000\n",
    )
    assert memory.available() == 2500


def test_an_older_control_group_allows_less(system):
    system(
        proc__self__cgroup="7:cpu:/\n5:memory:/job\n",
        cgroup__memory__job__memory_dot_limit_in_bytes="5000\n",
        cgroup__memory__job__memory_dot_usage_in_bytes="4000\n",
    )
    assert memory.available() == 1000


def stretch(path, rows):
    """Declare `rows` rows in a trace; only their step labels are written."""
    root = path / "zarr.json"
    document = json.loads(root.read_text())
    for name, member in document["consolidated_metadata"]["metadata"].items():
        if member["node_type"] != "array" or member["dimension_names"][0] != "step":
            continue
        member["shape"][0] = rows
        (path / name / "zarr.json").write_text(json.dumps(member))
        if name.endswith("/step"):
            zarr.open_array(path / name, mode="r+")[:] = np.arange(rows)
    root.write_text(json.dumps(document))


@pytest.mark.parametrize("name", ["tail_index", "noise_scale", "weight_diffusion"])
def test_a_huge_trace_makes_few_small_tasks(tmp_path, name):
    """A million rows of 2,000 layers, of which nothing but labels is on disk."""
    path = tmp_path / "huge.zarr"
    layers = {f"block{i}.weight": (4,) for i in range(2_000)}
    with tracelab.create(path, layers) as writer:
        writer.define("noise", attrs={"batch_size": 8, "replacement": True, "n_data": 99})
        writer.append(
            "noise",
            step=0,
            full=np.zeros((20, 8_000)),
            squared_deviation=np.ones((20, 2_000)),
            mean_squared_norm=np.ones(2_000),
        )
        writer.append("statistics", step=0, distance=np.ones(2_000))
    stretch(path, 10**6)
    plan = plan_of(tracelab.open(path), name)
    assert len(plan.steps) == 10**6
    assert 100 < len(plan.blocks) <= cutting.MAX_TASKS
    assert max(len(pickle.dumps(block)) for block in plan.blocks) < 200
    # Every cell belongs to one of them.
    assert sum((b.last - b.first) * (b.right - b.left) for b in plan.blocks) == 10**6 * 2_001
