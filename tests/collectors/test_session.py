"""The session: its rows, what it refuses, and what happens when something fails."""

import subprocess
import sys
import textwrap
import threading
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tracelab
from tracelab.errors import IncompleteTraceWarning, TraceError, UsageError
from tracelab.schedule import Schedule
from tracelab_collectors import Gradients, NoiseProbe, Statistics, Weights
from tracelab_collectors.attach import attach
from tracelab_collectors.collector import Block, Collector, Recording, Run
from tracelab_collectors.lane import STEPS as BLOCK_STEPS


@pytest.fixture
def optimizer(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1)


def step(net: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss = net(inputs).square().mean()
    loss.backward()
    optimizer.step()
    return loss


def test_the_core_finds_attach() -> None:
    assert tracelab.attach is attach


def test_own_collectors_are_collectors() -> None:
    for collector in (Gradients(), NoiseProbe(), Statistics(), Weights()):
        assert isinstance(collector, Collector)


def test_defaults(net, optimizer, inputs, path: Path, group, attrs) -> None:
    with attach(net, optimizer, path, metadata={"note": "x"}, seed=5) as session:
        assert "step 0" in repr(session)
        for _ in range(BLOCK_STEPS + 3):
            step(net, optimizer, inputs)
    assert "closed" in repr(session)
    for name in ("steps", "statistics", "gradients"):
        assert group(name)["step"].values.tolist() == list(range(BLOCK_STEPS + 3))
    assert group("gradients").attrs["sketches"] == [
        {"kind": "project", "k": 256, "seed": 0},
        {"kind": "sample", "k": 64, "seed": 0},
    ]
    assert group("gradients").attrs["schedule"] == "every 1 from 0"
    found = attrs()
    assert (found["state"], found["seed"], found["metadata"]) == ("complete", 5, {"note": "x"})
    assert found["optimizer"]["name"] == "SGD"
    assert found["optimizer"]["lr"] == 0.1
    assert found["model"]["name"] == "Sequential"
    assert found["software"]["torch"] == torch.__version__


def test_kinds_are_the_owners_classes(net, optimizer, path: Path) -> None:
    attach(net, optimizer, path).detach()
    with tracelab.open(path) as trace:
        assert trace.layers["kind"].values.tolist() == ["Linear"] * 4


def test_the_rows_of_steps(net, inputs, path: Path, group) -> None:
    rate = torch.tensor(0.1)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    with attach(net, optimizer, path) as session:
        for _ in range(3):
            loss = step(net, optimizer, inputs)
            session.log(loss=loss, batch_size=len(inputs), accuracy=torch.tensor([0.5]))
            scheduler.step()
    steps = group("steps")
    np.testing.assert_allclose(steps["learning_rate"], [0.1, 0.05, 0.025], rtol=1e-6)
    assert steps["batch_size"].values.tolist() == [48.0] * 3
    assert steps["accuracy"].values.tolist() == [0.5] * 3
    assert steps["applied"].values.tolist() == [True] * 3
    assert (np.diff(steps["wall_time"]) > 0).all()
    assert steps["learning_rate"].attrs["units"] == "weight^2/loss"


@pytest.mark.parametrize("where", ["before backward", "after backward", "after step"])
def test_a_scalar_belongs_to_its_step_wherever_it_is_logged(
    where, net, optimizer, inputs, path: Path, group
) -> None:
    with attach(net, optimizer, path) as session:
        for index in range(4):
            optimizer.zero_grad()
            loss = net(inputs).square().mean()
            for place in ("before backward", "after backward", "after step"):
                if place == "after backward":
                    loss.backward()
                if place == "after step":
                    optimizer.step()
                if place == where:
                    session.log(index=index)
    assert group("steps")["index"].values.tolist() == [0, 1, 2, 3]


def test_a_scalar_logged_sometimes_is_missing_elsewhere(
    net, optimizer, inputs, path: Path, group
) -> None:
    with attach(net, optimizer, path) as session:
        for index in range(4):
            step(net, optimizer, inputs)
            if index == 2:
                session.log(validation=1.5)
    np.testing.assert_array_equal(group("steps")["validation"], [np.nan, np.nan, 1.5, np.nan])
    session.log(validation=2.0)


@pytest.mark.parametrize(
    ("scalars", "words"),
    [
        ({"applied": 1.0}, "'applied' is filled by the session"),
        ({"my loss": 1.0}, "a scalar cannot be called 'my loss'"),
        ({"loss": torch.ones(3)}, r"'loss' must be a scalar, got a tensor of shape \(3,\)"),
        ({"loss": "low"}, "'loss' must be a number or a 0-d tensor, got 'low'"),
    ],
)
def test_scalars_that_cannot_be_logged(scalars, words, net, optimizer, path: Path) -> None:
    with attach(net, optimizer, path) as session, pytest.raises(UsageError, match=words):
        session.log(**scalars)


def test_a_step_that_raises_counts_as_not_applied(
    net, optimizer, inputs, path: Path, group
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with attach(net, optimizer, path):
        step(net, optimizer, inputs)
        handle = optimizer.register_step_pre_hook(fail)
        # Ours runs behind the failing hook from the next backward pass on.
        optimizer._optimizer_step_pre_hooks.move_to_end(handle.id)
        with pytest.raises(ZeroDivisionError):
            optimizer.step()
        handle.remove()
        step(net, optimizer, inputs)
    assert group("steps")["applied"].values.tolist() == [True, False, True]
    assert group("gradients")["step"].values.tolist() == [0, 1, 2]


def test_passes_before_the_session_are_unknown(net, optimizer, inputs, path: Path, group) -> None:
    net(inputs).square().mean().backward()
    with attach(net, optimizer, path):
        optimizer.step()
        step(net, optimizer, inputs)
        optimizer.zero_grad()
        optimizer.step()
    np.testing.assert_array_equal(group("steps")["micro_batches"], [np.nan, 1, 0])
    assert group("gradients")["projected"].notnull().all(
        ("layer", "direction")
    ).values.tolist() == [
        True,
        True,
        False,
    ]


# Refusals, all before training starts.


def refuse(path: Path, words: str, model: nn.Module, optimizer, **options) -> None:
    threads = threading.active_count()
    with pytest.raises(UsageError, match=words):
        attach(model, optimizer, path, **options)
    assert not optimizer._optimizer_step_pre_hooks
    assert threading.active_count() == threads


def test_models_and_optimizers_that_cannot_be_recorded(net, optimizer, path: Path) -> None:
    frozen = nn.Linear(2, 2).requires_grad_(False)
    refuse(path, "Linear has no parameter with requires_grad=True", frozen, optimizer)
    refuse(path, "SGD trains none of the parameters of the model", nn.Linear(2, 2), optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lazy = nn.LazyLinear(3)
    refuse(path, "has no shape yet", lazy, torch.optim.SGD(lazy.parameters()))
    waves = nn.ParameterDict({"w": torch.ones(2, dtype=torch.complex64)})
    refuse(path, "has dtype torch.complex64", waves, torch.optim.SGD(waves.parameters()))
    ghost = nn.Linear(2, 2, device="meta")
    refuse(path, "recording works on cpu and cuda", ghost, torch.optim.SGD(ghost.parameters()))
    assert not path.exists()


def test_arguments_that_cannot_be_used(net, optimizer, path: Path) -> None:
    def no(words: str, *collectors: object, **options: object) -> None:
        refuse(path, words, net, optimizer, collectors=collectors, **options)

    no("two groups are called 'gradients'; give one of them name=", Gradients(), Gradients())
    no("two groups are called 'steps'", Gradients(name="steps"))
    no("collectors must hold collectors such as Gradients", Gradients)
    no("layers='conv.*', exclude=None leaves no layer; there are: 0.weight", layers="conv.*")
    no("'gradients': layers='conv.*'", Gradients(layers="conv.*"))
    no("is no regular expression", Gradients(layers="("))
    path.mkdir()
    (path / "file").touch()
    no("exists and is not a trace")


def test_an_existing_trace_is_kept_or_replaced(net, optimizer, inputs, path: Path, group) -> None:
    with attach(net, optimizer, path):
        step(net, optimizer, inputs)
    refuse(path, "overwrite=True", net, optimizer)
    assert group("steps").sizes["step"] == 1
    attach(net, optimizer, path, overwrite=True).detach()
    with tracelab.open(path) as trace:
        assert "steps" not in trace.groups or trace.groups["steps"].sizes["step"] == 0


def test_a_group_that_cannot_be_defined_leaves_nothing_attached(net, optimizer, path: Path) -> None:
    refuse(path, "a group cannot be called 'a/b'", net, optimizer, collectors=[Weights(name="a/b")])


# Failures of collectors.


@dataclass(frozen=True)
class Failing:
    """Fails at one step; in the background, or in the training thread if it is a probe."""

    at: int
    probe: bool
    name: str = "failing"
    kind: str = "gradients"
    schedule: Schedule = field(default_factory=Schedule)

    def bind(self, run: Run) -> Recording:
        calls = []

        def reduce(block: Block) -> dict[str, Tensor]:
            calls.append(block.steps)
            if block.steps == (0,) and len(calls) == 1 and not self.probe:
                return {}
            if self.at in block.steps:
                raise ArithmeticError(f"cannot at {self.at}")
            return {"full": torch.zeros(len(block.steps), sum(run.layout.numel))}

        reads = frozenset() if self.probe else frozenset({"gradient"})
        return Recording(run.layout, reduce, reads=reads, probe=self.probe)


@pytest.mark.parametrize("where", ["behind_backward", "Passes.accumulated", "Passes.arriving"])
def test_an_error_within_a_backward_pass_does_not_end_it(
    where, net, optimizer, inputs, path: Path, attrs, monkeypatch
) -> None:
    def fail(*_, **__) -> None:
        raise ArithmeticError("in a hook")

    session = attach(net, optimizer, path)
    monkeypatch.setattr(f"tracelab_collectors.session.{where}", fail)
    before = net[0].weight.detach().clone()
    with pytest.warns(IncompleteTraceWarning, match="stopped at step 1: ArithmeticError"):
        step(net, optimizer, inputs)
    session.detach()
    assert not torch.equal(net[0].weight, before)
    assert attrs()["state"] == "incomplete"


@pytest.mark.parametrize("probe", [False, True])
def test_a_failing_collector_is_switched_off(
    probe, net, optimizer, inputs, path: Path, group, attrs
) -> None:
    collectors = [Failing(40, probe), Gradients(), Weights(every=1, name="others")]
    session = attach(net, optimizer, path, collectors=collectors)
    start = net[0].weight.detach().clone()

    def train() -> None:
        for _ in range(80):
            step(net, optimizer, inputs)
        session.detach()

    with pytest.warns(IncompleteTraceWarning, match="'failing' stopped") as caught:
        train()
    assert len(caught) == 1
    assert not torch.equal(net[0].weight, start)
    found = attrs()
    assert found["state"] == "incomplete"
    (reason,) = found["incomplete_reasons"]
    assert "ArithmeticError: cannot at 40" in reason
    assert group("gradients").sizes["step"] == 80
    assert group("others").sizes["step"] == 81
    # Blocks before the failing one are there; a slow machine hands over shorter ones.
    steps = group("failing")["step"].values
    assert steps.tolist() == list(range(steps.size))
    assert 40 - BLOCK_STEPS < steps.size <= 40
    assert not probe or steps.size == 40


@pytest.mark.parametrize("probe", [False, True])
def test_strict_raises(probe, net, optimizer, inputs, path: Path, attrs) -> None:
    collectors = [Failing(3, probe)]

    def train() -> None:
        with attach(net, optimizer, path, collectors=collectors, strict=True):
            for _ in range(5):
                step(net, optimizer, inputs)

    with pytest.raises(ArithmeticError, match="cannot at 3"):
        train()
    assert attrs()["state"] == "incomplete"
    assert not optimizer._optimizer_step_pre_hooks


def test_replaced_parameters_are_noticed(net, optimizer, data, cross_entropy, path: Path) -> None:
    session = attach(net, optimizer, path, collectors=[NoiseProbe()], loss=cross_entropy, data=data)
    net[0].weight = nn.Parameter(torch.zeros(5, 6))
    with pytest.warns(IncompleteTraceWarning, match=r"0.weight: the model's parameters were"):
        optimizer.step()
    session.detach()


def test_a_changed_shape_stops_the_collectors_not_training(
    net, optimizer, inputs, path: Path, group
) -> None:
    def train() -> None:
        with attach(net, optimizer, path, collectors=[Gradients(), Statistics(every=2)]):
            step(net, optimizer, inputs)
            for parameter in net[0].parameters():
                parameter.grad = None
                parameter.data = torch.zeros(2, *parameter.shape)
                parameter.grad = torch.zeros_like(parameter)
            for _ in range(3):
                optimizer.step()

    with pytest.warns(IncompleteTraceWarning) as caught:
        train()
    assert sorted(str(each.message).split("'")[1] for each in caught) == ["gradients", "statistics"]
    assert group("steps").sizes["step"] == 4
    assert group("gradients").sizes["step"] == 1


@pytest.mark.parametrize("strict", [False, True])
def test_a_full_disk_does_not_stop_training(
    strict, net, optimizer, inputs, path: Path, monkeypatch
) -> None:
    session = attach(net, optimizer, path, strict=strict)

    def full(*args: object, **kwargs: object) -> None:
        raise TraceError("no space left on device")

    monkeypatch.setattr(session.writer, "append", full)
    start = net[0].weight.detach().clone()
    for _ in range(3):
        step(net, optimizer, inputs)
    assert not torch.equal(net[0].weight, start)
    told = (
        pytest.raises(TraceError, match="no space left")
        if strict
        else pytest.warns(IncompleteTraceWarning, match="recording stopped.*no space left")
    )
    with told:
        session.detach()
    assert not optimizer._optimizer_step_pre_hooks


def test_after_a_stop_steps_cost_nothing_more(net, optimizer, inputs, path: Path) -> None:
    session = attach(net, optimizer, path)
    session._handover.fail("steps", OSError("gone"))
    with pytest.warns(IncompleteTraceWarning, match="recording stopped at step 1: OSError: gone"):
        step(net, optimizer, inputs)
    step(net, optimizer, inputs)
    assert session.step == 1
    session.detach()


def test_compiled_models_are_recorded_under_their_names(net, inputs, path: Path, group) -> None:
    compiled = torch.compile(net, backend="eager")
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1)
    with attach(compiled, optimizer, path):
        step(compiled, optimizer, inputs)
    assert group("gradients")["layer"].values[0] == "0.weight"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_a_compiled_step_is_recorded(net, inputs, path: Path, group) -> None:
    """torch.compile does not trace into our hooks; this backend needs no compiler."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    compiled = torch.compile(optimizer.step, backend="eager")
    expected = []
    with attach(net, optimizer, path, collectors=[Gradients(sketch=tracelab.Full())]):
        for _ in range(3):
            optimizer.zero_grad()
            net(inputs).square().mean().backward()
            expected.append(torch.cat([p.grad.flatten() for p in net.parameters()]).numpy())
            compiled()
    np.testing.assert_array_equal(group("gradients")["full"], expected)


def test_parameters_of_no_layer_are_named(net, path: Path, attrs) -> None:
    net[2].bias.requires_grad_(False)
    optimizer = torch.optim.SGD([net[0].weight, net[2].bias], lr=0.1)
    attach(net, optimizer, path).detach()
    assert attrs()["model"]["frozen"] == ["2.bias"]
    assert attrs()["model"]["not_recorded"] == ["0.bias", "2.weight"]


SCRIPT = """
    import os, sys, torch
    from tracelab_collectors.attach import attach
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    session = attach(net, optimizer, sys.argv[1])
    for _ in range(40):
        net(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    if os.fork() == 0:
        # A forked child neither records nor waits for the parent's threads.
        net(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        os._exit(session.step != 40)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    # Neither detached nor closed.
"""


def test_a_forgotten_session_is_closed_at_exit(path: Path, group, attrs) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(SCRIPT), path],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert group("gradients").sizes["step"] == 40
    assert attrs()["state"] == "incomplete"
    assert "the process ended before the session was closed" in attrs()["incomplete_reasons"]
