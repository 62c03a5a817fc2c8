"""A training run that is interrupted and goes on records what an uninterrupted one records."""

import copy
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tracelab
from tracelab.errors import UsageError
from tracelab.schedule import Schedule
from tracelab_collectors import (
    Examples,
    Gradients,
    LiveExamples,
    MicroBatches,
    NoiseProbe,
    OptimizerState,
    PerturbedLoss,
    Statistics,
    Weights,
)
from tracelab_collectors.attach import attach

GROUPS = [
    "examples",
    "gradients",
    "live_examples",
    "micro_batches",
    "noise",
    "optimizer_state",
    "perturbed_loss",
    "start",
    "statistics",
    "steps",
    "weights",
]


def collectors():
    return [
        Statistics(),
        Gradients(sketch=(tracelab.Project(4, seed=3), tracelab.Sample(2))),
        NoiseProbe(every=7, batches=3, batch_size=4),
        Examples(every=9, examples=5),
        LiveExamples(every=5),
        MicroBatches(every=4),
        OptimizerState(every=3),
        PerturbedLoss(every=30, sigmas=(0.1,), draws=1, batches=2, batch_size=4, gradient_draws=1),
        Weights(every=30, sketch=tracelab.Full()),
    ]


class Training:
    """Everything that a checkpoint has to hold, and a step that depends on all of it."""

    def __init__(self, data: torch.utils.data.TensorDataset) -> None:
        torch.manual_seed(1)
        self.data = data
        self.net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)
        self.generator = torch.Generator().manual_seed(2)
        self.step = 0

    @staticmethod
    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def state(self):
        return {
            # Training goes on, and their tensors with it.
            "net": copy.deepcopy(self.net.state_dict()),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "generator": self.generator.get_state(),
            "step": self.step,
        }

    def restore(self, state):
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.step = state["step"]

    def attach(self, path, **options):
        options = {"collectors": collectors(), "seed": 5} | options
        return attach(self.net, self.optimizer, path, loss=self.loss, data=self.data, **options)

    def train(self, session, last):
        while self.step < last:
            assert session.step == self.step
            index = torch.randint(len(self.data), (8,), generator=self.generator)
            batch = self.data[index]
            self.optimizer.zero_grad()
            loss = self.loss(self.net, batch)
            loss.backward()
            self.optimizer.step()
            session.log(loss=loss)
            self.step += 1


@pytest.fixture(scope="module")
def data() -> torch.utils.data.TensorDataset:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(48, 6, generator=generator)
    targets = torch.randint(0, 3, (48,), generator=generator)
    return torch.utils.data.TensorDataset(inputs, targets)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "whole.zarr"
    training = Training(data)
    with training.attach(path) as session:
        training.train(session, 100)
    return path


def check(path: Path, whole: Path, *, extra=()) -> None:
    found, wanted = tracelab.open(path), tracelab.open(whole)
    assert list(wanted.groups) == list(found.groups) == GROUPS
    for name in GROUPS:
        group, rows = (each.groups[name].load() for each in (found, wanted))
        if name in ("perturbed_loss", "weights"):
            group = group.drop_sel(step=list(extra))
        if name == "steps":
            # Time passes as it likes, but forwards.
            assert (np.diff(group["wall_time"]) > 0).all()
            group, rows = group.drop_vars("wall_time"), rows.drop_vars("wall_time")
        assert group.identical(rows), name


def test_from_a_checkpoint(data, whole: Path, tmp_path: Path) -> None:
    """Killed at step 83 with the last checkpoint at 64: steps 64 to 82 are recorded again."""
    path = tmp_path / "run.zarr"
    training = Training(data)
    session = training.attach(path)
    training.train(session, 64)
    checkpoint = training.state()
    training.train(session, 83)
    session.detach()
    again = Training(data)
    again.restore(checkpoint)
    with again.attach(path, resume=64) as session:
        assert session.step == 64
        again.train(session, 100)
    check(path, whole)
    moved = tracelab.open(tmp_path / "run.superseded-1.zarr")
    assert moved.steps["step"].values.tolist() == list(range(64, 83))
    # The final weights of the session that ended at step 83, too.
    assert moved.weights["step"].values.tolist() == [83]
    assert tracelab.open(path).attrs["generation"] == 1


