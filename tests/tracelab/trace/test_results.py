"""Stored results: their form, what is believed of them, and what other readers see."""

import json
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorstore
import toys
import xarray as xr
import zarr

import tracelab
from tracelab import registry
from tracelab.errors import DamagedError, NotRecordedError, TraceError, UsageError
from tracelab.trace.places import objects
from tracelab.trace.places.locations import resolve
from tracelab.trace.resultstore import resultform, shelves
from tracelab.trace.resultstore.parts import Cells
from tracelab.trace.resultstore.unfinished import Job, Kind


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(registry, "_entries", toys.entries)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_entries", toys.entries)
        path = toys.write(tmp_path_factory.mktemp("template") / "run", range(5))
        tracelab.analyze(path, ["toy", "path"])
    return path


@pytest.fixture
def path(template, tmp_path):
    return shutil.copytree(template, tmp_path / "run")


def group_of(path, name="toy"):
    (found,) = (path / "results" / name).glob("*/zarr.json")
    return found.parent


def edit(file, change):
    document = json.loads(file.read_bytes())
    change(document)
    file.write_text(json.dumps(document))


# -------------------------------------------------------------------------------- other readers


def test_other_readers_see_the_same_numbers(path):
    found = tracelab.open(path).results["toy"]
    group = group_of(path)
    with xr.open_zarr(group, consolidated=True) as theirs:
        xr.testing.assert_equal(theirs, found)
        assert theirs["value"].attrs == found["value"].attrs
    tree = xr.open_datatree(f"{path}/results", engine="zarr", consolidated=False)
    xr.testing.assert_equal(tree["toy"][group.name].to_dataset(), found)
    ours = zarr.open_group(group, mode="r")
    assert set(ours.array_keys()) == set(found.variables)
    np.testing.assert_array_equal(ours["part"][:], found["part"].values)
    assert ours["layer"][:].tolist() == list(toys.LABELS)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(group / "value")}}
    read = tensorstore.open(spec, read=True).result().read().result()
    np.testing.assert_array_equal(read, found["value"].values)


def test_other_readers_see_no_jobs(path):
    """A job that runs: its folder is a group without members, and no reader warns."""
    kind = Kind("toy", 1, 0, "0" * 20)
    with Job(shelves.beside(resolve(path), "r"), kind) as job:
        job.save(Cells(None, ("a",), np.zeros(1, int), {}))
        tree = xr.open_datatree(f"{path}/results", engine="zarr", consolidated=False)
        assert set(tree.children) == {"toy", "path", ".jobs"}
        assert not tree[".jobs"].children
        assert set(zarr.open_group(path / "results", mode="r").group_keys()) == set(tree.children)
        assert list(tracelab.open(path).results) == ["path", "toy"]


