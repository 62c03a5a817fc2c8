"""HDF5 export and import: speed against a synchronised copy of the trace, peak memory."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

import tracelab

ROUNDS = 3
WEIGHTS = 10**6
STEPS = 256
CODE = """
import sys
from pathlib import Path
import h5py, tracelab
from tracelab.trace import hdf5

def peak():
    # Not ru_maxrss: that begins with what the process that started this one had taken.
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

before = peak()
getattr(tracelab, sys.argv[1])(sys.argv[2], sys.argv[3])
print((peak() - before) / 1024)
"""


def seconds(task: Callable[[], object]) -> float:
    os.sync()
    start = time.perf_counter()
    task()
    os.sync()
    return time.perf_counter() - start


def copied(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-r", source, target], check=True)


def grown(function: str, source: Path, target: Path) -> float:
    """Return by how many MiB a process grows that does nothing else."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, function, source, target],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def main() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.standard_t(3, (64, WEIGHTS)) * np.exp(rng.normal(size=WEIGHTS))).astype(np.float32)
    size = 4 * WEIGHTS * STEPS / 1e6
    print(f"A trace of {size:.0f} MB of float32 gradients, medians of {ROUNDS} rounds.\n")
    print(
        "| stored | what | MB/s | seconds / of a copy | MiB more in memory |\n|---|---|---|---|---|"
    )
    for compression in ("none", "lz4"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            trace = folder / "run.zarr"
            with tracelab.create(trace, {"w": (WEIGHTS,)}, compression=compression) as writer:
                for step in range(STEPS):
                    writer.append("gradients", step=step, full=rows[step % 64])
            memory = (
                grown("export_hdf5", trace, folder / "m.h5"),
                grown("import_hdf5", folder / "m.h5", folder / "m.zarr"),
            )
            times: dict[str, list[float]] = {"copy": [], "export": [], "import": []}
            for turn in range(ROUNDS):
                places = [folder / f"{turn}{suffix}" for suffix in (".copy", ".h5", ".zarr")]
                times["copy"].append(seconds(lambda at=trace, to=places[0]: copied(at, to)))
                times["export"].append(
                    seconds(lambda at=trace, to=places[1]: tracelab.export_hdf5(at, to))
                )
                times["import"].append(
                    seconds(lambda at=places: tracelab.import_hdf5(at[1], at[2]))
                )
                subprocess.run(["rm", "-rf", *places], check=True)
            base = median(times["copy"])
            print(f"| {compression} | copy of the folder | {size / base:.0f} | 1 | |")
            for what, more in zip(("export", "import"), memory, strict=True):
                took = median(times[what])
                row = f"{what} | {size / took:.0f} | {took / base:.2f} | {more:.0f} |"
                print(f"| {compression} | {row}", flush=True)


if __name__ == "__main__":
    main()
