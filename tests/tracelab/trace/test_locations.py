"""Sub-folders of locations, and what a location does and refuses."""

import multiprocessing
import pickle
import shutil

import numpy as np
import pytest
from zarr.storage import LocalStore, MemoryStore, ZipStore

from tracelab.errors import UsageError
from tracelab.trace import create
from tracelab.trace import open as open_trace
from tracelab.trace.places.locations import resolve
from tracelab.trace.places.prefixed import Prefixed
from tracelab.trace.reading.reader import Trace

PREFIX = "workers/rank-003"


def record(path, value):
    with create(path, {"w": (2, 3)}) as writer:
        for step in range(5):
            writer.append("gradients", step=step, full=np.full(6, value + step, np.float32))


def losses(trace):
    return trace.gradients["full"].values[:, 0].tolist()


def two_traces(kind, folder):
    """Return a location of some kind with a trace in it and another one inside."""
    outer = folder / "run.zarr"
    record(outer, 0)
    record(outer / PREFIX, 100)
    if kind == "folder":
        return str(outer)
    if kind == "file URL":
        return outer.as_uri()
    if kind == "local store":
        return LocalStore(outer, read_only=True)
    if kind in ("zip", "zip store"):
        shutil.make_archive(str(outer), "zip", outer)
        return f"{outer}.zip" if kind == "zip" else ZipStore(f"{outer}.zip", mode="r")
    store = MemoryStore() if kind == "memory store" else "memory://at/run.zarr"
    record(store, 0)
    record(resolve(store).at(PREFIX).reopen, 100)
    return store


KINDS = ["folder", "file URL", "local store", "zip", "zip store", "memory store", "memory URL"]


@pytest.fixture(scope="module")
def another_process():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield pool


@pytest.mark.parametrize("kind", KINDS)
def test_a_trace_inside_another_is_a_trace_on_every_kind_of_location(
    kind, tmp_path, another_process
):
    location = resolve(two_traces(kind, tmp_path))
    inside = location.at(PREFIX)
    trace = Trace(inside)
    assert losses(trace) == [100, 101, 102, 103, 104]
    assert losses(open_trace(inside.reopen)) == losses(trace)
    assert losses(Trace(location)) == [0, 1, 2, 3, 4]
    assert Trace(location.at("workers").at("rank-003")).run == trace.run
    assert inside.name == f"{location.name}/{PREFIX}"
    assert inside.exists()
    assert inside.has("zarr.json")
    assert not inside.has("missing")
    assert not location.at("workers/rank-004").exists()
    assert inside.stored_bytes("gradients") > 0
    assert inside.store.read_only == location.store.read_only
    assert inside.shareable == location.shareable
    if inside.shareable:
        assert another_process.apply(losses, (trace,)) == losses(trace)
    trace.close()
    assert losses(Trace(location)) == [0, 1, 2, 3, 4]


def test_a_path_may_point_into_a_trace_or_a_zip(tmp_path):
    two_traces("zip", tmp_path)
    for suffix in ("", ".zip"):
        path = f"{tmp_path}/run.zarr{suffix}/{PREFIX}"
        trace = open_trace(path)
        assert losses(trace) == [100, 101, 102, 103, 104]
        assert trace.location == path
        assert losses(pickle.loads(pickle.dumps(trace))) == losses(trace)
    with pytest.raises(UsageError, match=r"there is no trace at .*run\.zarr\.zip/workers/rank-4"):
        open_trace(f"{tmp_path}/run.zarr.zip/workers/rank-4")


@pytest.mark.parametrize("prefix", ["", "..", "a/../b", "/a", "a/", "a//b", "a b", "a\\b"])
def test_a_sub_folder_is_a_plain_path(prefix, tmp_path):
    with pytest.raises(UsageError, match="is no sub-folder of a trace"):
        resolve(tmp_path).at(prefix)


def test_removing_a_trace_inside_another_leaves_the_other():
    store = MemoryStore()
    record(store, 0)
    record(Prefixed(store, PREFIX), 100)
    inside = resolve(store).at(PREFIX)
    inside.clear()
    assert not inside.exists()
    assert losses(open_trace(store)) == [0, 1, 2, 3, 4]
