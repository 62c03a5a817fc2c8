"""Runs the blocks of a plan: on threads, on processes of this machine, or on a cluster.

A block is loaded, computed and forgotten by one task; what a task returns depends on its cells
alone, so the result has the same bits wherever it runs. `tracelab.cluster` and this are the only
modules that know Dask.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from dask.utils import parse_bytes

from tracelab import memory
from tracelab.cells import lost, run
from tracelab.cluster import Finished, on_cluster
from tracelab.errors import UsageError
from tracelab.planning import Plan
from tracelab.threads import unordered
from tracelab.trace import Trace

__all__ = ["Execution", "Finished", "Progress", "stream"]

# Of a worker process that has loaded all it needs and computes nothing.
WORKER_BYTES = 300 * 2**20
# A nanny kills at 95 % of the limit and a worker pauses at 80 %: an estimate is no promise.
MARGIN = 1.25

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Execution:
    """Where tasks run.

    Parameters
    ----------
    client : distributed.Client, optional
        An open client, left open.
    scheduler : str, optional
        Address of an existing ``dask.distributed`` scheduler, such as ``tcp://10.0.0.1:8786``.
    workers : int, optional
        Processes of an embedded cluster on this machine. Default: threads in this process.
    memory : str or int, optional
        Bound on the memory of all processes together, such as ``"4GiB"``; with a scheduler, of one
        of its workers. Default: 60 % of what is free, of what a scheduler gave its workers.
    patience : float
        Seconds to wait for workers, and for a scheduler that went away, before giving up.

    Raises
    ------
    UsageError
        If there are no workers, or the memory cannot be read as a size.
    """

    client: Any = None
    scheduler: str | None = None
    workers: int | None = None
    memory: str | int | None = None
    patience: float = 120.0

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"workers must be at least 1, got {self.workers!r}")
        if self.memory is not None and not _size(self.memory) > 0:
            raise UsageError(f"memory must be a positive size such as '4GiB', got {self.memory!r}")

    def bytes_allowed(self) -> int | None:
        """Return the memory bound in bytes."""
        return None if self.memory is None else _size(self.memory)


def _size(memory: str | int) -> int:
    try:
        return int(parse_bytes(memory))
    except ValueError:
        return 0


def stream(
    plan: Plan, trace: Trace, execution: Execution, progress: Progress | None = None
) -> Generator[Finished]:
    """Yield the blocks of a plan as they finish: block, outputs by name, messages of failures.

    Outputs have the shape of the block. Their bits depend on the cells alone: not on the cut, the
    order or the place. Closing the iterator stops: blocks that have not begun never do.

    Parameters
    ----------
    plan : Plan
        What to compute.
    trace : Trace
        The trace, or one equal to it that workers can open.
    execution : Execution
        Where.
    progress : callable, optional
        Called with (blocks done, blocks in all).

    Raises
    ------
    UsageError
        If a cell needs more memory than there is, or workers cannot be had or cannot open the
        trace. Nothing has run then.
    TracelabError
        If the cluster went away and did not come back.
    """
    if not plan.blocks:
        return
    here = execution.client is None and execution.scheduler is None and execution.workers is None
    with closing((_on_threads if here else _on_workers)(plan, trace, execution)) as finished:
        for done, each in enumerate(finished, start=1):
            yield each
            if progress is not None:
                progress(done, len(plan.blocks))


def _on_threads(plan: Plan, trace: Trace, execution: Execution) -> Generator[Finished]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = min(cores or 1, len(plan.blocks))
    allowed, bound = _allowed(execution, 0)
    fitted = memory.fitting(plan, allowed, threads, bound)
    weights = [memory.needed(fitted, block) for block in fitted.blocks]
    results = unordered(partial(run, (trace, fitted)), fitted.blocks, threads, weights, allowed)
    with closing(results):
        for block, found in results:
            if isinstance(found, BaseException):
                found = lost(plan, block, found)
            yield block, *found


def _on_workers(plan: Plan, trace: Trace, execution: Execution) -> Generator[Finished]:
    if not trace.shareable:
        raise UsageError(
            "a trace in memory cannot be read by worker processes; leave workers and scheduler "
            "out to use threads, or write the trace to a folder"
        )
    if execution.client is None and execution.scheduler is None:
        workers = min(execution.workers or 1, len(plan.blocks))
        allowed, bound = _allowed(execution, workers)
        fitted = memory.fitting(plan, allowed, workers, bound)
        # Fewer, where a share of the memory would be too little for the largest cell.
        need = memory.needed(fitted, memory.heaviest(fitted))
        workers = max(1, min(workers, allowed // need))
        limit = int(MARGIN * (allowed / workers + WORKER_BYTES))
        connect = partial(_local, workers, limit)
        yield from on_cluster(fitted, trace, connect, "the embedded cluster", execution.patience)
        return
    if execution.client is not None:
        where = f"the scheduler {execution.client.scheduler.address}"
        connect = partial(_given, execution.client)
    else:
        where = f"the scheduler {execution.scheduler}"
        connect = partial(_remote, str(execution.scheduler))
    with connect(10.0) as client:
        fitted = _fitting_workers(plan, client, execution)
    yield from on_cluster(fitted, trace, connect, where, execution.patience)


def _allowed(execution: Execution, workers: int) -> tuple[int, str]:
    """Return the bytes that blocks may take together on this machine, and where they come from."""
    told = execution.bytes_allowed()
    programs = workers * WORKER_BYTES
    if told is None:
        free = int(memory.SHARE * memory.available()) - programs
        return free, "the free memory of this machine"
    return told - memory.resident() - programs, f"a bound of {execution.memory} on all processes"


def _fitting_workers(plan: Plan, client: Any, execution: Execution) -> Plan:
    """Return a plan whose largest cell fits into the largest worker, if any is there yet."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    shares = []
    for worker in workers:
        limit = worker["memory_limit"] or memory.available()
        told = execution.bytes_allowed()
        whole = limit / MARGIN if told is None else min(told, limit / MARGIN)
        shares.append((int(whole - WORKER_BYTES), worker["nthreads"]))
    if not shares:
        return plan
    allowed, threads = max(shares)
    return memory.fitting(plan, allowed, threads, "the memory of a worker")


@contextmanager
def _given(client: Any, seconds: float) -> Iterator[Any]:
    """Yield a client of the caller's, which stays open, once it is connected."""
    deadline = time.monotonic() + seconds
    while client.status == "connecting" and time.monotonic() < deadline:
        time.sleep(0.1)
    if client.status != "running":
        raise UsageError(f"the client given is {client.status}; give one that is connected")
    yield client


@contextmanager
def _remote(address: str, seconds: float) -> Iterator[Any]:
    from distributed import Client

    try:
        client = Client(address, timeout=seconds, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no Dask scheduler answers at {address!r} ({error}); "
            "start one with `dask scheduler` or leave the address out"
        ) from None
    try:
        yield client
    finally:
        client.close(timeout=2)


@contextmanager
def _local(workers: int, memory_limit: int, seconds: float) -> Iterator[Any]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            # Any free port: None would still take the default one, which another run may hold.
            dashboard_address="127.0.0.1:0",
            memory_limit=memory_limit,
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client
