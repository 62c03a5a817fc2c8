import json
import threading
import time

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore, MemoryStore

import tracelab.trace.writing.exits as exits
from tracelab.errors import TraceError, UsageError
from tracelab.trace import create
from tracelab.trace import open as open_trace
from tracelab.trace.writing.recorder import Recorder

LAYERS = {"fc.weight": (8, 16), "fc.bias": (8,)}


def record(path, rows=3, **options):
    with create(path, LAYERS, **options) as writer:
        for step in range(rows):
            writer.append("steps", step=step, loss=float(step))
    return writer


# ------------------------------------------------------------------------------------- creating


def test_the_layer_table(tmp_path):
    with create(tmp_path / "a", LAYERS | {"scale": ()}, kinds={"fc.weight": "Linear"}):
        layers = open_trace(tmp_path / "a").layers
    assert layers["layer"].values.tolist() == ["fc.weight", "fc.bias", "scale"]
    assert layers["kind"].values.tolist() == ["Linear", "parameter", "parameter"]
    assert [json.loads(shape) for shape in layers["shape"].values] == [[8, 16], [8], []]
    assert layers["numel"].values.tolist() == [128, 8, 1]
    assert layers["offset"].values.tolist() == [0, 128, 136]


def test_root_attributes(tmp_path):
    optimizer = {"name": "SGD", "lr": np.float64(0.1)}
    with create(tmp_path / "a", LAYERS, {"note": "ü"}, attrs={"optimizer": optimizer}) as writer:
        writer.set_attrs(seed=7, software={"torch": "2.13"})
        trace = open_trace(tmp_path / "a")
        assert trace.state == "recording"
        assert trace.run == writer.run
        writer.flush()
    attrs = open_trace(tmp_path / "a").attrs
    assert attrs["format"] == "tracelab"
    assert attrs["format_version"] == 1
    assert attrs["state"] == "complete"
    assert attrs["incomplete_reasons"] == []
    assert attrs["metadata"] == {"note": "ü"}
    assert attrs["optimizer"] == {"name": "SGD", "lr": 0.1}
    assert attrs["seed"] == 7
    assert attrs["compression"] in ("none", "lz4")
    assert {"python", "tracelab", "numpy", "zarr", "torch"} == set(attrs["software"])


@pytest.mark.parametrize("name", ["format", "run", "state", "created", "incomplete_reasons"])
def test_attributes_that_tracelab_sets(tmp_path, name):
    with pytest.raises(UsageError, match=f"the attribute '{name}' is set by tracelab"):
        create(tmp_path / "a", LAYERS, attrs={name: 1})
    assert not (tmp_path / "a").exists()
    with (
        create(tmp_path / "a", LAYERS) as writer,
        pytest.raises(UsageError, match=f"the attribute '{name}' is set by tracelab"),
    ):
        writer.set_attrs(**{name: 1})


def test_attributes_must_be_json(tmp_path):
    with pytest.raises(UsageError, match=r"metadata\.x holds a object, which JSON cannot store"):
        create(tmp_path / "a", LAYERS, {"x": object()})


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ({}, "layers is empty; give at least one layer"),
        ({"w": (2, 0)}, r"layer 'w': a shape is a tuple of positive integers, got \(2, 0\)"),
        ({"w": (-1,)}, "layer 'w': a shape is a tuple of positive integers"),
        ({"w": (1.5,)}, "layer 'w': a shape is a tuple of positive integers"),
        ({"w": 3}, "layer 'w': a shape is a tuple of positive integers, got 3"),
        ({"w": (2**40, 2**40)}, "layer 'w': a shape is a tuple of positive integers"),
        ({"network": (2,)}, "a layer cannot be called 'network'"),
        ({"": (2,)}, "a layer cannot be called ''"),
        ({"a\nb": (2,)}, "a layer cannot be called"),
        ({"\ud800": (2,)}, "a layer cannot be called"),
        ({3: (2,)}, "a layer cannot be called 3"),
    ],
)
def test_layers_that_cannot_be(tmp_path, layers, words):
    with pytest.raises(UsageError, match=words):
        create(tmp_path / "a", layers)
    assert not (tmp_path / "a").exists()


