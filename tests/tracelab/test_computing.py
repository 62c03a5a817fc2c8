"""Jobs that are killed, interrupted, run at the same time, or find the disk full."""

import errno
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import toys
import xarray as xr
import zarr

import tracelab
from tracelab import computing, keeping, registry
from tracelab.errors import StorageError, UsageError
from tracelab.trace.places import objects
from tracelab.trace.resultstore import shelves

N_LABELS = len(toys.LABELS)
HEAD = """
import sys
import toys, tracelab
from tracelab import keeping
toys.install()
keeping.SAVE_SECONDS = 0.05
"""
RUN = """
trace = tracelab.open(sys.argv[1])
options = eval(sys.argv[3])
print("ready", flush=True)
tracelab.analyze(trace, sys.argv[2], **options)
"""
COMMAND = """
from tracelab.cli import main
main()
"""


def start(code, *arguments, log=None):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    if log is not None:
        environment["TOY_LOG"] = str(log)
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", HEAD + code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def finish(process, timeout=120):
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err
    return out, err


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(registry, "_entries", toys.entries)


@pytest.fixture
def one_cell_a_task(monkeypatch):
    monkeypatch.setattr("tracelab.cutting.BLOCK_BYTES", 1)
    monkeypatch.setattr("tracelab.cutting.SHARED_BYTES", 1)


def leftovers(path):
    """Return what lies in a store of results that is neither a group nor a finished result."""
    return sorted(
        str(file.relative_to(path))
        for file in path.rglob("*")
        if file.name.startswith((".", "lock")) or ".partial" in file.name
    )


def same(found, wanted):
    xr.testing.assert_identical(found.load().drop_attrs(deep=False), wanted.drop_attrs(deep=False))


def fresh(path, folder, name="toy", **options):
    return tracelab.analyze(path, name, force=True, out=folder / "fresh", **options)[name]


# --------------------------------------------------------------------------------------- killed


def kill_when(process, log, count):
    """Kill a job once it has computed so many cells, or let it end."""
    while process.poll() is None:
        if log.exists() and len(log.read_text().split()) >= count:
            process.kill()
            break
        time.sleep(0.002)
    process.wait()
    process.stdout.close()
    process.stderr.close()


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [2, 20])
def test_a_killed_job_goes_on_where_it_stopped(tmp_path, rounds):
    rng = random.Random(rounds)
    path, log = tmp_path / "run", tmp_path / "log"
    toys.write(path, range(rounds * 40))
    cells = rounds * 40 * N_LABELS
    options = {"pause": 0.005}
    killed = 0
    for _ in range(rounds):
        process = start(RUN, path, "toy", options, log=log)
        kill_when(process, log, rng.randint(50, 250))
        assert process.returncode == -signal.SIGKILL
        assert tracelab.open(path).results.keys_of("toy") == []
        killed += len(toys.noted(log))
    finish(start(RUN, path, "toy", options, log=log))
    last = len(toys.noted(log))
    found = tracelab.open(path).results["toy"]
    assert found.attrs["computed_cells"] == last
    assert found.attrs["reused_cells"] == cells - last
    # A kill loses what was computed since the last save, a twentieth of a second before. Without
    # parts everything would be lost each time; half of it leaves room for a machine that is busy.
    assert killed + last - cells <= killed / 2
    same(found, fresh(path, tmp_path, **options))
    assert leftovers(path) == []


def test_what_a_killed_job_saved_is_not_computed_again(tmp_path):
    """Killed after all but the result was written, by itself: nothing is left to compute."""
    path, log = toys.write(tmp_path / "run", range(6)), tmp_path / "log"
    code = """
import os
from tracelab.trace.resultstore import shelves
def die(*_, **__):
    for thread in __import__("threading").enumerate():
        if thread.name == "tracelab-save":
            thread._target.__self__.save()
    os._exit(9)
shelves.store = die
"""
    process = start(code + RUN, path, "toy", {}, log=log)
    process.communicate(timeout=120)
    assert process.returncode == 9
    assert len(toys.noted(log)) == 6 * N_LABELS
    assert "toy" not in tracelab.open(path).results
    assert leftovers(path / "results" / ".jobs") != []
    finish(start(RUN, path, "toy", {}, log=log))
    assert toys.noted(log) == []
    assert leftovers(path) == []
    assert tracelab.open(path).results["toy"].attrs["reused_cells"] == 6 * N_LABELS


