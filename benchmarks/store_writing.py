"""Writing: full gradients of 1e6 weights against plain files, hand-over, waiting, and codecs.

The rows are gradients of successive steps of a network that learns digits. Every way of writing
them ends with fsync; they alternate in one process, in an order that turns round, and medians of
ratios within a round are compared, so that what else the machine does cancels. TensorStore works in
a process of its own: it may not be loaded where a process forks.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import h5py
import numpy as np
import torch
import xarray as xr
import zarr
from numcodecs.blosc import BITSHUFFLE, Blosc
from sklearn.datasets import load_digits
from torch import nn
from zarr.codecs import BloscCodec

import tracelab
from tracelab.trace import create
from tracelab.trace.schema import KINDS

ROUNDS = 9
STEPS = 128
CHUNK, SHARD = (16, 16_384), (64, 262_144)
PACE = 0.05
Writer = Callable[[np.ndarray, Path], None]


def seconds(task: Callable[[], object]) -> float:
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def gradients() -> np.ndarray:
    """Return the gradients of STEPS steps of SGD on batches of 64 digits, 998,070 weights."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 900), nn.ReLU(), nn.Linear(900, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    images, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    found = []
    for _ in range(STEPS):
        batch = torch.randint(len(inputs), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]).numpy())
        optimizer.step()
    return np.stack(found)


# ------------------------------------------------------------------------------ ways of writing


def synchronise(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def plain(rows: np.ndarray, folder: Path) -> None:
    with (folder / "raw").open("wb") as file:
        for row in rows:
            row.tofile(file)
        os.fsync(file.fileno())


def trace(compression: str) -> Writer:
    def write(rows: np.ndarray, folder: Path) -> None:
        layers = {"w": rows.shape[1:]}
        with create(folder / "run.zarr", layers, compression=compression) as writer:
            for step, row in enumerate(rows):
                writer.append("gradients", step=step, full=row)

    return write


def zarr_python(compressors: Any) -> Writer:
    def write(rows: np.ndarray, folder: Path) -> None:
        array = zarr.create_array(
            folder / "zarr",
            shape=rows.shape,
            dtype=rows.dtype,
            chunks=CHUNK,
            shards=SHARD,
            compressors=compressors,
            fill_value=float("nan"),
        )
        for start in range(0, len(rows), SHARD[0]):
            array[start : start + SHARD[0]] = rows[start : start + SHARD[0]]
        synchronise(folder)

    return write


def hdf5(**options: Any) -> Writer:
    def write(rows: np.ndarray, folder: Path) -> None:
        with h5py.File(folder / "file.h5", "w") as file:
            array = file.create_dataset("full", rows.shape, rows.dtype, chunks=CHUNK, **options)
            for start in range(0, len(rows), CHUNK[0]):
                array[start : start + CHUNK[0]] = rows[start : start + CHUNK[0]]
        synchronise(folder)

    return write


def serve_tensorstore(file: Path, pipe: Connection) -> None:
    """Write the rows in a file into each folder that is asked for, and say how long that takes."""
    import tensorstore

    rows = np.load(file)

    def write(folder: Path, inner: list[dict[str, Any]]) -> None:
        sharding = {
            "chunk_shape": CHUNK,
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, *inner],
        }
        grid = {"name": "regular", "configuration": {"chunk_shape": SHARD}}
        metadata = {
            "shape": rows.shape,
            "data_type": "float32",
            "chunk_grid": grid,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        }
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(folder / "tensorstore")},
            "metadata": metadata,
            "create": True,
        }
        array = tensorstore.open(spec).result()
        for start in range(0, len(rows), SHARD[0]):
            array[start : start + SHARD[0]] = rows[start : start + SHARD[0]]
        synchronise(folder)

    while (asked := pipe.recv()) is not None:
        folder, inner = asked
        pipe.send(seconds(lambda folder=folder, inner=inner: write(folder, inner)))