def test_kinds_name_layers(tmp_path):
    with pytest.raises(UsageError, match="kinds names 'fc', which is not among the layers"):
        create(tmp_path / "a", LAYERS, kinds={"fc": "Linear"})


@pytest.mark.parametrize("options", [{"queue_bytes": 0}, {"flush_seconds": -1}])
def test_bounds(tmp_path, options):
    with pytest.raises(UsageError, match="queue_bytes must be positive and flush_seconds not neg"):
        create(tmp_path / "a", LAYERS, **options)


def test_a_trace_is_not_replaced_unasked(tmp_path):
    record(tmp_path / "a", rows=3)
    run = open_trace(tmp_path / "a").run
    with pytest.raises(UsageError, match=r"there is a trace at .*a; choose another path or"):
        create(tmp_path / "a", LAYERS)
    assert open_trace(tmp_path / "a").run == run
    record(tmp_path / "a", rows=1, overwrite=True)
    assert open_trace(tmp_path / "a").run != run
    assert open_trace(tmp_path / "a").steps.sizes["step"] == 1


def test_replacing_removes_everything_of_the_old_trace(tmp_path):
    with create(tmp_path / "a", LAYERS) as writer:
        writer.append("gradients", step=0, full=np.zeros(136))
    (tmp_path / "a/results/x").mkdir(parents=True)
    record(tmp_path / "a", overwrite=True)
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"zarr.json", "layers", "steps"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_a_trace_is_never_replaced(tmp_path, overwrite):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    zarr.create_group(tmp_path / "other.zarr")
    for name in ("notes", "file", "other.zarr"):
        with pytest.raises(UsageError, match=f"{name} exists and is not a trace, so it is left al"):
            create(tmp_path / name, LAYERS, overwrite=overwrite)
    assert (tmp_path / "notes/a.txt").read_text() == "mine"
    assert (tmp_path / "file").read_text() == "mine"
    store = MemoryStore()
    zarr.create_group(store)
    with pytest.raises(UsageError, match="exists and is not a trace"):
        create(store, LAYERS, overwrite=overwrite)


def test_an_empty_folder_and_missing_parents_are_fine(tmp_path):
    (tmp_path / "empty").mkdir()
    record(tmp_path / "empty")
    record(tmp_path / "x/y/z.zarr")
    assert open_trace(tmp_path / "x/y/z.zarr").state == "complete"


def test_replacing_a_trace_that_is_being_recorded_ends_its_writer(tmp_path):
    first = create(tmp_path / "a", LAYERS)
    first.append("steps", step=0, loss=0.0)
    second = create(tmp_path / "a", LAYERS, overwrite=True)
    with pytest.raises(UsageError, match="is closed"):
        first.append("steps", step=1, loss=0.0)
    first.close()
    second.append("steps", step=7, loss=0.0)
    second.close()
    trace = open_trace(tmp_path / "a")
    assert trace.run == second.run
    assert trace.steps["step"].values.tolist() == [7]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"no trace can be recorded at .*file/a: NotADirectory"):
        create(tmp_path / "file" / "a", LAYERS)
    with pytest.raises(UsageError, match="is read-only, so no trace can be recorded there"):
        create(LocalStore(tmp_path, read_only=True), LAYERS)
    with pytest.raises(UsageError, match=r"there is no file .*a\.zip; a \.zip can be read only"):
        create(tmp_path / "a.zip", LAYERS)


def test_an_open_store_is_recorded_into():
    store = MemoryStore()
    writer = record(store)
    assert writer.path is None
    assert open_trace(store).steps.sizes["step"] == 3
    with pytest.raises(UsageError, match="there is a trace at memory://"):
        record(store)
    record(store, rows=1, overwrite=True)
    assert open_trace(store).steps.sizes["step"] == 1


# -------------------------------------------------------------------------------------- closing