@pytest.mark.slow
def test_a_job_killed_while_it_stores_leaves_no_result(tmp_path):
    path, log = toys.write(tmp_path / "run", range(3)), tmp_path / "log"
    code = """
import os
from tracelab.trace.resultstore import resultform
def die(*_):
    os._exit(9)
resultform.document = die
"""
    process = start(code + RUN, path, "toy", {}, log=log)
    process.communicate(timeout=120)
    assert process.returncode == 9
    trace = tracelab.open(path)
    assert "toy" not in trace.results
    assert list((path / "results" / ".jobs").glob("*/result/value"))
    finish(start(RUN, path, "toy", {}, log=log))
    assert leftovers(path) == []
    same(trace.results["toy"], fresh(path, tmp_path))


@pytest.mark.slow
def test_ctrl_c_says_how_much_is_kept_and_the_same_command_goes_on(tmp_path):
    path, log = toys.write(tmp_path / "run", range(500)), tmp_path / "log"
    arguments = ["analyze", path, "-a", "path", "-a", "toy", "-p", "pause=0.01"]
    process = start(COMMAND, *arguments, log=log)
    while process.poll() is None and (not log.exists() or len(log.read_text().split()) < 30):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    start_, _, end = errors.partition("stored; ")
    assert start_ == "Interrupted: the analyses that finished are "
    kept, of = (int(word) for word in end.replace(",", "").split() if word.isdigit())
    assert of == 500 * N_LABELS
    assert end.endswith("cells of toy are kept. The same command goes on from here.\n")
    assert 0 < kept <= len(toys.noted(log)) - N_LABELS
    assert list(tracelab.open(path).results) == ["path"]
    out, _ = finish(start(COMMAND, *arguments, "--steps", "0:3", "--json", log=log))
    (_, toy) = json.loads(out)[0]["results"]
    assert toy["reused_cells"] == 3 * N_LABELS - toy["computed_cells"] > 0


# ---------------------------------------------------------------------------------- side by side


@pytest.mark.slow
def test_jobs_at_the_same_time_on_a_live_trace(tmp_path):
    """Several of the same and of different analyses, while rows arrive: all end well."""
    path, log = tmp_path / "run", tmp_path / "log"
    with tracelab.create(path, toys.LAYERS) as writer:
        toys.append(writer, range(20))
        writer.flush()
        jobs = [
            start(RUN, path, name, options, log=log)
            for name, options in (
                ("toy", {"pause": 0.001}),
                ("toy", {"pause": 0.001}),
                ("toy", {"pause": 0.001, "offset": 1.0}),
                ("path", {}),
            )
        ]
        step = 20
        while any(job.poll() is None for job in jobs):
            toys.append(writer, [step])
            writer.flush()
            step += 1
            time.sleep(0.02)
        for job in jobs:
            finish(job)
    trace = tracelab.open(path)
    assert leftovers(path) == []
    assert len(trace.results.all("toy")) == 2
    assert len(trace.results.all("path")) == 1
    for name in ("toy", "path"):
        for found in trace.results.all(name).values():
            last = found.sizes.get("step", 20)
            options = {key: found.attrs["parameters"][key] for key in found.attrs["parameters"]}
            if name == "toy":
                same(found, fresh(path, tmp_path, name, steps=slice(0, last), **options))


@pytest.mark.slow
def test_many_jobs_that_start_and_store_at_once(tmp_path):
    path = toys.write(tmp_path / "run", range(30))
    for round_ in range(5):
        jobs = [start(RUN, path, "toy", {"force": True, "seed": round_}) for _ in range(6)]
        for job in jobs:
            finish(job)
        trace = tracelab.open(path)
        assert leftovers(path) == []
        # The same result of all six: the most recent is left.
        assert len(trace.results.keys_of("toy")) == round_ + 1
        same(trace.results["toy"], fresh(path, tmp_path, seed=round_))