@pytest.mark.parametrize("rows", [1, 3, 4, 7])
def test_large_arrays_are_in_several_chunks_and_read_when_asked_for(
    path, tmp_path, monkeypatch, rows
):
    """Chunks of three rows of four doubles; labels are in memory at once."""
    monkeypatch.setattr(resultform, "CHUNK_BYTES", 3 * 4 * 8)
    trace = tracelab.open(toys.write(tmp_path / "other", range(rows)))
    wanted = tracelab.analyze(trace, "toy")["toy"]
    group = group_of(tmp_path / "other")
    files = sorted(file.name for file in (group / "value").glob("c.*"))
    assert files == [f"c.{index}.0" for index in range(-(-rows // 3))]
    monkeypatch.setattr(resultform, "EAGER_BYTES", 0)
    found = trace.results["toy"]
    reads = []
    real = objects.read_all
    monkeypatch.setattr(
        objects, "read_all", lambda *given: reads.append(len(given[1])) or real(*given)
    )
    np.testing.assert_array_equal(found["value"][1:], wanted["value"][1:])
    np.testing.assert_array_equal(found["value"].values, wanted["value"].values)
    assert reads == [len(files)] * 2
    xr.testing.assert_identical(found.load(), wanted)
    np.testing.assert_array_equal(zarr.open_array(group / "value")[:], wanted["value"].values)


def test_every_dtype_survives(tmp_path):
    """Also empty arrays, texts of any script, and numbers without a finite value."""
    rng = np.random.default_rng(0)
    dataset = xr.Dataset(
        {
            dtype: (("step", "layer"), rng.integers(0, 2, (3, 2)).astype(dtype))
            for dtype in sorted(resultform.DTYPES_OF_RESULTS)
        }
        | {"odd": ("layer", np.array([np.nan, -np.inf])), "none": (("layer", "e"), np.ones((2, 0)))}
        | {"status": (("step", "layer"), np.zeros((3, 2), np.uint8))},
        {
            "step": [1, 5, 6],
            "layer": np.array(["слой/β", ""], dtype=np.dtypes.StringDType()),
        },
        {
            **dict.fromkeys(("analysis", "created", "finding", "key", "basis"), "x"),
            **{"warnings": [], "failures": [], "references": [], "parameters": {"p": None}},
            **{"analysis_version": 1, "run": "r", "seconds": 0.0},
        },
    )
    shelf = shelves.beside(resolve(tmp_path), "r")
    shelves.prepare(shelf, "x")
    entry = shelves.store(shelf, "results/.jobs/j", "n", dataset, lambda: 3)
    xr.testing.assert_identical(resultform.load(entry), dataset)
    (again,) = shelves.entries(shelf, "x")
    assert again.age == (3, "n")
    xr.testing.assert_identical(resultform.load(again), dataset)


# -------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda file: file.write_bytes(b"x" + file.read_bytes()[1:]), r"value/c\.0\.0 differs"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), r"value/c\.0\.0 differs"),
        (lambda file: file.write_bytes(b""), r"value/c\.0\.0 differs"),
        (lambda file: file.unlink(), r"value/c\.0\.0 cannot be read"),
        (lambda file: (file.unlink(), file.mkdir()), r"value/c\.0\.0 cannot be read"),
        (lambda file: (file.unlink(), os.mkfifo(file)), r"value/c\.0\.0 cannot be read"),
        (lambda file: os.truncate(file, 2**40), r"value/c\.0\.0 cannot be read"),
        (lambda file: (file.unlink(), file.symlink_to("/etc/hostname")), "cannot be read"),
    ],
    ids=["flipped", "cut", "empty", "gone", "folder", "pipe", "huge", "link"],
)
@pytest.mark.parametrize("eager", [True, False])
def test_a_damaged_chunk_is_an_error_with_a_remedy(path, monkeypatch, harm, words, eager):
    if not eager:
        monkeypatch.setattr(resultform, "EAGER_BYTES", 0)
    harm(group_of(path) / "value" / "c.0.0")
    trace = tracelab.open(path)
    with pytest.raises(DamagedError, match=rf"{words}.*\); compute it again with .*\['toy'\]\)"):
        trace.results["toy"].load()
    if not eager:
        assert trace.results["toy"]["part"].shape == (5, 4, 2)
    tracelab.analyze(trace, "toy")
    assert trace.results["toy"].load().sizes["step"] == 5


def test_a_chunk_of_another_result_is_damage(path):
    """Its own checksum is right; it is not the one that was committed."""
    trace = tracelab.open(path)
    tracelab.analyze(trace, "toy", offset=1.0)
    first, second = (path / "results" / "toy" / key for key in trace.results.keys_of("toy"))
    (first / "value" / "c.0.0").write_bytes((second / "value" / "c.0.0").read_bytes())
    with pytest.raises(DamagedError, match="checksum"):
        trace.results.all("toy")


def set_in(*keys):
    *keys, last, value = keys

    def change(document):
        target = document
        for key in keys:
            target = target[key]
        target[last] = value

    return change


def of_array(name, *keys):
    return set_in("consolidated_metadata", "metadata", name, *keys)


def renamed(old, new):
    def change(document):
        members = document["consolidated_metadata"]["metadata"]
        members[new] = members.pop(old)
        sums = document["attributes"]["checksums"]
        sums[new] = sums.pop(old)

    return change


def dropped(*keys):
    def change(document):
        target = document
        for key in keys[:-1]:
            target = target[key]
        del target[keys[-1]]

    return change


HUGE = 10**18
HOSTILE = {
    "path": renamed("value", "../../../../../etc/passwd"),
    "dots": renamed("value", ".."),
    "shape": of_array("value", "shape", [HUGE, 4]),
    "shapes": of_array("value", "shape", [2**39, 4]),
    "chunk": of_array("value", "chunk_grid", "configuration", "chunk_shape", [HUGE, 4]),
    "no chunk": of_array("value", "chunk_grid", "configuration", "chunk_shape", [0, 4]),
    "negative": of_array("value", "shape", [-5, 4]),
    "bool": of_array("value", "shape", [True, 4]),
    "dims": of_array("value", "dimension_names", ["step", "step"]),
    "few dims": of_array("value", "dimension_names", ["step"]),
    "dim path": of_array("value", "dimension_names", ["step", "../x"]),
    "dim number": of_array("value", "dimension_names", ["step", 3]),
    "steps of layers": of_array("step", "dimension_names", ["layer"]),
    "object": of_array("value", "data_type", "object"),
    "dtype list": of_array("value", "data_type", ["float64"]),
    "texts": of_array("value", "data_type", "string"),
    "codec": of_array("value", "codecs", [{"name": "pickle"}]),
    "blosc": of_array("value", "codecs", [{"name": "bytes"}, {"name": "blosc"}]),
    "array": of_array("value", "node_type", "group"),
    "key": of_array("value", "chunk_key_encoding", {"name": "v2"}),
    "attributes": of_array("value", "attributes", []),
    "arrays": set_in("consolidated_metadata", "metadata", {}),
    "members": set_in("consolidated_metadata", "metadata", []),
    "no commit": dropped("consolidated_metadata"),
    "group": set_in("node_type", "array"),
    "format": set_in("zarr_format", 2),
    "no status": dropped("consolidated_metadata", "metadata", "status"),
    "no attributes": dropped("attributes"),
    "sums": set_in("attributes", "checksums", {}),
    "sums short": set_in("attributes", "checksums", "value", []),
    "sums text": set_in("attributes", "checksums", "value", ["0"]),
    "run": set_in("attributes", "run", "another"),
    "analysis": set_in("attributes", "analysis", "path"),
    "serial": set_in("attributes", "serial", 2**63),
    "serial text": set_in("attributes", "serial", "9"),
    "serial true": set_in("attributes", "serial", True),
    "seconds": set_in("attributes", "seconds", float("nan")),
    "parameters": set_in("attributes", "parameters", [1]),
    "warnings": set_in("attributes", "warnings", [{}]),
    "finding": set_in("attributes", "finding", None),
    "nothing": dropped("attributes", "finding"),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_result_is_left_out(path, caplog, change):
    edit(group_of(path) / "zarr.json", change)
    trace = tracelab.open(path)
    assert list(trace.results) == ["path"]
    assert trace.results.keys_of("toy") == []
    assert trace.results.listing("toy") == []
    assert "is left out: " in caplog.text
    with pytest.raises(NotRecordedError, match="no result of 'toy'; results: path"):
        trace.results["toy"]
    assert tracelab.analyze(trace, "toy")["toy"].attrs["computed_cells"] == 20
    assert list(trace.results) == ["path", "toy"]


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"[" * 100_000, b"\xff", b'{"attributes": ' + b"9" * 5000 + b"}"],
)
def test_documents_that_are_none(path, content):
    (group_of(path) / "zarr.json").write_bytes(content)
    assert list(tracelab.open(path).results) == ["path"]


