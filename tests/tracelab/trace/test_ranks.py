"""Several processes of one job, each with a trace of its own inside the trace of the whole."""

import json
import os
import pickle
import signal
import subprocess
import sys

import dask
import numpy as np
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner
from zarr.storage import MemoryStore

import tracelab
from tracelab.cli import main
from tracelab.errors import NotRecordedError, TraceError, UsageError
from tracelab.reporting.facts import facts
from tracelab.trace import create
from tracelab.trace import open as open_trace
from tracelab.trace.ranks import unfinished

LAYERS = {"w": (3,)}
WORLD = 4


def record(path, rows=3, first=0, **options):
    with create(path, LAYERS, **options) as writer:
        for step in range(first, rows):
            loss = step + 100 * options.get("rank", 0)
            writer.append("steps", step=step, loss=float(loss))
    return path


RANK = """
import os, signal, sys
from tracelab.trace import create
path, rank = sys.argv[1], int(sys.argv[2])
options = {"rank": rank, "world_size": 4, "run": "job-7", "flush_seconds": 0}
with create(path, {"w": (3,)}, **options) as writer:
    print("ready", flush=True)
    sys.stdin.readline()
    for step in range(500):
        writer.append("steps", step=step, loss=float(rank))
        if step % 50 == 49:
            writer.flush()
        if rank == 2 and step == 222:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def start(path, rank):
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", RANK, str(path), str(rank)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return process


def test_four_processes_at_once_of_which_one_is_killed(tmp_path):
    path = tmp_path / "run.zarr"
    processes = [start(path, rank) for rank in range(WORLD)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    # All are open: now they write side by side, and the parent's own writer beside them.
    with create(path, LAYERS, run="job-7") as parent:
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        parent.append("steps", step=0, loss=-1.0)
        ends = [process.communicate(timeout=100) for process in processes]
    assert [end[1] for end in ends] == [""] * WORLD
    assert [process.returncode for process in processes] == [0, 0, -signal.SIGKILL, 0]
    trace = open_trace(path)
    assert list(trace.ranks) == list(range(WORLD))
    assert trace.steps["loss"].values.tolist() == [-1.0]
    for rank, found in trace.ranks.items():
        rows = found.rows["steps"]
        assert found.state == ("recording" if rank == 2 else "complete")
        assert rows >= 200 if rank == 2 else rows == 500
        np.testing.assert_array_equal(found.steps["step"].values, np.arange(rows))
        np.testing.assert_array_equal(found.steps["loss"].values, rank)
        attrs = found.attrs
        assert (attrs["rank"], attrs["world_size"], found.run) == (rank, WORLD, "job-7")
    # The killed one goes on, alone.
    before = {rank: trace.ranks[rank].attrs["writer"] for rank in (0, 1, 3)}
    kept = trace.ranks[2].rows["steps"]
    with create(path, LAYERS, rank=2, resume=True) as writer:
        for step in range(kept, 500):
            writer.append("steps", step=step, loss=2.0)
    again = open_trace(path)
    assert {rank: again.ranks[rank].attrs["writer"] for rank in (0, 1, 3)} == before
    assert (again.ranks[2].state, again.ranks[2].rows["steps"]) == ("complete", 500)
    # Nobody else's data in it, also not for readers that know nothing of ranks.
    tree = xr.open_datatree(path / "workers/rank-002", engine="zarr")
    np.testing.assert_array_equal(tree["steps"]["loss"].values, 2.0)
    bare = zarr.open_group(path, mode="r", use_consolidated=False)
    assert set(bare["workers"].group_keys()) == {f"rank-{rank:03d}" for rank in range(WORLD)}


def test_ranks_are_opened_when_asked_for(tmp_path):
    path = record(tmp_path / "a")
    for rank in (0, 11):
        record(path, rank=rank, rows=2)
    ranks = open_trace(path).ranks
    assert list(ranks) == [0, 11]
    assert len(ranks) == 2
    assert 11 in ranks
    assert 1 not in ranks
    assert repr(ranks) == "<tracelab.Ranks: 0, 11>"
    assert ranks[11] is ranks[11]
    assert ranks.get(3) is None
    with pytest.raises(NotRecordedError, match="this trace has no rank 3; ranks: 0, 11"):
        ranks[3]
    assert ranks[11].steps["loss"].values.tolist() == [1100.0, 1101.0]
    again = pickle.loads(pickle.dumps(ranks[11]))
    assert again.steps["loss"].values.tolist() == [1100.0, 1101.0]
    assert list(open_trace(record(tmp_path / "b")).ranks) == []
    # A broken rank is no reason not to see the others.
    (path / "workers/rank-000/zarr.json").write_text("{")
    assert open_trace(path).summary()["ranks"]["0"]["state"] == "damaged"
    with pytest.raises(TraceError, match=r"rank-000 is damaged"):
        open_trace(path).ranks[0]


def test_ranks_of_one_run_are_not_mistaken_for_each_other(tmp_path):
    """They say the same run and have the same shapes; Dask computes them in one graph."""
    for rank in range(3):
        record(tmp_path / "a", rank=rank, run="job")
    record(tmp_path / "a", run="job")
    trace = open_trace(tmp_path / "a")
    losses = dask.compute(*(each.steps["loss"] for each in trace.ranks.values()))
    assert [loss.values[0] for loss in losses] == [0.0, 100.0, 200.0]


def test_results_of_ranks_of_one_run_do_not_mix(tmp_path):
    """Also where they are kept in one place, and ranks have the same steps."""
    path, out = tmp_path / "a", tmp_path / "results"
    for rank in range(2):
        rng = np.random.default_rng(rank)
        with create(path, {"w": (40,)}, rank=rank, run="job") as writer:
            attrs = {"batch_size": 8, "replacement": True, "n_data": 1000}
            writer.define("noise", attrs=attrs)
            full = (1 + rank) * rng.standard_normal((30, 40))
            mean = np.zeros(40)
            deviation = (full**2).sum(axis=1, keepdims=True)
            writer.append(
                "noise",
                step=0,
                full=full,
                mean_full=mean,
                squared_deviation=deviation,
                mean_squared_norm=[1.0],
            )
    found = []
    for rank in range(2):
        trace = open_trace(path / f"workers/rank-00{rank}")
        assert trace.identity == f"job.rank-00{rank}"
        found.append(tracelab.analyze(trace, "noise_scale", out=out)["noise_scale"])
    scales = [float(each["noise_scale"].values[0, 0]) for each in found]
    assert scales[1] > 2 * scales[0]
    for rank in range(2):
        again = open_trace(path / f"workers/rank-00{rank}", results=out).results["noise_scale"]
        assert float(again["noise_scale"].values[0, 0]) == scales[rank]


def test_without_the_trace_of_the_whole(tmp_path):
    for rank in (1, 3):
        record(tmp_path / "a", rank=rank)
    words = (
        r"no trace at .*a itself, only those of the ranks 1, 3; open one, such as "
        r".*a/workers/rank-001"
    )
    with pytest.raises(UsageError, match=words):
        open_trace(tmp_path / "a")
    assert open_trace(tmp_path / "a/workers/rank-001").attrs["rank"] == 1
    # It may come later, and leaves them alone.
    record(tmp_path / "a", rows=1)
    trace = open_trace(tmp_path / "a")
    assert trace.rows == {"steps": 1}
    assert [each.rows["steps"] for each in trace.ranks.values()] == [3, 3]


def test_any_store_has_ranks():
    store = MemoryStore()
    record(store, rank=1)
    with pytest.raises(UsageError, match="only those of the ranks 1; open one"):
        open_trace(store)
    record(store)
    assert open_trace(store).ranks[1].steps["loss"].values.tolist() == [100.0, 101.0, 102.0]
    # Whether a process still records cannot be known here.
    record(store, overwrite=True)
    assert list(open_trace(store).ranks) == []
    writer = create(store, LAYERS, rank=1)
    with pytest.raises(UsageError, match=r"rank-001 is being recorded, or its process was killed"):
        record(store, overwrite=True)
    writer.close()
    record(store, overwrite=True)


def test_a_trace_with_live_ranks_is_not_replaced(tmp_path):
    path = record(tmp_path / "a")
    record(path, rank=0)
    process = start(path, 2)
    assert process.stdout.readline() == "ready\n"
    words = rf"a/workers/rank-002 is being recorded by process {process.pid} on"
    with pytest.raises(UsageError, match=words):
        record(path, overwrite=True)
    assert open_trace(path).rows == {"steps": 3}
    assert list(open_trace(path).ranks) == [0, 2]
    process.kill()
    process.communicate()
    record(path, overwrite=True)
    assert list(open_trace(path).ranks) == []
    with create(path, LAYERS, rank=5):
        words = "a/workers/rank-005 is being recorded by another writer of this process"
        with pytest.raises(UsageError, match=words):
            record(path, overwrite=True)
        # A rank replaces, and goes on with, itself alone.
        record(path, rank=4)
        record(path, rank=4, overwrite=True, rows=2)
        record(path, rank=4, resume=True, first=2, rows=6)
    assert open_trace(path).ranks[4].rows == {"steps": 6}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": -1}, "rank must be an integer of at least 0 and below 1000000, got -1"),
        ({"rank": 1.0}, r"rank must be .* got 1\.0"),
        ({"rank": True}, "rank must be .* got True"),
        ({"rank": 4, "world_size": 4}, "rank must be .* below world_size=4, got 4"),
        ({"world_size": 0}, "world_size must be an integer of at least 1, got 0"),
        ({"run": "a b"}, "run must be a text of at most 100 letters, digits, .* got 'a b'"),
        ({"run": "../x"}, "run must be a text"),
        ({"run": "x" * 101}, "run must be a text of at most 100 letters"),
    ],
)
def test_what_is_no_rank(tmp_path, options, words):
    with pytest.raises(UsageError, match=words):
        create(tmp_path / "a", LAYERS, **options)
    assert not (tmp_path / "a").exists()


def test_ranks_write_only_into_traces(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/notes").write_text("mine")
    with pytest.raises(UsageError, match="exists and is not a trace, so it is left alone"):
        create(tmp_path / "a", LAYERS, rank=0)
    assert [entry.name for entry in (tmp_path / "a").iterdir()] == ["notes"]


def test_info_lists_ranks(tmp_path):
    path = record(tmp_path / "a")
    record(path, rank=1, run="job")
    with create(path, LAYERS, rank=2) as writer:
        writer.mark_incomplete("a reason")
    found = json.loads(CliRunner().invoke(main, ["info", str(path), "--json"]).stdout)
    assert found["ranks"] == {
        "0": {"state": "missing", "run": None, "rows": {}},
        "1": {"state": "complete", "run": "job", "rows": {"steps": 3}},
        "2": {"state": "incomplete", "run": tracelab.open(path).ranks[2].run, "rows": {}},
    }
    text = CliRunner().invoke(main, ["info", str(path)]).stdout
    lines = [line.split() for line in text.splitlines()]
    assert ["1", "complete", "steps", "3"] in lines
    assert ["2", "incomplete", "none"] in lines


def test_a_job_is_not_complete_where_its_ranks_are_not(tmp_path):
    """The whole was closed; one rank is incomplete, one is damaged, one not there, one records."""
    path = record(tmp_path / "a", world_size=6)
    for rank in (0, 1, 3, 5):
        record(path, rank=rank, world_size=6)
    with create(path, LAYERS, rank=2, world_size=6) as writer:
        writer.mark_incomplete("a reason")
    (path / "workers/rank-003/zarr.json").write_text("{")
    live = create(path, LAYERS, rank=5, world_size=6, overwrite=True)
    try:
        trace = open_trace(path)
        states = ["complete", "complete", "incomplete", "damaged", "missing", "recording"]
        assert trace.rank_states == dict(enumerate(states))
        # What the whole holds by itself is complete.
        assert trace.state == "complete"
        assert "of its 6 ranks: see trace.rank_states" in repr(trace)
        assert "of its 6 ranks" in trace._repr_html_()
        words = "complete - rank 2 incomplete, rank 3 damaged, rank 4 missing, rank 5 recording"
        # What is wrong with one rank is no reason to say nothing of the others.
        text = CliRunner().invoke(main, ["info", str(path)]).stdout
        assert f"state      {words}\n" in text
        assert ["4", "missing", "none"] in [line.split() for line in text.splitlines()]
        listed = CliRunner().invoke(main, ["runs", str(path)]).stdout
        assert words.replace(" - ", ", ") in listed
        (state,) = [each for each in facts({"a": trace}) if each.name == "state"]
        assert state.values == (words.replace(" - ", ": "),)
    finally:
        live.close()


def test_ranks_in_one_state_are_named_together():
    """Of a large job that records a word for each rank is a page."""
    assert unfinished(dict.fromkeys(range(4096), "recording")) == "ranks 0 to 4095 recording"
    states = dict.fromkeys((0, 1, 3, 5, 6, 7), "missing") | {2: "complete", 4: "damaged"}
    assert unfinished(states) == "ranks 0, 1, 3, 5 to 7 missing, rank 4 damaged"
    assert unfinished({0: "complete"}) == unfinished({}) == ""


def test_a_job_whose_ranks_are_complete_is(tmp_path):
    path = record(tmp_path / "a", world_size=2)
    # Of a job of which only the whole was recorded no rank is missing.
    assert open_trace(path).rank_states == {}
    for rank in range(2):
        record(path, rank=rank, world_size=2)
    assert open_trace(path).rank_states == {0: "complete", 1: "complete"}
    text = CliRunner().invoke(main, ["info", str(path)]).stdout
    assert "state      complete\n" in text
    assert "rank_states" not in repr(open_trace(path).ranks[0])


def test_a_rank_without_a_trace_is_not_listed(tmp_path):
    path = record(tmp_path / "a")
    os.makedirs(path / "workers/rank-001/layers/layer")
    os.makedirs(path / "workers/other")
    assert list(open_trace(path).ranks) == []
