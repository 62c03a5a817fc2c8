"""Recording goes on: what is written then is what would have been written without a break."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import LocalStore, MemoryStore

import tracelab
from tracelab.contracts import Variable
from tracelab.errors import DamagedError, TraceError, UsageError
from tracelab.trace import create
from tracelab.trace import open as open_trace
from tracelab.trace.health.verification import verify
from tracelab.trace.writing import aside, exits

LAYERS = {"fc.weight": (8, 16), "fc.bias": (8,)}
NUMEL = 136
TABLE = ([0, 0, 1], [3, 100, 7])
COUNTS = Variable("counts", ("step", "bin"), "1", "int64", "how many")
RNG = np.random.default_rng(0)
# Mostly zeros, and stored compressed whatever the trace is.
COUNTED = RNG.poisson(0.05, (400, 2, 30)).astype("u4")
FULL = RNG.normal(size=(400, NUMEL)).astype("f4")
SAMPLED = RNG.normal(size=(400, 5, 3)).astype("f4")


def define(writer):
    writer.define("noise", attrs={"batch_size": 8, "n_data": 100}, coordinates=TABLE)
    writer.define("half", kind="gradients", dtype="bfloat16", sketches=[tracelab.Full()])
    writer.define("counted", kind="gradients")
    writer.define("own", kind="mine", variables=[COUNTS])


def append(writer, first, last):
    for step in range(first, last):
        # `late` and `mean_sampled` come late, `loss` is missing in many rows: whole chunks are.
        scalars = {"loss": float(step)} if step < 20 or step > 300 else {"accuracy": step / 2}
        if step >= 50:
            scalars["late"] = -1.0
        writer.append("steps", step=step, applied=step % 3 == 0, **scalars)
        writer.append("gradients", step=step, full=FULL[step])
        writer.append("half", step=step, full=FULL[step])
        writer.append("own", step=step, counts=[step, step + 1])
        writer.append("counted", step=step, histogram=COUNTED[step])
        if step % 10 == 0:
            late = {"mean_sampled": SAMPLED[step, 0]} if step >= 100 else {}
            writer.append("noise", step=step, sampled=SAMPLED[step], **late)


def record(path, last=400, first=0, **options):
    options = {"compression": "none", "queue_bytes": 60_000} | options
    with create(path, LAYERS, **options) as writer:
        define(writer)
        append(writer, first, last)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A trace that was never interrupted."""
    return record(tmp_path_factory.mktemp("whole") / "run.zarr")


def chunks(path):
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in Path(path).rglob("c.*")
        if "results" not in file.parts
    }


def same_rows(path, other):
    first, second = open_trace(path), open_trace(other)
    assert list(first.groups) == list(second.groups)
    for name, group in second.groups.items():
        assert group.attrs["complete"]
        assert first.groups[name].load().identical(group.load()), name
    assert verify(path).sound


def files(path):
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in Path(path).rglob("*")
        if file.is_file()
    }


# ------------------------------------------------------------------------ after the last row


@settings(max_examples=5)
@given(cuts=st.lists(st.integers(1, 400), max_size=3).map(sorted), flushed=st.booleans())
def test_the_files_are_those_of_a_trace_without_a_break(whole, tmp_path_factory, cuts, flushed):
    path = tmp_path_factory.mktemp("cut") / "run.zarr"
    done = 0
    for cut in cuts:
        writer = create(
            path, LAYERS, resume=True, compression="none", queue_bytes=60_000, flush_seconds=3600
        )
        define(writer)
        append(writer, done, cut)
        if flushed:
            writer.flush()
            append(writer, cut, min(cut + 7, 400))
            # As killed: what came after the commit is gone.
            writer.abandon()
        else:
            writer.close()
        done = cut
    record(path, first=done, resume=True)
    assert chunks(path) == chunks(whole)
    same_rows(path, whole)


@pytest.mark.parametrize("cut", [1, 37, 128, 333])
def test_the_values_of_compressed_rows_are_those_without_a_break(whole, tmp_path, cut):
    record(tmp_path / "a", last=cut, compression="lz4")
    record(tmp_path / "a", first=cut, compression="lz4", resume=True)
    same_rows(tmp_path / "a", whole)
    assert open_trace(tmp_path / "a").attrs["compression"] == "lz4"


@pytest.mark.parametrize("make", [MemoryStore, None])
def test_any_store_goes_on(whole, tmp_path, make):
    store = make() if make else LocalStore(tmp_path / "a")
    record(store, last=123)
    record(store, first=123, resume=True)
    same_rows(store, whole)


