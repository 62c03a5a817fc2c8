"""Maps the blocks of a plan over a ``dask.distributed`` cluster, whatever dies meanwhile.

Everything that is kept is kept here: the plan, what is not yet done, what came back. A worker that
dies has its blocks computed elsewhere; a scheduler that dies is waited for, and what was not done
is submitted again; a cell whose worker dies whenever it is computed is given up.
"""

from __future__ import annotations

import logging
import platform
import queue
import threading
import time
import uuid
from asyncio import CancelledError
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import dask

from tracelab.cells import lost, place, run, unfilled
from tracelab.cutting import Block
from tracelab.errors import TracelabError, UsageError
from tracelab.loading import cells
from tracelab.planning import Plan
from tracelab.trace import Trace
from tracelab.typing import Array

__all__ = ["Connect", "Finished", "on_cluster"]

logger = logging.getLogger(__name__)

Finished = tuple[Block, dict[str, Array], tuple[str, ...]]
Connect = Callable[[float], AbstractContextManager[Any]]

# What must be the same everywhere for the same bits everywhere.
PACKAGES = ("tracelab", "numpy", "scipy", "numba")
LOOK_SECONDS = 0.5
CONNECT_SECONDS = 10.0
# Results that are fetched at once, and cells of a block that are tried one by one.
MAX_GATHERED = 64
MAX_CELLS = 64
# Cells that killed their worker, one after another with nothing else running, until the rest of
# those that are suspected are given up too.
MAX_KILLERS = 3
# Submissions of everything that is left without a single block done in between.
MAX_ROUNDS = 3


class _LostError(Exception):
    """The cluster went away, or forgot what it was given."""


class _CannotOpenError(Exception):
    """A worker that could not take up the plan; the message is a sentence."""


_opened: dict[str, tuple[Trace, Plan]] = {}
_opening = threading.Lock()


def _common(token: str, payload: bytes) -> tuple[Trace, Plan]:
    """Return trace and plan, made once in each worker process."""
    with _opening:
        if token not in _opened:
            # Those of earlier plans are not needed again.
            while len(_opened) > 3:
                _opened.pop(next(iter(_opened)))
            _opened[token] = _loads(payload)
        return _opened[token]


def _task(block: Block, token: str, payload: bytes) -> tuple[dict[str, Array], tuple[str, ...]]:
    try:
        common = _common(token, payload)
    except Exception as error:
        from distributed import get_worker

        raise _CannotOpenError(_cannot(get_worker().address, error)) from None
    return run(common, block)


def _about(payload: bytes) -> tuple[dict[str, str], str | None]:
    """Return a worker's versions, and why it cannot open the trace."""
    versions = _versions()
    try:
        _loads(payload)
    except Exception as error:
        return versions, str(error)
    return versions, None


def _dumps(value: object) -> bytes:
    from distributed.protocol.pickle import dumps

    # Analyses of a notebook too, which plain pickle would leave behind.
    pickled: bytes = dumps(value)
    return pickled


def _loads(payload: bytes) -> Any:
    from distributed.protocol.pickle import loads

    return loads(payload)


def _versions() -> dict[str, str]:
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, **{name: version(name) for name in PACKAGES}}


def _cannot(worker: str, why: object) -> str:
    return f"the worker {worker} cannot read the trace: {why}; give a location that all workers see"


