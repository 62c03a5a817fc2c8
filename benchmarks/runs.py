"""Many runs: opening, searching and joining 500 traces with results."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

import tracelab

ROUNDS = 5
RUNS = 500
LAYERS = {f"block{i}.weight": (8, 8) for i in range(20)}


def milliseconds(task: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        task()
        times.append(1e3 * (time.perf_counter() - start))
    return median(times)


def make(folder: Path) -> None:
    """Write one trace as training leaves it, with results, and 500 copies that differ in lr."""
    rng = np.random.default_rng(0)
    first = folder / "first"
    attrs = {"optimizer": {"name": "SGD", "lr": 0.0, "momentum": 0.9}}
    with tracelab.create(first, LAYERS, {"dataset": "none"}, attrs=attrs) as writer:
        writer.define("noise", attrs={"batch_size": 8, "replacement": True, "n_data": 1000})
        for step in (0, 100):
            projected = rng.standard_normal((64, len(LAYERS), 8))
            writer.append("noise", step=step, projected=projected)
        for step in range(200):
            writer.append("steps", step=step, loss=1.0)
            writer.append("statistics", step=step, gradient_norm=np.ones(len(LAYERS)))
    tracelab.analyze(first, ["gaussianity", "tail_index"])
    root = json.loads((first / "zarr.json").read_text())
    (folder / "runs").mkdir()
    for number in range(RUNS):
        path = folder / "runs" / f"run{number:03}.zarr"
        shutil.copytree(first, path)
        root["attributes"]["optimizer"]["lr"] = 10 ** -(4 * number / RUNS)
        (path / "zarr.json").write_text(json.dumps(root))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        make(Path(name))
        pattern = f"{name}/runs/*.zarr"
        runs = tracelab.open_runs(pattern)
        tasks: dict[str, Callable[[], object]] = {
            "open_runs": lambda: tracelab.open_runs(pattern),
            "and select by learning rate, as a frame": lambda: (
                tracelab.open_runs(pattern).select(lr=slice(0.01, 0.1)).frame
            ),
            "names of all results": lambda: list(runs.results),
            "one result of all runs, joined": lambda: runs.result("tail_index"),
            "a group of all runs, joined, lazy": lambda: runs.groups["steps"],
        }
        print(f"{RUNS} traces of {len(LAYERS)} layers, {ROUNDS} rounds, page cache hot.\n")
        print("| what | ms |\n|---|---|")
        for label, task in tasks.items():
            task()
            print(f"| {label} | {milliseconds(task):.0f} |", flush=True)


if __name__ == "__main__":
    main()
