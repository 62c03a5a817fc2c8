"""Two writers of one trace: refused where a lock can, noticed everywhere."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import warnings

import pytest
import zarr
from zarr.storage import LocalStore, MemoryStore, WrapperStore

from tracelab.errors import TraceError, UsageError
from tracelab.trace import create
from tracelab.trace import open as open_trace
from tracelab.trace.writing import guard, lock
from tracelab.trace.writing.lock import LOCK_FILE, acquire

LAYERS = {"w": (2,)}

HOLDER = """
import os, sys, time
from tracelab.trace import create
writer = create(sys.argv[1], {"w": (2,)}, flush_seconds=3600)
writer.append("steps", step=0, loss=1.0)
writer.flush()
print("ready", flush=True)
"""


def start(code, path):
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", HOLDER + textwrap.dedent(code), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture
def holder(tmp_path):
    """A process that records into a trace until its standard input ends."""
    process = start("sys.stdin.read(); writer.close()", tmp_path / "a")
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


@pytest.mark.parametrize("options", [{"overwrite": True}, {"resume": True}])
def test_a_second_writer_is_refused_while_the_first_lives(tmp_path, holder, options):
    words = rf"a is being recorded by process {holder.pid} on {socket.gethostname()}; wait until"
    with pytest.raises(UsageError, match=words):
        create(tmp_path / "a", LAYERS, **options)
    assert open_trace(tmp_path / "a").rows == {"steps": 1}
    # The kernel releases it, whatever ended the process.
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "a" / LOCK_FILE).exists()
    create(tmp_path / "a", LAYERS, **options).close()
    assert not (tmp_path / "a" / LOCK_FILE).exists()
    assert open_trace(tmp_path / "a").state == "complete"


def test_the_lock_disturbs_nobody(tmp_path, holder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Lists every group, and warns of what it does not know.
        bare = zarr.open_group(tmp_path / "a", mode="r", use_consolidated=False)
        assert {name for name, _ in bare.members(max_depth=None)} >= {"layers/layer", "steps/loss"}
    holder.communicate("")
    assert not (tmp_path / "a" / LOCK_FILE).exists()
    assert open_trace(tmp_path / "a").state == "complete"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.slow
def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    """As a worker of a DataLoader that outlives the training process it belongs to."""
    code = """
    child = os.fork()
    if child == 0:
        from tracelab.errors import UsageError
        try:
            create(sys.argv[1], {"w": (2,)}, resume=True)
        except UsageError as error:
            print(error, flush=True)
        os.close(1)
        sys.stdin.read()
        os._exit(0)
    time.sleep(600)
    """
    process = start(code, tmp_path / "a")
    try:
        assert f"is being recorded by process {process.pid} on" in process.stdout.readline()
        process.kill()
        process.wait()
        # The child is alive: it waits for the end of its standard input.
        create(tmp_path / "a", LAYERS, resume=True).close()
    finally:
        process.kill()
        process.communicate()


def test_another_writer_of_this_process(tmp_path):
    with create(tmp_path / "a", LAYERS) as first:
        (tmp_path / "b").symlink_to(tmp_path / "a")
        for name in ("a", "b"):
            words = rf"{name} is being recorded by another writer of this process; close that one"
            with pytest.raises(UsageError, match=words):
                create(tmp_path / name, LAYERS, resume=True)
        # It still holds its lock.
        code = "import sys; from tracelab.trace import create; create(sys.argv[1], {'w': (2,)}, "
        done = subprocess.run(
            [sys.executable, "-c", f"{code} resume=True)", tmp_path / "a"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert f"is being recorded by process {os.getpid()} on" in done.stderr
        first.append("steps", step=0, loss=1.0)
    assert open_trace(tmp_path / "a").rows == {"steps": 1}


def test_a_refused_writer_leaves_no_lock(tmp_path):
    create(tmp_path / "a", LAYERS).close()
    with pytest.raises(UsageError, match="records layer 'w'"):
        create(tmp_path / "a", {"w": (3,)}, resume=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/x").write_text("mine")
    with pytest.raises(UsageError, match="is not a trace"):
        create(tmp_path / "notes", LAYERS, resume=True)
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["x"]
    assert not list(tmp_path.rglob("lock"))


def test_a_lock_that_was_removed_is_not_one(tmp_path):
    """Its holder removes the file on release; who opened it before tries again."""
    first = acquire("a", tmp_path)
    (tmp_path / LOCK_FILE).unlink()
    second = acquire("a", tmp_path)
    assert second.descriptor != first.descriptor
    first.release()
    assert (tmp_path / LOCK_FILE).exists()
    second.release()
    second.release()
    assert not (tmp_path / LOCK_FILE).exists()


# --------------------------------------------------------------- a process that died very early


def test_killed_before_the_first_commit(tmp_path):
    """The layer table is there, and no root document: nothing was recorded, nothing is lost."""
    (tmp_path / "a/layers/layer").mkdir(parents=True)
    (tmp_path / "a" / LOCK_FILE).write_text('{"pid": 1, "host": "x"}')
    (tmp_path / "a/layers/layer/c.0.partial").write_bytes(b"x")
    with create(tmp_path / "a", LAYERS) as writer:
        writer.append("steps", step=0, loss=1.0)
    assert open_trace(tmp_path / "a").state == "complete"


def test_killed_while_it_removed_a_trace(tmp_path):
    path = tmp_path / "a"
    create(path, LAYERS).close()
    (path / "zarr.json").unlink()
    (path / "steps").mkdir()
    held = path / LOCK_FILE
    held.write_text(json.dumps({"pid": 1, "clearing": True}))
    create(path, LAYERS).close()
    assert {entry.name for entry in path.iterdir()} == {"zarr.json", "layers"}
    # A trace that has lost its root document is no such thing: `repair` may find it again.
    (path / "zarr.json").unlink()
    (path / "steps").mkdir()
    held.write_text(json.dumps({"pid": 1, "clearing": False}))
    with pytest.raises(UsageError, match="exists and is not a trace, so it is left alone"):
        create(path, LAYERS, overwrite=True)
    assert (path / "steps").exists()


# -------------------------------------------------------------------- where nothing can be locked


@pytest.fixture
def at_once(monkeypatch):
    """Who takes over does not wait: the one before looks before it stores anything."""
    monkeypatch.setattr(guard, "NOTICE_SECONDS", 0)


@pytest.mark.parametrize("make", [MemoryStore, None])
def test_without_locks_the_first_writer_stops_when_another_takes_over(tmp_path, at_once, make):
    store = make() if make else WrapperStore(LocalStore(tmp_path / "a"))
    first = create(store, LAYERS, flush_seconds=3600)
    first.append("steps", step=0, loss=1.0)
    first.flush()
    first.append("steps", step=1, loss=1.0)
    second = create(store, LAYERS, resume=True)
    words = (
        "TraceError: another writer has taken .* over; end one of the two processes; rows handed "
        "over and lost: 1 of 'steps'"
    )
    with pytest.raises(TraceError, match=words):
        first.flush()
    with pytest.raises(TraceError, match=words):
        first.close()
    second.append("steps", step=5, loss=2.0)
    second.close()
    trace = open_trace(store)
    assert trace.steps["step"].values.tolist() == [0, 5]
    assert trace.state == "complete"


def test_a_trace_that_is_removed_while_it_is_recorded(tmp_path):
    store = MemoryStore()
    writer = create(store, LAYERS, flush_seconds=3600)
    writer.append("steps", step=0, loss=1.0)
    store._store_dict.clear()
    with pytest.raises(TraceError, match="was removed while it was being recorded"):
        writer.close()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog, at_once, number):
    def unsupported(*_):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(lock.fcntl, "lockf", unsupported)
    first = create(tmp_path / "a", LAYERS)
    assert "is on a file system without locks" in caplog.text
    second = create(tmp_path / "a", LAYERS, resume=True)
    with pytest.raises(TraceError, match="another writer has taken"):
        first.close()
    second.close()


def test_a_lock_that_fails_is_an_error(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(lock.fcntl, "lockf", broken)
    with pytest.raises(UsageError, match=r"no trace can be recorded at .* the disk is broken"):
        create(tmp_path / "a", LAYERS)
