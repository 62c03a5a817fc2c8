"""What ranks recorded is read side by side through the trace of the whole."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import tracelab
from tracelab.contracts import Variable
from tracelab.errors import NotRecordedError, TraceError
from tracelab.trace import create

LAYERS = {"a": (3, 2), "b": (4,)}
OWN = (
    Variable("x", ("step", "worker", "layer", "direction"), "weight", "float32", "a vector"),
    Variable("count", ("step", "worker"), "1", "int64", "a number"),
)


def values(rank, step):
    return np.random.default_rng([rank, step]).standard_normal((1, 2, 5)).astype(np.float32)


def record(path, rank, steps, world=3, directions=5, **options):
    with create(path, LAYERS, rank=rank, world_size=world, run="job", **options) as writer:
        writer.define("worker", kind="workers", variables=OWN)
        for step in steps:
            x = values(rank, step)[..., :directions]
            writer.append("worker", step=step, x=x, count=[10 * rank + step])
            writer.append("steps", step=step, loss=1.0)


@pytest.fixture
def job(tmp_path):
    """Three ranks, of which the first ends early, the second never begins, the third skips."""
    path = tmp_path / "run.zarr"
    with create(path, LAYERS, run="job", world_size=4):
        pass
    record(path, 0, range(4), 4)
    record(path, 2, range(0, 12, 2), 4)
    record(path, 3, range(12), 4)
    return path


def expected():
    full = np.full((12, 4, 2, 5), np.nan)
    for rank, steps in ((0, range(4)), (2, range(0, 12, 2)), (3, range(12))):
        for step in steps:
            full[step, rank] = values(rank, step)[0]
    return full


def test_rows_of_ranks_stand_side_by_side_with_nan_where_one_has_none(job):
    group = tracelab.open(job).groups["workers/worker"]
    assert group["x"].dims == ("step", "worker", "layer", "direction")
    assert group["x"].attrs["units"] == "weight"
    assert group["step"].values.tolist() == list(range(12))
    assert group["worker"].values.tolist() == [0, 1, 2, 3]
    assert [str(name) for name in group["layer"].values] == ["a", "b"]
    assert group["x"].dtype == np.float32
    np.testing.assert_array_equal(group["x"].values, expected())
    np.testing.assert_array_equal(group["count"].values[3], [3, np.nan, np.nan, 33])
    # Nothing is lost without a word: how many rows each rank has.
    rows = {rank: told[2] for rank, told in group.attrs["ranks"].items()}
    assert rows == {"0": 4, "2": 6, "3": 12}
    assert group.attrs["ranks_missing"] == [1]


@pytest.mark.parametrize(
    "index",
    [
        (slice(3, 7),),
        (slice(0, 0),),
        (slice(2, 9), slice(1, 3), slice(0, 1), slice(1, 4)),
        (slice(5, 6), slice(3, 4)),
        (slice(1, 11, 3), slice(0, 4, 2)),
    ],
)
def test_any_part_is_that_part_of_the_whole(job, index):
    trace = tracelab.open(job)
    wanted = expected()[index]
    stored = trace.stored("workers/worker")["x"]
    padded = (*index, *[slice(None)] * (4 - len(index)))
    np.testing.assert_array_equal(stored[padded], wanted)
    lazy = trace.groups["workers/worker"]["x"].data
    np.testing.assert_array_equal(lazy[index].compute(), wanted)
    np.testing.assert_array_equal(lazy[3, 2].compute(), expected()[3, 2])


def test_the_whole_lists_only_its_own_groups_and_pickles(job):
    trace = tracelab.open(job)
    assert list(trace.groups) == []
    assert "workers" not in trace.kinds
    again = pickle.loads(pickle.dumps(trace))
    np.testing.assert_array_equal(again.groups["workers/worker"]["x"].values, expected())
    with pytest.raises(NotRecordedError, match=r"no group 'steps' that can be .*workers/worker"):
        trace.groups["workers/steps"]


def test_minibatches_of_ranks_are_batches_of_the_whole(tmp_path):
    """As the noise that analyses read: batch = rank times passes + pass."""
    path = tmp_path / "run.zarr"
    sampled = np.random.default_rng(0).standard_normal((3, 2, 4, 6))
    with create(path, LAYERS, run="job"):
        pass
    table = (np.repeat([0, 1], 3), np.tile([0, 1, 2], 2))
    for rank in range(3):
        with create(path, LAYERS, rank=rank, world_size=3, run="job") as writer:
            writer.define("micro_batches", kind="noise", attrs={"batch_size": 8}, coordinates=table)
            for step in range(2):
                writer.append("micro_batches", step=step, sampled=sampled[rank, step])
    trace = tracelab.open(path)
    group = trace.groups["workers/micro_batches"]
    assert (group.attrs["kind"], group.attrs["batch_size"]) == ("noise", 8)
    wanted = sampled.astype(np.float32).transpose(1, 0, 2, 3).reshape(2, 12, 6)
    np.testing.assert_array_equal(group["sampled"].values, wanted)
    np.testing.assert_array_equal(group["coordinate_layer"].values, table[0])
    noise = trace.noise(group="workers/micro_batches", layer="b")
    assert noise.shape == (2, 12, 3)
    assert noise.attrs["batch_size"] == 8


def test_ranks_that_do_not_fit_together_are_refused(tmp_path):
    path = tmp_path / "run.zarr"
    with create(path, LAYERS, run="job"):
        pass
    record(path, 0, range(2))
    record(path, 1, range(2), directions=4)
    words = "the ranks 0 and 1 differ in shape or unit of 'x', so that they cannot be read side"
    with pytest.raises(TraceError, match=words):
        tracelab.open(path).groups["workers/worker"]


def test_a_damaged_rank_is_refused_and_not_left_out(job):
    (job / "workers/rank-002/zarr.json").write_text("{")
    with pytest.raises(TraceError, match="rank-002 is damaged"):
        tracelab.open(job).groups["workers/worker"]


def test_a_world_too_large_takes_no_memory(job):
    place = job / "workers/rank-003/zarr.json"
    document = json.loads(place.read_text())
    document["attributes"]["world_size"] = 10**9
    place.write_text(json.dumps(document))
    with pytest.raises(TraceError, match="its job has 1000000000 ranks, and at most 4096"):
        tracelab.open(job).groups["workers/worker"]


def test_content_is_another_after_another_row(job):
    """Dask takes arrays of one name for one array, and results of one input for one result."""
    before = tracelab.open(job).groups["workers/worker"]
    with create(job, LAYERS, rank=3, world_size=4, run="job", resume=True) as writer:
        writer.append("worker", step=12, x=values(3, 12), count=[1])
    after = tracelab.open(job).groups["workers/worker"]
    assert after["x"].data.name != before["x"].data.name
    assert after.attrs["ranks"] != before.attrs["ranks"]
    xr.testing.assert_equal(after.isel(step=slice(12)).load(), before.load())


def test_content_is_another_where_a_rank_was_recorded_anew(job):
    """The same run, rank and number of rows, and other numbers: no stored result is of these."""
    before = tracelab.open(job).groups["workers/worker"]
    numbers = before["x"].values
    with create(job, LAYERS, rank=0, world_size=4, run="job", overwrite=True) as writer:
        writer.define("worker", kind="workers", variables=OWN)
        for step in range(4):
            writer.append("worker", step=step, x=values(9, step), count=[1])
    after = tracelab.open(job).groups["workers/worker"]
    assert after["x"].data.name != before["x"].data.name
    assert after.attrs["ranks"] != before.attrs["ranks"]
    assert not np.array_equal(after["x"].values, numbers, equal_nan=True)


@pytest.mark.parametrize("begins", [True, False])
def test_minibatches_of_a_rank_without_a_row_are_none(begins, tmp_path):
    """It ended before its first row, or has no trace at all: the others' follow each other."""
    path = tmp_path / "run.zarr"
    with create(path, LAYERS, run="job"):
        pass
    for rank in (0, 1, 2) if begins else (0, 2):
        with create(path, LAYERS, rank=rank, world_size=3, run="job") as writer:
            writer.define("micro_batches", kind="noise")
            if rank != 1:
                writer.append("micro_batches", step=rank, projected=np.full((3, 2, 4), 1 + rank))
                writer.append("micro_batches", step=7, projected=np.full((3, 2, 4), 5 + rank))
    group = tracelab.open(path).groups["workers/micro_batches"]
    assert group.attrs["ranks_missing"] == [1]
    found = group["projected"].values[..., 0, 0]
    assert group["step"].values.tolist() == [0, 2, 7]
    nan = np.nan
    np.testing.assert_array_equal(
        found, [[1, 1, 1, nan, nan, nan], [nan, nan, nan, 3, 3, 3], [5, 5, 5, 7, 7, 7]]
    )
    # The second rank's, from the middle of its passes on.
    stored = tracelab.open(path).stored("workers/micro_batches")["projected"]
    part = stored[(slice(1, 3), slice(2, 5), slice(0, 1), slice(0, 1))][..., 0, 0]
    np.testing.assert_array_equal(part, found[1:3, 2:5])


