"""Steps that are not a backward pass and a step: closures that raise, pauses, forks, hand-overs."""

import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tracelab
from tracelab.errors import IncompleteTraceWarning
from tracelab_collectors import Gradients, MicroBatches, Statistics
from tracelab_collectors import session as session_module
from tracelab_collectors.attach import attach
from tracelab_collectors.lane import STEPS as BLOCK_STEPS

FULL = Gradients(sketch=tracelab.Full())


@pytest.fixture
def optimizer(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1)


@pytest.fixture
def optimizers(net: nn.Module) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(net[layer].parameters(), lr=0.1) for layer in (0, 2)]


@pytest.fixture
def backward(net: nn.Module, inputs: Tensor) -> Callable[[], None]:
    def backward() -> None:
        net.zero_grad()
        net(inputs).square().mean().backward()

    return backward


def test_a_closure_that_raises_leaves_a_row_without_gradient(
    net, optimizer, inputs, path: Path, group
) -> None:
    """Two blocks later the memory of its row has held gradients before."""
    failing = {3, 2 * BLOCK_STEPS + 3}
    collectors = [FULL, Gradients(name="sketched"), Statistics()]

    def closure() -> Tensor:
        optimizer.zero_grad()
        if step in failing:
            raise ZeroDivisionError
        loss = net(inputs).square().mean()
        loss.backward()
        return loss

    with attach(net, optimizer, path, collectors=collectors):
        for step in range(2 * BLOCK_STEPS + 5):
            try:
                optimizer.step(closure)
            except ZeroDivisionError:
                assert step in failing
    absent = np.isin(group("steps")["step"], [*failing])
    np.testing.assert_array_equal(group("steps")["applied"], ~absent)
    for values in (
        group("gradients")["full"],
        group("sketched")["projected"].stack(each=("layer", "direction")),
        group("statistics")["gradient_norm"],
    ):
        np.testing.assert_array_equal(np.isnan(values).all(values.dims[1]), absent)
        np.testing.assert_array_equal(np.isnan(values).any(values.dims[1]), absent)


def test_an_optimizer_that_never_calls_its_closure(net, inputs, path: Path, group) -> None:
    class Lazy(torch.optim.SGD):
        def step(self, closure=None):
            return None

    optimizer = Lazy(net.parameters(), lr=0.1)
    with attach(net, optimizer, path, collectors=[FULL]):
        optimizer.step(lambda: net(inputs).square().mean())
    assert np.isnan(group("gradients")["full"]).all()


@pytest.mark.parametrize("way", ["with", "over"])
def test_steps_of_a_pause_count_and_are_not_recorded(
    way, net, optimizer, backward, path: Path, group
) -> None:
    with attach(net, optimizer, path, collectors=[FULL]) as session:
        for step in range(9):
            if step == 2:
                pause = session.pause()
                inner = session.pause()
            if step == 4:
                inner.over()
                inner.over()
            if step == 6:
                if way == "with":
                    with pause:
                        session.log(unseen=1.0)
                else:
                    pause.over()
            assert session.step == step
            backward()
            optimizer.step()
            session.log(index=step)
    steps = group("steps")
    assert steps["step"].values.tolist() == [0, 1, 6, 7, 8]
    assert steps["index"].values.tolist() == [0, 1, 6, 7, 8]
    assert "unseen" not in steps
    # What passes of the pause left is not counted as thrown away.
    assert steps["micro_batches"].values.tolist() == [1] * 5
    assert steps["skipped"].values.tolist() == [0] * 5
    assert group("gradients")["step"].values.tolist() == [0, 1, 6, 7, 8]


def test_a_pause_counts_rounds_of_several_optimizers(
    net, optimizers, backward, path: Path, group
) -> None:
    def around() -> None:
        backward()
        for optimizer in optimizers:
            optimizer.step()

    with attach(net, optimizers, path, collectors=[FULL]) as session:
        around()
        with session.pause():
            around()
            around()
        around()
        # A round belongs to the side of the pause on which it begins.
        backward()
        optimizers[0].step()
        with session.pause():
            optimizers[1].step()
            backward()
            optimizers[0].step()
        optimizers[1].step()
        around()
    assert group("steps")["step"].values.tolist() == [0, 3, 4, 6]
    assert np.isfinite(group("gradients")["full"]).all()


