import json
import pickle
import sys
import time
import zipfile

import dask
import fsspec
import numpy as np
import pytest
import xarray as xr
from zarr.storage import LocalStore, MemoryStore, ZipStore

from tracelab.errors import MissingExtraError, NotRecordedError, TraceError, UsageError
from tracelab.trace import create
from tracelab.trace import open as open_trace

LAYERS = {"conv1.weight": (4, 3), "conv1.bias": (4,), "fc.weight": (2, 2)}
NUMEL = 20


def record(path, rows=4):
    rng = np.random.default_rng(0)
    with create(path, LAYERS, {"dataset": "digits"}, attrs={"optimizer": {"name": "SGD"}}) as w:
        w.define("noise", attrs={"batch_size": 16})
        w.define("late", kind="gradients", layers=["fc.weight", "conv1.bias"])
        for step in range(0, 10 * rows, 10):
            w.append("steps", step=step, loss=1 / (1 + step))
            w.append("statistics", step=step, gradient_norm=rng.normal(size=3) ** 2)
            w.append("gradients", step=step, full=rng.normal(size=NUMEL))
            w.append("noise", step=step, projected=rng.normal(size=(6, 3, 5)))
            w.append("late", step=step, sampled=step + np.arange(8))
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return record(tmp_path_factory.mktemp("runs") / "sgd.zarr")


@pytest.fixture
def trace(path):
    return open_trace(path)


def zipped(path, target, prefix=""):
    with zipfile.ZipFile(target, "w") as archive:
        for file in path.rglob("*"):
            if file.is_file():
                archive.write(file, f"{prefix}{file.relative_to(path)}")
    return target


# -------------------------------------------------------------------------------------- opening


def test_opening_reads_metadata_only(trace):
    assert trace.state == "complete"
    assert set(trace.groups) == {"steps", "statistics", "gradients", "noise", "late"}
    assert trace.attrs["metadata"] == {"dataset": "digits"}
    for name in trace.groups:
        for array in trace.groups[name].data_vars.values():
            assert dask.is_dask_collection(array.data)


def test_groups_are_made_once_and_anew_after_refresh(trace):
    assert trace.gradients is trace.groups["gradients"]
    before = trace.gradients
    assert trace.refresh() is trace
    assert trace.gradients is not before


def test_one_view_is_one_commit(tmp_path):
    with create(tmp_path / "a", LAYERS) as writer:
        writer.append("steps", step=0, loss=0.0)
        writer.flush()
        trace = open_trace(tmp_path / "a")
        writer.append("steps", step=1, loss=1.0)
        writer.flush()
        assert trace.steps["loss"].values.tolist() == [0.0]
        assert trace.refresh().steps["loss"].values.tolist() == [0.0, 1.0]


def test_there_is_nothing(tmp_path):
    for name in ("a.zarr", "b.zip"):
        with pytest.raises(UsageError, match=f"there is no (trace at|file) .*{name}"):
            open_trace(tmp_path / name)
    with pytest.raises(UsageError, match="there is no trace at memory://"):
        open_trace("memory://nowhere/a.zarr")
    with pytest.raises(UsageError, match="there is no trace at memory://"):
        open_trace(MemoryStore())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", [3, None, "", b"a"])
def test_what_names_no_trace(given):
    with pytest.raises(UsageError, match="a trace is named by a path, a URL or a Zarr store, got"):
        open_trace(given)


@pytest.mark.parametrize(
    "way",
    ["path", "text", "file url", "local store", "read-only store", "trace", "zip", "zip store"],
)
def test_ways_to_say_where(path, tmp_path, way):
    given = {
        "path": lambda: path,
        "text": lambda: str(path),
        "file url": lambda: f"file://{path}",
        "local store": lambda: LocalStore(path),
        "read-only store": lambda: LocalStore(path, read_only=True),
        "trace": lambda: open_trace(path),
        "zip": lambda: zipped(path, tmp_path / "a.zip"),
        "zip store": lambda: ZipStore(zipped(path, tmp_path / "a.zip"), mode="r"),
    }[way]()
    with open_trace(given) as trace:
        assert trace.shareable
        assert trace.run == open_trace(path).run
        for name in trace.groups:
            xr.testing.assert_identical(
                trace.groups[name].compute(), open_trace(path).groups[name].compute()
            )
        copy = pickle.loads(pickle.dumps(trace))
        xr.testing.assert_identical(copy.gradients.compute(), trace.gradients.compute())
        assert copy.summary()["groups"] == trace.summary()["groups"]
        copy.close()


