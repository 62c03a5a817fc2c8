"""What is recorded is autograd's gradient, and nothing changes, in every kind of training loop."""

from pathlib import Path

import numpy as np
import pytest
import torch
from proofs.collectors import every_collector
from proofs.loops import LOOPS
from proofs.networks import batch, loss_of
from proofs.running import compare, difference, run
from proofs.training import Training, autograd, on, twin_of
from torch import nn

import tracelab
from tracelab_collectors import Gradients
from tracelab_collectors.attach import attach
from tracelab_collectors.lane import STEPS as BLOCK_STEPS

# More than a block of rows, at whose end memory changes hands.
STEPS = BLOCK_STEPS + 4
NAMES = [
    pytest.param(
        name,
        marks=[
            *([pytest.mark.slow, pytest.mark.timeout(900)] if loop.slow else []),
            pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning"),
        ],
    )
    for name, loop in LOOPS.items()
]


@pytest.mark.parametrize("name", NAMES)
def test_the_recorded_gradient_is_autograds(name: str, path: Path) -> None:
    """Also the rows of steps: how many passes, what was thrown away, whether it was applied."""
    loop = LOOPS[name]
    found = compare(loop, STEPS, path)
    assert found.rows > 0
    assert found.equal if loop.exact else found.difference <= 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_every_collector_changes_no_bit(name: str, path: Path) -> None:
    loop = LOOPS[name]
    assert run(loop, STEPS, path, every_collector(probes=False)) == run(loop, STEPS)
    with tracelab.open(path) as trace:
        assert {"gradients", "pre_clip", "updates", "micro_batches"} <= set(trace.groups)


def test_autograd_and_the_weights_that_moved_agree() -> None:
    """The reference itself: (w_t - w_{t+1}) / lr of a step of SGD, by another road."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 5), nn.Dropout(0.5), nn.Linear(5, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    row = autograd(model, on(0), on(1))
    twin = twin_of(model)
    for index in range(2):
        loss_of(model, batch(index)).backward()
    optimizer.step()
    moved = dict(model.named_parameters())
    for name, before in twin.named_parameters():
        # Rounding of w - lr g: half a unit in the last place of a weight below 1, over lr.
        torch.testing.assert_close((before - moved[name]) / 0.5, row[name], rtol=0, atol=2.5e-7)


def test_the_comparison_sees_one_changed_bit(path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(16, 3)
    training = Training(model, [torch.optim.SGD(model.parameters(), lr=0.1)])
    with attach(model, training.optimizer, path, collectors=[Gradients(sketch=tracelab.Full())]):
        row = autograd(model, on(0))
        on(0)(model).backward()
        training.optimizer.step()
    trace = tracelab.open(path)
    full, layers = trace.gradients["full"].values, trace.layers.load()
    assert difference(full, layers, [row]).equal
    full[0, 7] = np.nextafter(full[0, 7], np.float32(1))
    found = difference(full, layers, [row])
    assert not found.equal
    assert 0 < found.difference < 1e-6
    full[0, 7] = np.nan
    with pytest.raises(AssertionError, match="weight: missing or not finite"):
        difference(full, layers, [row])
    row["bias"] = None
    with pytest.raises(AssertionError, match="bias: recorded where there is no gradient"):
        difference(trace.gradients["full"].values, layers, [row])