def with_groups(path, *definitions):
    """Write a rank for each: its define()'s and its row's arguments."""
    with create(path, LAYERS, run="job"):
        pass
    for rank, (options, row) in enumerate(definitions):
        with create(path, LAYERS, rank=rank, run="job") as writer:
            writer.define("some", **options)
            writer.append("some", step=0, **row)
    return tracelab.open(path)


ONE = np.ones((1, 2, 5), np.float32)
WORKER = {"kind": "workers", "variables": OWN[:1]}
BATCH = {"kind": "noise"}
SAMPLED = np.ones((3, 10))
PROJECTED = np.ones((3, 2, 10))
TABLE = (np.repeat([0, 1], [6, 4]), np.concatenate([np.arange(6)[::-1], np.arange(4)]))


@pytest.mark.parametrize(
    ("definitions", "words"),
    [
        (
            [
                ({**WORKER, "attrs": {"project": {"k": 5, "seed": 0}}}, {"x": ONE}),
                ({**WORKER, "attrs": {"project": {"k": 5, "seed": 1}}}, {"x": ONE}),
            ],
            "differ in the attribute 'project'",
        ),
        (
            [
                (WORKER, {"x": ONE}),
                (
                    {"kind": "workers", "variables": (Variable("y", ("step",), "1"),)},
                    {"y": 1.0},
                ),
            ],
            "differ in the dimension of samples",
        ),
        (
            [
                (BATCH, {"projected": np.ones((3, 2, 4))}),
                (BATCH, {"sampled": np.ones((2, 10))}),
            ],
            "differ in how many there are along 'batch'",
        ),
        (
            [
                (BATCH, {"sampled": SAMPLED}),
                ({**BATCH, "coordinates": TABLE}, {"sampled": SAMPLED}),
            ],
            "differ in 'coordinate_index'",
        ),
        (
            [
                (WORKER, {"x": ONE}),
                ({"kind": "workers", "variables": (replace(OWN[0], dtype="float64"),)}, {"x": ONE}),
            ],
            "differ in the dtype of 'x', float(32 and float64|64 and float32)",
        ),
        (
            [
                ({**BATCH, "sketches": [tracelab.Sample(10)]}, {"sampled": SAMPLED}),
                ({**BATCH, "sketches": [tracelab.Project(10)]}, {"projected": PROJECTED}),
            ],
            "differ in the attribute 'sketches'",
        ),
        (
            [(BATCH, {"sampled": SAMPLED}), (BATCH, {"projected": PROJECTED})],
            "differ in the array '(projected|sampled)', which only one has",
        ),
    ],
    ids=[
        "other signs",
        "no samples",
        "other passes",
        "other coordinates",
        "other dtype",
        "other sketches",
        "other arrays",
    ],
)
def test_numbers_of_different_kinds_do_not_stand_side_by_side(definitions, words, tmp_path):
    for order in (1, -1):
        trace = with_groups(tmp_path / f"run{order}.zarr", *definitions[::order])
        with pytest.raises(TraceError, match=f"the ranks . and . {words}"):
            trace.groups["workers/some"]


