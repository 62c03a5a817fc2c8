"""What a step of a replica costs: side by side, one by one, and beside a bare training step.

Run as ``python -m benchmarks exit_times``; prints a markdown table. All ways alternate in short
stretches, in one process with one thread; figures are medians of the processor time of the thread.
A replica's step is gradient, update, the distance and drawing its minibatch; no loss and no basin
is looked at, and nobody leaves.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks._networks import loss
from tracelab_collectors import exit_times
from tracelab_collectors.collector import Block, Recording, Run
from tracelab_collectors.exit_times import ExitTimes
from tracelab_collectors.replicas import Way
from tracelab_collectors.subject import Subject

REPLICAS = 32
BATCH = 64
STEPS = 20
STRETCHES = 5


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


NETWORKS = {"MLP 64-32-10": mlp, "CNN 8-16, 8 x 8 pixels": cnn}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-4),
}


def bound(model: nn.Module, optimizer: torch.optim.Optimizer, data: TensorDataset) -> Recording:
    subject = Subject.of(model, optimizer, None, None)
    run = Run(
        subject.layout, subject.parameters, model, torch.float32, torch.device("cpu"),
        0, loss, data, len(data), None, subject.optimizers,
    )  # fmt: skip
    return ExitTimes(
        replicas=REPLICAS, batch_size=BATCH, max_steps=STEPS, radius=1e9, examples=BATCH
    ).bind(run)


def spent(action: Callable[[], object]) -> float:
    started = time.thread_time()
    action()
    return time.thread_time() - started


def measured(
    network: Callable[[], nn.Module], make: Callable[..., torch.optim.Optimizer]
) -> tuple[str, list[float]]:
    """Return how replicas would be computed, and seconds of a step: bare, at once, one by one."""
    torch.manual_seed(0)
    model = network()
    optimizer = make(model.parameters())
    data = TensorDataset(torch.randn(4096, 64), torch.randint(0, 10, (4096,)))

    def train() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss(model, data[torch.randint(4096, (BATCH,))]).backward()
            optimizer.step()

    plain = exit_times.tried
    ways = {}
    chosen = bound(model, optimizer, data).attrs["method"]
    for batched in (True, False):
        exit_times.tried = lambda *_, batched=batched: Way(batched)
        try:
            ways[batched] = bound(model, optimizer, data)
        finally:
            exit_times.tried = plain
    block = Block((0,), {})
    actions = {
        "bare": (train, STEPS),
        "at once": (lambda: ways[True].reduce(block), STEPS * REPLICAS),
        "one by one": (lambda: ways[False].reduce(block), STEPS * REPLICAS),
    }
    times: dict[str, list[float]] = {name: [] for name in actions}
    for action, _ in actions.values():
        action()
    for _ in range(STRETCHES):
        for name, (action, steps) in actions.items():
            times[name].append(spent(action) / steps)
    return chosen, [statistics.median(each) for each in times.values()]


def main() -> None:
    torch.set_num_threads(1)
    print(f"{REPLICAS} replicas, {BATCH} examples a step; microseconds a step of one.\n")
    print("| network | optimizer | method | bare | at once | one by one | bare / at once |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for network, make_network in NETWORKS.items():
        for name, make in OPTIMIZERS.items():
            chosen, (bare, together, alone) = measured(make_network, make)
            figures = " | ".join(f"{1e6 * each:.0f}" for each in (bare, together, alone))
            print(f"| {network} | {name} | {chosen} | {figures} | {bare / together:.1f} |")


if __name__ == "__main__":
    main()
