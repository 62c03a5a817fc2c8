"""Analyses of a long run: 10,000 steps of 50 layers with 256 directions each.

``python -m benchmarks trajectories [--steps 10000]``: a network of 25 linear layers is trained on
handwritten digits and recorded, and a job of four workers is simulated; every analysis of bounds,
trajectories and workers then runs in a process of its own (``tracelab analyze``). What bounds that
choose noise for every row take, over what reading their inputs takes, is measured in one process.
The traces are deleted.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

import tracelab
from benchmarks.bounds import digits, loss
from benchmarks.larger_than_memory import analyze
from tracelab import cells, loading, planning, registry
from tracelab_collectors import (
    Complexity,
    Gradients,
    PerturbedLoss,
    PriorKernel,
    SmoothedGradient,
    Statistics,
    Weights,
    misclassified,
)
from tracelab_collectors.averages import measure_averages
from tracelab_collectors.workers import variables

STEPS, LAYERS, WIDTH, DIRECTIONS, PROBED = 10_000, 50, 16, 256, 100
WORKERS, BLOCK = 4, 500
GOAL_SECONDS, GOAL_GIGABYTES = 60, 2
OF_A_RUN = (
    "information_bound", "pac_bayes", "marginal_likelihood", "dimension_bound", "weight_diffusion",
    "one_point_convexity", "complexity", "update_noise",
)  # fmt: skip
OPTIMISED, REPEATS, GOAL_RATIO = ("information_bound", "pac_bayes"), 9, 3
OF_A_JOB = ("worker_drift", "byzantine", "training_noise")


def network() -> nn.Module:
    """Return 25 linear layers, 50 tensors."""
    widths = (64, *(LAYERS // 2 - 1) * (WIDTH,), 10)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ELU()]
    return nn.Sequential(*layers[:-1])


def train(path: Path, steps: int) -> nn.Module:
    """Train on digits and record; return the network."""
    data, test = digits()
    torch.manual_seed(0)
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    every = max(1, steps // PROBED)
    sketch = tracelab.Project(DIRECTIONS)
    collectors = [
        Weights(every=1, sketch=sketch),
        Gradients(every=1, sketch=sketch),
        Weights(every=10, sketch=tracelab.Full(), name="stored"),
        Statistics(every=1),
        PerturbedLoss(held_out=test, every=every, error=misclassified, draws=4, batches=16),
        SmoothedGradient(every=every, sketch=sketch, draws=8),
        Complexity(every=every, examples=128, pairs=8),
        PriorKernel(networks=160, examples=200),
    ]
    draw = torch.Generator().manual_seed(0)
    with tracelab.attach(net, optimizer, path, collectors=collectors, loss=loss, data=data, seed=0):
        for _ in range(steps):
            chosen = torch.randint(len(data), (32,), generator=draw)
            optimizer.zero_grad()
            loss(net, data[chosen]).backward()
            optimizer.step()
    return net


def simulate(path: Path, steps: int) -> None:
    """Write what workers of a job of local SGD would record, one of them with its sign flipped."""
    rng = np.random.default_rng(0)
    shape = (WORKERS, LAYERS, DIRECTIONS)
    names = {f"block{i}.weight": (DIRECTIONS, 64) for i in range(LAYERS)}
    noise = rng.standard_normal((BLOCK, *shape)).astype(np.float32)
    with tracelab.create(path, names) as writer:
        sketches = [tracelab.Project(DIRECTIONS)]
        writer.define("worker", kind="workers", variables=variables(), sketches=sketches)
        writer.define("micro_batches", kind="noise", attrs={"batch_size": 32}, sketches=sketches)
        for begin in range(0, steps, BLOCK):
            count = min(BLOCK, steps - begin)
            # Other noise of every worker in every block: drawing all takes minutes.
            gradient = np.roll(noise[rng.permutation(BLOCK)], begin, axis=3)[:count] + 0.2
            gradient[:, -1] *= -1
            weight = -0.01 * gradient.cumsum(axis=0)
            squares = [(each**2).sum(axis=-1) for each in (gradient, weight)]
            writer.extend(
                "worker",
                steps=np.arange(begin, begin + count),
                gradient_projected=gradient,
                gradient_squared_norm=squares[0],
                gradient_variance=np.full(squares[0].shape, float(DIRECTIONS)),
                weight_projected=weight,
                weight_squared_norm=squares[1],
            )
            writer.extend("micro_batches", steps=np.arange(begin, begin + count),
                          projected=gradient)  # fmt: skip


def optimisation(path: Path, name: str) -> tuple[float, float]:
    """Return the seconds of reading an analysis' inputs, and of all its work: medians."""
    analysis = registry.analysis(name)
    seconds: tuple[list[float], list[float]] = [], []
    for _ in range(REPEATS):
        trace = tracelab.open(path)
        plan = planning.plan(analysis, trace, analysis.resolve({}))
        started = time.perf_counter()
        consumed = list(loading.load(plan, plan.whole, trace))
        seconds[0].append(time.perf_counter() - started)
        del consumed
        trace = tracelab.open(path)
        started = time.perf_counter()
        cells.run((trace, plan), plan.whole)
        seconds[1].append(time.perf_counter() - started)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def gigabytes(path: Path) -> float:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e9


def measured(folder: Path, steps: int) -> Iterator[tuple[str, str, str, str]]:
    """Yield what each trace and each analysis of it took."""
    run, job, averages = (folder / f"{name}.zarr" for name in ("run", "job", "averages"))
    started = time.perf_counter()
    net = train(run, steps)
    took = time.perf_counter() - started
    yield f"training and recording, {gigabytes(run):.2f} GB", f"{took:.0f} s", "", ""
    started = time.perf_counter()
    measure_averages(run, averages, net, loss=loss, data=digits()[0], group="stored")
    yield "averages of stored weights", f"{time.perf_counter() - started:.1f} s", "", ""
    simulate(job, steps)
    yield f"a job of {WORKERS} workers, {gigabytes(job):.2f} GB", "", "", ""
    for path, names in ((run, OF_A_RUN), (averages, ("averaging",)), (job, OF_A_JOB)):
        for name in names:
            seconds, peak, found = analyze(path, "2GiB", "-a", name)
            count = f"{int(str(found['cells'])):,} ({found['failed_cells']} failed)"
            yield name, f"{seconds:.1f} s", f"{peak / 1e9:.2f} GB", count
    for name in OPTIMISED:
        reading, whole = optimisation(run, name)
        label = f"{name}: all its work over reading its inputs [{GOAL_RATIO}]"
        yield label, f"{whole:.3f} over {reading:.3f} s: {whole / reading:.1f}", "", ""


def main() -> None:
    """Print a table; traces are deleted whatever happens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--folder", type=Path, default=None, help="where there is room")
    options, _ = parser.parse_known_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        print(
            f"Goal: every analysis in {GOAL_SECONDS} s and {GOAL_GIGABYTES} GB, process and "
            "imports included.\n\n| what | took | peak | cells |\n|---|---|---|---|", flush=True,
        )  # fmt: skip
        for row in measured(folder, options.steps):
            print(f"| {' | '.join(row)} |", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