def test_a_relative_path_pickles_as_an_absolute_one(path, monkeypatch, tmp_path):
    monkeypatch.chdir(path.parent)
    packed = pickle.dumps(open_trace(path.name))
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(packed).state == "complete"


def test_a_url_is_read_through_its_file_system(path):
    files = fsspec.filesystem("memory")
    files.put(str(path), "/bucket/sgd.zarr", recursive=True)
    try:
        trace = open_trace("memory://bucket/sgd.zarr")
        xr.testing.assert_identical(trace.gradients.compute(), open_trace(path).gradients.compute())
        assert trace.summary()["groups"]["steps"]["bytes"] > 0
    finally:
        files.rm("/bucket", recursive=True)


def test_a_url_is_recorded_to():
    files = fsspec.filesystem("memory")
    try:
        with create("memory://bucket/a.zarr", LAYERS) as writer:
            writer.append("steps", step=0, loss=0.5)
        assert open_trace("memory://bucket/a.zarr").steps["loss"].values.tolist() == [0.5]
        with pytest.raises(UsageError, match=r"there is a trace at memory://bucket/a\.zarr"):
            create("memory://bucket/a.zarr", LAYERS)
        create("memory://bucket/a.zarr", LAYERS, overwrite=True).close()
        assert list(open_trace("memory://bucket/a.zarr").groups) == []
    finally:
        files.rm("/bucket", recursive=True)


def test_object_storage_needs_its_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    # What fsspec has loaded for another test.
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(MissingExtraError, match=r"'s3fs'.* pip install 'tracelab\[s3\]'"):
        open_trace("s3://bucket/sgd.zarr")
    with pytest.raises(UsageError, match="reading 'gs://bucket/a' needs a package that is not ins"):
        open_trace("gs://bucket/a")
    with pytest.raises(UsageError, match="no trace can be opened at 'carrier-pigeon://a'"):
        open_trace("carrier-pigeon://a")


def test_a_zip_of_the_folder_instead_of_its_contents(path, tmp_path):
    with pytest.raises(TraceError, match=r"no zarr\.json at its top; .*zip that folder's contents"):
        open_trace(zipped(path, tmp_path / "a.zip", prefix="sgd.zarr/"))


def test_a_zip_that_is_none(tmp_path):
    (tmp_path / "a.zip").write_text("hello")
    with pytest.raises(TraceError, match=r"a\.zip cannot be read as a zip file: File is not"):
        open_trace(tmp_path / "a.zip")


def test_a_trace_in_memory_cannot_be_shared():
    store = MemoryStore()
    record(store, rows=1)
    assert not open_trace(store).shareable


# ------------------------------------------------------------------------------- what is in there


def test_groups_as_attributes(trace):
    assert trace.steps is trace.groups["steps"]
    assert trace.late is trace.groups["late"]
    assert {"gradients", "late", "noise"} <= set(dir(trace))
    assert callable(trace.noise)
    assert repr(trace.groups).startswith("<tracelab.Groups: ")
    assert "noise" in repr(trace.groups)
    assert "weights" not in trace.groups
    assert len(trace.groups) == 5


def test_a_group_that_was_not_recorded(trace):
    with pytest.raises(NotRecordedError, match="has no group 'gradient'; did you mean 'gradients'"):
        trace.groups["gradient"]
    with pytest.raises(NotRecordedError, match="has no group 'weights'; there are: gradients, la"):
        trace.weights  # noqa: B018
    assert not hasattr(trace, "weights")
    with pytest.raises(AttributeError, match="_private"):
        trace._private  # noqa: B018