LZ4 = {"cname": "lz4", "clevel": 1, "shuffle": "bitshuffle", "typesize": 4, "blocksize": 0}
CRC32C = {"name": "crc32c"}
WAYS: Mapping[str, Writer | list[dict[str, Any]]] = {
    "np.tofile": plain,
    "tracelab, none": trace("none"),
    "tracelab, lz4": trace("lz4"),
    "zarr-python, none": zarr_python(None),
    "zarr-python, lz4": zarr_python(BloscCodec(**LZ4)),
    "TensorStore, none": [CRC32C],
    "TensorStore, lz4": [{"name": "blosc", "configuration": LZ4}, CRC32C],
    "h5py, none": hdf5(),
    "h5py, lzf + byte shuffle": hdf5(compression="lzf", shuffle=True),
}


def throughput(folder: Path, rows: np.ndarray) -> Iterator[tuple[str, str]]:
    # A promise that nobody changes them: the trace's writer takes them without a copy.
    rows.setflags(write=False)
    np.save(folder / "rows.npy", rows)
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=serve_tensorstore, args=(folder / "rows.npy", there)
    )
    process.start()

    def measure(way: Writer | list[dict[str, Any]]) -> tuple[float, int]:
        place = folder / "measured"
        place.mkdir()
        try:
            if isinstance(way, list):
                here.send((place, way))
                took = here.recv()
            else:
                took = seconds(lambda: way(rows, place))
            return took, sum(path.stat().st_size for path in place.rglob("*"))
        finally:
            shutil.rmtree(place)

    times: dict[str, list[float]] = {name: [] for name in WAYS}
    sizes = {}
    for number in range(ROUNDS + 1):
        names = list(WAYS)[:: 1 if number % 2 else -1]
        for name in names:
            took, sizes[name] = measure(WAYS[name])
            # Memory that nobody has used before is slow, whoever comes first.
            if number:
                times[name].append(took)
    here.send(None)
    process.join()
    for name in WAYS:
        ratio = median(
            base / own for base, own in zip(times["np.tofile"], times[name], strict=True)
        )
        yield (
            f"{STEPS} x {rows.shape[1]:,} float32: {name}",
            f"{rows.nbytes / median(times[name]) / 1e9:.2f} GB/s, {ratio:.2f} of np.tofile, "
            f"{rows.nbytes / sizes[name]:.2f} times smaller",
        )


# ---------------------------------------------------------------------------- the training thread


