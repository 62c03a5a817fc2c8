"""verify(), paired with plain reading of the same files: from the page cache and from the disk."""

import contextlib
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

import tracelab

COORDINATES, STEPS, REPEATS = 2**20, 512, 3


def main() -> None:
    """Print GB/s of reading and of verify, and the ratio of their times."""
    print("| stored | from | workers | reading, GB/s | verify, GB/s | time of verify / reading |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=os.environ.get("TRACELAB_BENCH_DIR")) as folder:
        for compression in ("none", "lz4"):
            path = Path(folder, f"{compression}.zarr")
            _record(path, compression)
            for source in ("page cache", "disk"):
                for workers in (1, 4):
                    _measure(path, compression, source, workers)


def _record(path: Path, compression: str) -> None:
    row = np.random.default_rng(0).standard_normal(COORDINATES).astype(np.float32)
    with tracelab.create(path, {"w": (COORDINATES,)}, compression=compression) as writer:
        for step in range(STEPS):
            writer.append("gradients", step=step, full=np.roll(row, step))


def _measure(path: Path, compression: str, source: str, workers: int) -> None:
    files = [Path(parent, name) for parent, _, names in os.walk(path) for name in names]
    nbytes = sum(file.stat().st_size for file in files)
    pairs = []
    for _ in range(REPEATS):
        _forget(files, source)
        started = time.perf_counter()
        _read(files)
        reading = time.perf_counter() - started
        _forget(files, source)
        report = tracelab.verify(path, workers=workers)
        assert report.sound
        pairs.append((reading, report.seconds))
    reading, checking = (statistics.median(each) for each in zip(*pairs, strict=True))
    ratio = statistics.median(second / first for first, second in pairs)
    print(
        f"| {compression} | {source} | {workers} | {nbytes / reading / 1e9:.2f} | "
        f"{nbytes / checking / 1e9:.2f} | {ratio:.2f} |"
    )


def _forget(files: list[Path], source: str) -> None:
    if source == "disk":
        for file in files:
            with file.open("rb") as opened, contextlib.suppress(AttributeError, OSError):
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read(files: list[Path]) -> None:
    buffer = bytearray(2**22)
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


if __name__ == "__main__":
    main()
