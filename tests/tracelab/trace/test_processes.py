"""Real processes that die, fork, exit and read while another writes."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import xarray as xr

from tracelab.trace import open as open_trace

HEAD = """
import os, sys, time
import numpy as np
from tracelab.trace import create
path = sys.argv[1]
LAYERS = {"w": (50, 3), "b": (3,)}

def row(step):
    return {"full": np.full(153, step, np.float32), "projected": np.full((2, 7), step)}
"""


def start(code, path, *arguments, **options):
    script = HEAD + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, str(path), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process, timeout=60, send=None):
    out, err = process.communicate(send, timeout=timeout)
    return process.returncode, out, err


def check_rows(path, group="gradients"):
    """Return the committed steps, after checking that every array holds exactly their rows."""
    trace = open_trace(path)
    if group not in trace.groups:
        return trace, np.array([], int)
    rows = trace.groups[group].compute()
    steps = rows["step"].values
    np.testing.assert_array_equal(rows["full"].values, np.repeat(steps[:, None], 153, 1))
    np.testing.assert_array_equal(rows["projected"].values[:, 1, 6], steps)
    tree = xr.open_datatree(path, engine="zarr", chunks=None)
    assert tree[group].sizes["step"] >= len(steps)
    return trace, steps


ENDLESS = """
with create(path, LAYERS, flush_seconds=0.02, queue_bytes=400_000) as writer:
    print("ready", flush=True)
    for step in range(10**9):
        writer.append("gradients", step=step, **row(step))
        writer.append("steps", step=step, loss=step)
        time.sleep(0.0003)
"""


@pytest.mark.parametrize("seed", range(3))
def test_after_sigkill_everything_committed_is_there(tmp_path, seed):
    path = tmp_path / "a"
    process = start(ENDLESS, path)
    assert process.stdout.readline() == "ready\n"
    time.sleep(random.Random(seed).uniform(0.2, 0.8))
    committed = open_trace(path)
    before = committed.groups["steps"].sizes["step"] if "steps" in committed.groups else 0
    process.kill()
    finish(process)
    trace, steps = check_rows(path)
    np.testing.assert_array_equal(steps, np.arange(len(steps)))
    assert trace.state == "recording"
    loss = trace.steps["loss"].values
    np.testing.assert_array_equal(loss, np.arange(len(loss)))
    assert len(loss) >= before


def test_after_sigterm_everything_committed_is_there(tmp_path):
    process = start(ENDLESS, tmp_path / "a")
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.4)
    process.terminate()
    code, _, _ = finish(process)
    assert code == -signal.SIGTERM
    _, steps = check_rows(tmp_path / "a")
    np.testing.assert_array_equal(steps, np.arange(len(steps)))


def test_ctrl_c_commits_everything(tmp_path):
    process = start(ENDLESS, tmp_path / "a")
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code != 0
    assert "KeyboardInterrupt" in err
    trace, steps = check_rows(tmp_path / "a")
    assert len(steps) > 0
    assert trace.state == "incomplete"
    assert trace.attrs["incomplete_reasons"] == ["KeyboardInterrupt"]


def test_os_exit_loses_only_what_was_not_committed(tmp_path):
    code = """
    writer = create(path, LAYERS, flush_seconds=3600)
    for step in range(5):
        writer.append("gradients", step=step, **row(step))
    writer.flush()
    writer.append("gradients", step=5, **row(5))
    os._exit(3)
    """
    assert finish(start(code, tmp_path / "a"))[0] == 3
    _, steps = check_rows(tmp_path / "a")
    assert steps.tolist() == [0, 1, 2, 3, 4]


UNCLOSED = """
writer = create(path, LAYERS, flush_seconds=3600)
for step in range(700):
    writer.append("gradients", step=step, **row(step))
{end}
"""


@pytest.mark.parametrize(
    ("end", "exit_code"),
    [("del writer", 0), ("raise RuntimeError('user')", 1)],
)
def test_a_writer_never_closed_commits_when_the_interpreter_exits(tmp_path, end, exit_code):
    code, _, err = finish(start(UNCLOSED.format(end=end), tmp_path / "a"))
    assert code == exit_code, err
    assert ("Traceback" in err) == (exit_code == 1)
    trace, steps = check_rows(tmp_path / "a")
    np.testing.assert_array_equal(steps, np.arange(700))
    assert trace.state == "incomplete"
    assert trace.attrs["incomplete_reasons"] == ["the process ended before the writer was closed"]


def test_a_store_that_is_no_folder_is_written_at_exit_too(tmp_path):
    """zarr-python's own machinery must still be alive when the last rows go through it."""
    code = """
    from zarr.storage import LocalStore, WrapperStore
    writer = create(WrapperStore(LocalStore(path)), LAYERS, flush_seconds=3600)
    for step in range(7):
        writer.append("gradients", step=step, **row(step))
    """
    code, _, err = finish(start(code, tmp_path / "a"))
    assert (code, err) == (0, "")
    _, steps = check_rows(tmp_path / "a")
    assert steps.tolist() == list(range(7))


