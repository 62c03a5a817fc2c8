"""Computes what is missing of a plan, keeps what is finished meanwhile, and stores the result."""

from __future__ import annotations

import logging
import platform
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import xarray as xr

from tracelab import engine, reuse
from tracelab.cells import labelled
from tracelab.celltable import Table, by_step
from tracelab.errors import DamagedError, TracelabError
from tracelab.keeping import Keeper
from tracelab.planning import Plan
from tracelab.reuse import Identity
from tracelab.trace import Trace
from tracelab.trace.gathered import PREFIX
from tracelab.trace.places.objects import remove
from tracelab.trace.resultstore import shelves, unfinished
from tracelab.trace.resultstore.resultform import Entry, load
from tracelab.trace.resultstore.results import Results
from tracelab.trace.resultstore.shelves import Shelf
from tracelab.trace.resultstore.unfinished import Job
from tracelab.typing import IntArray, Status

__all__ = ["Counts", "Interrupted", "Outcome", "compute", "counts"]

logger = logging.getLogger(__name__)

_MESSAGES = 100
_MESSAGE_LENGTH = 500


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while an analysis ran; the message says how much of it is kept."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of a result's cells in one call of `analyze`.

    Parameters
    ----------
    reused : int
        Taken over: from stored results, or from a job that was interrupted.
    computed : int
        The others; some of them may be
    failed : int
        cells whose kernel failed, or
    unreadable : int
        cells whose input is damaged.
    """

    reused: int
    computed: int
    failed: int
    unreadable: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a plan.

    Parameters
    ----------
    result : xarray.Dataset
        In memory.
    state : {"stored", "computed"}
        Whether all of it was there before.
    counts : Counts
        How many cells were reused, computed, failed.
    """

    result: xr.Dataset
    state: str
    counts: Counts


def counts(status: Any, reused: int) -> Counts:
    """Return how many cells of a result are what, of which `reused` were not computed."""
    return Counts(
        reused=reused,
        computed=int(status.size) - reused,
        failed=int((status == int(Status.FAILED)).sum()),
        unreadable=int((status == int(Status.UNREADABLE)).sum()),
    )


def compute(
    plan: Plan,
    trace: Trace,
    execution: engine.Execution,
    progress: engine.Progress | None,
    *,
    identity: Identity,
    results: Results,
    shelf: Shelf,
    force: bool = False,
) -> Outcome:
    """Return the result of a plan: cells that there are, and the others computed and stored.

    Parameters
    ----------
    plan : Plan
        What is wanted.
    trace : Trace
        Of what.
    execution : Execution
        Where it is computed.
    progress : callable, optional
        Called with (blocks done, blocks to compute).
    identity : Identity
        What tells the result from others.
    results : Results
        Where results and finished cells are sought.
    shelf : Shelf
        Where the result goes.
    force : bool
        Compute every cell.

    Raises
    ------
    UsageError
        If something must be computed and the result cannot be stored.
    StorageError
        If the disk is full, or failed.
    Interrupted
        After Ctrl-C: the message says what is kept.
    """
    started = time.perf_counter()
    table = Table.empty(plan)
    stored = None if force else reuse.exact(identity, results)
    # One that a more recent result hides is stored anew: what was asked for last is shown.
    if stored is not None and (stored[1] or shelf.location.store.read_only):
        table.have[...] = True
        _clean(table, identity, results)
        return Outcome(stored[0], "stored", counts(stored[0]["status"], table.have.size))
    reused = 0 if force else reuse.adopt(table, identity, results)
    left = reuse.missing(table)
    if left is None and shelf.location.store.read_only:
        result = _finished(table, trace, identity, [], reused, started)
        return Outcome(result, "stored", counts(result["status"], reused))
    shelves.prepare(shelf, plan.analysis.name)
    messages: list[str] = []
    with Job(shelf, identity.kind) as job, Keeper(job, table) as keeper:
        try:
            if left is not None:
                with closing(_stream(left, trace, execution, progress)) as blocks:
                    for block, outputs, failures in blocks:
                        rows, columns = _places(table, left, block)
                        table.put(rows, columns, _side_by_side(outputs, plan))
                        keeper.add(rows, columns)
                        messages += failures
            result = _finished(table, trace, identity, messages, reused, started)
            _store(table, result, identity, results, job)
        except KeyboardInterrupt:
            keeper.save()
            raise Interrupted(_kept(table, identity, keeper)) from None
        except BaseException:
            keeper.save()
            raise
        job.discard()
    _supersede(table, identity, shelf)
    _clean(table, identity, results)
    if messages:
        logger.warning(
            "%s: %d cells failed or could not be read, the first: %s",
            plan.analysis.name,
            len(messages),
            messages[0],
        )
    state = "computed" if left is not None else "stored"
    return Outcome(result, state, counts(result["status"], reused))


