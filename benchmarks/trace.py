"""The writer and the reader of traces: hand-over, throughput against np.tofile, opening, codecs.

Hand-over is what `append` takes of the training thread; throughput counts until everything is
committed and flushed to the disk, and its base is np.tofile of the same rows, flushed once.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import xarray as xr
from numcodecs import Blosc, Zstd

from tracelab.trace import create
from tracelab.trace import open as open_trace
from tracelab.trace.schema import KINDS

ROUNDS = 5
ROW = 10**6
ROWS = 64
STEPS = 100_000


def seconds(task: Callable[[], object]) -> float:
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def handover(path: Path) -> Iterator[tuple[str, str]]:
    rng = np.random.default_rng(0)
    layers = {f"block{i}.weight": (50, 1000) for i in range(20)}
    statistics = {
        variable.name: rng.normal(size=20).astype(variable.dtype)
        for variable in KINDS["statistics"].variables
    }
    vector = rng.normal(size=ROW).astype(np.float32)
    promised = vector.copy()
    promised.setflags(write=False)
    rows = {
        "3 scalars": ("steps", {"loss": 1.0, "learning_rate": 0.1, "applied": True}, 20_000),
        "31 statistics of 20 layers": ("statistics", statistics, 20_000),
        "10^6 float32, copied": ("gradients", {"full": vector}, 64),
        "10^6 float32, read-only": ("weights", {"full": promised}, 64),
    }
    with create(path, layers, queue_bytes=2**30) as writer:
        for label, (group, row, count) in rows.items():
            times = []
            for step in range(count):
                start = time.perf_counter()
                writer.append(group, step=step, **row)
                times.append(time.perf_counter() - start)
            yield (
                f"append of {label}",
                f"{1e6 * median(times):.1f} us, p99 {1e6 * np.percentile(times, 99):.1f} us",
            )
            writer.flush()


def throughput(folder: Path) -> Iterator[tuple[str, str]]:
    rows = np.random.default_rng(0).normal(size=(ROWS, ROW)).astype(np.float32)
    rows.setflags(write=False)

    def raw() -> None:
        with (folder / "raw").open("wb") as file:
            for row in rows:
                row.tofile(file)
            os.fsync(file.fileno())

    def trace() -> None:
        with create(folder / "speed.zarr", {"w": (ROW,)}, overwrite=True) as writer:
            for step, row in enumerate(rows):
                writer.append("gradients", step=step, full=row)

    trace()
    pairs = [(seconds(raw), seconds(trace)) for _ in range(ROUNDS)]
    size = rows.nbytes / 1e9
    yield "np.tofile and fsync", f"{size / median(base for base, _ in pairs):.2f} GB/s"
    yield "rows to a closed trace", f"{size / median(ours for _, ours in pairs):.2f} GB/s"
    yield "time / time of np.tofile", f"{median(ours / base for base, ours in pairs):.2f}"
    full = open_trace(folder / "speed.zarr").gradients["full"]
    read = median(seconds(lambda: full.values) for _ in range(ROUNDS))
    yield "reading it back", f"{size / read:.2f} GB/s"
    cell = median(seconds(lambda: full[40, :1000].values) for _ in range(ROUNDS))
    yield "reading 1000 coordinates of one step", f"{1e3 * cell:.1f} ms"


def opening(path: Path) -> Iterator[tuple[str, str]]:
    layers = {f"block{i}.weight": (50, 1000) for i in range(20)}
    row = {v.name: np.ones(20, v.dtype) for v in KINDS["statistics"].variables}
    with create(path, layers) as writer:
        for step in range(STEPS):
            writer.append("steps", step=step, loss=1.0)
            writer.append("statistics", step=step, **row)
    tasks: dict[str, Callable[[], object]] = {
        "tracelab.open": lambda: open_trace(path),
        "and its group of 31 statistics": lambda: open_trace(path).statistics,
        "xarray.open_datatree": lambda: xr.open_datatree(path, engine="zarr").close(),
        "reading one statistic of all steps": lambda: (
            open_trace(path).statistics["gradient_norm"].values
        ),
    }
    for label, task in tasks.items():
        task()
        yield f"{label}, {STEPS:,} steps", f"{1e3 * median(map(seconds, [task] * ROUNDS)):.1f} ms"
    files = [file for file in path.rglob("c.*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    yield "files, mean size", f"{len(files)}, {size / len(files) / 2**20:.2f} MiB"


def codecs() -> Iterator[tuple[str, str]]:
    """Yield ratio and speed on what gradients look like: Student's t with 3 degrees of freedom,
    each coordinate of its own log-normal scale."""
    rng = np.random.default_rng(0)
    scales = np.exp(rng.normal(size=16_384))
    chunk = (rng.standard_t(3, size=(16, 16_384)) * scales).astype(np.float32)
    for label, codec in {
        "Blosc LZ4, bit-shuffled": Blosc("lz4", clevel=5, shuffle=Blosc.BITSHUFFLE),
        "Blosc Zstandard 1, bit-shuffled": Blosc("zstd", clevel=1, shuffle=Blosc.BITSHUFFLE),
        "Zstandard 3": Zstd(3),
    }.items():
        encoded = codec.encode(chunk)
        took = median(seconds(lambda codec=codec: codec.encode(chunk)) for _ in range(20))
        ratio, speed = chunk.nbytes / len(encoded), chunk.nbytes / took / 1e9
        yield label, f"{ratio:.3f} times smaller, {speed:.2f} GB/s"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("| what | figure |\n|---|---|")
        for part in (
            handover(folder / "handover.zarr"),
            throughput(folder),
            opening(folder / "opening.zarr"),
            codecs(),
        ):
            for label, figure in part:
                print(f"| {label} | {figure} |", flush=True)


if __name__ == "__main__":
    main()
