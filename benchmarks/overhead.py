"""What recording costs: step time with and without, side by side, and the hooks' own time.

Run as ``python -m benchmarks.overhead``; prints a markdown table. Both sides alternate in short
stretches, in one process, and the medians of the stretches' means are compared, so that what else
the machine does cancels. Self time is what the training thread spends inside the hooks.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import tracelab
from tracelab_collectors import Gradients, NoiseProbe, Statistics, Weights
from tracelab_collectors.attach import attach
from tracelab_collectors.collector import Collector
from tracelab_collectors.session import Session


@dataclass(frozen=True)
class Workload:
    name: str
    model: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, Tensor]]
    steps: int  # of a stretch
    pairs: int  # of stretches


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(200, 256), nn.ReLU(), nn.Linear(256, 172), nn.ReLU(), nn.Linear(172, 10)
    )


def cnn() -> nn.Module:
    """A VGG-like network of 1.1e7 weights."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, 128, 256, 512, 512, 512, 512, 512):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        if width >= 128 and len(layers) < 16:
            layers.append(nn.MaxPool2d(2))
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


WORKLOADS = (
    Workload(
        "MLP, 1e5 weights",
        mlp,
        lambda: (torch.randn(256, 200), torch.randint(0, 10, (256,))),
        100,
        15,
    ),
    Workload(
        "CNN, 1.1e7 weights",
        cnn,
        lambda: (torch.randn(64, 3, 16, 16), torch.randint(0, 10, (64,))),
        1,
        5,
    ),
)

CONFIGURATIONS: tuple[tuple[str, Sequence[Collector]], ...] = (
    ("gradients, projected", (Gradients(),)),
    ("gradients, 64 coordinates a layer", (Gradients(sketch=tracelab.Sample(64)),)),
    ("statistics", (Statistics(),)),
    (
        "default: statistics, projection, coordinates",
        (Statistics(), Gradients(sketch=(tracelab.Project(256), tracelab.Sample(64)))),
    ),
    ("weights every 10", (Weights(),)),
)


def trainer(workload: Workload) -> tuple[nn.Module, torch.optim.Optimizer, Callable[[], None]]:
    torch.manual_seed(0)
    model = workload.model()
    inputs, targets = workload.batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

    return model, optimizer, step


def per_step(step: Callable[[], None], steps: int) -> float:
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - started) / steps


def self_time(session: Session) -> list[float]:
    """Return a list that receives the time of every call of the session's hooks."""
    spent: list[float] = []

    def timed(call: Callable[..., object], *args: object) -> object:
        started = time.perf_counter()
        try:
            return call(*args)
        finally:
            spent.append(time.perf_counter() - started)

    for name in ("before_step", "after_step", "accumulated"):
        setattr(session, name, partial(timed, getattr(session, name)))
    return spent


def measure(workload: Workload, collectors: Sequence[Collector]) -> tuple[float, float, float]:
    """Return the bare step, the ratio with recording, and the hooks' share of a bare step."""
    plain = trainer(workload)
    recorded = trainer(workload)
    with (
        tempfile.TemporaryDirectory() as folder,
        attach(*recorded[:2], Path(folder) / "run.zarr", collectors=collectors) as session,
    ):
        for step in (plain[2], recorded[2]):
            per_step(step, max(2, workload.steps // 4))
        bare, ratios = [], []
        for _ in range(workload.pairs):
            first = per_step(plain[2], workload.steps)
            second = per_step(recorded[2], workload.steps)
            bare.append(first)
            ratios.append(second / first)
        spent = self_time(session)
        steps = workload.steps * 2
        per_step(recorded[2], steps)
        hook = sum(spent) / steps
    return statistics.median(bare), statistics.median(ratios), hook


def measure_probe(workload: Workload, batches: int, batch_size: int = 32) -> tuple[float, float]:
    """Return the time of as many bare gradients, and the probe's time over it."""
    model, optimizer, _ = trainer(workload)
    data = torch.utils.data.TensorDataset(*workload.batch())
    probe = NoiseProbe(every=1, batches=batches, batch_size=batch_size, full_gradient=False)

    def loss(net: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        return nn.functional.cross_entropy(net(batch[0]), batch[1])

    parameters = list(model.parameters())
    bare, ratios = [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        attach(model, optimizer, Path(folder) / "r.zarr", collectors=[probe], loss=loss, data=data),
    ):
        optimizer.step()
        for _ in range(workload.pairs):
            started = time.perf_counter()
            for _ in range(batches):
                chosen = torch.randint(len(data), (batch_size,))
                torch.autograd.grad(loss(model, data[chosen]), parameters)
            middle = time.perf_counter()
            optimizer.step()
            bare.append(middle - started)
            ratios.append((time.perf_counter() - middle) / bare[-1])
    return statistics.median(bare), statistics.median(ratios)


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread\n")
    print("| workload | recorded every step | bare step | ratio | self time |")
    print("| --- | --- | --- | --- | --- |")
    for workload in WORKLOADS:
        for name, collectors in CONFIGURATIONS:
            bare, ratio, hook = measure(workload, collectors)
            print(
                f"| {workload.name} | {name} | {bare * 1e3:.2f} ms | {ratio:.3f} "
                f"| {hook * 1e6:.0f} us ({hook / bare:.1%}) |",
                flush=True,
            )
    print("\n| workload | noise probe | bare gradients | ratio |")
    print("| --- | --- | --- | --- |")
    for workload, batches in zip(WORKLOADS, (128, 4), strict=True):
        bare, ratio = measure_probe(workload, batches)
        print(f"| {workload.name} | {batches} batches of 32 | {bare * 1e3:.0f} ms | {ratio:.3f} |")


if __name__ == "__main__":
    main()