def test_a_closed_writer_takes_nothing(tmp_path):
    writer = record(tmp_path / "a")
    for call in (
        lambda: writer.append("steps", step=9, loss=0.0),
        lambda: writer.define("noise"),
        lambda: writer.set_attrs(x=1),
        writer.flush,
    ):
        with pytest.raises(UsageError, match=r"the writer of .*a is closed"):
            call()
    writer.close()
    writer.mark_incomplete("late")
    assert open_trace(tmp_path / "a").state == "complete"
    assert writer not in exits.writers()


def fail_inside(writer):
    with writer:
        writer.append("steps", step=0, loss=1.0)
        raise ZeroDivisionError("division by zero")


def test_an_exception_inside_keeps_the_rows_and_says_why(tmp_path):
    with pytest.raises(ZeroDivisionError):
        fail_inside(create(tmp_path / "a", LAYERS))
    trace = open_trace(tmp_path / "a")
    assert trace.state == "incomplete"
    assert trace.attrs["incomplete_reasons"] == ["ZeroDivisionError: division by zero"]
    assert trace.steps["loss"].values.tolist() == [1.0]
    assert trace.steps.attrs["complete"] is False


def test_ctrl_c_inside_is_a_reason(tmp_path):
    with pytest.raises(KeyboardInterrupt), create(tmp_path / "a", LAYERS):
        raise KeyboardInterrupt
    assert open_trace(tmp_path / "a").attrs["incomplete_reasons"] == ["KeyboardInterrupt"]


def test_a_collector_that_failed_leaves_a_reason(tmp_path):
    with create(tmp_path / "a", LAYERS) as writer:
        writer.mark_incomplete("gradients: out of memory")
        writer.mark_incomplete("noise: no data")
    trace = open_trace(tmp_path / "a")
    assert trace.state == "incomplete"
    assert trace.attrs["incomplete_reasons"] == ["gradients: out of memory", "noise: no data"]


def test_groups_say_when_they_are_complete(tmp_path):
    with create(tmp_path / "a", LAYERS) as writer:
        writer.append("steps", step=0, loss=1.0)
        writer.flush()
        assert open_trace(tmp_path / "a").steps.attrs["complete"] is False
    assert open_trace(tmp_path / "a").steps.attrs["complete"] is True


def test_repr(tmp_path):
    writer = create(tmp_path / "a", LAYERS)
    assert repr(writer) == f"<tracelab.Writer {tmp_path}/a (recording): no rows>"
    writer.append("steps", step=0, loss=1.0)
    writer.close()
    assert repr(writer) == f"<tracelab.Writer {tmp_path}/a (closed): steps>"


# ----------------------------------------------------------------------------------- committing


def test_rows_show_after_flush_seconds(tmp_path):
    with create(tmp_path / "a", LAYERS, flush_seconds=0.05) as writer:
        for step in range(3):
            writer.append("steps", step=step, loss=0.0)
            deadline = time.monotonic() + 30
            while True:
                trace = open_trace(tmp_path / "a")
                if "steps" in trace.groups and trace.steps.sizes["step"] == step + 1:
                    break
                assert time.monotonic() < deadline
                time.sleep(0.01)


def test_attributes_show_after_flush_seconds(tmp_path):
    with create(tmp_path / "a", LAYERS, flush_seconds=0.05) as writer:
        writer.set_attrs(seed=3)
        deadline = time.monotonic() + 30
        while open_trace(tmp_path / "a").attrs.get("seed") != 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_uncommitted_rows_do_not_show(tmp_path):
    with create(tmp_path / "a", LAYERS, flush_seconds=3600) as writer:
        writer.append("steps", step=0, loss=0.0)
        assert list(open_trace(tmp_path / "a").groups) == []


def test_a_defined_group_shows_before_its_first_row(tmp_path):
    with create(tmp_path / "a", LAYERS) as writer:
        writer.define("noise", attrs={"n_data": 10}, coordinates=([0, 1], [3, 4]))
        writer.flush()
        group = open_trace(tmp_path / "a").groups["noise"]
        assert group.sizes["step"] == 0
        assert group.attrs["n_data"] == 10
        assert group["coordinate_index"].values.tolist() == [3, 4]
        writer.append("noise", step=0, sampled=np.ones((3, 2)))
    assert open_trace(tmp_path / "a").groups["noise"]["sampled"].shape == (1, 3, 2)


