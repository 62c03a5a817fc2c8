"""Maps the blocks of a plan with Dask: on threads, on processes, or on a cluster.

The only module that knows Dask. A block is loaded, computed and forgotten by one task; what a
task returns depends on its cells alone, so the result has the same bits wherever it runs.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import xarray as xr
from dask.utils import parse_bytes

from tracelab.cells import labelled, place, run, unfilled
from tracelab.errors import UsageError
from tracelab.planning import Block, Plan
from tracelab.threads import unordered
from tracelab.trace import Trace
from tracelab.typing import Array

__all__ = ["Execution", "Finished", "compute", "stream"]

# Loading converts to float64 and a kernel works on copies: a task's peak over its input's size.
_PEAK = 8

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
        Bound on memory, such as ``"4GiB"``.

    Raises
    ------
    UsageError
        If there are no workers, or the memory cannot be read as a size.
    """

    client: Any = None
    scheduler: str | None = None
    workers: int | None = None
    memory: str | int | None = None

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


Finished = tuple[Block, dict[str, Array], tuple[str, ...]]


def stream(
    plan: Plan, trace: Trace, execution: Execution, progress: Progress | None = None
) -> Iterator[Finished]:
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
        If workers cannot be had, or cannot open the trace.
    """
    here = execution.client is None and execution.scheduler is None and execution.workers is None
    finished = _on_threads if here else _on_workers
    for done, each in enumerate(finished(plan, trace, execution), start=1):
        yield each
        if progress is not None:
            progress(done, len(plan.blocks))


def compute(
    plan: Plan, trace: Trace, execution: Execution, progress: Progress | None = None
) -> tuple[xr.Dataset, tuple[str, ...]]:
    """Return the whole result of a plan and the messages of the cells that failed; see `stream`."""
    outputs = unfilled(plan, plan.whole)
    messages: tuple[str, ...] = ()
    for block, part, failures in stream(plan, trace, execution, progress):
        place(outputs, part, plan, block, plan.whole)
        messages += failures
    return labelled(plan, outputs), messages


def _on_threads(plan: Plan, trace: Trace, execution: Execution) -> Iterator[Finished]:
    results = unordered(partial(run, (trace, plan)), plan.blocks, _threads(plan, execution))
    with closing(results):
        for block, found in results:
            if isinstance(found, BaseException):
                raise found
            yield block, *found


def _on_workers(plan: Plan, trace: Trace, execution: Execution) -> Iterator[Finished]:
    from distributed import as_completed

    if not trace.shareable:
        raise UsageError(
            "a trace in memory cannot be read by worker processes; leave workers and scheduler "
            "out to use threads, or write the trace to a folder"
        )
    with _client(execution) as client:
        future = client.scatter((trace, plan), broadcast=True, hash=False)
        futures = {
            client.submit(run, future, block, pure=False, retries=2): block for block in plan.blocks
        }
        try:
            for task in as_completed(futures):
                yield futures[task], *task.result()
        finally:
            client.cancel(list(futures))


def _threads(plan: Plan, execution: Execution) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    allowed = execution.bytes_allowed()
    if allowed is None:
        return cores or 1
    return max(1, min(cores or 1, allowed // max(1, _PEAK * plan.block_bytes)))


@contextmanager
def _client(execution: Execution) -> Iterator[Any]:
    from distributed import Client, LocalCluster

    if execution.client is not None:
        yield execution.client
        return
    if execution.scheduler is not None:
        try:
            client = Client(execution.scheduler, timeout="10s")
        except (OSError, ValueError) as error:
            raise UsageError(
                f"no Dask scheduler answers at {execution.scheduler!r} ({error}); "
                "start one with `dask scheduler` or leave the address out"
            ) from None
        with client:
            yield client
        return
    workers = execution.workers or 1
    allowed = execution.bytes_allowed()
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            # Any free port: None would still take the default one, which another run may hold.
            dashboard_address="127.0.0.1:0",
            memory_limit="auto" if allowed is None else allowed // workers,
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client
