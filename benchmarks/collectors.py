"""What recording costs: step time with and without it, side by side, and the hooks' own time.

Run as ``python -m benchmarks collectors``. Both sides alternate in short stretches, in one process,
and ratios of neighbouring stretches are compared by their median, so that what else the machine
does cancels. Self time is what the training thread spends inside our hooks, as a share of a bare
step: on large networks, where whole steps scatter by more than recording costs, it is the figure to
trust. It includes waiting for the background thread, if that falls behind.
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
from benchmarks._networks import WORKLOADS, Workload, loss
from tracelab_collectors import Gradients, NoiseProbe, Statistics
from tracelab_collectors.attach import attach
from tracelab_collectors.collector import Collector
from tracelab_collectors.presets import chosen
from tracelab_collectors.session import Session

HOOKS = ("before_step", "after_step", "arriving", "accumulated", "passed")


@dataclass(frozen=True)
class Recorded:
    """What is recorded, and how often."""

    name: str
    collectors: Callable[[int], Sequence[Collector]]
    every: int = 1


def _coordinates(layers: int) -> tracelab.Sample:
    """Return the sketch that keeps 1e4 coordinates of so many layers."""
    return tracelab.Sample(10_000 // layers)


def _preset(name: str) -> Sequence[Collector]:
    return chosen(name, probes=False)


CONFIGURATIONS = (
    Recorded("attached, nothing due", lambda _: [Gradients(steps=[10**9])]),
    Recorded("statistics", lambda _: [Statistics()]),
    Recorded("projection, 4,099", lambda _: [Gradients(sketch=tracelab.Project(4099))]),
    Recorded("1e4 coordinates", lambda n: [Gradients(sketch=_coordinates(n))]),
    Recorded(
        "statistics + 4,099 + 1e4 coordinates",
        lambda n: [Statistics(), Gradients(sketch=(tracelab.Project(4099), _coordinates(n)))],
    ),
    Recorded("preset light", lambda _: _preset("light"), 10),
    Recorded("preset standard", lambda _: _preset("standard")),
    Recorded("preset full, without its probes", lambda _: _preset("full"), 10),
    Recorded(
        "histogram every 10", lambda _: [Gradients(every=10, sketch=tracelab.Histogram())], 10
    ),
    Recorded("full gradient every 10", lambda _: [Gradients(every=10, sketch=tracelab.Full())], 10),
)


Trained = tuple[nn.Module, torch.optim.Optimizer, Callable[[], None]]


def trainer(workload: Workload) -> Trained:
    torch.manual_seed(0)
    model, batch = workload.model(), workload.data(workload.batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()

    return model, optimizer, step


def per_step(step: Callable[[], None], steps: int) -> float:
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - started) / steps


def ratios(
    plain: Callable[[], None], recorded: Callable[[], None], steps: int, pairs: int
) -> tuple[float, float]:
    """Return the median of a bare step and of the ratios of neighbouring stretches."""
    bare, found = [], []
    for _ in range(pairs):
        first, second = per_step(plain, steps), per_step(recorded, steps)
        bare.append(first)
        found.append(second / first)
    return statistics.median(bare), statistics.median(found)


def watch(session: Session, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Return a list whose one number is the time spent in the session's hooks so far."""
    spent = [0.0]

    def timed(call: Callable[..., object], *args: object, **kwargs: object) -> object:
        started = clock()
        try:
            return call(*args, **kwargs)
        finally:
            spent[0] += clock() - started

    for name in HOOKS:
        setattr(session, name, partial(timed, getattr(session, name)))
    return spent