def test_an_array_that_comes_late_is_missing_before(tmp_path):
    with create(tmp_path / "a", LAYERS) as writer:
        writer.append("steps", step=0, loss=0.0)
        writer.flush()
        writer.append("steps", step=1, loss=1.0, accuracy=0.5, applied=True)
        writer.flush()
        writer.append("steps", step=2, accuracy=0.75)
    steps = open_trace(tmp_path / "a").steps
    np.testing.assert_array_equal(steps["loss"].values, [0.0, 1.0, np.nan])
    np.testing.assert_array_equal(steps["accuracy"].values, [np.nan, 0.5, 0.75])
    np.testing.assert_array_equal(steps["applied"].values, [False, True, False])


def test_files_are_few(tmp_path):
    """10,000 rows of scalars and statistics: one shard an array, not one file a row."""
    with create(tmp_path / "a", LAYERS, flush_seconds=3600) as writer:
        for step in range(10_000):
            writer.append("steps", step=step, loss=0.0)
            writer.append("statistics", step=step, gradient_norm=[1.0, 2.0])
    files = [path for path in (tmp_path / "a").rglob("*") if path.name.startswith("c.")]
    # step and loss; step, layer and gradient_norm; the layer table's five.
    assert len(files) == 2 + 3 + 5
    np.testing.assert_array_equal(
        open_trace(tmp_path / "a").statistics["step"].values, np.arange(10_000)
    )


def test_no_file_is_left_unfinished(tmp_path):
    record(tmp_path / "a")
    assert not list((tmp_path / "a").rglob("*.partial"))