def test_noise_and_results_are_delegated(trace):
    found = trace.noise(step=10, layer="fc.weight", mode="pooled")
    assert found.dims == ("sample",)
    assert found.sizes["sample"] == 30
    assert list(trace.results) == []
    with pytest.raises(NotRecordedError, match="has no group 'probe'"):
        trace.noise(group="probe")


def test_select_steps(trace):
    assert trace.select("gradients").identical(trace.gradients)
    assert trace.select("gradients", step=20)["full"].shape == (NUMEL,)
    assert trace.select("gradients", step=[0, 30])["full"].shape == (2, NUMEL)
    assert trace.select("gradients", step=slice(10, 20))["step"].values.tolist() == [10, 20]


def test_a_group_that_is_not_there_yet(tmp_path):
    with create(tmp_path / "a", LAYERS) as writer:
        writer.append("steps", step=0, loss=0.0)
        writer.flush()
        trace = open_trace(tmp_path / "a")
        with pytest.raises(NotRecordedError, match="no group 'noise' yet, and the run is still re"):
            trace.groups["noise"]
    with pytest.raises(NotRecordedError, match="no group 'noise'; there are: steps"):
        open_trace(tmp_path / "a").groups["noise"]


def test_select_steps_of_a_live_trace(tmp_path):
    with create(tmp_path / "a", LAYERS) as writer:
        writer.define("gradients")
        writer.flush()
        trace = open_trace(tmp_path / "a")
        for way in (trace.select, lambda group, step: trace.noise(step, group=group)):
            with pytest.raises(
                NotRecordedError, match="no row at step 3 yet: there is none so far"
            ):
                way("gradients", step=3)
        writer.append("gradients", step=5, full=np.zeros(NUMEL))
        writer.flush()
        trace.refresh()
        with pytest.raises(NotRecordedError, match=r"6 yet: the last is 5, .*call refresh\(\)"):
            trace.select("gradients", step=6)
        with pytest.raises(NotRecordedError, match="was not recorded at step 3; the nearest is 5"):
            trace.select("gradients", step=3)
    with create(tmp_path / "c", LAYERS) as writer:
        writer.define("gradients")
    with pytest.raises(NotRecordedError, match="group 'gradients' has no rows"):
        open_trace(tmp_path / "c").select("gradients", step=3)


def test_select_layers(trace):
    one = trace.select("statistics", layer="conv1.bias")["gradient_norm"]
    np.testing.assert_array_equal(one.values, trace.statistics["gradient_norm"].values[:, 1])
    some = trace.select("statistics", layer=["fc.weight", "conv1.bias"])
    assert some["layer"].values.tolist() == ["fc.weight", "conv1.bias"]
    matching = trace.select("statistics", step=10, layer=r"conv1\..*")
    assert matching["layer"].values.tolist() == ["conv1.weight", "conv1.bias"]
    assert matching["gradient_norm"].shape == (2,)


def test_select_layers_selects_their_coordinates(trace):
    full = trace.select("gradients", layer="conv1.bias")
    np.testing.assert_array_equal(full["full"].values, trace.gradients["full"].values[:, 12:16])
    sampled = trace.select("late", step=0, layer=["conv1.bias", "fc.weight"])
    # The group records fc.weight first: its coordinates are 0 to 3, the bias's 4 to 7.
    assert sampled["sampled"].values.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert sampled["coordinate_layer"].values.tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("layer", "error", "words"),
    [
        ("conv1.wieght", NotRecordedError, "no layer .* 'conv1.wieght'; did you mean 'conv1.weig"),
        ("zzz", NotRecordedError, "'statistics' matches 'zzz'; there are: conv1.weight, conv1.b"),
        (["conv1"], NotRecordedError, "has no layer 'conv1'; did you mean 'conv1.bias'"),
        ("(", UsageError, r"layer must be a name or a regular expression, got '\('"),
        (3, UsageError, "layer must be a name, a regular expression or a list of names, got 3"),
        ({"fc.weight": 1}, UsageError, "layer must be a name, .* got {'fc.weight': 1}"),
        ([], UsageError, "layer is an empty list, which selects nothing"),
        (["fc.weight", "fc.weight"], UsageError, "layer names 'fc.weight' twice"),
        ([3], NotRecordedError, "has no layer '3'; there are: conv1.weight"),
    ],
)
def test_layers_that_are_not_there(trace, layer, error, words):
    with pytest.raises(error, match=words):
        trace.select("statistics", layer=layer)