@pytest.mark.parametrize("passes", [1, 2])
def test_a_hand_over_loses_nothing_that_a_backward_pass_has_left(
    passes, net, optimizer, inputs, path: Path, group, monkeypatch
) -> None:
    """Rows are handed over at every step, as they are every two seconds of a slow loop."""
    monkeypatch.setattr(session_module, "SECONDS", 0.0)
    collectors = [
        FULL,
        Gradients(stage="pre_clip", sketch=tracelab.Full()),
        MicroBatches(batches=passes, sketch=tracelab.Full()),
    ]
    with attach(net, optimizer, path, collectors=collectors):
        for _ in range(5):
            optimizer.zero_grad()
            for part in range(passes):
                net(inputs[part::2]).square().mean().backward()
            optimizer.step()
    gradients = group("gradients")["full"].values
    np.testing.assert_array_equal(group("pre_clip")["full"], gradients)
    # One addition of two float32: no other order.
    np.testing.assert_array_equal(group("micro_batches")["full"].sum("batch"), gradients)


def test_a_backward_pass_without_a_step_at_the_end(
    net, optimizer, backward, path: Path, attrs, group
) -> None:
    collectors = [FULL, Gradients(stage="pre_clip"), MicroBatches()]
    with attach(net, optimizer, path, collectors=collectors):
        backward()
        optimizer.step()
        net[0].requires_grad_(False)
        backward()
    assert attrs()["state"] == "complete"
    for name in ("gradients", "pre_clip", "micro_batches"):
        assert group(name).sizes["step"] == 1


