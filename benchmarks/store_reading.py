"""Reading parts of full gradients, against np.memmap of the same numbers: paired, medians.

The page cache holds everything; each round reads another part, so the processor's caches do not.
Base is a map that is made for each read, as our reader opens its files for each read; one that is
kept, whose pages are mapped already, is shown beside it. In a process of its own: TensorStore must
not be loaded where another benchmark forks.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import tracelab
from tracelab.trace.reading.shardfile import Shards

STEPS = 64
COORDINATES = 2**20 + 1000
ROUNDS = 15
GROUP = "gradients"
Read = Callable[[Any], np.ndarray]


def rows(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield label and figure of each row of the table; `folder` is for the stores."""
    command = [sys.executable, "-m", "benchmarks.store_reading", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            label, figure = json.loads(line)
            yield label, figure
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def record(path: Path, compression: str) -> None:
    rng = np.random.default_rng(0)
    with (
        path.with_suffix(".raw").open("wb") as raw,
        tracelab.create(path, {"w": (COORDINATES,)}, compression=compression) as writer,
    ):
        for step in range(STEPS):
            row = rng.standard_normal(COORDINATES, dtype=np.float32)
            row.tofile(raw)
            writer.append(GROUP, step=step, full=row)


def parts(chunk: tuple[int, ...]) -> dict[str, Callable[[int], Any]]:
    height, width = chunk
    blocks = COORDINATES // width
    every = slice(None)

    def block(turn: int) -> Any:
        first = turn * 7 % blocks * width
        return (every, slice(first, first + width))

    def some_steps(turn: int) -> Any:
        first = turn % (STEPS // height) * height
        return (slice(first, first + height), every)

    return {
        f"{width:,} coordinates over all steps": block,
        f"{height} consecutive steps": some_steps,
        "the whole array": lambda turn: (every, every),
        "one step": lambda turn: (turn * 11 % STEPS, every),
    }


def ways(path: Path) -> dict[str, Read]:
    import tensorstore
    import zarr

    members = json.loads((path / "zarr.json").read_bytes())["consolidated_metadata"]["metadata"]
    raw, shape = path.with_suffix(".raw"), (STEPS, COORDINATES)
    kept = np.memmap(raw, np.float32, "r", shape=shape)
    bare = Shards.of(path, f"{GROUP}/full", members[f"{GROUP}/full"])
    full = tracelab.open(path).groups[GROUP]["full"]
    by_zarr = zarr.open_array(path / GROUP / "full", mode="r")
    spec = {"driver": "file", "path": str(path / GROUP / "full")}
    by_ts = tensorstore.open({"driver": "zarr3", "kvstore": spec}, open=True, read=True).result()
    return {
        "np.memmap": lambda part: np.array(np.memmap(raw, np.float32, "r", shape=shape)[part]),
        "np.memmap, kept": lambda part: np.array(kept[part]),
        "the reader alone": lambda part: bare[part],
        "trace.gradients": lambda part: full[part].values,
        "TensorStore": lambda part: by_ts[part].read().result(),
        "zarr-python": lambda part: by_zarr[part],
    }


def measure(path: Path) -> Iterator[tuple[str, str]]:
    reads = ways(path)
    members = json.loads((path / "zarr.json").read_bytes())["consolidated_metadata"]["metadata"]
    document = members[f"{GROUP}/full"]
    chunk = document["codecs"][0]["configuration"]["chunk_shape"]
    shard = document["chunk_grid"]["configuration"]["chunk_shape"]
    size = sum(file.stat().st_size for file in (path / GROUP / "full").iterdir())
    yield "layout", f"chunks of {chunk}, shards of {shard}, {size / 1e6:.0f} MB"
    for label, part_of in parts(tuple(chunk)).items():
        seconds: dict[str, list[float]] = {name: [] for name in reads}
        for turn in range(-1, ROUNDS):
            part = part_of(turn % ROUNDS)
            # Warms up, and is compared.
            expected = reads["np.memmap"](part) if turn < 0 else None
            for name, read in reads.items():
                started = time.perf_counter()
                found = read(part)
                elapsed = time.perf_counter() - started
                if expected is not None:
                    assert np.array_equal(found, expected), name
                else:
                    seconds[name].append(elapsed)
                del found
        base = seconds["np.memmap"]
        for name, taken in seconds.items():
            ratio = median(each / other for each, other in zip(taken, base, strict=True))
            figure = f"{1e3 * median(taken):.2f} ms"
            yield f"{label}: {name}", figure if taken is base else f"{figure}, {ratio:.2f} x"


def main() -> None:
    folder = Path(sys.argv[1])
    for compression in ("none", "lz4"):
        path = folder / f"reading-{compression}.zarr"
        record(path, compression)
        for label, figure in measure(path):
            print(json.dumps((f"reading, {compression}: {label}", figure)), flush=True)


if __name__ == "__main__":
    main()
