"""Real processes that record to S3 and are killed, end, or fork."""

import random
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

import tracelab

pytestmark = pytest.mark.slow

HEAD = """
import os, sys, time
import numpy as np
import tracelab
url = sys.argv[1]
LAYERS = {"w": (2, 3)}

def row(step):
    return {"full": np.full(6, step, np.float32), "projected": np.full((1, 3), step)}
"""


def start(code, *arguments):
    script = HEAD + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, said=None):
    out, err = process.communicate(said, timeout=120)
    return process.returncode, out, err


def check(url):
    """Return how many rows are committed, after comparing all of them."""
    trace = tracelab.open(url)
    rows = trace.rows.get("gradients", 0)
    if rows:
        gradients = trace.gradients.compute()
        expected = np.arange(rows)
        np.testing.assert_array_equal(gradients["step"].values, expected)
        np.testing.assert_array_equal(gradients["full"].values, np.repeat(expected[:, None], 6, 1))
        np.testing.assert_array_equal(gradients["projected"].values[:, 0, 1], expected)
    return rows


@pytest.mark.parametrize("seed", range(4))
def test_after_sigkill_what_was_committed_is_there_and_recording_goes_on(bucket, seed):
    process = start(
        """
        with tracelab.create(url, LAYERS, flush_seconds=0.02) as writer:
            writer.append("gradients", step=0, **row(0))
            writer.flush()
            print("ready", flush=True)
            for step in range(1, 10**9):
                writer.append("gradients", step=step, **row(step))
                time.sleep(0.0003)
        """,
        bucket.url(),
    )
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    # The moment is what is tried out.
    time.sleep(random.Random(seed).uniform(0.1, 0.6))
    before = check(bucket.url())
    process.kill()
    finish(process)
    rows = check(bucket.url())
    assert rows >= before >= 1
    assert tracelab.verify(bucket.url()).sound
    assert tracelab.open(bucket.url()).state == "recording"
    with tracelab.create(bucket.url(), {"w": (2, 3)}, resume=True) as writer:
        for step in range(rows, rows + 10):
            values = {"full": np.full(6, step), "projected": np.full((1, 3), step)}
            writer.append("gradients", step=step, **values)
    assert check(bucket.url()) == rows + 10
    assert tracelab.open(bucket.url()).state == "complete"
    assert tracelab.verify(bucket.url()).sound


def test_a_writer_that_nobody_closed_commits_at_exit(bucket):
    process = start(
        """
        writer = tracelab.create(url, LAYERS)
        for step in range(50):
            writer.append("gradients", step=step, **row(step))
        """,
        bucket.url(),
    )
    assert finish(process) == (0, "", "")
    assert check(bucket.url()) == 50
    assert tracelab.open(bucket.url()).state == "incomplete"


def test_an_exception_leaves_the_rows_and_the_reason(bucket):
    process = start(
        """
        with tracelab.create(url, LAYERS) as writer:
            for step in range(50):
                writer.append("gradients", step=step, **row(step))
            raise RuntimeError("diverged")
        """,
        bucket.url(),
    )
    code, _, err = finish(process)
    assert code == 1
    assert err.strip().endswith("RuntimeError: diverged")
    assert check(bucket.url()) == 50
    assert tracelab.open(bucket.url()).attrs["incomplete_reasons"] == ["RuntimeError: diverged"]


FORKING = """
import gc, multiprocessing
writer = tracelab.create(url, LAYERS, flush_seconds=0.02)
trace = tracelab.open(url)

def child(number):
    # What the parent left of its clients is collected, and a trace is read, in the child.
    values = []
    for path in (url, sys.argv[2]):
        values.append(len(tracelab.open(path).steps["loss"].values))
    values.append(tracelab.open(sys.argv[2]).steps["loss"].values.sum())
    gc.collect()
    try:
        writer.append("steps", step=10**6, loss=0)
    except tracelab.errors.UsageError:
        return values[1:]

writer.append("steps", step=0, loss=0)
writer.flush()
for generation in range(3):
    with multiprocessing.get_context("fork").Pool(3) as pool:
        found = pool.map_async(child, range(6))
        for step in range(200):
            number = 200 * generation + step
            writer.append("gradients", step=number, **row(number))
            time.sleep(0.001)
        assert found.get(60) == [[7, 21.0]] * 6, found.get(60)
    writer.flush()
writer.close()
print("done")
"""


def test_children_that_fork_and_read_disturb_nobody(bucket, proxy):
    with tracelab.create(bucket.url("other.zarr"), {"w": (1,)}) as writer:
        for step in range(7):
            writer.append("steps", step=step, loss=step)
    process = start(FORKING, bucket.url(), bucket.url("other.zarr"))
    assert finish(process) == (0, "done\n", "")
    assert check(bucket.url()) == 600
    # No connection of the parent was lost: nothing had to be asked twice.
    keys = [str(request) for request in proxy.requests if request.method == "PUT"]
    roots = [key for key in keys if key.endswith("/run.zarr/zarr.json")]
    assert len(keys) > len(roots) >= 4


FORKED_CLIENT = """
import warnings
trace = tracelab.open(url)
sessions = trace.store.fs._s3._endpoint.http_session._sessions
child = os.fork()
if not child:
    warnings.simplefilter("ignore")
    for session in sessions.values():
        assert session.connector._conns
        # What the garbage collector does with the copy of the parent's connections.
        session.connector.__del__()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
start = time.monotonic()
trace.refresh()
# An answer on a connection that the child took away would be waited for, for 20 seconds.
print("waited" if time.monotonic() - start > 18 else "at once")
"""


def test_a_child_does_not_take_the_connections_of_its_parent_away(bucket, proxy):
    with tracelab.create(bucket.url(), {"w": (1,)}) as writer:
        for step in range(7):
            writer.append("steps", step=step, loss=step)
    code, out, _ = finish(start(FORKED_CLIENT, bucket.url()))
    assert (code, out) == (0, "at once\n")


TRAINING = """
import torch
torch.manual_seed(0)
data = torch.utils.data.TensorDataset(torch.randn(64, 4), torch.randn(64, 3))
loader = torch.utils.data.DataLoader(
    data, batch_size=8, num_workers=2, multiprocessing_context="fork"
)
model = torch.nn.Linear(4, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
with tracelab.attach(model, optimizer, url):
    for epoch in range(3):
        for x, y in loader:
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()
"""


def test_training_with_forked_loaders_records_every_step(bucket):
    code, _, err = finish(start(TRAINING, bucket.url()))
    assert (code, err) == (0, "")
    trace = tracelab.open(bucket.url())
    assert trace.state == "complete"
    np.testing.assert_array_equal(trace.steps["step"].values, np.arange(24))