def test_without_a_trace_one_is_created(tmp_path):
    record(tmp_path / "a", last=3, resume=True)
    record(tmp_path / "b", last=3, resume=7)
    for name in "ab":
        trace = open_trace(tmp_path / name)
        assert trace.steps.sizes["step"] == 3
        assert "resumed" not in trace.attrs


def test_a_writer_that_declares_nothing_goes_on_all_the_same(whole, tmp_path):
    record(tmp_path / "a", last=200)
    with create(tmp_path / "a", LAYERS, resume=True) as writer:
        append(writer, 200, 400)
    assert chunks(tmp_path / "a") == chunks(whole)
    with (
        create(tmp_path / "a", LAYERS, resume=True) as writer,
        pytest.raises(UsageError, match="step 5 does not come after step 399"),
    ):
        writer.append("steps", step=5, loss=0.0)


def test_every_resumption_is_on_record(tmp_path):
    attrs = {"seed": 3, "optimizer": {"lr": 0.1}}
    with create(tmp_path / "a", LAYERS, {"note": "x"}, attrs=attrs) as writer:
        writer.append("steps", step=0, loss=1.0)
    before = open_trace(tmp_path / "a")
    with create(
        tmp_path / "a",
        LAYERS,
        {"note": "y"},
        attrs={"optimizer": {"lr": 0.2}, "seed": 3, "model": "m", "software": {"torch": "9"}},
        resume=True,
    ) as writer:
        assert writer.run == before.run
        assert open_trace(tmp_path / "a").state == "recording"
    trace = open_trace(tmp_path / "a")
    (entry,) = trace.attrs["resumed"]
    assert entry["rows"] == {"steps": 1}
    assert entry["software"]["torch"] == "9"
    assert entry["attrs"] == {"optimizer": {"lr": 0.2}, "metadata": {"note": "y"}}
    # What was said first stays, and what was not said yet is added.
    assert trace.attrs["optimizer"] == {"lr": 0.1}
    assert trace.attrs["metadata"] == {"note": "x"}
    assert trace.attrs["model"] == "m"
    assert trace.attrs["created"] == before.attrs["created"] < entry["created"]
    assert trace.state == "complete"
    assert "generation" not in trace.attrs


def test_the_end_of_a_process_is_no_lasting_reason(tmp_path):
    with pytest.raises(KeyboardInterrupt), create(tmp_path / "a", LAYERS):
        raise KeyboardInterrupt
    create(tmp_path / "a", LAYERS, resume=True).close()
    trace = open_trace(tmp_path / "a")
    assert (trace.state, trace.attrs["incomplete_reasons"]) == ("complete", [])
    assert trace.attrs["resumed"][0]["interruptions"] == ["KeyboardInterrupt"]
    with create(tmp_path / "a", LAYERS, resume=True) as writer:
        writer.mark_incomplete("gradients: out of memory")
    create(tmp_path / "a", LAYERS, resume=True).close()
    trace = open_trace(tmp_path / "a")
    assert trace.state == "incomplete"
    assert trace.attrs["incomplete_reasons"] == ["gradients: out of memory"]


def test_leftovers_of_a_writer_that_died_are_removed(tmp_path):
    path = record(tmp_path / "a", last=100)
    before = files(path)
    root = json.loads(before["zarr.json"])
    root["attributes"]["state"] = "recording"
    (path / "zarr.json").write_text(json.dumps(root))
    for name in ("zarr.json.partial", "steps/loss/c.0.partial", "layers/kind/c.0.partial"):
        (path / name).write_bytes(b"x")
    (path / "gradients/full/c.99.0").write_bytes(b"never committed")
    ahead = json.loads(before["steps/loss/zarr.json"])
    ahead["shape"] = [177]
    (path / "steps/loss/zarr.json").write_text(json.dumps(ahead))
    (path / "results").mkdir()
    (path / "results/mine").write_text("kept")
    create(path, LAYERS, resume=True).close()
    after = files(path)
    assert after.pop("results/mine") == b"kept"
    assert after.keys() == before.keys()
    assert json.loads(after["steps/loss/zarr.json"]) == json.loads(before["steps/loss/zarr.json"])
    # A reader that does not know the root document sees the same.
    bare = zarr.open_group(path, mode="r", use_consolidated=False)
    assert bare["steps/loss"].shape == (100,)


