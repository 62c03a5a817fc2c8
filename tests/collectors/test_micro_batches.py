"""Every backward pass of a step is recorded by itself, as a sample of noise at its weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tracelab
from tracelab.errors import UsageError
from tracelab_collectors import Gradients, MicroBatches
from tracelab_collectors.attach import attach

FULL = tracelab.Full()


def flat(tensors) -> np.ndarray:
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).numpy()


def gradient(loss: Tensor, net: nn.Module) -> np.ndarray:
    return flat(torch.autograd.grad(loss, list(net.parameters()), retain_graph=True))


@pytest.fixture
def optimizer(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1)


def test_passes_are_those_of_autograd(net, optimizer, inputs, path: Path, group) -> None:
    """Steps of three, two and four passes, of which three are recorded."""
    expected = []
    with attach(net, optimizer, path, collectors=[MicroBatches(batches=3, sketch=FULL)]):
        for count in (3, 2, 4):
            optimizer.zero_grad()
            for part in range(count):
                loss = net(inputs[part::4]).square().mean()
                expected.append(gradient(loss, net))
                loss.backward()
            optimizer.step()
    full = group("micro_batches")["full"].values
    assert group("micro_batches").attrs["kind"] == "noise"
    np.testing.assert_array_equal(full[0], expected[:3])
    np.testing.assert_array_equal(full[1, :2], expected[3:5])
    assert np.isnan(full[1, 2]).all()
    np.testing.assert_array_equal(full[2], expected[5:8])
    assert group("steps")["micro_batches"].values.tolist() == [3, 2, 4]
    norms = group("micro_batches")["squared_norm"].sum("layer").values
    np.testing.assert_allclose(norms[2], np.square(expected[5:8]).sum(1), rtol=1e-6)


def test_projections_are_linear_in_the_passes(net, optimizer, inputs, path, group) -> None:
    sketch = tracelab.Project(16)
    collectors = [MicroBatches(batches=2, sketch=sketch), Gradients(sketch=sketch)]
    with attach(net, optimizer, path, collectors=collectors):
        for _ in range(20):
            optimizer.zero_grad()
            net(inputs[::2]).square().mean().backward()
            net(inputs[1::2]).square().mean().backward()
            optimizer.step()
    found = group("micro_batches")["projected"].sum("batch").values
    # Each sum of a few hundred float32 terms, rounded once more.
    np.testing.assert_allclose(found, group("gradients")["projected"].values, rtol=0, atol=1e-6)


def test_what_was_thrown_away_is_not_recorded(net, optimizer, inputs, path, group) -> None:
    with attach(net, optimizer, path, collectors=[MicroBatches(batches=2, sketch=FULL)]):
        for _ in range(2):
            optimizer.zero_grad()
            net(inputs).mul(100).sum().backward()
            net(inputs).mul(100).sum().backward()
            optimizer.zero_grad()
            # Looking at a gradient is no backward pass.
            gradient(net(inputs).sum(), net)
            loss = net(inputs).square().mean()
            expected = gradient(loss, net)
            loss.backward()
            gradient(net(inputs).sum(), net)
            optimizer.step()
    full = group("micro_batches")["full"].values
    np.testing.assert_array_equal(full[1, 0], expected)
    assert np.isnan(full[:, 1]).all()
    assert group("steps")["skipped"].values.tolist() == [1, 1]
    assert group("steps")["micro_batches"].values.tolist() == [1, 1]


def test_a_layer_that_a_pass_does_not_reach_is_missing_there(inputs, path, group) -> None:
    net = nn.ModuleList([nn.Linear(6, 2), nn.Linear(6, 2)])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with attach(
        net, optimizer, path, collectors=[MicroBatches(sketch=(FULL, tracelab.Project(8)))]
    ):
        for _ in range(20):
            optimizer.zero_grad()
            for part in net:
                part(inputs).square().mean().backward()
            optimizer.step()
    found = group("micro_batches")
    missing = found["squared_norm"].isnull().values
    assert (missing == [[[False, False, True, True], [True, True, False, False]]]).all()
    assert (found["projected"].isnull().any("direction").values == missing).all()


@pytest.mark.parametrize("fused", [False, True])
def test_under_a_gradient_scaler_they_are_unscaled(fused, net, inputs, path, group) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    expected = []
    with attach(net, optimizer, path, collectors=[MicroBatches(sketch=FULL)]):
        for step in range(3):
            optimizer.zero_grad()
            for part in range(2):
                loss = net(inputs[part::2]).square().mean()
                expected.append(gradient(loss, net))
                scaler.scale(loss * (float("inf") if step == 1 else 1)).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
            scaler.step(optimizer)
            scaler.update()
    full = group("micro_batches")["full"].values
    # An optimizer that is not fused is not called at the overflow. Scales are powers of two: exact.
    np.testing.assert_array_equal(full[0], expected[:2])
    np.testing.assert_array_equal(full[-1], expected[4:])
    assert len(full) == (3 if fused else 2)


def test_analyses_take_them_for_noise(net, optimizer, inputs, path) -> None:
    collectors = [MicroBatches(batches=8, batch_size=6, sketch=tracelab.Sample(8))]
    with attach(net, optimizer, path, collectors=collectors):
        for _ in range(2):
            optimizer.zero_grad()
            for part in range(8):
                net(inputs[part::8]).square().mean().backward()
            optimizer.step()
    noise = tracelab.open(path).noise(step=0, layer="0.weight", group="micro_batches")
    assert noise.sizes["batch"] == 8
    assert tracelab.open(path).groups["micro_batches"].attrs["batch_size"] == 6


def test_numbers_that_cannot_be(net, optimizer, path) -> None:
    with pytest.raises(UsageError, match=r"MicroBatches' batches must be .* at least 1, got 0"):
        MicroBatches(batches=0)
    with pytest.raises(UsageError, match=r"MicroBatches' batch_size must be .*, got 1\.5"):
        MicroBatches(batch_size=1.5)