def test_scalars_have_no_layers(trace):
    with pytest.raises(NotRecordedError, match="group 'steps' has no layers"):
        trace.select("steps", layer="fc.weight")


def test_summary_is_json(path, trace):
    found = json.loads(json.dumps(trace.summary()))
    assert found["run"] == trace.run
    assert found["state"] == "complete"
    assert found["format_version"] == 1
    assert found["metadata"] == {"dataset": "digits"}
    assert found["optimizer"] == {"name": "SGD"}
    assert found["steps"]["noise"] == {"count": 4, "first": 0, "last": 30}
    assert found["layers"][0] == {
        "name": "conv1.weight",
        "kind": "parameter",
        "shape": "[4, 3]",
        "numel": 12,
    }
    late = found["groups"]["late"]
    assert (late["kind"], late["rows"]) == ("gradients", 4)
    assert late["arrays"]["sampled"] == {
        "dims": ["step", "coordinate"],
        "shape": [4, 8],
        "units": "loss/weight",
        "dtype": "float32",
    }
    on_disk = sum(file.stat().st_size for file in (path / "late").rglob("*") if file.is_file())
    assert late["bytes"] == on_disk


def test_repr(trace):
    lines = repr(trace).splitlines()
    assert lines[0] == "<tracelab.Trace>"
    assert f"  run:      {trace.run}" in lines
    assert "  state:    complete" in lines
    assert "  layers:   3" in lines
    # step and 3 layers of float32 (the names are not counted): 4 * (8 + 12) bytes.
    assert "    statistics (statistics): 4 rows, 80 B: gradient_norm" in lines


def test_repr_of_an_empty_trace_that_failed():
    store = MemoryStore()
    with create(store, LAYERS) as writer:
        writer.mark_incomplete("out of memory " + "x" * 300)
    text = repr(open_trace(store))
    assert "state:    incomplete · out of memory xxx" in text
    assert text.endswith("groups:   none yet")
    assert max(map(len, text.splitlines())) <= 120


def test_html_escapes_everything_from_the_store():
    evil = "<script>alert(1)</script>"
    store = MemoryStore()
    with create(store, {evil: (2,)}) as writer:
        writer.define("g", kind="gradients", attrs={evil: evil})
        writer.append("g", step=0, full=[1.0, 2.0])
        writer.mark_incomplete(evil)
    html = open_trace(store)._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "<td>g</td><td>gradients</td><td>1</td>" in html


# --------------------------------------------------------------------------------------- speed


class Counting(MemoryStore):
    """A store in memory that remembers what was read."""

    def __init__(self, store_dict):
        super().__init__(store_dict)
        self.read = []

    async def get(self, key, prototype, byte_range=None):
        self.read.append((key, byte_range))
        return await super().get(key, prototype, byte_range)


def test_one_cell_is_one_chunk_read():
    plain = MemoryStore()
    with create(plain, {f"l{i}": (4,) for i in range(6)}) as writer:
        for step in range(40):
            writer.append("noise", step=step, projected=np.zeros((8, 6, 16)))
    store = Counting(plain._store_dict)
    noise = open_trace(store).groups["noise"]["projected"]
    store.read.clear()
    assert noise.isel(step=17, layer=3).values.shape == (8, 16)
    # The shard's index, and the one chunk.
    assert len(store.read) == 2
    assert {key for key, _ in store.read} == {"noise/projected/c.0.0.0.0"}


def test_opening_1e5_steps_is_quick(tmp_path):
    with create(tmp_path / "a", LAYERS, flush_seconds=3600) as writer:
        for step in range(100_000):
            writer.append("steps", step=step, loss=0.0)
    open_trace(tmp_path / "a")
    started = time.process_time()
    trace = open_trace(tmp_path / "a")
    opened = time.process_time() - started
    assert opened < 0.05
    np.testing.assert_array_equal(trace.steps["step"].values, np.arange(100_000))