def test_a_living_job_keeps_what_it_has_while_another_cleans_up(tmp_path, one_cell_a_task):
    path, log = toys.write(tmp_path / "run", range(400)), tmp_path / "log"
    process = start(RUN, path, "toy", {"pause": 0.02}, log=log)
    jobs = path / "results" / ".jobs"
    while not (parts := list(jobs.glob("*/*.g0.*"))):
        assert process.poll() is None
        time.sleep(0.01)
    assert parts
    # Of the same kind: some cells are taken over from the living job, which loses nothing.
    mine = tracelab.analyze(path, "toy", steps=slice(0, 2), pause=0.02)["toy"]
    assert [job.name for job in jobs.iterdir() if job.is_dir()] == [parts[0].parent.name]
    assert mine.sizes["step"] == 2
    process.kill()
    process.communicate()
    saved = tracelab.analyze(path, "toy", steps=slice(0, 1), pause=0.02)["toy"]
    assert saved.attrs["computed_cells"] == 0
    # Dead, and its parts hold cells that are in no result: they stay for the same command.
    assert list(jobs.glob("*/*.g0.*"))


# ------------------------------------------------------------------------------------- no room


def full(monkeypatch, when):
    """Let the disk be full for objects whose key satisfies a condition."""
    put = objects.put

    def refuse(location, key, parts):
        if when(key):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put(location, key, parts)

    monkeypatch.setattr(objects, "put", refuse)


def test_a_full_disk_while_a_result_is_stored(tmp_path, monkeypatch):
    path = toys.write(tmp_path / "run", range(3))
    before = sorted(path.rglob("*"))
    with monkeypatch.context() as patch:
        full(patch, lambda key: "result/part/c" in key)
        with pytest.raises(StorageError, match=r"No space left on device; what was stored before"):
            tracelab.analyze(path, ["path", "toy"])
    trace = tracelab.open(path)
    assert list(trace.results) == ["path"]
    assert set(before) <= set(path.rglob("*"))
    assert not list(path.rglob("result/*"))
    # The finished cells were small enough.
    assert tracelab.analyze(trace, "toy")["toy"].attrs["computed_cells"] == 0
    assert leftovers(path) == []


def test_parts_that_cannot_be_saved_stop_nothing(tmp_path, monkeypatch, caplog, one_cell_a_task):
    monkeypatch.setattr(keeping, "SAVE_SECONDS", 0.01)
    path = toys.write(tmp_path / "run", range(10))
    full(monkeypatch, lambda key: ".g0." in key)
    found = tracelab.analyze(path, "toy", pause=0.005)["toy"]
    assert found.attrs["computed_cells"] == 10 * N_LABELS
    (said,) = {record.getMessage() for record in caplog.records}
    assert "cannot be saved (No space left on device); computing goes on" in said
    assert leftovers(path) == []


@pytest.fixture
def small_disk(tmp_path):
    """Give a folder of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr}")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_a_disk_that_is_really_full(small_disk, tmp_path):
    """Of two results the first fits; the other does not, nor do its parts."""
    path, filling = toys.write(small_disk / "run", range(3000)), small_disk / "filling"
    free = shutil.disk_usage(small_disk).free
    filling.write_bytes(bytes(free - 200_000))
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    command = ["analyze", path, "-a", "path", "-a", "toy"]
    process = start(COMMAND, *command)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors.endswith(
        f"Error: {path}: results cannot be written to {path}: No space left on device; what was "
        "stored before is kept, and the same command goes on once it can be written\n"
    )
    trace = tracelab.open(path)
    assert list(trace.results) == ["path"]
    assert all(file.read_bytes() == content for file, content in before.items())
    # What is left of the job are parts for the next one.
    assert not [name for name in leftovers(path) if "result" in name.split("/")[3:]]
    assert not [name for name in leftovers(path) if "partial" in name]
    filling.unlink()
    out, _ = finish(start(COMMAND, *command, "--json"))
    states = [found["state"] for found in json.loads(out)[0]["results"]]
    assert states == ["stored", "computed"]
    assert leftovers(path) == []
    same(trace.results["toy"], fresh(path, tmp_path))


def test_a_full_disk_before_anything_is_computed(tmp_path, monkeypatch):
    path, log = toys.write(tmp_path / "run", range(3)), tmp_path / "log"
    monkeypatch.setenv("TOY_LOG", str(log))
    full(monkeypatch, lambda key: ".jobs" in key)
    with pytest.raises(StorageError, match="No space left"):
        tracelab.analyze(path, "toy")
    assert toys.noted(log) == []


# ------------------------------------------------------------------------------------- elsewhere


def zipped(path):
    return shutil.make_archive(str(path), "zip", path)


def test_a_trace_that_cannot_be_written_is_refused_before_anything_is_computed(
    tmp_path, monkeypatch
):
    path, log = toys.write(tmp_path / "run", range(3)), tmp_path / "log"
    monkeypatch.setenv("TOY_LOG", str(log))
    for trace in (zipped(path), zarr.storage.LocalStore(path, read_only=True)):
        with pytest.raises(UsageError, match=r"cannot be stored in .*--out RESULTS"):
            tracelab.analyze(trace, "toy")
    assert toys.noted(log) == []


def test_a_folder_of_somebody_else_is_refused_before_anything_is_computed():
    """Without the superuser's rights, which pass every barrier."""
    code = """
import os
# What is imported on first use may be out of reach later.
tracelab.analyze(sys.argv[4], sys.argv[2])
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
"""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path, log = toys.write(Path(folder, "run"), range(3)), Path(folder, "log")
        other = toys.write(Path(folder, "other"), range(3))
        path.chmod(0o555)
        process = start(code + RUN, path, "toy", {}, other, log=log)
        _, errors = process.communicate(timeout=60)
        path.chmod(0o755)
        assert len(toys.noted(log)) == 3 * N_LABELS
    assert process.returncode == 1
    assert "UsageError: results cannot be stored in" in errors
    assert "(Permission denied)" in errors