def test_two_threads_may_append_to_two_groups(tmp_path):
    with create(tmp_path / "a", LAYERS, flush_seconds=0.01) as writer:

        def append(group):
            for step in range(300):
                writer.append(group, step=step, gradient_norm=[step, 1.0])

        writer.define("early", kind="statistics")
        writer.define("late", kind="statistics")
        threads = [threading.Thread(target=append, args=(name,)) for name in ("early", "late")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    trace = open_trace(tmp_path / "a")
    for name in ("early", "late"):
        np.testing.assert_array_equal(
            trace.groups[name]["gradient_norm"].values[:, 0], np.arange(300)
        )


# ------------------------------------------------------------------------- pressure and failure


class Gate:
    """A sink that waits, or fails, when told to."""

    width = 2

    def __init__(self, inner):
        self.inner = inner
        self.open = threading.Event()
        self.open.set()
        self.reached = threading.Event()
        self.error = None
        self.lenient = False

    def put(self, key, parts):
        self.reached.set()
        self.open.wait()
        if self.error is not None and not (self.lenient and key == "zarr.json"):
            raise self.error
        self.inner.put(key, parts)


@pytest.fixture
def gated(monkeypatch, tmp_path):
    """A writer of rows of 8,000 bytes whose storage can be stopped."""
    gates = []
    original = Recorder.__init__

    def wrapped(self, name, sink, *rest):
        gates.append(Gate(sink))
        original(self, name, gates[0], *rest)

    monkeypatch.setattr(Recorder, "__init__", wrapped)
    writer = create(tmp_path / "a", {"w": (2000,)}, queue_bytes=40_000, flush_seconds=3600)
    yield writer, gates[0]
    gates[0].open.set()
    gates[0].error = None
    writer.abandon()


def test_append_blocks_only_when_the_queue_is_full(gated):
    writer, gate = gated
    writer.append("weights", step=0, full=np.zeros(2000))
    gate.reached.clear()
    gate.open.clear()
    threading.Thread(target=writer._recorder.flush, daemon=True).start()
    # The thread that takes rows waits for storage from here on.
    assert gate.reached.wait(30)
    done = []

    def fill():
        for step in range(1, 30):
            writer.append("weights", step=step, full=np.full(2000, step))
            done.append(step)

    thread = threading.Thread(target=fill)
    thread.start()
    thread.join(1.0)
    # The first row may be pending still: four or five more rows of 8,008 bytes fit in 40,000.
    assert thread.is_alive()
    assert 3 <= len(done) <= 5
    gate.open.set()
    thread.join(30)
    assert not thread.is_alive()
    writer.close()
    full = open_trace(writer.path).weights["full"].values
    np.testing.assert_array_equal(full[:, 0], np.arange(30))


def test_a_row_larger_than_the_queue_is_taken_when_nothing_is_pending(tmp_path):
    with create(tmp_path / "a", {"w": (2000,)}, queue_bytes=100) as writer:
        for step in range(5):
            writer.append("weights", step=step, full=np.full(2000, step))
    assert open_trace(tmp_path / "a").weights["full"].values[:, 7].tolist() == [0, 1, 2, 3, 4]


def test_a_full_disk_ends_the_recording_and_keeps_what_was_committed(gated):
    writer, gate = gated
    for step in range(3):
        writer.append("weights", step=step, full=np.full(2000, step))
    writer.flush()
    gate.error = OSError(28, "No space left on device")
    gate.lenient = True
    for step in range(3, 5):
        writer.append("weights", step=step, full=np.full(2000, step))
    writer.append("steps", step=0, loss=1.0)
    words = (
        r"recording to .*a stopped: OSError: \[Errno 28\] No space left on device; rows handed "
        r"over and lost: 1 of 'steps', 2 of 'weights'; what was committed before can be read; make"
    )
    with pytest.raises(TraceError, match=words):
        writer.flush()
    with pytest.raises(TraceError, match=words):
        writer.append("weights", step=5, full=np.zeros(2000))
    with pytest.raises(TraceError, match="2 of 'weights'"):
        writer.set_attrs(x=1)
    writer.mark_incomplete("quietly")
    with pytest.raises(TraceError, match="2 of 'weights'"):
        writer.close()
    writer.close()
    trace = open_trace(writer.path)
    assert trace.state == "incomplete"
    assert trace.attrs["incomplete_reasons"] == ["OSError: [Errno 28] No space left on device"]
    assert list(trace.groups) == ["weights"]
    np.testing.assert_array_equal(trace.weights["full"].values[:, 0], [0, 1, 2])


def test_a_defect_is_not_called_a_full_disk(gated):
    writer, gate = gated
    gate.error = RuntimeError("boom")
    writer.append("steps", step=0, loss=1.0)
    with pytest.raises(TraceError, match=r"RuntimeError: boom; .*please report this"):
        writer.flush()


def test_append_that_waits_for_room_hears_of_the_failure(gated):
    writer, gate = gated
    gate.open.clear()
    gate.error = OSError(28, "No space left on device")
    caught = []

    def fill():
        try:
            for step in range(30):
                writer.append("weights", step=step, full=np.zeros(2000))
        except TraceError as error:
            caught.append(error)

    thread = threading.Thread(target=fill)
    thread.start()
    time.sleep(0.2)
    gate.open.set()
    thread.join(30)
    assert len(caught) == 1


def test_append_that_waits_for_room_hears_that_the_trace_is_replaced(gated):
    writer, gate = gated
    gate.open.clear()
    caught = []

    def fill():
        try:
            for step in range(30):
                writer.append("weights", step=step, full=np.zeros(2000))
        except UsageError as error:
            caught.append(str(error))

    thread = threading.Thread(target=fill)
    thread.start()
    time.sleep(0.2)
    threading.Timer(0.1, gate.open.set).start()
    writer.abandon()
    thread.join(30)
    assert caught == [f"the writer of {writer.location} is closed"]
    with pytest.raises(UsageError, match="is closed"):
        writer._recorder.flush()


def test_the_exception_inside_is_not_hidden_by_a_full_disk(gated):
    writer, gate = gated
    gate.error = OSError(28, "No space left on device")
    with pytest.raises(ZeroDivisionError) as caught:
        fail_inside(writer)
    assert "rows handed over and lost: 1 of 'steps'" in caught.value.__notes__[0]


def test_a_failure_inside_is_raised_once(gated):
    writer, gate = gated
    gate.error = OSError(28, "No space left on device")
    writer.append("steps", step=0, loss=1.0)
    with pytest.raises(TraceError, match="1 of 'steps'") as caught, writer:
        writer.flush()
    assert not hasattr(caught.value, "__notes__")
