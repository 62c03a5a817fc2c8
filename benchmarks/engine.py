"""The engine against its kernels in a bare loop, one core against two; how large a plan gets.

``python -m benchmarks.engine [--cells N] [--rounds N]``: alternating, medians of paired ratios.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np

from tracelab import create, engine, planning, registry
from tracelab import open as open_trace
from tracelab.loading import load
from tracelab.trace import Trace

STEPS, LAYERS, BATCHES, SERIES = 125, 4, 200, 64
ROUNDS = 3


def record(path: Path, cells: int) -> Trace:
    """Write minibatch gradients of `cells` layers and steps, as heavy-tailed as real ones."""
    rng = np.random.default_rng(0)
    names = {f"block{i}.weight": (SERIES, 64) for i in range(LAYERS)}
    table = (np.repeat(np.arange(LAYERS), SERIES), np.tile(np.arange(SERIES), LAYERS))
    with create(path, names) as writer:
        attrs = {"batch_size": 32, "replacement": True, "n_data": 50_000}
        writer.define("noise", attrs=attrs, coordinates=table)
        for step in range(cells // LAYERS):
            sampled = rng.standard_t(3, (BATCHES, LAYERS * SERIES)).astype(np.float32)
            mean = np.zeros(LAYERS * SERIES, np.float32)
            writer.append("noise", step=step, sampled=sampled, mean_sampled=mean)
    return open_trace(path)


def plan_of(trace: Trace, name: str, **parameters: object) -> planning.Plan:
    """Return the plan of an analysis of the layers alone."""
    analysis = registry.analysis(name)
    return planning.plan(
        analysis, trace, analysis.resolve(parameters), layers=lambda label: label != "network"
    )


def bare(plan: planning.Plan, trace: Trace) -> Callable[[], None]:
    """Return the kernel in a loop over cells that are in memory as it wants them."""
    inputs = [arrays for block in plan.blocks for _, arrays in load(plan, block, trace)]
    seed = np.zeros((1, 1), np.uint64)

    def loop() -> None:
        for arrays in inputs:
            plan.analysis.kernel(**arrays, seed=seed, **plan.parameters)

    return loop


def with_engine(
    plan: planning.Plan, trace: Trace, cores: int, execution: engine.Execution
) -> Callable[[], None]:
    """Return a run of the engine on so many cores."""

    def run() -> None:
        everything = os.sched_getaffinity(0)
        os.sched_setaffinity(0, sorted(everything)[:cores])
        try:
            for _ in engine.stream(plan, trace, execution):
                pass
        finally:
            os.sched_setaffinity(0, everything)

    return run


def seconds(task: Callable[[], object]) -> float:
    """Return how long a task takes."""
    started = time.perf_counter()
    task()
    return time.perf_counter() - started


def compared(
    first: Callable[[], None], second: Callable[[], None], rounds: int
) -> tuple[float, float, float]:
    """Return medians of both and of the paired ratio first / second, in alternating order."""
    pairs = []
    for index in range(rounds):
        order = (first, second) if index % 2 else (second, first)
        took = {task: seconds(task) for task in order}
        pairs.append((took[first], took[second]))
    return (
        median(a for a, _ in pairs),
        median(b for _, b in pairs),
        median(a / b for a, b in pairs),
    )


def speeds(folder: Path, cells: int, rounds: int) -> Iterator[tuple[str, str]]:
    """Yield overhead and scaling."""
    trace = record(folder / "cells.zarr", cells)
    for name, parameters in (("tail_index", {}), ("gaussianity", {})):
        plan = plan_of(trace, name, **parameters)
        here = engine.Execution()
        loop, one = bare(plan, trace), with_engine(plan, trace, 1, here)
        loop(), one()
        ours, kernels, ratio = compared(one, loop, rounds)
        what = f"{name}, {cells:,} cells of {BATCHES} x {SERIES}"
        yield f"{what}: bare kernels", f"{kernels:.2f} s, {1e3 * kernels / cells:.2f} ms a cell"
        yield f"{what}: engine / bare kernels, one core", f"{ratio:.3f} ({ours:.2f} s)"
        two = with_engine(plan, trace, 2, here)
        one_took, _, speedup = compared(one, two, rounds)
        yield f"{what}: one thread / two threads", f"{speedup:.2f} ({one_took:.2f} s on one)"
        yield from processes(plan, trace, what, rounds)


def processes(
    plan: planning.Plan, trace: Trace, what: str, rounds: int
) -> Iterator[tuple[str, str]]:
    """Yield how two worker processes compare with one, without the seconds they take to start."""
    from distributed import Client, LocalCluster

    clusters = [
        LocalCluster(
            n_workers=count, threads_per_worker=1, host="127.0.0.1",
            dashboard_address="127.0.0.1:0", silence_logs=logging.ERROR,
        )
        for count in (1, 2)
    ]  # fmt: skip
    clients = [Client(cluster, set_as_default=False) for cluster in clusters]
    try:
        runs = [with_engine(plan, trace, 2, engine.Execution(client=c)) for c in clients]
        for run in runs:
            run()
        took, _, speedup = compared(*runs, rounds)
        yield f"{what}: one process / two processes", f"{speedup:.2f} ({took:.2f} s on one)"
    finally:
        for closing in (*clients, *clusters):
            closing.close()


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=STEPS * LAYERS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options, _ = parser.parse_known_args()
    print("| what | figure |\n|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for label, figure in speeds(Path(folder), options.cells, options.rounds):
            print(f"| {label} | {figure} |", flush=True)


if __name__ == "__main__":
    main()
