"""Full disks, stores that vanish, processes that end: training goes on or ends, the trace opens."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from faults.scenarios import small_disk
from torch import Tensor, nn

import tracelab
from tracelab.errors import IncompleteTraceWarning, TraceError
from tracelab.schedule import Schedule
from tracelab.trace.writing.creation import create
from tracelab_collectors import Gradients, Statistics
from tracelab_collectors.attach import attach
from tracelab_collectors.collector import Block, Recording, Run, Source
from tracelab_collectors.lane import STEPS as BLOCK_STEPS

STEPS = 80
COLLECTORS = [Gradients(sketch=tracelab.Full()), Statistics()]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits come while the loops of these tests run, not only at their ends."""
    monkeypatch.setitem(create.__kwdefaults__, "flush_seconds", 0.02)


def train(
    path: Path | None = None, each: Callable = lambda session, step: None, **options
) -> Tensor:
    """Train 80 steps on 10,100 weights, 40 kB a row; return the weights at the end."""
    torch.manual_seed(0)
    net = nn.Linear(100, 100)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def steps(session) -> None:
        for step in range(STEPS):
            optimizer.zero_grad()
            net(torch.randn(4, 100)).square().mean().backward()
            optimizer.step()
            each(session, step)

    if path is None:
        steps(None)
    else:
        options = {"collectors": COLLECTORS} | options
        with attach(net, optimizer, path, **options) as session:
            steps(session)
    assert not optimizer._optimizer_step_pre_hooks
    return net.weight.detach().clone()


@pytest.fixture(scope="module")
def bare() -> Tensor:
    return train()


def recorded_with_one_warning(path: Path, words: str, **options) -> Tensor:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        weights = train(path, **options)
    assert [each.category for each in caught] == [IncompleteTraceWarning], caught
    assert words in str(caught[0].message)
    return weights


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    try:
        with small_disk(tmp_path / "disk", 1_500_000) as mounted:
            yield mounted
    except PermissionError as error:
        pytest.skip(str(error))


def test_a_full_disk(bare: Tensor, disk: Path) -> None:
    path = disk / "run.zarr"

    def each(session, step: int) -> None:
        # The first block of rows fits; it is committed before the disk is full.
        while step == BLOCK_STEPS and not tracelab.open(path).rows.get("gradients"):
            time.sleep(0.01)

    weights = recorded_with_one_warning(path, "No space left on device", each=each)
    assert torch.equal(weights, bare)
    trace = tracelab.open(path)
    assert trace.state == "incomplete"
    assert trace.attrs["incomplete_reasons"] == ["OSError: [Errno 28] No space left on device"]
    steps = trace.gradients["step"].values
    assert 0 < len(steps) < STEPS
    assert steps.tolist() == list(range(len(steps)))
    assert np.isfinite(trace.gradients["full"]).all()
    assert not tracelab.verify(path).damages


def test_a_full_disk_of_a_strict_session(disk: Path) -> None:
    with pytest.raises(TraceError, match="No space left on device"):
        train(disk / "run.zarr", strict=True)
    assert tracelab.open(disk / "run.zarr").state == "incomplete"


@dataclass(frozen=True)
class Failing:
    """Fails at one step: while gradients are copied, in the background, or as a probe."""

    where: str
    name: str = "failing"
    kind: str = "gradients"
    schedule: Schedule = field(default_factory=Schedule)

    def bind(self, run: Run) -> Recording:
        size = sum(run.layout.numel)

        def read(parameter: Tensor, *_: object) -> Tensor:
            # Of two layers at every step.
            if self.where == "a source" and len(asked) == STEPS:
                raise ArithmeticError("cannot")
            asked.append(True)
            return parameter

        def reduce(block: Block) -> dict[str, Tensor]:
            if self.where != "a source" and STEPS // 2 in block.steps:
                raise ArithmeticError("cannot")
            return {"full": torch.zeros(len(block.steps), size)}

        asked: list[bool] = []
        probe = self.where == "a probe"
        reads = frozenset() if probe else frozenset({Source("own", read)})
        return Recording(run.layout, reduce, reads=reads, probe=probe)


@pytest.mark.parametrize("where", ["a source", "the background", "a probe"])
def test_a_collector_that_raises(where, bare: Tensor, path: Path) -> None:
    collectors = [*COLLECTORS, Failing(where)]
    weights = recorded_with_one_warning(
        path, "collector 'failing' stopped at step", collectors=collectors
    )
    assert torch.equal(weights, bare)
    trace = tracelab.open(path)
    assert trace.state == "incomplete"
    (reason,) = trace.attrs["incomplete_reasons"]
    assert reason.endswith("ArithmeticError: cannot")
    # Whoever did not fail records on; whoever did keeps what was handed over before.
    assert trace.rows["gradients"] == trace.rows["steps"] == STEPS
    assert STEPS // 2 - BLOCK_STEPS < trace.rows["failing"] <= STEPS // 2
    with pytest.raises(ArithmeticError, match="cannot"):
        train(path, collectors=collectors, strict=True, overwrite=True)