def test_after_the_last_step(data, whole: Path, tmp_path: Path) -> None:
    """Ended in good order twice; the seed is the trace's."""
    path = tmp_path / "run.zarr"
    training = Training(data)
    for first, last in ((0, 30), (30, 64), (64, 100)):
        with training.attach(path, resume=True, seed=None if first else 5) as session:
            assert session.step == first
            training.train(session, last)
    # The weights of step 30 were the final ones of a session and are the first of the next;
    # those of step 64 are only final.
    check(path, whole, extra=[64])
    trace = tracelab.open(path)
    assert len(trace.attrs["resumed"]) == 2
    assert "generation" not in trace.attrs
    assert trace.state == "complete"


KILLED = """
import os, signal, sys
import torch
sys.path.insert(0, sys.argv[2])
from test_resume import Training
torch.manual_seed(0)
data = torch.load(sys.argv[3], weights_only=False)
training = Training(data)
session = training.attach(sys.argv[1])
training.train(session, 40)
torch.save(training.state(), sys.argv[3] + ".checkpoint")
training.train(session, 70)
session._hand_over(last=True)
session._handover._worker.close()
session.writer.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_process_that_was_killed(data, whole: Path, tmp_path: Path) -> None:
    path, saved = tmp_path / "run.zarr", tmp_path / "data.pt"
    torch.save(data, saved)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), path, Path(__file__).parent, saved],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (-9, "")
    assert tracelab.open(path).rows["steps"] == 70
    training = Training(data)
    training.restore(torch.load(f"{saved}.checkpoint", weights_only=False))
    with training.attach(path, resume=training.step) as session:
        training.train(session, 100)
    check(path, whole)


def test_without_a_trace_it_begins(data, tmp_path: Path) -> None:
    """A script can always say resume=, also on its first run, also with a step."""
    training = Training(data)
    with training.attach(tmp_path / "a", resume=True) as session:
        training.train(session, 3)
    training = Training(data)
    training.step = 50
    with training.attach(tmp_path / "b", resume=50) as session:
        training.train(session, 53)
    assert tracelab.open(tmp_path / "a").steps["step"].values.tolist() == [0, 1, 2]
    trace = tracelab.open(tmp_path / "b")
    assert trace.steps["step"].values.tolist() == [50, 51, 52]
    assert trace.groups["start"]["step"].values.tolist() == [50]


@pytest.mark.slow
def test_from_step_zero_the_start_is_a_new_one(data, tmp_path: Path) -> None:
    training = Training(data)
    with training.attach(tmp_path / "a") as session:
        training.train(session, 5)
    with torch.no_grad():
        training.net[0].weight.zero_()
    training.step = 0
    with training.attach(tmp_path / "a", resume=0) as session:
        training.train(session, 2)
    trace = tracelab.open(tmp_path / "a")
    assert (trace.statistics["distance"].values[0] == 0).all()
    assert (trace.groups["start"]["weights"].values[0, :30] == 0).all()
    assert trace.rows["start"] == 1


def test_the_weights_at_the_start_are_kept_where_they_are_needed(data, tmp_path: Path) -> None:
    training = Training(data)
    flat = torch.cat([each.detach().flatten().clone() for each in training.net.parameters()])
    with training.attach(tmp_path / "a") as session:
        # Before the first step: whatever kills the process, distances can go on.
        trace = tracelab.open(tmp_path / "a")
        np.testing.assert_array_equal(trace.groups["start"]["weights"].values[0], flat)
        training.train(session, 1)
    with training.attach(tmp_path / "b", collectors=[Gradients()]):
        pass
    assert "start" not in tracelab.open(tmp_path / "b").groups


@pytest.mark.slow
def test_double_precision_goes_on_exactly(data, tmp_path: Path) -> None:
    training = Training(data)
    training.net.double()
    training.optimizer = torch.optim.SGD(training.net.parameters(), lr=0.1)
    start = [each.detach().clone() for each in training.net.parameters()]
    options = {"collectors": [Weights(every=1)]}
    for _ in range(2):
        with attach(training.net, training.optimizer, tmp_path / "a", resume=True, **options):
            for parameter in training.net.parameters():
                parameter.grad = torch.full_like(parameter, 1e-9)
            training.optimizer.step()
    distance = tracelab.open(tmp_path / "a").weights["distance"].values[-1]
    moved = [
        (now.detach() - then).norm().item()
        for now, then in zip(training.net.parameters(), start, strict=True)
    ]
    np.testing.assert_allclose(distance, moved, rtol=1e-12)


# Refusals, all before anything is changed.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": 6}, "was recorded with seed 5, and now seed is 6"),
        (
            {"collectors": [Gradients(sketch=tracelab.Project(4, seed=4))]},
            "'gradients' of .* was recorded with sketches .*'seed': 3.* declared with .*'seed': 4",
        ),
        ({"collectors": [Gradients(every=2, name="noise")]}, "'noise' .* kind 'noise', and now"),
        (
            {"collectors": [NoiseProbe(every=8, batches=3, batch_size=4)]},
            "'schedule': every 7 from 0, and now it is declared with every 8 from 0",
        ),
        (
            {"collectors": [NoiseProbe(every=7, batches=3, batch_size=2)]},
            "'batch_size': 4, and now it is declared with 2",
        ),
        (
            {"exclude": "0.bias"},
            "records 4 layers, the one at 1 being '0.bias', and now there are 3",
        ),
        ({"collectors": [Gradients(name="start")]}, "two groups are called 'start'"),
    ],
)
def test_what_does_not_agree(data, whole: Path, options, words) -> None:
    training = Training(data)
    before = {file: file.read_bytes() for file in whole.parent.rglob("*") if file.is_file()}
    # Rows behind a step would be moved, if it came to that.
    with pytest.raises(UsageError, match=words):
        training.attach(whole, resume=3, **options)
    after = {file: file.read_bytes() for file in whole.parent.rglob("*") if file.is_file()}
    assert after == before
    assert not training.optimizer._optimizer_step_pre_hooks


@pytest.mark.slow
def test_distances_need_the_weights_at_the_start(data, tmp_path: Path) -> None:
    training = Training(data)
    with training.attach(tmp_path / "a", collectors=[Gradients()]) as session:
        training.train(session, 3)
    words = "does not hold the weights at its start, from which collector 'statistics' measures"
    with pytest.raises(UsageError, match=words):
        training.attach(tmp_path / "a", resume=True, collectors=[Gradients(), Statistics()])
    # Without rows there is no other start than now.
    training.step = 0
    with training.attach(tmp_path / "a", resume=0, collectors=[Statistics()]) as session:
        training.train(session, 1)


@pytest.mark.slow
def test_another_collector_may_join(data, tmp_path: Path) -> None:
    training = Training(data)
    with training.attach(tmp_path / "a") as session:
        training.train(session, 3)
    more = [*collectors(), Gradients(every=Schedule(every=2), name="more")]
    with training.attach(tmp_path / "a", resume=True, collectors=more) as session:
        training.train(session, 8)
    trace = tracelab.open(tmp_path / "a")
    assert trace.groups["more"]["step"].values.tolist() == [4, 6]
    assert trace.gradients["step"].values.tolist() == list(range(8))


@pytest.mark.slow
def test_ranks_of_a_job(data, tmp_path: Path) -> None:
    for rank in range(2):
        training = Training(data)
        with training.attach(tmp_path / "a", rank=rank, world_size=2, run_id="job") as session:
            training.train(session, 2 + rank)
    with training.attach(tmp_path / "a", rank=1, resume=True) as session:
        training.train(session, 5)
    with tracelab.open(tmp_path / "a/workers/rank-001") as trace:
        assert trace.run == "job"
        assert trace.rows["steps"] == 5
    with tracelab.open(tmp_path / "a") as whole:
        assert (whole.run, whole.state, whole.attrs["world_size"]) == ("job", "complete", 2)
        assert {rank: each.rows["steps"] for rank, each in whole.ranks.items()} == {0: 2, 1: 5}
