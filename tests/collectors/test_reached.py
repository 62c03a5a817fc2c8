"""Changes that a call leaves in what can be reached from a model and a loss are seen."""

from collections import deque

import pytest
import torch
from torch import nn

from tracelab_collectors import reached as module
from tracelab_collectors.reached import reached, unchanged

COUNT = 0


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.calls, self.history, self.cache = 0, deque(), {"a": [1.0, 2.0]}
        self.meter = type("Meter", (), {})()
        self.meter.values = []


def attribute(net: Net) -> None:
    net.calls += 1


def tensor(net: Net) -> None:
    net.inner[1].last = torch.zeros(1)


def appended(net: Net) -> None:
    net.history.append(0)


def nested(net: Net) -> None:
    net.cache["a"][1] = 3.0


def in_an_object(net: Net) -> None:
    net.meter.values.append(torch.ones(1))


@pytest.mark.parametrize("change", [attribute, tensor, appended, nested, in_an_object])
def test_changes_of_a_model_are_seen(change) -> None:
    net = Net()
    before = reached(net)
    assert unchanged(before, reached(net))
    change(net)
    assert not unchanged(before, reached(net))


def test_equal_numbers_and_texts_are_no_change() -> None:
    net = Net()
    net.calls, net.title = 10**6, "a" * 50
    before = reached(net)
    net.calls, net.title = int("1" + 6 * "0"), "".join(["a"] * 50)
    assert unchanged(before, reached(net))
    net.calls = float(10**6)
    assert not unchanged(before, reached(net))


def test_closures_globals_and_methods_are_followed() -> None:
    global COUNT
    seen: list[float] = []

    def closed(model: nn.Module, batch: object) -> None:
        seen.append(0.0)

    def calls_another(model: nn.Module, batch: object) -> None:
        closed(model, batch)

    def counts(model: nn.Module, batch: object) -> int:
        return COUNT

    class Trainer:
        def __init__(self) -> None:
            self.metrics = {"loss": 0.0}

        def loss(self, model: nn.Module, batch: object) -> None:
            self.metrics["loss"] += 1.0

    trainer = Trainer()
    before = [reached(each) for each in (closed, calls_another, counts, trainer.loss)]
    closed(nn.Linear(1, 1), None)
    COUNT += 1
    trainer.loss(nn.Linear(1, 1), None)
    after = [reached(each) for each in (closed, calls_another, counts, trainer.loss)]
    assert [unchanged(*pair) for pair in zip(before, after, strict=True)] == [False] * 4


def test_cycles_end() -> None:
    loop: list = []
    loop.append(loop)
    net = Net()
    net.itself = [net, loop]
    assert unchanged(reached(net), reached(net))


def test_more_than_can_be_looked_at_counts_as_a_change(monkeypatch) -> None:
    net = Net()
    assert unchanged(reached(net), reached(net))
    monkeypatch.setattr(module, "MOST", 20)
    assert not unchanged(reached(net), reached(net))


def test_an_unset_cell_is_passed_over() -> None:
    def outer():
        def inner():
            return later

        found = reached(inner)
        later = 1
        return found, later

    assert outer()[0]