def test_results_of_read_only_traces_live_elsewhere(tmp_path, monkeypatch):
    log = tmp_path / "log"
    monkeypatch.setenv("TOY_LOG", str(log))
    out = tmp_path / "results"
    traces = [zipped(toys.write(tmp_path / f"run{n}", range(3 + n))) for n in range(2)]
    for trace in traces:
        tracelab.analyze(trace, ["toy", "path"], out=out)
    toys.noted(log)
    for n, trace in enumerate(traces):
        opened = tracelab.open(trace, results=out)
        assert list(opened.results) == ["path", "toy"]
        assert opened.results["toy"].sizes["step"] == 3 + n
        # The trace knows where its results go.
        tracelab.analyze(opened, "toy")
        tracelab.analyze(trace, "toy", steps=slice(0, 2), out=out)
        assert opened.results["toy"].sizes["step"] == 2
        assert tracelab.open(opened).results["toy"].sizes["step"] == 2
        assert list(tracelab.open(trace).results) == []
    assert toys.noted(log) == []
    assert leftovers(out) == []
    tree = xr.open_datatree(str(out), engine="zarr", consolidated=False)
    assert tree.attrs == {"format": "tracelab-results", "format_version": 1}
    assert set(tree.children) == {tracelab.open(trace).run for trace in traces}


def test_results_of_both_places_are_one(tmp_path, monkeypatch):
    log = tmp_path / "log"
    monkeypatch.setenv("TOY_LOG", str(log))
    path, out = toys.write(tmp_path / "run", range(4)), tmp_path / "results"
    tracelab.analyze(path, "toy", steps=slice(0, 2))
    tracelab.analyze(path, "toy", steps=slice(1, 3), out=out)
    assert len(toys.noted(log)) == 3 * N_LABELS
    both = tracelab.open(path, results=out)
    assert both.results["toy"]["step"].values.tolist() == [1, 2]
    tracelab.analyze(path, "toy", steps=slice(0, 3), out=out)
    assert toys.noted(log) == []
    tracelab.analyze(path, "toy", steps=slice(2, 4))
    # That one did not know of the others.
    assert len(toys.noted(log)) == 2 * N_LABELS
    again = pickle.loads(pickle.dumps(both))
    assert again.results.keys_of("toy") == both.results.keys_of("toy")


def test_what_was_asked_of_a_read_only_trace_and_is_known_needs_no_place(tmp_path):
    path = toys.write(tmp_path / "run", range(4))
    whole = tracelab.analyze(path, "toy")["toy"]
    archive = zipped(path)
    same(tracelab.analyze(archive, "toy")["toy"], whole)
    some = tracelab.analyze(archive, "toy", steps=slice(1, 3))["toy"]
    same(some, whole.isel(step=slice(1, 3)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: toys.write(path, range(1)), "is a trace; results that are not kept beside"),
        (lambda path: (path.mkdir(), (path / "x").touch()), "is no store of results"),
        (lambda path: zarr.create_group(path), "is no store of results"),
        (lambda path: path.write_text("x"), "is no store of results"),
    ],
)
def test_what_is_no_store_of_results_is_left_alone(tmp_path, make, words):
    trace, out = toys.write(tmp_path / "run", range(1)), tmp_path / "out"
    make(out)
    before = sorted(out.rglob("*"))
    with pytest.raises(UsageError, match=words):
        tracelab.analyze(trace, "toy", out=out)
    with pytest.raises(UsageError, match=words):
        tracelab.open(trace, results=out)
    assert sorted(out.rglob("*")) == before