def test_links_and_odd_names_are_left_out(path, tmp_path):
    results = path / "results"
    (results / "toy" / "cycle").symlink_to(results)
    (results / "outside").symlink_to(tmp_path)
    (results / "toy" / ".hidden").mkdir()
    (results / "toy" / "a b").mkdir()
    (results / "toy" / "pipe").mkdir()
    os.mkfifo(results / "toy" / "pipe" / "zarr.json")
    (results / "file").write_text("x")
    trace = tracelab.open(path)
    assert list(trace.results) == ["path", "toy"]
    assert len(trace.results.keys_of("toy")) == 1
    for name in ("../results/toy", "", "..", "toy/..", ".jobs", "x" * 500, "a\0b"):
        assert name not in trace.results


def test_results_are_not_written_through_links(path, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    toy = path / "results" / "toy"
    toy.rename(tmp_path / "moved")
    toy.symlink_to(elsewhere)
    with pytest.raises(UsageError, match=r"results/toy is a link to somewhere else.*--out"):
        tracelab.analyze(path, "toy")
    assert list(elsewhere.iterdir()) == []


def test_more_entries_than_any_store_has(path, monkeypatch):
    monkeypatch.setattr(objects, "MAX_NAMES", 3)
    for number in range(4):
        (path / "results" / "toy" / str(number)).mkdir()
    with pytest.raises(TraceError, match="over 3 entries below 'results/toy'"):
        tracelab.open(path).results["toy"]


BOUNDED = """
import resource, sys, time
from pathlib import Path
import toys, tracelab
from tracelab import jobs, registry
registry._entries = toys.entries
trace = tracelab.open(sys.argv[1])
"path" in trace.results

def peak():
    # Not ru_maxrss: that begins with what the process that started this one had taken.
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

taken = peak()
before = resource.getrusage(resource.RUSAGE_SELF)
try:
    list(trace.results), trace.results.listing(), trace.results["toy"].load()
except Exception as error:
    print(type(error).__name__)
after = resource.getrusage(resource.RUSAGE_SELF)
print(peak() - taken)
print(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
"""


def large_document(group):
    with (group / "zarr.json").open("wb") as file:
        file.truncate(2**30)


def large_attributes(group):
    edit(group / "zarr.json", set_in("attributes", "x", [[]] * 300_000))


def sparse_labels(group):
    def change(document):
        metadata = document["consolidated_metadata"]["metadata"]
        for name, array in metadata.items():
            for axis, dim in enumerate(array["dimension_names"]):
                if dim == "step":
                    array["shape"][axis] = 2**30
                    array["chunk_grid"]["configuration"]["chunk_shape"][axis] = 2**30
            assert len(document["attributes"]["checksums"][name]) == 1

    edit(group / "zarr.json", change)
    for name in ("step", "value", "part", "status"):
        for file in (group / name).glob("c.*"):
            os.truncate(file, 2**33)


@pytest.mark.parametrize(
    "harm",
    [
        sparse_labels,
        *(pytest.param(h, marks=pytest.mark.slow) for h in (large_document, large_attributes)),
    ],
)
def test_hostile_results_cost_little(path, harm):
    """At most a second of processor time and 200 MB, in a process of its own."""
    harm(group_of(path))
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(toys.__file__)}
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0))}
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, path],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
        **limit,
    )
    error, grown, seconds = done.stdout.split()
    assert error == "NotRecordedError"
    assert int(grown) < 200_000
    assert float(seconds) < 1


