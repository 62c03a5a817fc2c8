"""Rows whose content follows from their step; processes that write them until they are killed."""

import multiprocessing
import os
import random
import struct
import time
import zlib
from pathlib import Path

import numpy as np

import tracelab
from tracelab.trace import Trace, create

LAYERS = {"w": (50, 3), "b": (3,)}
WEIGHTS = 153
EVERY = {"steps": 1, "gradients": 1, "noise": 5}
ACKNOWLEDGED = struct.Struct("<q")

# Processes are forked from one that has imported everything: a trial costs milliseconds.
SPAWN = multiprocessing.get_context("forkserver")
SPAWN.set_forkserver_preload(["faults.rows", "tracelab.trace.reading.reader", "tracelab.jobs"])


def gradient(step):
    return np.sin(step + np.arange(WEIGHTS)).astype(np.float32)


def append(writer, step):
    """Append what belongs to a step; every array differs from step to step."""
    writer.append("steps", step=step, loss=float(step), applied=step % 3 == 0)
    writer.append("gradients", step=step, full=gradient(step), projected=np.full((2, 7), step))
    if step % 5 == 0:
        batches = np.stack([gradient(step + batch) for batch in range(8)])
        writer.append("noise", step=step, full=batches, loss=np.arange(8.0) + step)


def record(path, seed, pipe, rank=None):
    """Write rows for ever; after each flush say in the pipe which step is the first not in it."""
    rng = random.Random(seed)
    place = path if rank is None else path / "workers" / f"rank-{rank:03}"
    first = continued(tracelab.open(place)) if (place / "zarr.json").exists() else 0
    with create(
        path,
        LAYERS,
        resume=first if first else True,
        rank=rank,
        flush_seconds=rng.choice([0.002, 0.02, 0.2]),
        queue_bytes=rng.choice([20_000, 200_000, 2**20]),
        compression=("none", "lz4")[zlib.crc32(str(path).encode()) % 2],
    ) as writer:
        os.write(pipe, ACKNOWLEDGED.pack(first))
        for step in range(first, 2**40):
            append(writer, step)
            if rng.random() < 0.1:
                writer.flush()
                os.write(pipe, ACKNOWLEDGED.pack(step + 1))
            if rng.random() < 0.05:
                time.sleep(0.001)


def continued(trace):
    """Return the first step that is missing from any group: a commit can come between them."""
    following = []
    for name, every in EVERY.items():
        steps = trace.groups[name]["step"].values if name in trace.groups else ()
        following.append(int(steps[-1]) + every if len(steps) else 0)
    return min(following)


class Recording:
    """A process that records, seen from outside."""

    def __init__(self, path, seed, rank=None):
        self.reader, writer = os.pipe()
        self.acknowledged = -1
        self.process = SPAWN.Process(
            target=_in_child, args=(str(path), seed, _Handed(writer), rank), daemon=True
        )
        self.process.start()
        os.close(writer)

    def wait(self, count):
        """Return once so many acknowledgements have come."""
        for _ in range(count):
            if not self._next():
                self.process.join()
                raise AssertionError(f"the recording ended by itself: {self.process.exitcode}")

    def kill(self):
        """SIGKILL it, and take what it had acknowledged."""
        self.process.kill()
        self.process.join()
        while self._next():
            pass
        os.close(self.reader)

    def _next(self):
        message = os.read(self.reader, ACKNOWLEDGED.size)
        if len(message) < ACKNOWLEDGED.size:
            return False
        (self.acknowledged,) = ACKNOWLEDGED.unpack(message)
        return True


class _Handed:
    """A file descriptor on its way to another process."""

    def __init__(self, descriptor):
        self.descriptor = descriptor

    def __reduce__(self):
        return _received, (multiprocessing.reduction.DupFd(self.descriptor),)


def _received(duplicate):
    return duplicate.detach()


def _in_child(path, seed, pipe, rank):
    record(Path(path), seed, pipe, rank)


def check(trace: Trace):
    """Return the first step missing from any group, after comparing every row with what it was."""
    following = []
    for name, every in EVERY.items():
        if name not in trace.groups:
            following.append(0)
            continue
        rows = trace.groups[name].compute()
        steps = rows["step"].values
        np.testing.assert_array_equal(steps, every * np.arange(len(steps)))
        for place, step in enumerate(steps):
            row = rows.isel(step=place)
            if name == "steps":
                assert row["loss"] == step
                assert bool(row["applied"]) is bool(step % 3 == 0)
            elif name == "gradients":
                np.testing.assert_array_equal(row["full"], gradient(step))
                assert (row["projected"] == step).all()
            else:
                expected = np.stack([gradient(step + batch) for batch in range(8)])
                np.testing.assert_array_equal(row["full"], expected)
                np.testing.assert_array_equal(row["loss"], np.arange(8.0) + step)
        following.append(every * len(steps))
    return min(following)
