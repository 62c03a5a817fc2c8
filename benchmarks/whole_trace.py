"""``gaussianity`` and ``tail_index`` of a large trace, with the time and memory they take.

``python -m benchmarks.whole_trace [--probes 500] [--of 500]``: writes a trace of so many probes of
50 layers x 64 directions x 512 minibatches, analyses the first ``--of`` of them in a process of its
own (``tracelab analyze``, on threads), and deletes the trace.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.larger_than_memory import analyze
from tracelab import Project, create

PROBES, LAYERS, DIRECTIONS, BATCHES = 500, 50, 64, 512
ANALYSES = ("gaussianity", "tail_index")
GOAL_SECONDS, GOAL_GIGABYTES = 240, 2


def write(path: Path, probes: int) -> None:
    """Write noise that is Gaussian in every second layer, and else Student's with 5 degrees."""
    rng = np.random.default_rng(0)
    shape = (BATCHES, LAYERS, DIRECTIONS)
    values = rng.standard_t(5, shape)
    values[:, ::2] = rng.standard_normal((BATCHES, LAYERS // 2, DIRECTIONS))
    names = {f"block{i}.weight": (DIRECTIONS, 64) for i in range(LAYERS)}
    mean = np.zeros(shape[1:], np.float32)
    with create(path, names) as writer:
        attrs = {"batch_size": 32, "replacement": True, "n_data": 50_000}
        writer.define("noise", attrs=attrs, sketches=[Project(DIRECTIONS)])
        for step in range(probes):
            # Other minibatches of every direction at every probe: drawing all takes minutes.
            order = rng.permutation(BATCHES)
            turned = np.roll(values[order], step, axis=2).astype(np.float32)
            writer.append("noise", step=step, projected=turned, mean_projected=mean)


def measured(path: Path, probes: int, of: int) -> Iterator[tuple[str, str]]:
    """Yield what writing and the two analyses took."""
    started = time.perf_counter()
    write(path, probes)
    took = time.perf_counter() - started
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e9
    yield f"written: {probes} probes x {LAYERS} layers", f"{size:.2f} GB in {took:.0f} s"
    options = ("--layers", r"block.*")
    total, memory, cells = 0.0, 0, 0
    for name in ANALYSES:
        # Compiled code is in its cache before the clock starts.
        analyze(path, "2GiB", "-a", name, "--steps", "0:1", *options)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds, peak, found = analyze(path, "2GiB", "-a", name, "--steps", f"0:{of}", *options)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        busy = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        cells = int(str(found["cells"]))
        total, memory = total + seconds, max(memory, peak)
        yield (
            f"{name}: {cells:,} cells of {BATCHES} x {DIRECTIONS}",
            f"{seconds:.0f} s, {1e3 * busy / cells:.2f} ms of one core a cell, "
            f"peak {peak / 1e9:.2f} GB",
        )
    whole = PROBES * LAYERS
    yield (
        f"both, {whole:,} cells (goal: {GOAL_SECONDS} s, {GOAL_GIGABYTES} GB)",
        f"{total * whole / cells:.0f} s{'' if cells == whole else ' (in proportion)'}, "
        f"{memory / 1e9:.2f} GB",
    )


def main() -> None:
    """Print a table; the trace is deleted whatever happens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--probes", type=int, default=PROBES)
    parser.add_argument("--of", type=int, default=None, help="probes analysed; default: all")
    parser.add_argument("--folder", type=Path, default=None, help="where there is room")
    options, _ = parser.parse_known_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        print("| what | figure |\n|---|---|", flush=True)
        of = min(options.of or options.probes, options.probes)
        for label, figure in measured(folder / "whole.zarr", options.probes, of):
            print(f"| {label} | {figure} |", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
