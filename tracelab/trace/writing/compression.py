"""Which compression makes recording faster, measured where the trace will be."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median

import numpy as np

from tracelab.errors import UsageError
from tracelab.trace.writing.layout import COMPRESSIONS
from tracelab.trace.writing.shards import compressed
from tracelab.typing import Array

__all__ = ["choose"]

_CHUNKS = 8
_ROUNDS = 3


def choose(asked: str, folder: Path | None) -> str:
    """Return the compression of a new trace.

    Parameters
    ----------
    asked : {"auto", "none", "lz4"}
        What the user wants; "auto" is the faster of the two.
    folder : Path or None
        The trace's folder, which is made if it is not there; None if it is in another store.
        There "auto" is "lz4": every byte goes through a network or stays in memory.

    Raises
    ------
    UsageError
        If there is no such compression.
    OSError
        If the folder cannot be made.
    """
    if asked in COMPRESSIONS:
        return asked
    if asked != "auto":
        raise UsageError(
            f"compression must be one of auto, {', '.join(COMPRESSIONS)}, got {asked!r}"
        )
    if folder is None:
        return "lz4"
    folder.mkdir(parents=True, exist_ok=True)
    return _faster(folder.stat().st_dev, folder)


_known: dict[int, str] = {}


def _faster(device: int, folder: Path) -> str:
    """Return the faster compression on a file system, measured once a process."""
    if device not in _known:
        try:
            _known[device] = _measure(folder)
        except OSError:
            # Most likely there is hardly any room: bytes matter more than time.
            _known[device] = "lz4"
    return _known[device]


def _measure(folder: Path) -> str:
    """Return the compression with which compressing and storing, side by side, take less time.

    Shards are compressed by one thread while another stores the one before, so that the slower of
    the two counts.
    """
    chunks = _gradients()
    small = [compressed(chunk) for chunk in chunks]
    raw = sum(chunk.nbytes for chunk in chunks)
    ratio = sum(map(len, small)) / raw
    compressing = _seconds(lambda: [compressed(chunk) for chunk in chunks])
    # Without a name: nothing is left behind, whatever happens.
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:

        def store() -> None:
            file.seek(0)
            file.truncate()
            for chunk in chunks:
                file.write(chunk.data)
            os.fsync(file.fileno())

        storing = _seconds(store)
    return "lz4" if max(compressing, ratio * storing) < storing else "none"


def _seconds(task: Callable[[], object]) -> float:
    times = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        task()
        times.append(time.perf_counter() - start)
    return median(times)


@cache
def _gradients() -> list[Array]:
    """Return chunks as compressible as gradients are.

    Student's t with three degrees of freedom, each coordinate with a log-normal scale of its own:
    LZ4 makes it 1.07 times smaller, gradients of networks 1.1 to 1.3 times.
    """
    rng = np.random.default_rng(0)
    scales = np.exp(rng.standard_normal(16_384))
    normal = rng.standard_normal((16, 16_384))
    chi_square = rng.chisquare(3, (16, 16_384))
    chunk = (normal / np.sqrt(chi_square / 3) * scales).astype(np.float32)
    return [np.roll(chunk, shift, axis=1) for shift in range(_CHUNKS)]