def test_a_failure_at_exit_is_reported(tmp_path):
    code = """
    writer = create(path, LAYERS, flush_seconds=3600)
    writer.append("gradients", step=0, **row(0))
    import shutil
    shutil.rmtree(path)
    open(path, "w").close()
    """
    code, _, err = finish(start(code, tmp_path / "a"))
    assert "rows handed over and lost: 1 of 'gradients'" in err


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)"])
def test_a_forked_child_leaves_the_trace_alone(tmp_path, end):
    code = f"""
    import warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # fork in a threaded process
    writer = create(path, LAYERS, flush_seconds=0.01)
    for step in range(200):
        writer.append("gradients", step=step, **row(step))
    child = os.fork()
    if child == 0:
        from tracelab.errors import UsageError
        try:
            writer.append("gradients", step=1000, **row(1000))
        except UsageError as error:
            print(error, flush=True)
        from tracelab.trace.writing import exits
        print("open writers:", len(exits.writers()), flush=True)
        writer.mark_incomplete("from the child")
        writer.close()
        {end}
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    for step in range(200, 400):
        writer.append("gradients", step=step, **row(step))
    writer.close()
    """
    code, out, err = finish(start(code, tmp_path / "a"))
    assert (code, err) == (0, "")
    assert "belongs to process" in out
    assert "append in the process that created it\nopen writers: 0\n" in out
    trace, steps = check_rows(tmp_path / "a")
    np.testing.assert_array_equal(steps, np.arange(400))
    assert trace.state == "complete"
    assert trace.attrs["incomplete_reasons"] == []


def test_worker_processes_of_multiprocessing_leave_the_trace_alone(tmp_path):
    code = """
    import multiprocessing, warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    writer = create(path, LAYERS, flush_seconds=0.01)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for step in range(50):
            writer.append("gradients", step=step, **row(step))
            assert pool.map(abs, [-1, -2]) == [1, 2]
        pool.close()
        pool.join()
    writer.close()
    """
    code, _, err = finish(start(code, tmp_path / "a"))
    assert (code, err) == (0, "")
    trace, steps = check_rows(tmp_path / "a")
    np.testing.assert_array_equal(steps, np.arange(50))
    assert trace.state == "complete"


READERS = {
    # One view after the other, and an old one while its files are being replaced.
    "tracelab": """
    from tracelab.trace import open as open_trace
    trace = open_trace(path)
    def look():
        views = [dict(trace.refresh().groups)]
        views += views
        for groups in views:
            for name, group in groups.items():
                check(name, {each: group[each].values for each in group.variables})
        return {name: group.sizes["step"] for name, group in views[0].items()}, trace.state
    """,
    "xarray": """
    import xarray as xr
    def look():
        with xr.open_datatree(path, engine="zarr", chunks=None) as tree:
            rows = {}
            for name, group in tree.children.items():
                if name != "layers":
                    check(name, {each: group[each].values for each in group.variables})
                    rows[name] = group.sizes["step"]
            return rows, tree.attrs["state"]
    """,
    "zarr": """
    import zarr
    def look():
        root = zarr.open_group(path, mode="r")
        rows = {}
        for name, group in root.groups():
            if name != "layers":
                arrays = dict(group.arrays())
                check(name, {each: array[...] for each, array in arrays.items()})
                rows[name] = arrays["step"].shape[0]
        return rows, root.attrs["state"]
    """,
}

READER = """
import sys, warnings
import numpy as np
warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
path = sys.argv[1]

def check(name, arrays):
    steps = np.arange(len(arrays["step"])) * (10 if name == "noise" else 1)
    for each, values in arrays.items():
        if each != "layer" and not each.startswith("coordinate"):
            # As many rows in every array, and in each what was written.
            assert len(values) == len(steps), (name, each, len(values), len(steps))
            wide = steps.reshape(-1, *[1] * (values.ndim - 1))
            assert (values == wide).all(), (name, each)
{look}
print("ready", flush=True)
seen, before, state = 0, {{}}, "recording"
while state == "recording":
    rows, state = look()
    assert all(rows.get(name, 0) >= count for name, count in before.items()), (before, rows)
    seen += rows != before
    before = rows
print(seen, before["gradients"], before["steps"], before["noise"], flush=True)
"""


@pytest.mark.slow
def test_no_reader_ever_sees_half_a_row_of_a_live_trace(tmp_path):
    """A writer that commits as often as it can; three processes that read all of it, ever again."""
    path = tmp_path / "a"
    code = """
    with create(path, LAYERS, flush_seconds=0, queue_bytes=400_000) as writer:
        print("ready", flush=True)
        sys.stdin.readline()
        for step in range(600):
            writer.append("gradients", step=step, **row(step))
            writer.append("steps", step=step, loss=step)
            if step % 10 == 0:
                writer.append("noise", step=step, full=np.full((4, 153), step))
            if step % 20 == 0:
                writer.flush()
            time.sleep(0.002)
    """
    writer = start(code, path, stdin=subprocess.PIPE)
    assert writer.stdout.readline() == "ready\n"
    readers = {}
    for name, look in READERS.items():
        script = READER.format(look=textwrap.dedent(look))
        readers[name] = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", script, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    for reader in readers.values():
        assert reader.stdout.readline() == "ready\n"
    code, _, err = finish(writer, send="go\n")
    assert (code, err) == (0, "")
    for name, reader in readers.items():
        code, out, err = finish(reader)
        assert (code, err) == (0, ""), name
        seen, *rows = map(int, out.split())
        assert rows == [600, 600, 60], name
        # It did see the trace grow.
        assert seen > 3, name


def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr}")
    try:
        code = """
        from tracelab.errors import TraceError
        writer = create(path, LAYERS, flush_seconds=0.01, queue_bytes=100_000)
        try:
            for step in range(100_000):
                writer.append("gradients", step=step, **row(step))
        except TraceError as error:
            print(error)
        try:
            writer.close()
        except TraceError as error:
            print(error)
        """
        code, out, err = finish(start(code, disk / "a"))
        assert (code, err) == (0, "")
        assert out.count("No space left on device; rows handed over and lost:") == 2
        trace, steps = check_rows(disk / "a")
        assert len(steps) > 100
        np.testing.assert_array_equal(steps, np.arange(len(steps)))
        assert trace.state in ("recording", "incomplete")
    finally:
        subprocess.run(["umount", disk], check=True)