def statistics_row(layers: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {v.name: rng.normal(size=layers).astype(v.dtype) for v in KINDS["statistics"].variables}


def handover(folder: Path, rows: np.ndarray) -> Iterator[tuple[str, str]]:
    promised = rows[0].copy()
    promised.setflags(write=False)
    cases: dict[str, tuple[str, dict[str, Any], int]] = {
        "3 scalars": ("steps", {"loss": 1.0, "learning_rate": 0.1, "applied": True}, 20_000),
        "31 statistics of 20 layers": ("statistics", statistics_row(20), 20_000),
        "1e6 float32, read-only": ("weights", {"full": promised}, 64),
        "1e6 float32, copied": ("gradients", {"full": rows[0].copy()}, 64),
    }
    layers = {f"block{i}.weight": (1,) for i in range(19)} | {"w": (rows.shape[1] - 19,)}
    with create(folder / "handover.zarr", layers, queue_bytes=2**30) as writer:
        for label, (group, row, count) in cases.items():
            times = []
            for step in range(count):
                start = time.perf_counter()
                writer.append(group, step=step, **row)
                times.append(time.perf_counter() - start)
            writer.flush()
            yield (
                f"append of {label}",
                f"{1e6 * median(times):.1f} us, p99 {1e6 * np.percentile(times, 99):.1f} us",
            )
        block = {name: np.repeat(row[None], 16, axis=0) for name, row in statistics_row(20).items()}
        writer.define("rings", kind="statistics")
        times = [
            seconds(lambda n=n: writer.extend("rings", steps=range(n, n + 16), **block)) / 16
            for n in range(0, 16 * 2_000, 16)
        ]
        yield "extend by 16 such rows, each", f"{1e6 * median(times):.1f} us"


def waiting(folder: Path, rows: np.ndarray) -> Iterator[tuple[str, str]]:
    """Yield the share of its time for which a thread that computes waits for the writer."""
    matrix = np.random.default_rng(0).standard_normal((500, 500))
    statistics = statistics_row(1)
    for compression in ("none", "lz4"):
        path = folder / f"waiting-{compression}.zarr"
        layers = {"w": (rows.shape[1],)}
        inside = 0.0
        with create(path, layers, compression=compression, flush_seconds=2) as writer:
            started = time.perf_counter()
            for step, row in enumerate(rows):
                until = started + (step + 1) * PACE
                while time.perf_counter() < until:
                    matrix @ matrix
                inside += seconds(
                    lambda step=step, row=row, writer=writer: (
                        writer.append("gradients", step=step, full=row),
                        writer.append("statistics", step=step, **statistics),
                    )
                )
            whole = time.perf_counter() - started
        yield (
            f"training thread inside append, {rows[0].nbytes / PACE / 1e6:.0f} MB/s, {compression}",
            f"{inside / whole:.2%} of its time",
        )


def long_run(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield what many steps of many small arrays make: files, and the time to open them."""
    path = folder / "long.zarr"
    row = statistics_row(20)
    steps = 2**17
    block = {name: np.repeat(values[None], 1024, axis=0) for name, values in row.items()}
    with create(path, {f"l{i}": (10,) for i in range(20)}, flush_seconds=3600) as writer:
        for start in range(0, steps, 1024):
            writer.extend("statistics", steps=np.arange(start, start + 1024), **block)
    shards = [file for file in path.rglob("c.*") if file.is_file()]
    size = sum(values.nbytes for values in row.values()) * steps
    yield (
        f"31 statistics of 20 layers, {steps:,} steps, {size / 1e6:.0f} MB",
        f"{len(shards)} files, {len(shards) / size * 1e9:.0f} for each GB",
    )
    tasks: dict[str, Callable[[], object]] = {
        "tracelab.open of it": lambda: tracelab.open(path),
        "and its group": lambda: tracelab.open(path).statistics,
        "xarray.open_datatree of it": lambda: xr.open_datatree(path, engine="zarr").close(),
    }
    for label, task in tasks.items():
        task()
        yield label, f"{1e3 * median(map(seconds, [task] * ROUNDS)):.1f} ms"


def codecs(rows: np.ndarray) -> Iterator[tuple[str, str]]:
    chunk = np.ascontiguousarray(rows[64 : 64 + CHUNK[0], 500_000 : 500_000 + CHUNK[1]])
    upper = (chunk.view(np.uint32) >> 16).astype(np.uint16)
    for label, codec, values in (
        ("LZ4 in Blosc, bit-shuffled", Blosc("lz4", 1, BITSHUFFLE), chunk),
        ("LZ4 in Blosc, bit-shuffled, bfloat16", Blosc("lz4", 1, BITSHUFFLE), upper),
        ("Zstandard 1 in Blosc, bit-shuffled", Blosc("zstd", 1, BITSHUFFLE), chunk),
    ):
        encoded = codec.encode(values)
        took = median(seconds(lambda c=codec, v=values: c.encode(v)) for _ in range(20))
        yield (
            f"{label}, one chunk of gradients",
            f"{values.nbytes / len(encoded):.2f} times smaller, "
            f"{values.nbytes / took / 1e9:.1f} GB/s",
        )


def rows(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield what was measured and the figure."""
    recorded = gradients()
    yield from throughput(folder, recorded)
    yield from handover(folder, recorded)
    yield from waiting(folder, recorded)
    yield from long_run(folder)
    yield from codecs(recorded)