def test_a_process_that_trains_loads_no_reader():
    code = (
        "import sys; from tracelab.trace import create; create; "
        "print({'xarray', 'dask', 'pandas'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# ----------------------------------------------------------------------------- what is refused


def refused(path, words, error=UsageError, layers=LAYERS, declare=None, **options):
    """Nothing is changed by a resumption that is refused."""
    before = files(path)
    with pytest.raises(error, match=words):
        create(path, layers, **{"resume": True} | options)
    assert files(path) == before
    assert not exits.writers()


@pytest.mark.parametrize(
    ("layers", "kinds", "words"),
    [
        ({"fc.weight": (8, 16)}, None, "2 layers, the one at 1 being 'fc.bias', and now .* 1, wi"),
        ({"fc.bias": (8,), "fc.weight": (8, 16)}, None, "at 0 being 'fc.weight'.*'fc.bias' there"),
        ({**LAYERS, "x": (1,)}, None, "the one at 2 being none, and now there are 3, with 'x'"),
        ({**LAYERS, "fc.bias": (9,)}, None, r"'fc.bias' with shape \(8,\) .* now it has \(9,\)"),
        (LAYERS, {"fc.bias": "Linear"}, "kind 'parameter', and now it has .* and 'Linear'"),
    ],
)
def test_other_layers(tmp_path, layers, kinds, words):
    refused(record(tmp_path / "a", last=3), words, layers=layers, kinds=kinds)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attrs": {"seed": 4}}, "was recorded with seed 3, and now seed is 4; leave it out or"),
        ({"run": "other"}, "was recorded with run '[0-9a-f]{32}', and now run is 'other'"),
        ({"compression": "lz4"}, "compression='none', and now it is 'lz4'; leave it out"),
        ({"overwrite": True}, "overwrite=True and resume= contradict each other"),
        ({"resume": -1}, "resume must be True, .* or the step at which training goes on, got -1"),
        ({"resume": 1.5}, "resume must be True, .* got 1.5"),
        ({"resume": "yes"}, "resume must be True, .* got 'yes'"),
    ],
)
def test_options_that_do_not_agree(tmp_path, options, words):
    refused(record(tmp_path / "a", last=3, attrs={"seed": 3}), words, **options)


@pytest.mark.parametrize(
    ("group", "declaration", "words"),
    [
        ("gradients", {"kind": "weights"}, "with kind 'gradients', and now it is declared with"),
        ("gradients", {"layers": ["fc.bias"]}, r"layers \['fc.weight', 'fc.bias'\], and now"),
        ("gradients", {"sketches": [tracelab.Project(4)]}, r"sketches \[\], and now .*'k': 4"),
        ("gradients", {"attrs": {"schedule": "every 2"}}, "'schedule': None, and now .* every 2"),
        ("gradients", {"dtype": "bfloat16"}, "the array .*dtype='float32'.*dtype='bfloat16'"),
        ("gradients", {"coordinates": TABLE}, "coordinates all, and now .* 3 of them"),
        ("noise", {"attrs": {"batch_size": 9, "n_data": 100}, "coordinates": TABLE}, "8, and .* 9"),
        ("noise", {"attrs": {"batch_size": 8, "n_data": 100}}, "coordinates: 3, and .* 136"),
        (
            "noise",
            {
                "attrs": {"batch_size": 8, "n_data": 100},
                "coordinates": ([0, 0, 1], [3, 101, 7]),
            },
            "coordinate 1 at layer 0, weight 100, and .* layer 0, weight 101",
        ),
        (
            "own",
            {"kind": "mine", "variables": [Variable("counts", ("step", "bin"), "s", "int64")]},
            "units='1'.*units='s'",
        ),
        ("own", {"kind": "mine", "variables": [Variable("x", ("step",))]}, "none called 'counts'"),
    ],
)
def test_groups_that_are_declared_as_something_else(tmp_path, group, declaration, words):
    path = record(tmp_path / "a", last=11)
    with create(path, LAYERS, resume=True) as writer:
        with pytest.raises(UsageError, match=words):
            writer.define(group, **declaration)
        append(writer, 11, 12)
    assert open_trace(path).rows["gradients"] == 12


def test_shapes_of_rows_go_on(tmp_path):
    record(tmp_path / "a", last=11)
    with create(tmp_path / "a", LAYERS, resume=True) as writer:
        with pytest.raises(UsageError, match=r"'sampled' has had rows of shape \(5, 3\), got"):
            writer.append("noise", step=20, sampled=np.ones((4, 3)))
        with pytest.raises(UsageError, match="step 3 does not come after step 10"):
            writer.append("own", step=3, counts=[1, 2])
        writer.define("own", kind="mine", variables=[COUNTS])
        with pytest.raises(UsageError, match="group 'own' exists already"):
            writer.define("own", kind="mine", variables=[COUNTS])