def test_results_that_are_not_there(tmp_path):
    trace = toys.write(tmp_path / "run", range(1))
    with pytest.raises(UsageError, match=r"there are no results at .*tracelab analyze TRACE --out"):
        tracelab.open(trace, results=tmp_path / "none")


def test_results_of_a_newer_format(tmp_path):
    trace, out = toys.write(tmp_path / "run", range(1)), tmp_path / "out"
    tracelab.analyze(trace, "toy", out=out)
    document = json.loads((out / "zarr.json").read_bytes())
    document["attributes"]["format_version"] = 2
    (out / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(tracelab.errors.TraceError, match="format version 2, this tracelab reads 1"):
        tracelab.open(trace, results=out)


@pytest.mark.parametrize("place", ["beside", "elsewhere"])
def test_results_in_object_stores(tmp_path, place):
    """A store without folders, links, renames and locks."""
    store, out = zarr.storage.MemoryStore(), zarr.storage.MemoryStore()
    toys.write(store, range(4))
    options = {"out": out} if place == "elsewhere" else {}
    tracelab.analyze(store, "toy", steps=slice(0, 2), **options)
    tracelab.analyze(store, "toy", force=True, **options)
    found = tracelab.analyze(store, ["toy", "path"], **options)["toy"]
    trace = tracelab.open(store, results=out if options else None)
    assert len(trace.results.keys_of("toy")) == 1
    same(trace.results["toy"], found)
    where = out if options else store
    assert not [key for key in where._store_dict if ".jobs" in key]


def test_interrupted_in_an_object_store(monkeypatch, one_cell_a_task):
    store = zarr.storage.MemoryStore()
    toys.write(store, range(4))
    with monkeypatch.context() as patch:

        def interrupt(*_):
            raise KeyboardInterrupt

        patch.setattr(shelves, "store", interrupt)
        with pytest.raises(KeyboardInterrupt, match="16 of 16 cells of toy are kept"):
            tracelab.analyze(store, "toy")
    found = tracelab.analyze(store, "toy")["toy"]
    assert found.attrs["computed_cells"] == 0
    assert not [key for key in store._store_dict if ".jobs" in key]


# ----------------------------------------------------------------------------------- the order


def test_the_most_recent_is_the_last_even_if_the_clock_is_set_back(tmp_path, monkeypatch):
    path = toys.write(tmp_path / "run", range(2))
    times = iter(["2030-01-01", "2020-01-01", "2025-01-01"])

    class Clock(computing.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromisoformat(next(times))

    monkeypatch.setattr(computing, "datetime", Clock)
    for seed in range(3):
        tracelab.analyze(path, "toy", seed=seed)
    trace = tracelab.open(path)
    assert [entry["created"][:4] for entry in trace.results.listing("toy")] == [
        "2030",
        "2020",
        "2025",
    ]
    assert trace.results["toy"].attrs["seed"] == 2


def test_results_of_one_serial_number_have_one_order(tmp_path):
    """Two jobs that stored at the same time, as far as each could see."""
    path = toys.write(tmp_path / "run", range(2))
    for seed in range(4):
        tracelab.analyze(path, "toy", seed=seed)
    for file in path.glob("results/toy/*/zarr.json"):
        document = json.loads(file.read_bytes())
        document["attributes"]["serial"] = 7
        file.write_text(json.dumps(document))
    names = sorted(file.parent.name for file in path.glob("results/toy/*/zarr.json"))
    trace = tracelab.open(path)
    assert trace.results.keys_of("toy") == names
    last = json.loads((path / "results" / "toy" / names[-1] / "zarr.json").read_bytes())
    assert trace.results["toy"].attrs["seed"] == last["attributes"]["seed"]
    assert tracelab.analyze(path, "toy", seed=9)["toy"].attrs["serial"] == 8
    np.testing.assert_array_equal(trace.results["toy"].attrs["seed"], 9)