def test_parameters_that_were_frozen_and_are_trained_later_are_told(
    net, inputs, path: Path, attrs
) -> None:
    """The trace has no layers for them: what it says of the network is not all any more."""
    net[0].requires_grad_(False)
    optimizer = torch.optim.SGD(net[2].parameters(), lr=0.1)

    def train() -> None:
        with attach(net, optimizer, path, collectors=[FULL], exclude="2.bias"):
            for step in range(4):
                if step == 2:
                    net[0].requires_grad_(True)
                    optimizer.add_param_group({"params": list(net[0].parameters())})
                optimizer.zero_grad()
                net(inputs).square().mean().backward()
                optimizer.step()

    words = "parameters were added that the trace has no layer for: 0.weight, 0.bias"
    with pytest.warns(IncompleteTraceWarning, match=words) as caught:
        train()
    assert len(caught) == 1
    assert attrs()["incomplete_reasons"] == [f"from step 2 on: {words}"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_detaches_without_waiting_for_what_its_parent_held(
    net, optimizer, backward, path: Path, group, attrs
) -> None:
    """Forked while another thread holds the lock of the queue: in the child nobody releases it."""
    session = attach(net, optimizer, path, collectors=[FULL])
    backward()
    optimizer.step()
    held, forked = threading.Event(), threading.Event()

    def hold() -> None:
        with session._handover._worker._tasks.mutex:
            held.set()
            forked.wait()

    holding = threading.Thread(target=hold)
    holding.start()
    held.wait()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            backward()
            optimizer.step()
            session.log(loss=1.0)
            session.detach()
            status = 0
        finally:
            os._exit(status)
    forked.set()
    holding.join()
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        threading.Event().wait(0.1)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert done, "the child waits for ever"
    assert os.waitstatus_to_exitcode(status) == 0
    session.detach()
    assert attrs()["state"] == "complete"
    assert group("gradients").sizes["step"] == 1


def test_what_fails_behind_the_end_of_recording_is_not_told_again(
    net, optimizer, backward, path: Path
) -> None:
    session = attach(net, optimizer, path, collectors=[FULL])
    session._handover.fail("steps", OSError("gone"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        backward()
        optimizer.step()
        # The background was in the middle of appending when recording stopped.
        session._handover.fail("gradients", OSError("gone"))
        session.detach()
    assert [each.category for each in caught] == [IncompleteTraceWarning]
    assert "recording stopped at step 1: OSError: gone" in str(caught[0].message)


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.LBFGS])
def test_passes_of_a_closure_are_those_of_its_first_call(
    optimizer_class, net, inputs, path: Path, group
) -> None:
    """They come when the row has been begun, also the last row of a block."""
    optimizer = optimizer_class(net.parameters(), lr=0.05)
    collectors = [
        FULL,
        Gradients(stage="pre_clip", sketch=tracelab.Full()),
        MicroBatches(sketch=tracelab.Full()),
    ]

    def closure() -> Tensor:
        optimizer.zero_grad()
        for part in range(2):
            loss = net(inputs[part::2]).square().mean()
            loss.backward()
        return loss

    steps = 2 * BLOCK_STEPS + 2
    with attach(net, optimizer, path, collectors=collectors):
        for _ in range(steps):
            optimizer.step(closure)
    gradients = group("gradients")["full"].values
    assert len(gradients) == steps
    np.testing.assert_array_equal(group("pre_clip")["full"], gradients)
    np.testing.assert_array_equal(group("micro_batches")["full"].sum("batch"), gradients)
    assert group("steps")["micro_batches"].values.tolist() == [2] * steps


def test_passes_of_optimizers_that_step_one_after_the_other(
    net, optimizers, inputs, path: Path, group
) -> None:
    """The second one's passes come in a row that the first has begun, and reach the first, too."""
    collectors = [
        FULL,
        Gradients(stage="pre_clip", sketch=tracelab.Full()),
        MicroBatches(batches=1, sketch=tracelab.Full()),
    ]
    with attach(net, optimizers, path, collectors=collectors):
        for step in range(BLOCK_STEPS + 2):
            for optimizer in optimizers:
                net.zero_grad()
                (net(inputs).square().mean() * (step + 1)).backward()
                optimizer.step()
    gradients = group("gradients")["full"].values
    assert np.isfinite(gradients).all()
    np.testing.assert_array_equal(group("pre_clip")["full"], gradients)
    np.testing.assert_array_equal(group("micro_batches")["full"][:, 0], gradients)


class Halving(torch.optim.SGD):
    """Changes gradients in a step of its own before it calls that of the class below."""

    fails = False

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        if closure is None:
            for parameter in self.param_groups[0]["params"]:
                parameter.grad.mul_(0.5)
        if self.fails:
            raise ZeroDivisionError
        return super().step(closure)


def test_a_step_that_calls_the_one_below_is_one_step(net, backward, path: Path, group) -> None:
    """Torch has hooks around both once both classes were used; what the lower one uses counts."""
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    halving = Halving(net.parameters(), lr=0.1)
    used, before = [], []
    collectors = [FULL, Statistics(quantities=("gradient", "update")), MicroBatches(batches=1)]
    with attach(net, halving, path, collectors=collectors):
        for step in range(5):
            backward()
            if step == 2:
                # A step that raised has had its hooks called before, and none behind it.
                halving.fails = True
                with pytest.raises(ZeroDivisionError):
                    halving.step()
                halving.fails = False
                backward()
            halving.step()
            before.append(torch.cat([p.grad.flatten() for p in net.parameters()]) * 2)
            used.append(before[-1] / 2)
    steps, gradients = group("steps"), group("gradients")
    assert steps["applied"].values.tolist() == [True, True, False, True, True, True]
    kept = steps["applied"].values
    np.testing.assert_array_equal(gradients["full"].values[kept], torch.stack(used))
    norm = np.sqrt((group("statistics")["update_norm"].values[kept] ** 2).sum(-1))
    exact = torch.stack(used).double().norm(dim=1) * 0.1
    np.testing.assert_allclose(norm, exact, rtol=1e-4)


def test_a_closure_passed_on_to_the_step_below(net, inputs, path: Path, group) -> None:
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    halving = Halving(net.parameters(), lr=0.1)
    used = []

    def closure() -> Tensor:
        halving.zero_grad()
        loss = net(inputs).square().mean()
        loss.backward()
        used.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
        return loss

    with attach(net, halving, path, collectors=[FULL]):
        for _ in range(3):
            halving.step(closure)
    assert group("steps")["micro_batches"].values.tolist() == [1, 1, 1]
    np.testing.assert_array_equal(group("gradients")["full"], torch.stack(used))