def _stream(
    plan: Plan,
    trace: Trace,
    execution: engine.Execution,
    progress: engine.Progress | None,
) -> Any:
    return engine.stream(plan, trace, execution, progress)


def _places(table: Table, part: Plan, block: Any) -> tuple[IntArray, IntArray]:
    """Return row and column, in the table, of each cell of a block of a part of its plan."""
    columns = np.arange(block.left, block.right)
    rows = np.zeros(1, dtype=np.int64)
    if by_step(part.analysis):
        rows = np.searchsorted(table.plan.steps, part.steps[block.first : block.last])
    down, across = np.meshgrid(rows, columns, indexing="ij")
    return down.ravel(), across.ravel()


def _side_by_side(outputs: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    outer = len(plan.analysis.cell)
    return {name: each.reshape(-1, *each.shape[outer:]) for name, each in outputs.items()}


def _kept(table: Table, identity: Identity, keeper: Keeper) -> str:
    kept = int(table.have.sum()) - keeper.pending
    return f"{kept:,} of {table.have.size:,} cells of {identity.kind.analysis} are kept"


# ------------------------------------------------------------------------------------- the result


def _finished(
    table: Table,
    trace: Trace,
    identity: Identity,
    messages: list[str],
    reused: int,
    started: float,
) -> xr.Dataset:
    plan, analysis = table.plan, table.plan.analysis
    result = labelled(plan, table.outputs)
    told = counts(result["status"], reused)
    result.attrs = {
        "analysis": analysis.name,
        "analysis_version": analysis.version,
        "summary": analysis.summary,
        "parameters": _plain(plan.parameters),
        "sources": dict(plan.sources),
        "run": trace.identity,
        "input_digest": reuse.input_digest(plan, trace),
        "basis": identity.kind.basis,
        "key": identity.key,
        "seed": plan.seed,
        "references": [reference.citation for reference in analysis.references],
        "software": _software(),
        "serial": 0,
        "created": datetime.now(UTC).isoformat(),
        "seconds": round(time.perf_counter() - started, 3),
        "reused_cells": told.reused,
        "computed_cells": told.computed,
        "failures": [message[:_MESSAGE_LENGTH] for message in messages[:_MESSAGES]],
        "n_failures": len(messages),
    }
    found = analysis.finding(result)
    result.attrs["finding"] = found.sentence
    result.attrs["warnings"] = [*found.warnings, *_lacking(plan, trace)]
    return result


def _lacking(plan: Plan, trace: Trace) -> list[str]:
    """Return of which ranks of a job a result has nothing, in words."""
    told = []
    for name in dict.fromkeys(plan.groups.values()):
        attrs = trace.groups[name].attrs if name.startswith(PREFIX) else {}
        missing = attrs.get("ranks_missing") or []
        if missing:
            there = sum(told_of[2] > 0 for told_of in attrs["ranks"].values())
            told.append(
                f"Of rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))} nothing is "
                f"recorded in {name}: the result is of the other {there} of "
                f"{there + len(missing)} ranks."
            )
    return told


def _store(
    table: Table, result: xr.Dataset, identity: Identity, results: Results, job: Job
) -> None:
    analysis = identity.kind.analysis

    def serial() -> int:
        # Not the time: a clock may be set back.
        found = results.entries(analysis)
        return min(1 + max((entry.age[0] for entry in found), default=0), 2**63 - 1)

    name = f"{identity.key}-{uuid.uuid4().hex[:8]}"
    shelves.store(job.shelf, job.path, name, result, serial)


def _clean(table: Table, identity: Identity, results: Results) -> None:
    """Remove what interrupted jobs left and the result makes superfluous."""
    for place in results.places:
        if not place.location.store.read_only:
            with suppress(OSError, TracelabError):
                unfinished.clean(place, identity.kind, table.holds, table.cell_shapes)


def _supersede(table: Table, identity: Identity, shelf: Shelf) -> None:
    """Remove results all of whose good cells are in this one, which is more recent.

    Whoever stores last of several jobs sees the results of all: the most recent remains.
    """
    with suppress(OSError, TracelabError):
        same = [
            entry
            for entry in shelves.entries(shelf, identity.kind.analysis)
            if entry.attrs["basis"] == identity.kind.basis
        ]
        age = max(entry.age for entry in same if entry.attrs["key"] == identity.key)
        for entry in same:
            if entry.age < age and _superfluous(entry, table, identity):
                remove(entry.location, entry.path)


def _superfluous(entry: Entry, table: Table, identity: Identity) -> bool:
    try:
        cells = reuse.cells_of(load(entry), table)
    except DamagedError:
        return bool(entry.attrs["key"] == identity.key)
    return cells is not None and table.holds(cells)


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in parameters.items()
    }


def _software() -> dict[str, str]:
    packages: Iterable[str] = ("tracelab", "numpy", "scipy", "numba", "statsmodels", "dask")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