def on_cluster(
    plan: Plan, trace: Trace, connect: Connect, where: str, patience: float
) -> Generator[Finished]:
    """Yield the blocks of a plan in the order in which a cluster finishes them.

    Parameters
    ----------
    plan : Plan
        What to compute.
    trace : Trace
        The trace, at a place that workers can open.
    connect : callable
        Opens a client, given the seconds that may take; called again after a connection was lost.
    where : str
        The cluster, in messages.
    patience : float
        Seconds to wait for a scheduler that went away, or for a worker.

    Raises
    ------
    UsageError
        If there is no scheduler or no worker, or one has other versions or cannot open the trace.
    TracelabError
        If the scheduler or all workers went away and stayed away.
    """
    todo = dict.fromkeys(plan.blocks)
    total, rounds, wait = len(todo), 0, CONNECT_SECONDS
    payload = _dumps((trace, plan))
    while todo:
        before = len(todo)
        try:
            with connect(wait) as client:
                _check_workers(client, trace, where, patience)
                session = _Session(client, plan, payload, patience)
                with closing(session.finished(list(todo))) as results:
                    for finished in results:
                        del todo[finished[0]]
                        yield finished
        except (_LostError, UsageError) as error:
            done = total - len(todo)
            if isinstance(error, UsageError) and wait == CONNECT_SECONDS:
                raise
            rounds = rounds + 1 if len(todo) == before else 0
            if isinstance(error, UsageError) or rounds == MAX_ROUNDS:
                raise TracelabError(
                    f"{where} was lost when {done} of {total} blocks were done ({error}); those "
                    "are kept, and the same command goes on with the others"
                ) from None
            logger.warning(
                "%s: %s; %d of %d blocks are done, waiting up to %g s to go on with the others",
                where, error, done, total, patience,
            )  # fmt: skip
            wait = patience


def _check_workers(client: Any, trace: Trace, where: str, patience: float) -> None:
    """Check that there are workers, that they agree with us, and that they see the trace."""
    from distributed.comm.core import CommClosedError

    try:
        client.wait_for_workers(1, timeout=patience)
        answers = client.run(_about, _dumps(trace), on_error="return")
    except TimeoutError:
        raise UsageError(
            f"{where} has no workers and none came within {patience:g} s; start some with "
            "`dask worker ADDRESS`"
        ) from None
    except (CommClosedError, OSError) as error:
        raise _LostError(f"the scheduler does not answer: {error}") from None
    ours = _versions()
    for worker, answer in answers.items():
        if isinstance(answer, OSError):
            # It died just now; its work goes to others.
            continue
        if isinstance(answer, BaseException):
            raise UsageError(
                f"the worker {worker} cannot run tracelab {ours['tracelab']}: "
                f"{type(answer).__name__}: {answer}; install it there"
            )
        versions, problem = answer
        for name, wanted in ours.items():
            if versions[name] != wanted:
                raise UsageError(
                    f"the worker {worker} has {name} {versions[name]} and this process {wanted}: "
                    "results would depend on who computes them; install the same versions"
                )
        if problem is not None:
            raise UsageError(_cannot(worker, problem))