def test_a_kind_may_have_arrays_that_no_row_has_held_yet(tmp_path):
    second = Variable("second", ("step",), "1", "float64")
    with create(tmp_path / "a", LAYERS) as writer:
        writer.define("own", kind="mine", variables=[COUNTS, second])
        writer.define("empty", kind="mine", variables=[second])
        writer.append("own", step=0, counts=[1])
    with create(tmp_path / "a", LAYERS, resume=True) as writer:
        for name in ("own", "empty"):
            with pytest.raises(UsageError, match=f"'{name}' of kind 'mine' has no array 'second'"):
                writer.append(name, step=1, second=3.0)
        writer.define("own", kind="mine", variables=[COUNTS, second])
        writer.define("empty", kind="mine", variables=[second])
        writer.append("own", step=1, counts=[2], second=3.0)
        writer.append("empty", step=1, second=4.0)
    trace = open_trace(tmp_path / "a")
    np.testing.assert_array_equal(trace.groups["own"]["second"].values, [np.nan, 3.0])
    assert trace.groups["empty"]["second"].values.tolist() == [4.0]


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[5] ^= 1
    if how == "truncated":
        content = content[: len(content) // 2]
    if how == "index":
        content[-6] ^= 1
    path.write_bytes(content)
    if how == "missing":
        path.unlink()


@pytest.mark.parametrize("how", ["flipped", "truncated", "index", "missing"])
@pytest.mark.parametrize("array", ["gradients/full", "steps/step", "layers/layer"])
def test_what_cannot_be_read_is_not_gone_on_with(tmp_path, how, array):
    path = record(tmp_path / "a", last=100)
    last = max((path / array).glob("c.*"), key=lambda file: int(file.name.split(".")[1]))
    damage(last, how)
    words = f"{array} of .*a is damaged .*`tracelab repair .*a` drops what cannot be"
    refused(path, words, DamagedError)


def test_a_damaged_shard_that_is_full_does_not_stop_recording(tmp_path):
    """It is not read: `verify` finds it, and the rows behind it are good."""
    path = record(tmp_path / "a", last=100)
    damage(path / "gradients/full/c.0.0", "flipped")
    record(path, first=100, last=110, resume=True)
    assert open_trace(path).rows["gradients"] == 110


def test_what_tracelab_did_not_write_is_not_gone_on_with(tmp_path):
    path = record(tmp_path / "a", last=3)
    root = json.loads((path / "zarr.json").read_text())
    document = root["consolidated_metadata"]["metadata"]["gradients/full"]
    document["codecs"][0]["configuration"]["index_location"] = "start"
    (path / "zarr.json").write_text(json.dumps(root))
    refused(path, "group 'gradients' of .* is not stored as tracelab stores groups")
    root["attributes"]["format_version"] = 99
    (path / "zarr.json").write_text(json.dumps(root))
    refused(path, "has format version 99, this tracelab reads", TraceError)
    shutil.rmtree(path)
    path.mkdir()
    (path / "notes").write_text("mine")
    refused(path, "exists and is not a trace, so it is left alone")


# ---------------------------------------------------------------------------- from a checkpoint


def test_rows_behind_a_checkpoint_are_moved_not_lost(whole, tmp_path, caplog):
    path = record(tmp_path / "run.zarr", last=333)
    run = open_trace(path).run
    with caplog.at_level(logging.WARNING):
        record(path, first=150, resume=150)
    (message,) = caplog.messages
    assert "goes on at step 150; its rows from there on are in" in message
    assert "183 of 'gradients'" in message
    assert "19 of 'noise'" in message
    assert chunks(path) == chunks(whole)
    same_rows(path, whole)
    trace = open_trace(path)
    assert (trace.attrs["generation"], trace.run) == (1, run)
    (entry,) = trace.attrs["resumed"]
    assert (entry["step"], entry["rows"]["steps"]) == (150, 150)
    assert entry["set_aside"] == "run.superseded-1.zarr"
    old = open_trace(tmp_path / "run.superseded-1.zarr")
    assert old.state == "complete"
    assert old.run != run
    assert old.attrs["superseded"]["run"] == run
    for name, group in old.groups.items():
        rows = open_trace(whole).groups[name].sel(step=slice(150, 332)).load()
        assert group.load().drop_attrs().identical(rows.drop_attrs()), name
        assert group.attrs == rows.attrs


@pytest.mark.slow
def test_each_time_has_a_place_of_its_own(tmp_path):
    path = record(tmp_path / "run.zarr", last=30)
    other = record(tmp_path / "run.superseded-2.zarr", last=1)
    untouched = files(other)
    for step, last in ((20, 25), (21, 24), (21, 23)):
        record(path, first=step, last=last, resume=step)
    assert open_trace(path).attrs["generation"] == 3
    kept = {
        name: open_trace(tmp_path / f"run.superseded-{name}.zarr").steps["step"].values.tolist()
        for name in (1, 3, 4)
    }
    assert kept == {1: list(range(20, 30)), 3: [21, 22, 23, 24], 4: [21, 22, 23]}
    assert files(other) == untouched


def test_with_nothing_behind_it_a_step_changes_nothing(tmp_path, caplog):
    path = record(tmp_path / "run.zarr", last=30)
    with caplog.at_level(logging.WARNING):
        create(path, LAYERS, resume=30).close()
        assert caplog.messages == []
        create(path, LAYERS, resume=35).close()
    assert caplog.messages == [f"{path} goes on at step 35 and lacks those after 29"]
    trace = open_trace(path)
    assert "generation" not in trace.attrs
    assert [entry["step"] for entry in trace.attrs["resumed"]] == [30, 35]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_from_the_beginning_everything_is_moved(whole, tmp_path):
    path = record(tmp_path / "run.zarr", last=33)
    record(path, resume=0)
    assert chunks(path) == chunks(whole)
    assert open_trace(tmp_path / "run.superseded-1.zarr").rows["steps"] == 33


def test_a_store_without_a_beside_keeps_them_inside(tmp_path):
    store = MemoryStore()
    record(store, last=30)
    record(store, first=10, last=12, resume=10)
    trace = open_trace(store)
    assert trace.rows["steps"] == 12
    assert trace.attrs["resumed"][0]["set_aside"] == "superseded-1.zarr"
    moved = zarr.open_group(store, path="superseded-1.zarr", mode="r")
    assert moved["steps/step"][:].tolist() == list(range(10, 30))


@pytest.mark.parametrize("moment", ["begun", "copied", "truncated"])
def test_killed_while_rows_are_moved(tmp_path, monkeypatch, moment):
    """Whenever it ends, the rows are in the trace or in the copy, and it can be done again."""
    path = record(tmp_path / "run.zarr", last=30)
    if moment == "begun":
        original = aside.copy

        def copy(found, writer):
            writer.append("steps", step=1, loss=0.0)
            writer.flush()
            # As killed: its copy stays as it is.
            writer.abandon()
            raise SystemExit

        monkeypatch.setattr(aside, "copy", copy)
    elif moment == "copied":

        def copied(self):
            raise SystemExit

        monkeypatch.setattr("tracelab.trace.writing.resuming.Found.restore", copied)
    else:

        def truncated(*_):
            exits.writers()[0].abandon()
            raise SystemExit

        monkeypatch.setattr("tracelab.trace.writing.creation.tidy", truncated)
    with pytest.raises(SystemExit):
        create(path, LAYERS, resume=10)
    monkeypatch.undo()
    steps = list(range(30))
    aside_at = tmp_path / "run.superseded-1.zarr"
    if moment == "truncated":
        assert open_trace(path).rows["steps"] == 10
        assert open_trace(aside_at).steps["step"].values.tolist() == steps[10:]
    else:
        assert open_trace(path).steps["step"].values.tolist() == steps
    record(path, first=10, last=20, resume=10)
    assert open_trace(path).steps["step"].values.tolist() == steps[:20]
    assert open_trace(aside_at).steps["step"].values.tolist() == steps[10:]
    assert open_trace(path).attrs["generation"] == 1
    assert len(list(tmp_path.iterdir())) == 2
    if moment == "begun":
        assert original is aside.copy


def test_rows_that_cannot_be_copied_are_not_taken_away(tmp_path):
    path = record(tmp_path / "run.zarr", last=100)
    damage(path / "gradients/full/c.1.0", "flipped")
    before = files(path)
    with pytest.raises(DamagedError, match=r"gradients/full of .* is damaged"):
        create(path, LAYERS, resume=10)
    assert files(path) == before


def test_readers_see_another_trace_behind_a_checkpoint(tmp_path):
    """Dask names say which rows they are: rows recorded again are others under the same steps."""
    path = tmp_path / "run.zarr"
    with create(path, LAYERS) as writer:
        writer.append("steps", step=0, loss=1.0)
    old = open_trace(path).steps["loss"]
    with create(path, LAYERS, resume=0) as writer:
        writer.append("steps", step=0, loss=2.0)
    new = open_trace(path).steps["loss"]
    assert old.data.name != new.data.name
