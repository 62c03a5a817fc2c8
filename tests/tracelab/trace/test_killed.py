"""Writers that are killed, again and again, and go on: real processes."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from tracelab.trace import open as open_trace

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

COMMON = """
import os, signal, sys, warnings
import numpy as np
from tracelab.trace import create
from tracelab.trace.places import locations
from tracelab.trace.writing import resuming

LAYERS = {"w": (50, 3), "b": (3,)}
ROWS = 300

def record(path, **options):
    found = resuming.look(path, True)
    done = {} if found is None else found.rows
    options = {"queue_bytes": 50_000, "flush_seconds": 0} | options
    with create(path, LAYERS, resume=True, **options) as writer:
        for step in range(ROWS):
            if step >= done.get("gradients", 0):
                full = np.full(153, step, np.float32)
                writer.append("gradients", step=step, full=full, projected=np.full((2, 7), step))
            if step >= done.get("steps", 0):
                writer.append("steps", step=step, loss=step)
            if step % 10 == 0 and step // 10 >= done.get("noise", 0):
                writer.append("noise", step=step, full=np.full((4, 153), -step))
            if step % 7 == 0:
                writer.flush()
"""

# Each child dies at its n-th object: before it is there, or just after.
KILLED = """
path, compression, seed, times = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
rng = np.random.default_rng(seed)
put = locations._Folder.put

def record_until(count, after):
    left = [count]
    def counted(self, key, parts):
        left[0] -= 1
        if left[0] <= 0 and not after:
            with open(f"{path}/{key}.partial", "wb") as file:
                file.write(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        put(self, key, parts)
        if left[0] <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
    locations._Folder.put = counted
    record(path, compression=compression)

killed = 0
for attempt in range(times + 1):
    child = os.fork()
    if child == 0:
        if attempt < times:
            record_until(int(rng.integers(1, 1200 // times)), bool(rng.integers(2)))
        else:
            record(path, compression=compression)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    killed += status != 0
print(killed)
"""


def run(code, *arguments, timeout=250):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", COMMON + textwrap.dedent(code)]
        + [str(each) for each in arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run.zarr"
    run("record(sys.argv[1], compression='none')", path)
    return path


def check(path, whole, compression):
    trace, wanted = open_trace(path), open_trace(whole)
    assert trace.state == "complete"
    for name, group in wanted.groups.items():
        assert trace.groups[name].load().identical(group.load()), name
    chunks = {file.relative_to(path): file for file in path.rglob("c.*")}
    assert {*chunks} == {file.relative_to(whole) for file in whole.rglob("c.*")}
    if compression == "none":
        for name, file in chunks.items():
            assert file.read_bytes() == (whole / name).read_bytes(), name
    assert not list(path.rglob("*.partial"))


def kill(path, whole, compression, seed, times):
    killed = int(run(KILLED, path, compression, seed, times))
    check(path, whole, compression)
    return killed


def test_killed_at_any_object_and_resumed_nothing_is_missing(tmp_path, whole):
    assert kill(tmp_path / "run.zarr", whole, "none", 0, 8) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["none", "lz4"])
@pytest.mark.parametrize("seed", range(1, 4))
def test_killed_many_times(tmp_path, whole, compression, seed):
    assert kill(tmp_path / "run.zarr", whole, compression, seed, 20) >= 12


# Dies while rows behind a checkpoint are moved aside, at its n-th object there or in the trace.
MOVED = """
import logging
logging.disable()
path = sys.argv[1]
put = locations._Folder.put

def dies(count):
    left = [count]
    def counted(self, key, parts):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        put(self, key, parts)
    locations._Folder.put = counted

killed = 0
for attempt in range(0, 10_000, 7):
    child = os.fork()
    if child == 0:
        dies(attempt)
        create(path, LAYERS, resume=100).close()
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
    killed += 1
print(killed)
"""


@pytest.mark.slow
def test_killed_while_rows_are_set_aside_none_is_lost(tmp_path):
    path = tmp_path / "run.zarr"
    run("record(sys.argv[1])", path)
    assert int(run(MOVED, path)) >= 5
    kept, moved = open_trace(path), open_trace(tmp_path / "run.superseded-1.zarr")
    assert kept.attrs["generation"] == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "run.superseded-1.zarr",
        "run.zarr",
    ]
    for name, rows in {"gradients": 300, "steps": 300, "noise": 30}.items():
        steps = [*kept.groups[name]["step"].values, *moved.groups[name]["step"].values]
        np.testing.assert_array_equal(steps, np.arange(0, 300, 300 // rows))
    full = np.concatenate([each.gradients["full"].values for each in (kept, moved)])
    np.testing.assert_array_equal(full, np.repeat(np.arange(300)[:, None], 153, 1))


BACKWARDS = """
import datetime, time

class Backwards(datetime.datetime):
    # Every look at the clock is a day before the last.
    days = 0
    @classmethod
    def now(cls, tz=None):
        cls.days += 1
        return cls(2020, 1, 1, tzinfo=tz) - datetime.timedelta(days=cls.days)

past = [1e9]
def earlier():
    past[0] -= 86_400
    return past[0]

time.time = earlier
time.time_ns = lambda: int(earlier() * 1e9)
datetime.datetime = Backwards
for name, module in list(sys.modules.items()):
    if name.startswith("tracelab") and hasattr(module, "datetime"):
        module.datetime = Backwards

for last in (100, 200, 300):
    ROWS = last
    record(sys.argv[1])
"""


@pytest.mark.slow
def test_a_clock_that_goes_backwards_changes_nothing(tmp_path, whole):
    path = tmp_path / "run.zarr"
    run(BACKWARDS, path)
    check(path, whole, "unknown")
    attrs = open_trace(path).attrs
    moments = [attrs["created"], *(entry["created"] for entry in attrs["resumed"])]
    assert len(moments) == 3
    assert moments == sorted(moments, reverse=True)