class _Session:
    """Blocks on a cluster as long as the connection lasts.

    Parameters
    ----------
    client : distributed.Client
        A connected client.
    plan : Plan
        The plan.
    payload : bytes
        Trace and plan, pickled.
    patience : float
        Seconds without any worker after which the cluster counts as lost.
    """

    def __init__(self, client: Any, plan: Plan, payload: bytes, patience: float) -> None:
        self._client, self._plan, self._patience = client, plan, patience
        self._token = uuid.uuid4().hex
        # A task, not scattered data: a scheduler can compute it again if its holders die.
        # A million steps are 20 MB of it, of which Dask would warn.
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GB"}):
            self._payload = client.submit(bytes, payload, pure=False)
        self._futures: dict[Any, Block] = {}
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def finished(self, blocks: Sequence[Block]) -> Generator[Finished]:
        """Yield blocks with their outputs; those that killed their workers come last."""
        suspects: list[Block] = []
        try:
            for block, found in self._run(blocks):
                if isinstance(found, BaseException):
                    if not _killed(found):
                        yield block, *lost(self._plan, block, found)
                        continue
                    logger.warning("workers died while %s was computed, or near it", block)
                    suspects.append(block)
                else:
                    yield block, *found
            killers = 0
            for block in suspects:
                outputs = unfilled(self._plan, block)
                messages: list[str] = []
                queued = [block]
                while queued:
                    part = queued.pop()
                    found = self._alone(part) if killers < MAX_KILLERS else _GaveUpError()
                    single = part == next(cells(self._plan, part))
                    if isinstance(found, BaseException) and not single and _killed(found):
                        queued += reversed(_parts(self._plan, part))
                        continue
                    if isinstance(found, BaseException):
                        killers += _killed(found)
                        found = lost(self._plan, part, _said(found))
                    else:
                        killers = 0
                    place(outputs, found[0], self._plan, part, block)
                    messages += found[1]
                yield block, outputs, tuple(messages)
        finally:
            with suppress(Exception):
                if self._client.status == "running":
                    self._client.cancel([*self._futures, self._payload])

    def _alone(self, block: Block) -> tuple[dict[str, Array], tuple[str, ...]] | BaseException:
        """Compute a block with no other on the cluster that could be to blame."""
        ((_, found),) = self._run([block])
        return found

    def _run(
        self, blocks: Sequence[Block]
    ) -> Iterator[tuple[Block, tuple[dict[str, Array], tuple[str, ...]] | BaseException]]:
        submitted = self._client.map(
            _task, blocks, token=self._token, payload=self._payload, pure=False, retries=2
        )
        self._futures = dict(zip(submitted, blocks, strict=True))
        for future in submitted:
            future.add_done_callback(self._done.put)
        del submitted
        seen = time.monotonic()
        while self._futures:
            ready = self._ready()
            if ready or self._workers():
                seen = time.monotonic()
            elif time.monotonic() - seen > self._patience:
                raise _LostError(f"it has had no worker for {self._patience:g} s")
            for future, found in zip(ready, self._gathered(ready), strict=True):
                if isinstance(found, _CannotOpenError):
                    raise UsageError(str(found))
                yield self._futures.pop(future), found

    def _ready(self) -> list[Any]:
        """Return futures that are done, waiting a moment for the first."""
        try:
            found = [self._done.get(timeout=LOOK_SECONDS)]
        except queue.Empty:
            found = []
        with suppress(queue.Empty):
            while len(found) < MAX_GATHERED:
                found.append(self._done.get_nowait())
        # What an earlier connection had asked for may still be reported.
        return [future for future in found if future in self._futures]

    def _workers(self) -> int:
        self._check()
        try:
            return len(self._client.nthreads())
        except Exception as error:
            raise _LostError(f"the scheduler does not answer: {error}") from None

    def _check(self) -> None:
        if self._client.status != "running":
            raise _LostError("the scheduler went away")

    def _gathered(self, futures: Sequence[Any]) -> list[Any]:
        """Return what futures have returned, or raised."""
        self._check()
        found: list[Any] = []
        try:
            if all(future.status == "finished" for future in futures):
                return list(self._client.gather(list(futures)))
        except Exception as error:
            logger.debug("gathering one by one after %s", error)
        for future in futures:
            try:
                found.append(future.result())
            except Exception as error:
                self._check()
                if isinstance(error, CancelledError) or future.status in ("cancelled", "lost"):
                    raise _LostError("its tasks were cancelled") from None
                found.append(error)
        return found


class _GaveUpError(Exception):
    """A cell that was not tried again."""


def _killed(error: BaseException) -> bool:
    from distributed import KilledWorker

    return isinstance(error, KilledWorker)


def _said(error: BaseException) -> BaseException:
    if _killed(error):
        return TracelabError(
            "the worker that computes it dies each time, as when it has too little memory; "
            "give workers more"
        )
    if isinstance(error, _GaveUpError):
        return TracelabError(
            f"workers died near it, and it was not tried again after {MAX_KILLERS} cells had "
            "killed theirs; give workers more memory"
        )
    return error


def _parts(plan: Plan, block: Block) -> list[Block]:
    """Return the cells of a block, or halves of it if they are many."""
    if not plan.by_step or (block.last - block.first) * (block.right - block.left) <= MAX_CELLS:
        return list(cells(plan, block))
    if block.right - block.left > 1:
        middle = (block.left + block.right) // 2
        return [replace(block, right=middle), replace(block, left=middle)]
    middle = (block.first + block.last) // 2
    return [replace(block, last=middle), replace(block, first=middle)]
