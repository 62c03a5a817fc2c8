"""What a session does where it may not take more: memory, time, bytes."""

import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tracelab
from tracelab.errors import IncompleteTraceWarning, UsageError
from tracelab.schedule import Schedule
from tracelab.trace.places.locations import _Folder
from tracelab.trace.writing.creation import create
from tracelab_collectors import Gradients, MicroBatches, Statistics, Weights
from tracelab_collectors.attach import attach
from tracelab_collectors.collector import Block, Recording, Run

FULL = Gradients(sketch=tracelab.Full())


@pytest.fixture
def optimizer(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        net(inputs).square().mean().backward()
        optimizer.step()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A disk that stores only while the event is set, behind a queue of a few rows."""
    going = threading.Event()
    going.set()
    put = _Folder.put

    def waiting(self, key, parts):
        going.wait()
        put(self, key, parts)

    monkeypatch.setattr(_Folder, "put", waiting)
    monkeypatch.setitem(create.__kwdefaults__, "queue_bytes", 20_000)
    yield going
    going.set()


def test_thin_leaves_out_whole_rows_and_counts_them(
    net, optimizer, inputs, path: Path, disk
) -> None:
    twin = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    twin.load_state_dict(net.state_dict())
    train(twin, torch.optim.SGD(twin.parameters(), lr=0.1), inputs, 1000)
    session = attach(net, optimizer, path, collectors=[FULL, Statistics()], when_full="thin")
    disk.clear()
    # Would wait for ever if it waited.
    train(net, optimizer, inputs, 1000)
    disk.set()
    session.detach()
    for one, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)
    trace = tracelab.open(path)
    assert trace.state == "incomplete"
    dropped = trace.attrs["dropped_rows"]
    assert set(dropped) <= {"gradients", "statistics", "steps"}
    assert dropped["gradients"] > 100
    for name in ("gradients", "statistics", "steps"):
        rows = trace.groups[name].load()
        assert rows.sizes["step"] + dropped.get(name, 0) == 1000
        assert (np.diff(rows["step"]) > 0).all()
    assert np.isfinite(trace.gradients["full"]).all()
    (reason,) = trace.attrs["incomplete_reasons"]
    assert reason.startswith("rows left out because storage did not keep up: ")
    for name, count in dropped.items():
        assert f"{count} of {name!r}" in reason


def test_block_waits_and_leaves_out_nothing(net, optimizer, inputs, path: Path, disk) -> None:
    session = attach(net, optimizer, path, collectors=[FULL])
    disk.clear()
    trained = threading.Event()

    def on() -> None:
        train(net, optimizer, inputs, 1000)
        trained.set()

    training = threading.Thread(target=on)
    training.start()
    # 1000 rows of 212 bytes do not fit into the queue and the blocks before it.
    assert not trained.wait(1.0)
    disk.set()
    training.join()
    session.detach()
    trace = tracelab.open(path)
    assert trace.state == "complete"
    assert trace.gradients["step"].values.tolist() == list(range(1000))


@dataclass(frozen=True)
class Stuck:
    """A collector whose reduction waits, as a slow one does."""

    going: threading.Event
    name: str = "stuck"
    kind: str = "gradients"
    schedule: Schedule = field(default_factory=Schedule)

    def bind(self, run: Run) -> Recording:
        def reduce(block: Block) -> dict[str, Tensor]:
            self.going.wait()
            return {"full": torch.zeros(len(block.steps), sum(run.layout.numel))}

        return Recording(run.layout, reduce, reads=frozenset({"gradient"}))


def test_thin_does_not_wait_for_a_slow_collector(net, optimizer, inputs, path: Path) -> None:
    going = threading.Event()
    going.set()
    session = attach(net, optimizer, path, collectors=[Stuck(going)], when_full="thin")
    going.clear()
    train(net, optimizer, inputs, 200)
    going.set()
    session.detach()
    trace = tracelab.open(path)
    kept = trace.groups["stuck"].sizes["step"]
    # Two blocks of sixteen rows are the memory there is.
    assert kept == 32
    assert trace.attrs["dropped_rows"] == {"stuck": 200 - kept}


@pytest.mark.parametrize("back", ["before the step", "before the second pass"])
def test_a_row_whose_passes_found_no_memory_is_left_out(
    back, net, optimizer, inputs, path: Path
) -> None:
    """Memory that comes free between a backward pass and the step is that of older rows."""
    collectors = [Gradients(stage="pre_clip", sketch=tracelab.Full()), MicroBatches()]
    session = attach(net, optimizer, path, collectors=collectors, when_full="thin")
    train(net, optimizer, inputs, 2)
    session._hand_over(last=False)
    lanes = session._agenda._lanes
    taken = [[lane._free.get() for _ in range(2)] for lane in lanes]

    def give_back() -> None:
        for lane, buffers in zip(lanes, taken, strict=True):
            for each in buffers:
                lane.release(each)

    optimizer.zero_grad()
    net(inputs).square().mean().backward()
    if back == "before the second pass":
        give_back()
    net(inputs).square().mean().backward()
    if back == "before the step":
        give_back()
    optimizer.step()
    train(net, optimizer, inputs, 1)
    session.detach()
    trace = tracelab.open(path)
    assert trace.attrs["dropped_rows"] == {"micro_batches": 1, "pre_clip": 1}
    for name in ("pre_clip", "micro_batches"):
        assert trace.groups[name]["step"].values.tolist() == [0, 1, 3]
    assert np.isfinite(trace.groups["pre_clip"]["full"]).all()


@pytest.mark.parametrize("strict", [False, True])
def test_max_bytes_stops_recording_and_not_training(
    strict, net, optimizer, inputs, path: Path, group, attrs
) -> None:
    """A row of both groups has 53 weights of 4 bytes and 4 layers of 16 directions."""
    row = 53 * 4 + 4 * 16 * 4
    collectors = [FULL, Gradients(sketch=tracelab.Project(16), name="sketched")]
    twin = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    twin.load_state_dict(net.state_dict())
    train(twin, torch.optim.SGD(twin.parameters(), lr=0.1), inputs, 400)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with attach(
            net, optimizer, path, collectors=collectors, max_bytes=100 * row, strict=strict
        ):
            train(net, optimizer, inputs, 400)
    for one, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [each.category for each in caught] == [IncompleteTraceWarning]
    words = f"the {100 * row} bytes of max_bytes are recorded"
    assert words in str(caught[0].message)
    found = attrs()
    assert found["state"] == "incomplete"
    (reason,) = found["incomplete_reasons"]
    assert reason.startswith("recording stopped at step ")
    assert words in reason
    # Whole blocks of sixteen rows, up to the last that fits.
    rows = [group(name).sizes["step"] for name in ("gradients", "sketched")]
    assert 53 * 4 * rows[0] + 4 * 16 * 4 * rows[1] <= 100 * row
    assert min(rows) >= 100 - 2 * 16


def test_max_bytes_that_no_row_fits_into(net, optimizer, path: Path) -> None:
    with pytest.raises(UsageError, match=r"max_bytes=211 is less than one row .* 212 bytes; raise"):
        attach(net, optimizer, path, collectors=[FULL], max_bytes=211)
    attach(net, optimizer, path, collectors=[FULL], max_bytes=212).detach()


@pytest.mark.parametrize("given", [0, -1, 1.5, "1 GB"])
def test_max_bytes_that_is_no_number_of_bytes(given, net, optimizer, path: Path) -> None:
    with pytest.raises(UsageError, match=f"max_bytes must be a positive integer, got {given!r}"):
        attach(net, optimizer, path, max_bytes=given)
    assert not path.exists()


def test_when_full_is_one_of_two(net, optimizer, path: Path) -> None:
    with pytest.raises(UsageError, match="when_full must be 'block' or 'thin', got 'drop'"):
        attach(net, optimizer, path, when_full="drop")
    assert not path.exists()


# Presets: how much is taken.


@pytest.mark.parametrize(
    ("preset", "steps"),
    [
        ("light", {"gradients": 3, "statistics": 3, "steps": 25}),
        ("standard", {"gradients": 25, "statistics": 25, "steps": 25}),
        (
            "full",
            {"gradients": 25, "statistics": 25, "histograms": 3, "optimizer_state": 3}
            | {"weights": 4, "noise": 1, "steps": 25},
        ),
    ],
)
def test_presets(
    preset, steps, net, optimizer, inputs, data, cross_entropy, path: Path, monkeypatch
) -> None:
    with attach(net, optimizer, path, collectors=preset, loss=cross_entropy, data=data):
        train(net, optimizer, inputs, 25)
    with tracelab.open(path) as trace:
        rows = {name: count for name, count in trace.rows.items() if name != "start"}
        assert trace.state == "complete"
    assert rows == steps


def test_the_full_preset_probes_only_where_it_can(net, optimizer, inputs, path: Path) -> None:
    with attach(net, optimizer, path, collectors="full"):
        train(net, optimizer, inputs, 2)
    with tracelab.open(path) as trace:
        assert "noise" not in trace.groups
        assert {"gradients", "statistics", "weights"} <= set(trace.groups)


def test_a_preset_that_does_not_exist(net, optimizer, path: Path) -> None:
    words = "collectors='heavy' is no preset; give one of light, standard, full or a list"
    with pytest.raises(UsageError, match=words):
        attach(net, optimizer, path, collectors="heavy")
    assert not path.exists()


def test_weights_are_among_what_is_left_when_bytes_end(
    net, optimizer, inputs, path: Path, group
) -> None:
    """The final weights do not fit any more either; nothing is half there."""
    with pytest.warns(IncompleteTraceWarning, match="max_bytes"):  # noqa: SIM117
        with attach(net, optimizer, path, collectors=[FULL, Weights(every=1)], max_bytes=30_000):
            train(net, optimizer, inputs, 100)
    steps = group("weights")["step"].values
    assert steps.tolist() == list(range(steps.size))
