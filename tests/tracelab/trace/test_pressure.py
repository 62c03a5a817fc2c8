"""What a writer does when rows come faster than they can be stored, and beside forking workers."""

import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from tracelab.errors import UsageError
from tracelab.trace import create
from tracelab.trace import open as open_trace
from tracelab.trace.places.locations import _Folder

MIB = 2**20


@pytest.fixture
def disk(monkeypatch):
    """A disk that stores only while the event is set."""
    going = threading.Event()
    going.set()
    put = _Folder.put

    def waiting(self, key, parts):
        going.wait()
        put(self, key, parts)

    monkeypatch.setattr(_Folder, "put", waiting)
    return going


def test_rows_are_left_out_on_request_and_counted(tmp_path, disk):
    writer = create(
        tmp_path / "a", {"w": (2000,)}, queue_bytes=40_000, flush_seconds=3600, when_full="thin"
    )
    writer.append("weights", step=0, full=np.zeros(2000))
    writer.append("steps", step=0, loss=0.0)
    writer.flush()
    disk.clear()
    # Whatever it takes off the queue, it cannot store: nobody waits, and most rows find no room.
    for step in range(1, 100):
        writer.append("weights", step=step, full=np.full(2000, step))
    steps = np.arange(100, 110)
    writer.extend("weights", steps=steps, full=np.tile(steps[:, None], 2000))
    disk.set()
    writer.flush()
    trace = open_trace(tmp_path / "a")
    assert trace.state == "recording"
    kept = trace.weights["step"].values
    assert 4 <= len(kept) <= 20
    assert trace.attrs["dropped_rows"] == {"weights": 110 - len(kept)}
    assert trace.attrs["incomplete_reasons"] == [
        f"rows left out because storage did not keep up: {110 - len(kept)} of 'weights'"
    ]
    # There is room again.
    writer.append("weights", step=200, full=np.full(2000, 200))
    writer.close()
    trace = open_trace(tmp_path / "a")
    assert trace.state == "incomplete"
    assert trace.attrs["dropped_rows"] == {"weights": 110 - len(kept)}
    assert len(trace.attrs["incomplete_reasons"]) == 1
    assert trace.weights.attrs["complete"] is False
    assert trace.steps.attrs["complete"] is False
    np.testing.assert_array_equal(trace.weights["step"].values, [*kept, 200])
    np.testing.assert_array_equal(trace.weights["full"].values[:, 3], [*kept, 200])


def test_nothing_is_said_where_nothing_was_left_out(tmp_path):
    with create(tmp_path / "a", {"w": (2000,)}, when_full="thin") as writer:
        writer.append("weights", step=0, full=np.zeros(2000))
    trace = open_trace(tmp_path / "a")
    assert trace.state == "complete"
    assert "dropped_rows" not in trace.attrs


def test_what_else_to_do(tmp_path):
    with pytest.raises(UsageError, match="when_full must be 'block' or 'thin', got 'fail'"):
        create(tmp_path / "a", {"w": (1,)}, when_full="fail")


def run(code, *arguments):
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_memory_is_bounded_when_the_disk_is_slow(tmp_path, compression):
    """A quarter of a gigabyte through a queue of 24 MiB."""
    code = """
    import sys, time
    from pathlib import Path
    import numpy as np
    from tracelab.trace import create
    from tracelab.trace.places.locations import _Folder

    put = _Folder.put

    def slow(self, key, parts):
        time.sleep(sum(map(len, parts)) / 2e8)
        put(self, key, parts)

    def peak():
        # Not ru_maxrss: that begins with what the process that started this one had taken.
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])

    _Folder.put = slow
    path, compression = sys.argv[1:]
    row = np.random.default_rng(0).standard_normal(2**20).astype("f4")
    with create(path, {"w": (2**20,)}, queue_bytes=24 * 2**20, compression=compression) as writer:
        writer.append("weights", step=0, full=row)
        writer.flush()
        before = peak()
        for step in range(1, 65):
            writer.append("weights", step=step, full=row)
    print(peak() - before)
    """
    grown = int(run(code, tmp_path / "a", compression))
    # The queue, as much gathered, as much on its way, and rows being copied and compressed.
    assert grown < (3 * 24 + 32) * MIB
    full = open_trace(tmp_path / "a").weights["full"]
    np.testing.assert_array_equal(full[64].values, full[0].values)


@pytest.mark.slow
def test_forking_workers_beside_a_trace_that_is_written(tmp_path):
    """TensorStore would abort them: it must never be loaded in the process that records."""
    pytest.importorskip("torch")
    code = """
    import sys, warnings
    import torch
    from torch.utils.data import DataLoader, TensorDataset
    import tracelab, tracelab_collectors
    from tracelab.trace.writing.creation import create

    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(256, 2000), torch.randint(0, 10, (256,)))
    loader = DataLoader(data, batch_size=16, num_workers=2, multiprocessing_context="fork")
    model = torch.nn.Linear(2000, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    collectors = [tracelab_collectors.Gradients(sketch=tracelab.Full())]
    create.__kwdefaults__["flush_seconds"] = 0.01
    with tracelab.attach(model, optimizer, sys.argv[1], collectors=collectors):
        for epoch in range(4):
            for inputs, targets in loader:
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
    assert "tensorstore" not in sys.modules
    """
    assert run(code, tmp_path / "a") == ""
    trace = open_trace(tmp_path / "a")
    assert trace.state == "complete"
    np.testing.assert_array_equal(trace.gradients["step"].values, np.arange(64))
    assert trace.gradients["full"].shape == (64, 20_010)
    assert np.isfinite(trace.gradients["full"].values).all()
