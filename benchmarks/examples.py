"""What per-example gradients cost: every step from its own backward pass, and at frozen weights.

Run as ``python -m benchmarks.examples``; prints a markdown table. Plain and recorded steps
alternate A B A B in one process, with one thread. Ratios are of the processor time of the thread
that trains, so that what else the machine does matters less. Self time is what that thread spends
in the hooks and in taking rows.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

import tracelab
from benchmarks._networks import WORKLOADS, loss
from tracelab_collectors import Examples, LiveExamples, live_examples
from tracelab_collectors.attach import attach

PAIRS = 8


def _method(timed: Callable, call: Callable) -> Callable:
    return lambda *args: timed(call, *args)


def workload(name: str) -> tuple[nn.Module, torch.utils.data.TensorDataset, int]:
    torch.manual_seed(0)
    found = next(each for each in WORKLOADS if each.name.startswith(name))
    return found.model(), torch.utils.data.TensorDataset(*found.data(64)), min(found.batch_size, 16)


def every_step(name: str, sketch: tracelab.Kronecker) -> tuple[list[float], list[float]]:
    """Return paired ratios of the time of a step, and ratios by self time."""
    model, data, size = workload(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batch = data[torch.arange(size)]

    def step() -> float:
        started = time.thread_time()
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()
        return time.thread_time() - started

    step(), step()
    paired, own = [], []
    with tempfile.TemporaryDirectory() as folder, self_time() as spent:
        for pair in range(PAIRS):
            plain = step()
            with attach(
                model,
                optimizer,
                Path(folder) / f"{pair}.zarr",
                collectors=[LiveExamples(sketch=sketch)],
                data_size=64,
            ):
                step()
                spent.clear()
                recorded = step()
            paired.append(recorded / plain)
            own.append(recorded / (recorded - sum(spent)))
    return paired, own


@contextmanager
def self_time() -> Iterator[list[float]]:
    """Collect the time of every call of what listens, while the block runs."""
    spent: list[float] = []
    names = ("begin", "forward", "_backward", "take", "stepped")
    plain = {name: getattr(live_examples._Listener, name) for name in names}

    def timed(call: Callable, *args: object) -> object:
        started = time.thread_time()
        try:
            return call(*args)
        finally:
            spent.append(time.thread_time() - started)

    for name, call in plain.items():
        setattr(live_examples._Listener, name, _method(timed, call))
    try:
        yield spent
    finally:
        for name, call in plain.items():
            setattr(live_examples._Listener, name, call)


def at_frozen_weights(name: str, count: int = 32) -> tuple[list[float], str]:
    """Return paired ratios to one batched backward pass over the same examples."""
    model, data, _ = workload(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batch = data[torch.arange(count)]
    model.eval()
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.zarr"
        collector = Examples(every=1, examples=count, full_gradient=False, mode="eval")
        with attach(model, optimizer, path, collectors=[collector], loss=loss, data=data):
            for _ in range(4):
                started = time.thread_time()
                torch.autograd.grad(loss(model, batch), list(model.parameters()))
                middle = time.thread_time()
                optimizer.step()
                ratios.append((time.thread_time() - middle) / (middle - started))
        method = tracelab.open(path).groups["examples"].attrs["method"]
    return ratios[1:], method


def main() -> None:
    torch.set_num_threads(1)
    print("| | median | quartiles |\n|---|---|---|")
    for name in ("GPT", "ResNet-18"):
        for sketch in (tracelab.Kronecker(8, 8), tracelab.Kronecker(16, 16)):
            paired, own = every_step(name, sketch)
            label = f"{name}, every step, {sketch.p} x {sketch.q}"
            _row(label, paired)
            _row(f"{label}, by self time", own)
        ratios, method = at_frozen_weights(name)
        _row(f"{name}, 32 examples at frozen weights, {method}, of a backward", ratios)


def _row(label: str, ratios: list[float]) -> None:
    low, _, high = statistics.quantiles(ratios, n=4)
    print(f"| {label} | {statistics.median(ratios):.3f} | {low:.3f} to {high:.3f} |", flush=True)


if __name__ == "__main__":
    main()