def test_minibatches_that_a_probe_drew_are_no_samples_of_ranks(tmp_path):
    """Ranks of one seed draw the same ones: four times as many would not be four times as much."""
    attrs = {"batch_size": 8, "replacement": True, "n_data": 100}
    probe = ({"kind": "noise", "attrs": attrs}, {"projected": np.ones((3, 2, 4))})
    trace = with_groups(tmp_path / "run.zarr", probe, probe)
    assert trace.gathered.kinds == {}


def test_ranks_left_of_a_larger_job_are_refused(tmp_path):
    path = tmp_path / "run.zarr"
    with create(path, LAYERS, run="old"):
        pass
    for rank, run in enumerate(["new", "new", "old"]):
        with create(path, LAYERS, rank=rank, run=run) as writer:
            writer.define("worker", kind="workers", variables=OWN)
            writer.append("worker", step=0, x=values(rank, 0), count=[1])
    with pytest.raises(TraceError, match="rank 0 is of run 'new' and rank 2 of 'old'"):
        tracelab.open(path).groups["workers/worker"]


def test_more_ranks_than_can_be_read_are_not_opened(job, monkeypatch):
    monkeypatch.setattr("tracelab.trace.gathered.MAX_WORKERS", 2)
    (job / "workers/rank-000/zarr.json").write_text("{")
    with pytest.raises(TraceError, match="its job has 3 ranks, and at most 2 can"):
        _ = tracelab.open(job).gathered.kinds