def measure(workload: Workload, recorded: Recorded) -> tuple[float, float, float]:
    """Return a bare step, the ratio with recording, and the hooks' time a step."""
    plain, trained = trainer(workload), trainer(workload)
    layers = sum(1 for _ in trained[0].parameters())
    stretch = max(workload.stretch, recorded.every)
    pairs = workload.pairs if stretch == workload.stretch else max(2, workload.pairs // 3)
    with (
        tempfile.TemporaryDirectory() as folder,
        attach(
            trained[0],
            trained[1],
            Path(folder) / "run.zarr",
            collectors=recorded.collectors(layers),
        ) as session,
    ):
        for step in (plain[2], trained[2]):
            per_step(step, 2)
        bare, ratio = ratios(plain[2], trained[2], stretch, pairs)
        spent = watch(session)
        samples = []
        for _ in range(5 if workload.stretch > 10 else 3):
            before = spent[0]
            per_step(trained[2], stretch)
            samples.append((spent[0] - before) / stretch)
    return bare, ratio, statistics.median(samples)


def copies(workload: Workload) -> tuple[float, float]:
    """Return a bare step, and plain copies of gradient and weights over it: the least there is.

    Copies go to memory that is not in the cache, as rows of blocks do.
    """
    model, _, step = trainer(workload)
    step()
    weights = [each.detach() for each in model.parameters()]
    gradients = [each.grad for each in model.parameters()]
    rows = max(2, (64 << 20) // sum(4 * each.numel() for each in weights))
    ring = [[torch.empty_like(each) for each in weights + gradients] for _ in range(rows)]
    bare, found = [], []
    for i in range(3 * rows):
        bare.append(per_step(step, 1))
        started = time.perf_counter()
        torch._foreach_copy_(ring[i % rows], weights + gradients)
        found.append(time.perf_counter() - started)
    return statistics.median(bare), statistics.median(found[rows:])


def histograms(workload: Workload) -> tuple[float, float]:
    """Return what histograms of 64 bins in tensor hooks cost, as experiment trackers take them."""
    plain, watched = trainer(workload), trainer(workload)

    def count(gradient: Tensor) -> None:
        flat = gradient.detach().flatten()
        low, high = flat.min().item(), flat.max().item()
        torch.histc(flat, 64, low, high).tolist()

    for parameter in watched[0].parameters():
        parameter.register_hook(count)
    for step in (plain[2], watched[2]):
        per_step(step, 2)
    return ratios(plain[2], watched[2], workload.stretch, workload.pairs)


def probe(
    workload: Workload, collector: Collector, gradients: int, batch_size: int
) -> tuple[float, float]:
    """Return the time of as many bare gradients, and a probe's time over it."""
    model, optimizer, _ = trainer(workload)
    inputs, targets = workload.data(512)
    data = torch.utils.data.TensorDataset(inputs, targets)
    parameters = list(model.parameters())
    bare, found = [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        attach(
            model,
            optimizer,
            Path(folder) / "run.zarr",
            collectors=[collector],
            loss=loss,
            data=data,
        ),
    ):
        optimizer.step()
        for _ in range(workload.pairs):
            started = time.perf_counter()
            for _ in range(gradients):
                chosen = torch.randint(len(data), (batch_size,))
                torch.autograd.grad(loss(model, (inputs[chosen], targets[chosen])), parameters)
            middle = time.perf_counter()
            optimizer.step()
            bare.append(middle - started)
            found.append((time.perf_counter() - middle) / bare[-1])
    return statistics.median(bare), statistics.median(found)


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread, cpu\n")
    print("| network | recorded | bare step | wall ratio | self time |")
    print("| --- | --- | --- | --- | --- |")
    for workload in WORKLOADS:
        for recorded in CONFIGURATIONS:
            bare, ratio, hooks = measure(workload, recorded)
            print(
                f"| {workload.name} | {recorded.name} | {bare * 1e3:.2f} ms | {ratio:.3f} "
                f"| {hooks * 1e6:.0f} us ({hooks / bare:.2%}) |",
                flush=True,
            )
        bare, copied = copies(workload)
        print(
            f"| {workload.name} | for comparison: plain copies of gradient and weights "
            f"| {bare * 1e3:.2f} ms | | {copied * 1e6:.0f} us ({copied / bare:.2%}) |",
            flush=True,
        )
        bare, ratio = histograms(workload)
        print(
            f"| {workload.name} | for comparison: torch.histc in a hook of every layer "
            f"| {bare * 1e3:.2f} ms | {ratio:.3f} | {(ratio - 1):.1%} of the step |",
            flush=True,
        )
    print("\n| network | probe | bare | ratio |")
    print("| --- | --- | --- | --- |")
    for workload, batches in zip(WORKLOADS, (128, 4, 8), strict=True):
        size = 64 if workload.stretch > 10 else 16
        collector = NoiseProbe(every=1, batches=batches, batch_size=size, full_gradient=False)
        bare, ratio = probe(workload, collector, batches, size)
        print(
            f"| {workload.name} | noise: {batches} gradients of {size} examples "
            f"| {bare * 1e3:.0f} ms | {ratio:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