# ---------------------------------------------------------------------------------------- listing


def test_listing_opens_no_array(path, monkeypatch):
    trace = tracelab.open(path)
    monkeypatch.setattr(resultform, "load", lambda entry: pytest.fail("an array was opened"))
    listed = trace.results.listing()
    assert [each["analysis"] for each in listed] == ["path", "toy"]
    for each in listed:
        assert {"analysis_version", "parameters", "finding", "created", "serial", "seconds"} <= {
            *each
        }
    assert trace.results.listing("toy") == listed[1:]
    assert trace.results.listing("none") == []
    assert repr(trace.results).splitlines() == [
        "<tracelab.Results: 2 analyses>",
        "  path: offset=0.0",
        "  toy: offset=0.0, pause=0.0",
    ]


def test_a_result_replaced_while_it_is_opened(path, monkeypatch):
    """The reader saw a result that a job has removed since: it gets the one that replaced it."""
    trace = tracelab.open(path)
    real, calls = resultform.load, []

    def late(entry):
        calls.append(entry)
        if len(calls) == 1:
            tracelab.analyze(path, "toy", force=True)
            assert not (path / entry.path).exists()
        return real(entry)

    monkeypatch.setattr("tracelab.trace.resultstore.results.resultform.load", late)
    assert trace.results["toy"].attrs["serial"] == 2


def test_runs_that_are_no_plain_names_have_no_place_elsewhere(tmp_path):
    for run in ("../x", "", ".jobs", "a/b", "x" * 200):
        with pytest.raises(UsageError, match="its identifier is no plain name"):
            shelves.elsewhere(tmp_path / "out", run, create=True)
    assert not (tmp_path / "out").exists()


def test_the_document_is_the_commit(path):
    """It holds what the arrays' own documents and the checksums of their chunks say."""
    document = group_of(path) / "zarr.json"
    content = json.loads(document.read_bytes())
    assert set(content["consolidated_metadata"]["metadata"]) == {
        *("value", "part", "status", "step", "layer", "half")
    }
    for name, described in content["consolidated_metadata"]["metadata"].items():
        assert json.loads((document.parent / name / "zarr.json").read_bytes()) == described
        stored = {
            int.from_bytes(file.read_bytes()[-4:], "little")
            for file in (document.parent / name).glob("c.*")
        }
        assert stored == set(content["attributes"]["checksums"][name])
    document.unlink()
    assert "toy" not in tracelab.open(path).results
