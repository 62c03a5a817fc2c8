"""What a step costs, in calls: they are the same on every machine."""

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

import tracelab_collectors
from tracelab_collectors import Gradients, MicroBatches, Statistics
from tracelab_collectors.attach import attach

OURS = str(Path(tracelab_collectors.__file__).parent)


def calls(collectors, layers: int, path: Path, steps: int = 5) -> Counter[str]:
    """Return the calls of our functions in this thread, by name, over some steps."""
    net = nn.Sequential(*(nn.Linear(3, 3) for _ in range(layers)))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    inputs, counted = torch.ones(2, 3), Counter()

    def count(frame, event, _) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(OURS):
            counted[frame.f_code.co_qualname] += 1

    with attach(net, optimizer, path, collectors=collectors):
        for step in range(steps + 2):
            if step == 2:
                sys.setprofile(count)
            optimizer.zero_grad()
            net(inputs).sum().backward()
            optimizer.step()
        sys.setprofile(None)
    return counted


@pytest.fixture(autouse=True)
def _no_profile():
    yield
    sys.setprofile(None)


def test_a_step_at_which_nothing_is_due(tmp_path: Path) -> None:
    """One layer tells of the backward pass; nothing looks at any other, nor at the agenda."""
    idle = [Gradients(steps=[10**9])]
    few = calls(idle, 2, tmp_path / "few.zarr")
    many = calls(idle, 40, tmp_path / "many.zarr")
    assert few == many
    hooks = ("_Arriving", "_Accumulated", "_BeforeStep", "_AfterStep")
    assert [few[f"{name}.__call__"] for name in hooks] == [5] * 4
    assert not any(name.startswith(("Agenda.begin", "Lane")) for name in few)
    # Hooks, the session's part of them, the count of passes, the row of the step, and whether it is
    # plain SGD.
    assert few["plain_sgd"] == 5
    assert few.total() <= 5 * 30


def test_calls_of_a_step_at_which_all_is_due_do_not_grow_with_layers(tmp_path: Path) -> None:
    collectors = [Statistics(), Gradients()]
    few = calls(collectors, 2, tmp_path / "few.zarr", steps=3)
    many = calls(collectors, 40, tmp_path / "many.zarr", steps=3)
    # What does is comprehensions, which Python 3.12 no longer counts as calls.
    per_layer = {name for name in many if "<" in name.rsplit(".", 1)[-1]}
    assert {name: n for name, n in few.items() if name not in per_layer} == {
        name: n for name, n in many.items() if name not in per_layer
    }


def test_passes_are_heard_from_every_layer_only_if_they_are_recorded(tmp_path: Path) -> None:
    found = calls([MicroBatches()], 10, tmp_path / "run.zarr")
    assert found["_Arriving.__call__"] == 5 * 20
    assert found["_Accumulated.__call__"] == 5