def remove(path: Path) -> Callable:
    def each(session, step: int) -> None:
        if step == STEPS // 2:
            session.writer.flush()
            # At once: what is stored meanwhile would be in the way of removing files one by one.
            path.rename(path.with_name("removed"))
            shutil.rmtree(path.with_name("removed"))

    return each


def test_a_store_that_vanishes(bare: Tensor, path: Path) -> None:
    weights = recorded_with_one_warning(
        path, "run.zarr was removed while it was being recorded", each=remove(path)
    )
    assert torch.equal(weights, bare)
    # It is not made again behind the user's back.
    assert not (path / "zarr.json").exists()


def test_a_store_that_vanishes_from_a_strict_session(path: Path) -> None:
    with pytest.raises(TraceError, match="was removed while it was being recorded"):
        train(path, each=remove(path), strict=True)


def test_a_store_that_cannot_be_written_any_more(bare: Tensor, path: Path) -> None:
    """Its folder became a file: no permission is needed to do so, and root has every one."""

    def each(session, step: int) -> None:
        if step == STEPS // 2:
            session.writer.flush()
            path.rename(path.with_name("moved.zarr"))
            path.write_text("not a folder")

    weights = recorded_with_one_warning(path, "recording", each=each)
    assert torch.equal(weights, bare)
    trace = tracelab.open(path.with_name("moved.zarr"))
    steps = trace.gradients["step"].values
    assert 0 < len(steps) < STEPS
    assert steps.tolist() == list(range(len(steps)))


# Processes that end.

SCRIPT = """
import os, signal, sys, time
import torch
import tracelab
from tracelab.trace.writing.creation import create
from tracelab_collectors import Gradients
from tracelab_collectors.attach import attach

path, how, where = sys.argv[1:]
create.__kwdefaults__["flush_seconds"] = 0.02
net = torch.nn.Linear(3, 2)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

def step(number):
    optimizer.zero_grad()
    ((number + 1) * net(torch.ones(1, 3))).sum().backward()
    optimizer.step()

def train():
    for number in range(40):
        step(number)
    if how in ("SIGKILL", "os._exit"):
        # What is not committed is lost: two full blocks are, soon.
        while tracelab.open(path).rows.get("gradients", 0) < 32:
            time.sleep(0.02)
    if how == "fork":
        child = os.fork()
        for number in range(40, 640):
            step(number)
        if child == 0:
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    if how.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, how))
        time.sleep(60)
    if how == "os._exit":
        os._exit(3)
    if how == "sys.exit":
        sys.exit(3)
    if how == "exception":
        raise ValueError("in the loop")

session = attach(net, optimizer, path, collectors=[Gradients(sketch=tracelab.Full())])
if where == "inside":
    with session:
        train()
else:
    train()
"""
ENDED = "the process ended before the session was closed"
TERMINATED = "the process was ended by SIGTERM"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no signals")
@pytest.mark.parametrize(
    ("how", "where", "code", "rows", "state", "reasons"),
    [
        ("SIGTERM", "inside", 143, 40, "incomplete", [TERMINATED]),
        ("SIGTERM", "outside", 143, 40, "incomplete", [TERMINATED]),
        ("SIGINT", "inside", -signal.SIGINT, 40, "incomplete", ["KeyboardInterrupt"]),
        ("SIGINT", "outside", -signal.SIGINT, 40, "incomplete", ["KeyboardInterrupt"]),
        ("sys.exit", "inside", 3, 40, "incomplete", ["SystemExit: 3"]),
        ("sys.exit", "outside", 3, 40, "incomplete", [ENDED]),
        ("exception", "inside", 1, 40, "incomplete", ["ValueError: in the loop"]),
        ("exception", "outside", 1, 40, "incomplete", ["ValueError: in the loop"]),
        ("end", "inside", 0, 40, "complete", []),
        ("end", "outside", 0, 40, "incomplete", [ENDED]),
        # Nothing of Python runs any more: what was committed is there, and nobody closed it.
        ("SIGKILL", "inside", -signal.SIGKILL, None, "recording", []),
        ("SIGKILL", "outside", -signal.SIGKILL, None, "recording", []),
        ("os._exit", "inside", 3, None, "recording", []),
        ("os._exit", "outside", 3, None, "recording", []),
        # The child trains on and leaves the block by an exception, in its own memory alone.
        ("fork", "inside", 0, 640, "complete", []),
        ("fork", "outside", 0, 640, "incomplete", [ENDED]),
    ],
)
def test_what_is_in_the_trace_after_a_process_ended(
    how, where, code, rows, state, reasons, path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(SCRIPT), path, how, where],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == code, done.stderr
    trace = tracelab.open(path)
    assert (trace.state, trace.attrs["incomplete_reasons"]) == (state, reasons)
    steps = trace.gradients["step"].values
    if rows is None:
        assert len(steps) in range(32, 41)
    else:
        assert len(steps) == rows
        assert trace.rows["steps"] == rows
    assert steps.tolist() == list(range(len(steps)))
    # The loss is linear: its gradient by each weight is the number of the step.
    expected = np.repeat(np.arange(1.0, len(steps) + 1)[:, None], 8, axis=1)
    np.testing.assert_array_equal(trace.gradients["full"], expected)
    assert not tracelab.verify(path).damages
