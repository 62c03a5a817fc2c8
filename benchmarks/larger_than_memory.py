"""Analyses of a trace far larger than the memory they may take, and what they took.

``python -m benchmarks.larger_than_memory [--gigabytes 40] [--memory 2GiB] [--folder DIR]``: writes
a trace of minibatch gradients, runs ``tracelab analyze`` in a process of its own, samples the
resident memory of that process and all its children, and deletes the trace.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

from tracelab import create

BATCHES, COORDINATES, LAYERS = 500, 16_384, 8
ROW = 4 * BATCHES * COORDINATES
SAMPLE_SECONDS = 0.02
# Rows on which the analysis of every coordinate runs: the largest cells, not all of them.
HEAVY_ROWS = 8


def write(path: Path, gigabytes: float) -> int:
    """Write a trace of that size; return its rows."""
    rows = max(1, round(gigabytes * 1e9 / ROW))
    each = COORDINATES // LAYERS
    rng = np.random.default_rng(0)
    # Rows differ by a shift of one long sequence: drawing 40 GB would take longer than writing it.
    pool = rng.standard_t(3, BATCHES * COORDINATES + rows).astype(np.float32)
    table = (np.repeat(np.arange(LAYERS), each), np.tile(np.arange(each), LAYERS))
    names = {f"block{i}.weight": (each, 16) for i in range(LAYERS)}
    with create(path, names) as writer:
        attrs = {"batch_size": 32, "replacement": True, "n_data": 50_000}
        writer.define("noise", attrs=attrs, coordinates=table)
        mean = np.zeros(COORDINATES, np.float32)
        for step in range(rows):
            sampled = pool[step : step + BATCHES * COORDINATES].reshape(BATCHES, COORDINATES)
            writer.append("noise", step=step, sampled=sampled, mean_sampled=mean)
    return rows


def resident(process: psutil.Process) -> int:
    """Return the resident bytes of a process and all its children."""
    total = 0
    try:
        for each in (process, *process.children(recursive=True)):
            total += each.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


def analyze(path: Path, memory: str, *options: str) -> tuple[float, float, dict[str, object]]:
    """Run ``tracelab analyze``; return its seconds, peak resident bytes and what it found."""
    program = [sys.executable, "-c", "from tracelab.cli import main; main()"]
    command = [*program, "analyze", str(path), "--json", "--force", "--memory", memory, *options]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        process, peak = psutil.Process(running.pid), 0
        while running.poll() is None:
            peak = max(peak, resident(process))
            time.sleep(SAMPLE_SECONDS)
        assert running.stdout is not None
        found = json.loads(running.stdout.read())
    if running.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {running.returncode}: {found}")
    return time.perf_counter() - started, peak, found[0]["results"][0]


def measured(path: Path, gigabytes: float, memory: str) -> Iterator[tuple[str, str]]:
    """Yield what writing and analysing took."""
    started = time.perf_counter()
    rows = write(path, gigabytes)
    took = time.perf_counter() - started
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e9
    yield f"written: {rows:,} rows", f"{size:.1f} GB in {took:.0f} s, {size / took:.2f} GB/s"
    some = f"::{max(1, rows // HEAVY_ROWS)}"
    for label, options in {
        "noise_scale, every row, threads": ("-a", "noise_scale"),
        "noise_scale, every row, 2 processes": ("-a", "noise_scale", "--workers", "2"),
        "gaussianity, some rows, threads": ("-a", "gaussianity", "--steps", some),
        "tail_index, one row, threads": ("-a", "tail_index", "--steps", "0:1"),
    }.items():
        took, peak, found = analyze(path, memory, *options)
        yield (
            f"{label}, --memory {memory}",
            f"peak {peak / 1e9:.2f} GB resident in all processes, {took:.0f} s, "
            f"{found['cells']:,} cells, {found['failed_cells']} failed",
        )


def main() -> None:
    """Print a table; the trace is deleted whatever happens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=40.0)
    parser.add_argument("--memory", default="2GiB")
    parser.add_argument("--folder", type=Path, default=None, help="where there is room")
    options, _ = parser.parse_known_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        free = shutil.disk_usage(folder).free / 1e9
        if free < 1.2 * options.gigabytes:
            print(
                f"Not run: {folder} has {free:.0f} GB free, too little for a trace of "
                f"{options.gigabytes:g} GB; give --gigabytes or --folder."
            )
            return
        print("| what | figure |\n|---|---|", flush=True)
        for label, figure in measured(folder / "large.zarr", options.gigabytes, options.memory):
            print(f"| {label} | {figure} |", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
